/* The opened layer: what goes in, its parameters, what comes out, in the direction that is chosen. */
const PRE = { forward: '', backward: 'd:', step: 'D:' };
const ARROW = {
  forward: '<path d="M9 2v17M3 13l6 6 6-6"/>',
  backward: '<path d="M9 20V3M3 9l6-6 6 6"/>',
  step: '<path d="M9 4 16 18H2Z"/>',
};
const arrow = mode =>
  `<svg width="18" height="22" viewBox="0 0 18 22" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">${ARROW[mode]}</svg>`;
const flow = (f, b, s) =>
  `<div class="flow">${arrow(ui.mode)}<span class="math">${tex({ forward: f, backward: b, step: s }[ui.mode])}</span></div>`;

function labelled(name) {
  const m = tensor(PRE[ui.mode] + name);
  return `<b>${esc(pretty(PRE[ui.mode] + name))}</b> <span class="soft">(${m.r === 1 ? '' : `${m.r}, `}${m.c})</span>`;
}
const kindOf = name =>
  (name === 'probs' && ui.mode === 'forward') || (name === 'losses' && ui.mode !== 'step') ? 'seq' : 'div';
const wordNames = m => m.cols.map(wordOf);
function act(name, o = {}) {
  const m = tensor(PRE[ui.mode] + name),
    columns = /^(logits|probs)$/.test(name) && innerWidth > 700 ? wordNames(m) : undefined;
  return map({
    name: PRE[ui.mode] + name,
    title: labelled(name),
    labels: TEXT,
    byToken: true,
    kind: kindOf(name),
    cell: 38,
    columns,
    ...o,
  });
}
function par(name, o = {}) {
  const m = tensor(PRE[ui.mode] + name),
    flip = o.flip ?? m.r > m.c;
  const labels =
    m.r === 1
      ? [name.endsWith('bias') ? 'b' : 'w']
      : /^(wte|lm_head)\./.test(name) && !flip
        ? m.rows.map(wordOf)
        : undefined;
  const title = labelled(name) + (flip ? ' <span class="soft">drawn transposed</span>' : '');
  return map({ name: PRE[ui.mode] + name, title, cell: 38, cellH: 15, minH: 12, labels, ...o, flip });
}
const parameters = o => par(o.w + '.weight') + (study.config.bias ? par(o.w + '.bias') : '');
const says = o => ({
  embedding: [
    `Each token is looked up${positionTerms('', 0, 0).length ? ', its position added' : ''}. The stream begins.`,
    `What reaches the stream’s beginning is the gradient of ${tensor('wpe.weight') ? 'the two rows' : 'the row'} that made it.`,
    'How far the step moved each token’s first vector.',
  ],
  layernorm: [
    'Each token’s vector is brought to mean 0 and variance 1, then scaled and shifted.',
    'The gradient loses its parts along 1 and along x̂: a projection.',
    'Only direction counts here: a change of length is taken out again.',
  ],
  linear: [
    'One matrix, the same for each token.',
    'The same matrix, transposed, carries the gradient back; x and dy make the matrix’s own.',
    'The change of the output, by what came in and by the matrix itself.',
  ],
  attention: [
    'The only layer in which tokens see each other.',
    'The gradient goes back along the same arrows, weighted by the same P.',
    'Where the step moved each head’s attention.',
  ],
  rotary: [
    'Queries and keys are turned by angles that grow with the position; their product then depends on the distance.',
    'The gradient is turned back by the same angles.',
    'What the step changes is turned by the same angles.',
  ],
  residual: [
    'The branch is added to the stream.',
    'A sum copies its gradient: one copy for the stream, one for the branch.',
    'The changes of stream and branch add up.',
  ],
  activation: [
    'Each number alone: large ones pass, negative ones fade.',
    'Each gradient is multiplied by the slope at its own input.',
    'How the step moved each neuron.',
  ],
  classifier: [
    'Each token’s vector against each word’s embedding.',
    'Expected minus observed, pulled back through the embeddings.',
    'How the scores of the words moved.',
  ],
  cross_entropy: [
    CAUSAL
      ? 'Minus the log-probability of the word that comes next.'
      : 'Minus the log-probability of the word that was masked; other tokens cost nothing.',
    `p minus one-hot, over ${CAUSAL ? 'T' : 'the n masked tokens'}: here the backward pass begins.`,
    'What each token pays after the step, less what it paid before.',
  ],
})[o.kind][Object.keys(PRE).indexOf(ui.mode)];

