/* Step: what AdamW adds to each parameter, and what that changes in each activation. */

function update(e, b, o, i, j) {
  const { lr, beta1, beta2, eps, weight_decay: decay, clip, n } = study.step;
  const g = R('d:' + b, i, j),
    w = R(b, i, j),
    m0 = val('m:' + b, i, j),
    v0 = val('v:' + b, i, j);
  const clipped = g.v * clip,
    m = beta1 * m0 + (1 - beta1) * clipped,
    v = beta2 * v0 + (1 - beta2) * clipped ** 2;
  const mh = m / (1 - beta1 ** n),
    vh = v / (1 - beta2 ** n),
    lambda = tensor(b).r > 1 ? decay : 0;
  const power = [...String(n)].map(c => SUP[c]).join('');
  e.sym = 'Δw = −lr (m̂ / (√v̂ + ε) + λ w)';
  e.where = 'adamw';
  e.note = 'docs/layers/adamw.md';
  e.head = ['part', '−lr', 'part'];
  e.lines = [
    line`λ = ${lambda}${lambda ? '' : ' (a vector does not decay)'}      g = ${g} × ${clip} (clipped) = ${clipped}`,
    line`m = β₁ m + (1 − β₁) g = ${beta1} × ${m0} + ${+(1 - beta1).toFixed(6)} × ${clipped} = ${m}`,
    line`v = β₂ v + (1 − β₂) g² = ${beta2} × ${v0} + ${+(1 - beta2).toFixed(6)} × ${clipped ** 2} = ${v}`,
    line`m̂ = m / (1 − β₁${power}) = ${mh}`,
    line`v̂ = v / (1 − β₂${power}) = ${vh}`,
  ];
  e.terms = [term('m̂ / (√v̂ + ε)', K(-lr), K(mh / (Math.sqrt(vh) + eps))), term('λ w', K(-lr), K(lambda * w.v))];
  e.post = [line`w: ${w} → ${w.v + e.value}`, line`expected of this weight alone: g Δw = ${g.v * e.value}`];
}

/* Δ(x W) = Δx W + x ΔW + Δx ΔW over the channels c; W(c) is the name and place of the weight that x_c meets. */
function productChange(x, i, channels, W) {
  const part = (left, right) =>
    K(
      sum(
        many(channels, c => {
          const [n, a, b] = W(c);
          return val(left + x, i, c) * val(right + n, a, b);
        }),
      ),
    );
  return [part('D:', ''), part('', 'D:'), part('D:', 'D:')];
}

function changed(e, b, o, i, j) {
  const x = o.ins[0],
    hn = headOf(b);
  e.head = ['part', '', ''];
  e.where = hn
    ? maskless(hn[1])
    : {
        linear: 'lin',
        residual: 'resid',
        embedding: positionTerms('', i, j).length ? 'embd' : 'embd alone',
        classifier: 'logits',
        layernorm: 'ln',
        attention: maskless('y'),
        activation: o.file,
        cross_entropy: 'loss',
      }[o.kind];
  if (o.kind === 'linear' && tensor(x).whole) {
    const [a, c, d] = productChange(x, i, tensor(x).c, k => [o.w + '.weight', k, j]);
    e.sym = withBias('Δy = Δx W + x ΔW + Δx ΔW', ' + Δb');
    e.terms = [term('Δx W', a), term('x ΔW', c), term('Δx ΔW', d), ...bias('Δb', 'D:' + o.w + '.bias', j)];
  } else if (b === 'logits' && tensor(HEAD_IN).whole) {
    const [a, c, d] = productChange(HEAD_IN, i, C, k => [HEAD, j, k]);
    e.sym = inHead('Δz = Δx wte + x Δwte + Δx Δwte');
    e.terms = [term(inHead('Δx wte'), a), term(inHead('x Δwte'), c), term(inHead('Δx Δwte'), d)];
  } else if (o.kind === 'residual') {
    e.sym = 'Δy = Δx_1 + Δx_2';
    e.terms = [term('stream', R('D:' + x, i, j)), term('branch', R('D:' + o.ins[1], i, j))];
  } else if (o.kind === 'rotary') turn(e, 'D:' + x, i, j, 'Δ', false);
  else if (o.kind === 'embedding') {
    e.sym = withPositions('Δx = Δwte', ' + Δwpe');
    e.terms = [term(`token ${word(i)}`, R('D:wte.weight', tokens[i], j)), ...positionTerms('D:', i, j)];
  } else {
    e.sym = 'Δ = after − before';
    const before = val(b, i, j);
    e.terms =
      hn && j >= keyCount(i) ? [] : [term('after', K(before + e.value)), term('before', { ...R(b, i, j), minus: 1, v: -before })];
  }
}
