/* Backward: the gradient of each activation and of each parameter. */

/* The four parts that reach the stream through a LayerNorm, beside what passes by. */
function throughNorm(e, o, x, i, j, past) {
  const W = o.w + '.weight',
    r = val(o.id + '.rstd', i, 0),
    mu = val(o.id + '.mean', i, 0);
  const hat = c => (val(x, i, c) - mu) * r,
    u = c => val('d:' + o.id, i, c) * val(W, 0, c);
  const um = val(o.id + '.u', i, 0),
    uh = val(o.id + '.ux', i, 0);
  e.sym = `dx_c = ${past ? 'dx_c^{stream} + ' : ''}r (u_c − ⟨u⟩ − x̂_c ⟨u x̂⟩)      u = w ⊙ dy`;
  e.where = 'dln';
  e.lines = [
    line`u = ${R(W, 0, j)} × ${R('d:' + o.id, i, j)} = ${u(j)}`,
    line`⟨u⟩ = ${um}      ⟨u x̂⟩ = ${uh}`,
    line`x̂ = ${hat(j)}      r = ${r}`,
  ];
  e.head = ['part', '', ''];
  e.terms = [
    ...(past ? [term('stream', R(past, i, j))] : []),
    term('r u', K(r), K(u(j))),
    term('−r ⟨u⟩', K(-r), K(um)),
    term('−r x̂ ⟨u x̂⟩', K(-r * hat(j)), K(uh)),
  ];
  if (tensor(x).whole)
    e.checks = [['LayerNorm’s part of the row sums to', many(C, c => r * (u(c) - um - hat(c) * uh)), 0]];
}

function backwards(e, b, o, i, j) {
  e.slope = true;
  const next = reader(b).find(n => n.kind !== 'residual'),
    sumOf = reader(b).find(n => n.kind === 'residual'), // of a branch, or what passes by it
    hn = headOf(b);
  if (b === 'losses') {
    e.sym = `∂L/∂ℓ_t = 1/${OVER}`;
    e.where = 'dz';
    e.lines = [line`= 1 / ${PREDICTED} = ${e.value}`];
    e.calc = 1 / PREDICTED;
    if (!hasTarget(i)) e.say = 'There is no target here: the loss stays 0, and no gradient begins.';
  } else if ((b === 'logits' || b === 'probs') && !hasTarget(i)) {
    e.sym = 'dz_{tv} = 0';
    e.where = 'dz';
    e.calc = 0;
    e.say = 'There is no target here: the loss stays 0, and no gradient begins.';
  } else if (b === 'logits' || b === 'probs') {
    e.sym = `dz_{tv} = (p_{tv} − [v = target]) / ${OVER}`;
    e.where = 'dz';
    const hit = j === targets[i] ? 1 : 0;
    e.lines = [line`= (${R('probs', i, j)} − ${hit}) × ${R('d:losses', i, 0)} = ${e.value}`];
    e.calc = (val('probs', i, j) - hit) / PREDICTED;
    if (tensor('logits').whole) e.checks = [['row of dz sums to', row(tensor('d:logits'), i), 0]];
  } else if (next?.kind === 'classifier') {
    e.sym = inHead('dx_{tc} = Σ_v dz_{tv} wte_{vc}');
    e.where = 'dlnf';
    e.head = ['v', 'dz', inHead('wte')];
    e.terms = many(V, v => term(wordOf(v), R('d:logits', i, v), R(HEAD, v, j)));
  } else if (hn) {
    const q = o.ins[0],
      n = +hn[2],
      P = o.id.replace('heads', 'P.' + n),
      dP = 'd:' + P,
      dy = 'd:' + o.id,
      h = n * HS;

    if (hn[1] === 'P') {
      e.sym = 'dP_{tu} = dy_t · v_u';
      e.where = 'dP';
      e.head = ['i', 'dy', 'v'];
      e.terms = many(HS, c => term(c, R(dy, i, h + c), R(q, j, 2 * C + h + c)));
    } else {
      const D = many(keyCount(i), u => term(at(u), R(P, i, u), R(dP, i, u))),
        total = sum(D.map(t => t.v));
      e.sym = 'dS_{tu} = P_{tu} (dP_{tu} − D_t)      D_t = Σ_u P_{tu} dP_{tu}';
      e.where = 'dS';
      e.side = { title: 'D_t, the mean of dP under P', head: ['u', 'P', 'dP'], terms: D, sum: total };
      e.post = [line`dS = ${R(P, i, j)} × (${R(dP, i, j)} − ${total}) = ${e.value}`];
      e.calc = val(P, i, j) * (val(dP, i, j) - total);
      e.checks = [['row of dS sums to', row(tensor(e.name), i), 0]];
      if (tensor(o.id).whole)
        e.checks.push(['D = dy · y =', many(HS, c => val(dy, i, h + c) * val(o.id, i, h + c)), total]);
    }
  } else if (next?.kind === 'attention') {
    const { part, n, i: c, o: h } = qkvPart(j),
      dS = 'd:' + next.id.replace('heads', 'S.' + n),
      P = next.id.replace('heads', 'P.' + n),
      q = b;
    e.where = ['dq', 'dk', 'dv'][part];
    const by = scaleOf(next.block);
    if (part < 2) e.scale = by.factor;
    const over = (a, x) =>
      many(T, k => k)
        .filter(a)
        .map(x);
    if (part === 0) {
      e.sym = `dq_t = Σ_u dS_{tu} k_u${by.sym}`;
      e.head = ['u', 'dS', 'k'];
      e.terms = over(
        u => u < keyCount(i),
        u => term(at(u), R(dS, i, u), R(q, u, C + h + c)),
      );
    }
    if (part === 1) {
      e.sym = `dk_u = Σ_t dS_{tu} q_t${by.sym}`;
      e.head = ['t', 'dS', 'q'];
      e.terms = over(
        t => i < keyCount(t),
        t => term(at(t), R(dS, t, i), R(q, t, h + c)),
      );
      e.checks = [['Σ_u dk_u, this channel', many(T, u => val(e.name, u, j)), 0]];
    }
    if (part === 2) {
      e.sym = 'dv_u = Σ_t P_{tu} dy_t';
      e.head = ['t', 'P', 'dy'];
      e.terms = over(
        t => i < keyCount(t),
        t => term(at(t), R(P, t, i), R('d:' + next.id, t, h + c)),
      );
    }
    if (part < 2)
      e.post = [line`${'dq dk'.slice(part * 3, part * 3 + 2)} = ${sum(e.terms.map(t => t.v))}${by.text} = ${e.value}`];
  } else if (next?.kind === 'rotary') turn(e, 'd:' + next.id, i, j, '', true);
  else if (next?.kind === 'layernorm') throughNorm(e, next, b, i, j, sumOf && 'd:' + sumOf.id);
  else if (next?.kind === 'activation') {
    const x = R(b, i, j),
      { name, slope, slopeLines, dsym } = next.f;
    e.sym = dsym;
    e.where = 'd' + next.file;
    e.head = ['', 'dy', `${name}′(x)`];
    e.lines = [line`x = ${x}`, ...slopeLines(x.v)];
    e.terms = [term('', R('d:' + next.id, i, j), K(slope(x.v)))];
  } else if (next) {
    // where LayerNorm comes after the sum, a branch's input is also what passes by it
    const W = next.w + '.weight';
    e.sym = `dx_{ti} = ${sumOf ? 'dx_{ti}^{stream} + ' : ''}Σ_o dy_{to} W_{io}`;
    e.where = 'dlin';
    e.head = ['o', 'dy', 'W'];
    e.terms = [
      ...(sumOf ? [term('stream', R('d:' + sumOf.id, i, j))] : []),
      ...many(tensor(W).c, c => term(c, R('d:' + next.id, i, c), R(W, j, c))),
    ];
  } else {
    e.sym = 'dx_2 = dy';
    e.where = 'dresid';
    e.lines = [line`= ${R('d:' + sumOf.id, i, j)}      the sum hands its gradient to both branches`];
    e.calc = val('d:' + sumOf.id, i, j);
  }
}