const BODY = {
  embedding: o =>
    pair(par('wte.weight', HALF), positions()) +
    flow(
      `wte_{token}${{ learned: ' + wpe_t', sinusoidal: ' + P_t' }[study.config.position_embedding] ?? ''}`,
      withPositions('dwte += dx', '     dwpe = dx'),
      withPositions('Δwte', ' + Δwpe'),
    ) +
    act('embd'),
  layernorm: o =>
    act(o.ins[0]) +
    flow(
      withBias('x̂ = r (x − μ)     y = w x̂', ' + b'),
      'dx = r (u − ⟨u⟩ − x̂ ⟨u x̂⟩)     u = w ⊙ dy',
      withBias('Δw', ',  Δb'),
    ) +
    parameters(o) +
    flow('y', withBias('dw = Σ dy ⊙ x̂', '     db = Σ dy'), 'Δy') +
    act(o.id),
  linear: o =>
    act(o.ins[0]) +
    flow(withBias('y = x W', ' + b'), 'dx = dy W^T', withBias('Δy = Δx W + x ΔW + Δx ΔW', ' + Δb')) +
    parameters(o) +
    flow('y', withBias('dW = x^T dy', '     db = Σ dy'), 'Δy') +
    act(o.id) +
    spectrum(o),
  residual: o =>
    pair(act(o.ins[0], HALF), act(o.ins[1], HALF)) +
    flow('y = x_1 + x_2', 'dx_1 = dx_2 = dy', 'Δy = Δx_1 + Δx_2') +
    act(o.id),
  activation: o => act(o.ins[0]) + flow(`y = ${o.f.name}(x)`, `dx = dy · ${o.f.name}′(x)`, 'Δ') + act(o.id),
  rotary: o =>
    act(o.ins[0]) +
    flow(
      'y_i = x_i cos θ − x_j sin θ     y_j = x_j cos θ + x_i sin θ     j = i + HS/2',
      'dx_i = dy_i cos θ + dy_j sin θ     dx_j = dy_j cos θ − dy_i sin θ',
      'Δ',
    ) +
    act(o.id),
  classifier: o =>
    act(HEAD_IN) +
    flow(inHead('z = x wte^T'), inHead('dx = dz wte'), inHead('Δz = Δx wte + x Δwte + Δx Δwte')) +
    par(HEAD) +
    flow('z', inHead('dwte += dz^T x'), 'Δz') +
    act('logits'),
  cross_entropy: o =>
    act('logits') +
    (ui.mode === 'backward' ? '' : flow('p = softmax(z)', '', 'Δ') + act('probs')) +
    flow('ℓ_t = −log p_{t,target}', `dz = (p − [v = target]) / ${OVER}`, 'Δℓ') +
    act('losses', { cell: 60 }),
  attention: o => heads(o),
};
/* The parameters of the positions, or in their place the table of sines; a model may have neither. */
const positions = () =>
  tensor(PRE[ui.mode] + 'wpe.weight')
    ? par('wpe.weight', HALF)
    : positionTerms(PRE[ui.mode], 0, 0).length
      ? act('positions', HALF)
      : '';
const HALF = { style: 'flex:1 1 300px' };
const pair = (a, b) => `<div class="rowset">${a}${b}</div>`;

