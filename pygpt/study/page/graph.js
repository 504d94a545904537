/* The layers in the order of the forward pass, and the cell of any tensor as a sum of other cells.
 *
 * A cell is (name, i, j). `owner` is the layer that a tensor is drawn in.
 */
let L, NH, C, HS, T, I, V, HEAD, TEXT, NEXT, WORDS, tokens, targets, layers, owner;

function layer(id, kind, ins, extra = {}) {
  const short = id.replace(/^h\.\d+\./, ''),
    block = /^h\.(\d+)/.exec(id)?.[1];
  layers.push((owner[id] = { id, kind, ins, short, block, w: null, ...extra }));
}

function build() {
  ({ n_layer: L, n_head: NH, n_embd: C, n_inner: I, vocab_size: V } = study.config);
  ({ tokens, targets, text: TEXT, next: NEXT, words: WORDS } = study);
  HS = C / NH;
  HEAD = study.config.tie_word_embeddings ? 'wte.weight' : 'lm_head.weight';
  T = tokens.length;
  layers = [];
  owner = {};
  bytes = {};
  tensors = {};
  layer('embd', 'embd', [], { stream: true });
  let x = 'embd';
  for (let l = 0; l < L; l++) {
    const h = `h.${l}.`;
    layer(h + 'ln_1', 'ln', [x], { w: h + 'ln_1' });
    layer(h + 'attn.c_attn', 'lin', [h + 'ln_1'], { w: h + 'attn.c_attn' });
    layer(h + 'attn.heads', 'attn', [h + 'attn.c_attn']);
    layer(h + 'attn.c_proj', 'lin', [h + 'attn.heads'], { w: h + 'attn.c_proj' });
    layer(h + 'resid_mid', 'resid', [x, h + 'attn.c_proj'], { stream: true });
    layer(h + 'ln_2', 'ln', [h + 'resid_mid'], { w: h + 'ln_2' });
    layer(h + 'mlp.c_fc', 'lin', [h + 'ln_2'], { w: h + 'mlp.c_fc' });
    layer(h + 'mlp.act', 'gelu', [h + 'mlp.c_fc']);
    layer(h + 'mlp.c_proj', 'lin', [h + 'mlp.act'], { w: h + 'mlp.c_proj' });
    x = h + 'resid_post';
    layer(x, 'resid', [h + 'resid_mid', h + 'mlp.c_proj'], { stream: true });
  }
  layer('ln_f', 'ln', [x], { w: 'ln_f', stream: true });
  layer('logits', 'head', ['ln_f']);
  layer('losses', 'loss', ['logits']);
  for (const n of layers) {
    if (n.kind === 'attn')
      for (let k = 0; k < NH; k++) for (const q of 'SP') owner[n.id.replace('heads', `${q}.${k}`)] = n;
    if (n.w) owner[n.w + '.weight'] = owner[n.w + '.bias'] = n;
  }
  owner.probs = owner.losses;
  owner['wte.weight'] = owner['wpe.weight'] = owner.embd;
  if (HEAD !== 'wte.weight') owner[HEAD] = owner.logits;
}

/* The formula of a model with biases, or without, and the terms of one; the head's matrix in symbols. */
const withBias = (formula, part) => formula + (study.config.bias ? part : '');
const bias = (k, n, j) => (study.config.bias ? [term(k, R(n, 0, j))] : []);
const inHead = formula => (HEAD === 'wte.weight' ? formula : formula.replaceAll('wte', 'head'));
const isParameter = name => /\.(weight|bias)$/.test(name);
const isStored = n => !!tensor(n.id); // whether its maps can be drawn
const reader = name => layers.filter(n => n.ins.includes(name)); // the layers that read an activation
const headOf = name => /\.([SP])\.(\d+)$/.exec(name);
const val = (name, i, j) => {
  const m = tensor(name);
  return m ? get(m, i, j) : NaN;
};
const R = (n, i, j) => ({ n, i, j, v: val(n, i, j) }); // a number with its place
const K = (v, text) => ({ v, text }); // a number without one
const line = (s, ...v) => ({ s, v });
const term = (k, ...f) => ({ k, f, v: f.reduce((p, x) => p * x.v, 1) });
const at = t => `${t} ${TEXT[t]}`;
const word = t => `“${TEXT[t]}”`;
const wordOf = v => WORDS[v] ?? `#${v}`;
const note = kind =>
  `docs/layers/${{ embd: 'embedding', ln: 'layernorm', lin: 'linear', attn: 'attention', resid: 'residual', gelu: 'gelu' }[kind] ?? 'cross_entropy'}.md`;

const GK = Math.sqrt(2 / Math.PI),
  GC = 0.044715;
const dgelu = x => {
  const t = Math.tanh(GK * (x + GC * x ** 3));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GK * (1 + 3 * GC * x * x);
};

function qkvPart(j) {
  const n = Math.floor((j % C) / HS);
  return { part: Math.floor(j / C), n, i: j % HS, o: n * HS };
}

/* What the panel shows of a cell: value, sym(bols), lines and terms that add up to calc, checks, where it is computed. */
function explain(name, i, j) {
  const [k, b] = split(name),
    o = owner[b];
  const e = {
    name,
    i,
    j,
    value: val(name, i, j),
    lines: [],
    post: [],
    checks: [],
    scale: 1,
    head: ['', '', ''],
    note: note(o.kind),
  };
  if (k === 'd') (isParameter(b) ? gradient : backwards)(e, b, o, i, j);
  else if (k === 'D') (isParameter(b) ? update : changed)(e, b, o, i, j);
  else (isParameter(b) ? parameter : forwards)(e, b, o, i, j);
  if (e.terms) complete(e);
  e.lines = e.lines.filter(l => l.v.every(v => !Number.isNaN(v.v ?? v)));
  e.calc ??= e.terms ? sum(e.terms.map(t => t.v)) * e.scale : e.value;
  return e;
}

/* Terms whose factors lie outside the window become one term: what is missing of the sum. */
function complete(e) {
  const inside = e.terms.filter(t => !isNaN(t.v)),
    outside = e.terms.length - inside.length;
  if (!outside) return;
  const v = e.value / e.scale - sum(inside.map(t => t.v));
  e.terms = [...inside, { k: `${outside} outside the window`, f: [K(v)], v, rest: true }];
}

function parameter(e, b, i, j) {
  e.where = 'adamw';
  e.note = 'docs/layers/adamw.md';
  e.say = 'A parameter, learnt. Its gradient is in the backward view, its update in the step view.';
  e.sym = 'w ← w + Δw';
  e.lines = [line`w: ${e.value} → ${e.value + val('D:' + b, i, j)}, Δw = ${R('D:' + b, i, j)}`];
}