function gradient(e, b, o, i, j) {
  e.slope = true;
  if (b === HEAD || b === 'wte.weight') {
    const ofHead = 'Σ_t dz_{tv} x_{tc}',
      ofInput = 'Σ_{t: token = v} dx_{tc}^{embd}',
      parts = [b === HEAD && ofHead, b === 'wte.weight' && ofInput].filter(Boolean);
    e.sym = `d${b === HEAD ? inHead('wte') : 'wte'}_{vc} = ${parts.join(' + ')}`;
    e.where = b === HEAD ? 'dwte' : 'dembd';
    e.head = ['from', b === HEAD ? 'dz' : 'dx', b === HEAD ? 'x' : ''];
    const heads = many(T, t => term(`head, t ${t}`, R('d:logits', t, i), R(HEAD_IN, t, j))),
      inputs = many(T, t => t)
        .filter(t => tokens[t] === i)
        .map(t => term(`input, t ${t}`, R('d:embd', t, j)));
    e.terms = [...(b === HEAD ? heads : []), ...(b === 'wte.weight' ? inputs : [])];
  } else if (b === 'wpe.weight') {
    e.sym = 'dwpe_{tc} = dx_{tc}^{embd}';
    e.where = 'dwpe';
    e.lines = [line`= ${R('d:embd', i, j)}`];
    e.calc = val('d:embd', i, j);
  } else if (o.kind === 'layernorm') {
    const x = o.ins[0],
      w = b.endsWith('weight');
    e.sym = w ? 'dw_c = Σ_t dy_{tc} x̂_{tc}' : 'db_c = Σ_t dy_{tc}';
    e.where = 'dlnw';
    e.head = ['t', 'dy', w ? 'x̂' : ''];
    e.terms = many(T, t =>
      term(
        at(t),
        R('d:' + o.id, t, j),
        ...(w ? [K((val(x, t, j) - val(o.id + '.mean', t, 0)) * val(o.id + '.rstd', t, 0))] : []),
      ),
    );
  } else {
    const w = b.endsWith('weight'),
      x = o.ins[0];
    e.sym = w ? 'dW_{io} = Σ_t x_{ti} dy_{to}' : 'db_o = Σ_t dy_{to}';
    e.where = w ? 'dW' : 'db';
    e.head = ['t', w ? 'x' : 'dy', w ? 'dy' : ''];
    e.terms = many(T, t => term(at(t), ...(w ? [R(x, t, i)] : []), R('d:' + o.id, t, j)));
  }
}