function openLayer() {
  views = views.filter(v => v.keep);
  const o = owner[ui.layer];
  const absent = [o.id, ...o.ins].find(name => !tensor(PRE[ui.mode] + name));
  const body = absent
    ? `<p class="badge" style="white-space:normal">The maps of this layer are not in the page. Its norms are in the list of layers; --layers ${o.block ?? 0} stores them.</p>`
    : BODY[o.kind](o);
  $('open').innerHTML =
    `<h2><span class="mono" style="font-size:17px">${o.id}</span> <span class="soft small" style="font-weight:400">layer ${layers.indexOf(o) + 1} of ${layers.length}</span></h2>
    <p class="says">${says(o)}</p>${body}${ui.mode === 'forward' ? lens(o.id) : ''}`;
}

/* What the head would read from the stream here: the likeliest words, computed when the page was made. */
function lens(name) {
  const rows = study.lens[name];
  if (!rows) return '';
  const guess =
    hit =>
    ([word, p], k) =>
      `<td>${k === hit ? `<b>${esc(word)} ✓</b>` : esc(word)} <span class="soft">${p.toFixed(2)}</span></td>`;
  const body = rows
    .map(
      (r, t) =>
        `<tr class="${t === ui.t ? 'mark' : ''}"><td>${esc(at(t))}</td>${r.best.map(guess(r.hit)).join('')}<td class="soft">${hasTarget(t) ? `${esc(NEXT[t])} ${r.target.toFixed(3)}` : ''}</td></tr>`,
    )
    .join('');
  return `<h3 style="margin:14px 0 4px">Lens: what the head would read from the stream here</h3>
    <div class="scroller"><table class="lens"><thead><tr><th>${CAUSAL ? 'after' : 'at'}</th><th>1st</th><th>2nd</th><th>3rd</th><th>target</th></tr></thead><tbody>${body}</tbody></table></div>`;
}

/* Singular values of the layer's matrix, beside the edges that random entries of the same size would have. */
function spectrum(o) {
  const s = study.spectra[o.w + '.weight'];
  if (!s || ui.mode !== 'forward') return '';
  const m = tensor(o.w + '.weight'),
    [low, high] = [Math.abs(Math.sqrt(m.r) - Math.sqrt(m.c)), Math.sqrt(m.r) + Math.sqrt(m.c)].map(x => x * s.rms);
  const most = Math.max(high, s.values[0]) * 1.05,
    W = 560,
    H = 150,
    x = k => 44 + (k / Math.max(1, s.values.length - 1)) * (W - 60),
    y = v => H - 20 - (v / most) * (H - 30);
  const edge = (v, text) =>
    `<path d="M44 ${y(v)}H${W - 16}" stroke="var(--minus)" stroke-dasharray="4 4"/><text x="${W - 16}" y="${y(v) - 4}" text-anchor="end">${text}</text>`;
  return `<h3 style="margin:14px 0 4px">Spectrum: singular values of W</h3>
    <div class="scroller"><svg class="curve" width="${W}" height="${H}" role="img" aria-label="Singular values from ${fmt(s.values[0], 3)} down to ${fmt(s.values.at(-1), 3)}; a random matrix of this size has them between ${fmt(low, 3)} and ${fmt(high, 3)}">
    <path d="M44 8V${H - 20}H${W - 16}" stroke="var(--soft)" fill="none"/><text x="38" y="${y(0)}" text-anchor="end">0</text><text x="38" y="${y(s.values[0]) + 4}" text-anchor="end">${fmt(s.values[0], 3)}</text>
    <text x="${W - 16}" y="${H - 4}" text-anchor="end">${s.values.length} values</text>${edge(high, 'random: at most')}${low > 0.02 * most ? edge(low, 'random: at least') : ''}
    <path d="${s.values.map((v, k) => `${k ? 'L' : 'M'}${x(k).toFixed(1)} ${y(v).toFixed(1)}`).join('')}" stroke="var(--plus)" stroke-width="2" fill="none"/></svg></div>`;
}
