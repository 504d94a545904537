/* The layers in the order of the forward pass, and the cell of any tensor as a sum of other cells.
 *
 * A cell is (name, i, j). `owner` is the layer that a tensor is drawn in.
 */
let L, NH, C, HS, T, V, CAUSAL, PREDICTED, OVER, HEAD, HEAD_IN, TEXT, NEXT, WORDS, tokens, targets, layers, owner;

function build() {
  ({ n_layer: L, n_head: NH, n_embd: C, vocab_size: V, causal: CAUSAL } = study.config);
  ({ tokens, targets, text: TEXT, next: NEXT, words: WORDS } = study);
  HS = C / NH;
  HEAD = study.config.tie_word_embeddings ? 'wte.weight' : 'lm_head.weight';
  T = tokens.length;
  PREDICTED = targets.filter(v => v >= 0).length; // tokens, over which the loss is a mean
  OVER = PREDICTED === T ? 'T' : 'n';
  bytes = {};
  tensors = {};
  owner = {};
  layers = study.layers.map(({ id, kind, ins }) => ({
    id,
    ins,
    kind: kind in ACTIVATIONS ? 'activation' : kind,
    f: ACTIVATIONS[kind],
    file: kind,
    short: id.replace(/^h\.\d+\./, ''),
    block: /^h\.(\d+)/.exec(id)?.[1],
    w: ['linear', 'layernorm'].includes(kind) ? id : null,
  }));
  HEAD_IN = layers.find(n => n.kind === 'classifier').ins[0];
  // the stream: what residual connections put out, what passes by their branches, and what the head reads
  const past = layers.filter(n => n.kind === 'residual').map(n => n.ins[0]);
  for (const n of layers) {
    owner[n.id] = n;
    n.stream = n.kind === 'residual' || n.id === HEAD_IN || past.includes(n.id);
    if (n.kind === 'attention')
      for (let k = 0; k < NH; k++) for (const q of 'SP') owner[n.id.replace('heads', `${q}.${k}`)] = n;
    if (n.w) owner[n.w + '.weight'] = owner[n.w + '.bias'] = n;
  }
  owner.probs = owner.losses;
  owner['wte.weight'] = owner['wpe.weight'] = owner.positions = owner.embd;
  if (HEAD !== 'wte.weight') owner[HEAD] = owner.logits;
}

/* The formula of a model with biases or learned positions, or without, and the terms of a bias; the head's matrix in symbols. */
const withBias = (formula, part) => formula + (study.config.bias ? part : '');
const withPositions = (formula, part) => formula + (tensor('wpe.weight') ? part : '');
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
const hasTarget = t => targets[t] >= 0; // otherwise it is not masked, and costs nothing
const word = t => `“${TEXT[t]}”`;
const wordOf = v => WORDS[v] ?? `#${v}`;
const note = o => o.f?.note ?? `docs/layers/${o.kind === 'classifier' ? 'cross_entropy' : o.kind}.md`;

/* How many keys a query looks at, and a name or formula of them. */
const keyCount = t => (CAUSAL ? t + 1 : T);
const ofKeys = formula => (CAUSAL ? formula : formula.replaceAll('{u ≤ t}', 'u'));
const maskless = where => (CAUSAL ? where : `${where} of all`);
/* By what the scores of a block are divided: in symbols, in digits, and the factor. */
function scaleOf(block) {
  const { scale_attn_weights: ofWidth, scale_attn_by_inverse_layer_idx: ofBlock } = study.config;
  const by = [ofWidth && ['√HS', `√${HS}`, Math.sqrt(HS)], ofBlock && ['(l + 1)', +block + 1, +block + 1]].filter(Boolean);
  const [sym, text] = [0, 1].map(k => by.map(part => ` / ${part[k]}`).join(''));
  return { sym, text, factor: by.reduce((x, part) => x / part[2], 1) };
}

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
    note: note(o),
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
