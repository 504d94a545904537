/* Forward: what each layer puts out. */
function forwards(e, b, o, i, j) {
  const [x, x2] = o.ins,
    W = o.w + '.weight',
    B = o.w + '.bias';
  if (b === 'positions') sinusoidal(e, i, j);
  else if (o.kind === 'embedding') {
    const added = { learned: ' + wpe_{tc}', sinusoidal: ' + P_{tc}' }[study.config.position_embedding];
    e.sym = `x_{tc} = wte_{token(t),c}${added ?? ''}`;
    e.where = added ? 'embd' : 'embd alone';
    e.head = ['from', 'entry', ''];
    e.terms = [term(`token ${word(i)}`, R('wte.weight', tokens[i], j)), ...positionTerms('', i, j)];
  } else if (o.kind === 'rotary') turn(e, x, i, j, '', false);
  else if (o.kind === 'layernorm') {
    const mu = val(b + '.mean', i, 0),
      r = val(b + '.rstd', i, 0),
      h = (val(x, i, j) - mu) * r;
    e.sym = withBias('x̂_c = r (x_c − μ)      y_c = w_c x̂_c', ' + b_c');
    e.where = 'ln';
    e.lines = [line`μ = ⟨x⟩ = ${mu}`, line`r = 1/√(σ² + ε) = ${r}`, line`x̂ = ${r} × (${R(x, i, j)} − ${mu}) = ${h}`];
    e.head = ['part', 'w', 'x̂'];
    e.terms = [term('w x̂', R(W, 0, j), K(h)), ...bias('b', B, j)];
  } else if (o.kind === 'linear') {
    e.sym = withBias('y_{to} = Σ_i x_{ti} W_{io}', ' + b_o');
    e.where = 'lin';
    e.head = ['i', 'x', 'W'];
    e.terms = [...many(tensor(x).c, c => term(c, R(x, i, c), R(W, c, j))), ...bias('bias', B, j)];
  } else if (o.kind === 'attention') {
    const q = o.ins[0],
      hn = headOf(b),
      n = hn ? +hn[2] : qkvPart(j).n,
      h = n * HS;
    const S = o.id.replace('heads', 'S.' + n),
      P = o.id.replace('heads', 'P.' + n);

    if (hn?.[1] === 'S') {
      const by = scaleOf(o.block);
      e.sym = `S_{tu} = q_t · k_u${by.sym}`;
      e.where = maskless('S');
      e.head = ['i', 'q', 'k'];
      e.scale = by.factor;
      e.terms = many(HS, c => term(c, R(q, i, h + c), R(q, j, C + h + c)));
      e.post = [line`S = ${sum(e.terms.map(t => t.v))}${by.text} = ${e.value}`];
    } else if (hn) {
      const beta = ui.beta,
        Z = sum(many(keyCount(i), u => Math.exp(beta * val(S, i, u))));
      e.where = maskless('P');
      e.mark = j;
      e.label = at;
      e.sym = ofKeys(
        beta === 1
          ? 'P_{tu} = e^{S_{tu}} / Z_t      Z_t = Σ_{u ≤ t} e^{S_{tu}}'
          : 'P_{tu} = e^{β S_{tu}} / Z_t      Z_t = Σ_{u ≤ t} e^{β S_{tu}}',
      );
      e.bars = many(keyCount(i), u => ({ k: u, s: R(S, i, u), e: Math.exp(beta * val(S, i, u)) }));
      e.calc = Math.exp(beta * val(S, i, j)) / Z;
      if (beta !== 1) e.value = e.calc;
      e.post = [line`Z = ${Z}      lse = log Z = ${Math.log(Z)}`, line`P = ${e.bars[j].e} / ${Z} = ${e.value}`];
      e.checks = [['row of P sums to', e.bars.map(x => x.e / Z), 1]];
      e.say = `${word(i)} gives ${(100 * e.value).toFixed(1)} % of this head’s attention to ${word(j)}${beta === 1 ? '' : `, at β = ${beta.toFixed(2)}`}.`;
    } else {
      e.sym = ofKeys('y_t = Σ_{u ≤ t} P_{tu} v_u');
      e.where = maskless('y');
      e.head = ['u', 'P', 'v'];
      e.terms = many(keyCount(i), u => term(at(u), R(P, i, u), R(q, u, 2 * C + j)));
    }
  } else if (o.kind === 'residual') {
    e.sym = 'y = x_1 + x_2';
    e.where = 'resid';
    e.head = ['from', 'entry', ''];
    e.terms = [term('stream', R(x, i, j)), term('branch', R(x2, i, j))];
  } else if (o.kind === 'activation') {
    const z = val(x, i, j);
    e.sym = o.f.sym;
    e.where = o.file;
    e.lines = [line`x = ${R(x, i, j)}`, ...o.f.lines(z, e.value)];
    e.calc = o.f.of(z);
  } else if (b === 'logits') {
    e.sym = inHead('z_{tv} = Σ_c x_{tc} wte_{vc}');
    e.where = 'logits';
    e.head = ['c', 'x', inHead('wte')];
    e.terms = many(C, c => term(c, R(HEAD_IN, i, c), R(HEAD, j, c)));
  } else if (b === 'probs') {
    e.sym = 'p_{tv} = e^{z_{tv}} / Σ_{v′} e^{z_{tv′}}';
    e.where = 'loss';
    e.mark = j;
    e.label = wordOf;
    const Z = Math.exp(val('lse', i, 0));
    e.bars = tensor('logits').cols.map(v => ({ k: v, s: R('logits', i, v), e: Math.exp(val('logits', i, v)) }));
    if (!tensor('logits').whole) e.others = Z - sum(e.bars.map(x => x.e));
    const own = Math.exp(val('logits', i, j));
    e.calc = own / Z;
    e.post = [line`Z = ${Z}`, line`p = ${own} / ${Z} = ${e.value}`];
    if (tensor('logits').whole) e.checks = [['row of p sums to', row(tensor('probs'), i), 1]];
    e.say = `${CAUSAL ? 'After' : 'In place of'} ${word(i)} the model expects “${wordOf(j)}” with ${(100 * e.value).toFixed(1)} %.${j === targets[i] ? ' This is the target.' : ''}`;
  } else if (!hasTarget(i)) {
    e.sym = 'ℓ_t = 0';
    e.where = 'loss';
    e.calc = 0;
    e.say = 'There is no target here: the loss is that of the masked tokens alone.';
  } else {
    const z = R('logits', i, targets[i]),
      p = R('probs', i, targets[i]);
    e.sym = 'ℓ_t = log Σ_v e^{z_{tv}} − z_{t,target} = −log p_{t,target}';
    e.where = 'loss';
    e.lines = [
      line`log Σ e^z = ${val('lse', i, 0)}`,
      line`ℓ = ${val('lse', i, 0)} − ${z} = ${e.value}`,
      line`check: −log ${p} = ${-Math.log(p.v)}`,
    ];
    e.calc = val('lse', i, 0) - z.v;
    e.say = CAUSAL
      ? `What ${word(i)} pays for not being sure that “${NEXT[i]}” comes next.`
      : `What the model pays for not being sure that “${NEXT[i]}” stood here.`;
  }
}
