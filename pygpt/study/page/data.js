'use strict';
/* The numbers: `study` is the table of the trace, a JSON of names, shapes and places, and the numbers themselves are
 * float32 in blocks of base64, one for each block of the model, decoded when one of its tensors is first asked for.
 *
 * A name without a prefix is an activation or a parameter; `d:` is its gradient, `D:` what the step changes it by,
 * and `m:` and `v:` are AdamW's moments before the step. Of a large model a window is stored: some rows and columns,
 * by their true numbers. What lies outside is NaN.
 */
let study = JSON.parse(document.getElementById('study').textContent);
let blockText = k => document.getElementById(`block-${k}`).textContent;
let bytes = {},
  tensors = {};

const many = (n, f) => Array.from({ length: n }, (_, k) => f(k));
const sum = a => {
  let s = 0;
  for (const x of a) s += x;
  return s;
};
const dot = (a, b) => {
  let s = 0;
  for (let i = 0; i < a.length; i++) s += a[i] * b[i];
  return s;
};
const get = (m, i, j) => m.d[m.at ? m.at(i, j) : i * m.c + j] ?? NaN;
/* Row i of a tensor that is stored whole, or the stored part of it. */
const row = (m, i, from = 0, n = m.cols.length) => {
  const a = m.rows.indexOf(i);
  return m.d.subarray(a * m.cols.length + from, a * m.cols.length + from + n);
};
const split = name => (/^[dDmv]:/.test(name) ? [name[0], name.slice(2)] : ['', name]);

function block(k) {
  if (!bytes[k]) {
    const text = atob(blockText(k).trim()),
      made = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) made[i] = text.charCodeAt(i);
    bytes[k] = made.buffer;
  }
  return bytes[k];
}

/* A tensor by name, null if there is none: { r, c: its true shape, rows, cols: the numbers of those stored, d }. */
function tensor(name) {
  if (!(name in tensors)) tensors[name] = read(name) ?? derive(name);
  return tensors[name];
}
function read(name) {
  const about = study.tensors[name];
  if (!about) return null;
  const [r, c] = about.shape,
    rows = study.windows[about.rows] ?? many(r, k => k),
    cols = study.windows[about.cols] ?? many(c, k => k);
  const whole = rows.length === r && cols.length === c,
    m = { r, c, rows, cols, whole };
  const stored = new Float32Array(
    block(about.block),
    about.offset,
    about.lower ? (r * (r + 1)) / 2 : rows.length * cols.length,
  );
  m.d = about.lower ? triangle(stored, r, about.lower === 'S' ? -Infinity : 0) : stored;
  if (!whole) {
    const rowAt = places(rows, r),
      colAt = places(cols, c);
    m.at = (i, j) => (rowAt[i] < 0 || colAt[j] < 0 ? -1 : rowAt[i] * cols.length + colAt[j]);
  }
  return m;
}
function places(numbers, n) {
  const at = new Int32Array(n).fill(-1);
  numbers.forEach((x, k) => {
    at[x] = k;
  });
  return at;
}
function triangle(stored, n, above) {
  const d = new Float64Array(n * n).fill(above);
  for (let i = 0, k = 0; i < n; i++) for (let j = 0; j <= i; j++) d[i * n + j] = stored[k++];
  return d;
}
const like = (m, f) => ({ ...m, d: Float64Array.from(m.d, (_, k) => f(k)) });

/* What follows from what is stored: P and its change from the scores, dS from P and dP, p from the logits; and the table of
 * positions that are not learned. */
function derive(name) {
  const [k, b] = split(name),
    head = /^(.*)\.([SP])\.(\d+)$/.exec(b);
  if (head) {
    const [, attn, q, n] = head,
      S = tensor(`${attn}.S.${n}`);
    if (!S) return null;
    if (k === '' && q === 'P') return softmax(S);
    if (k === 'D' && q === 'P') {
      const dS = tensor(`D:${attn}.S.${n}`),
        P = tensor(`${attn}.P.${n}`);
      const after = softmax(like(S, i => (S.d[i] === -Infinity ? -Infinity : S.d[i] + dS.d[i])));
      return like(P, i => after.d[i] - P.d[i]);
    }
    if (k === 'd' && q === 'S') {
      const P = tensor(`${attn}.P.${n}`),
        dP = tensor(`d:${attn}.P.${n}`),
        D = many(S.r, t => dot(row(P, t), row(dP, t)));
      return like(P, i => P.d[i] * (dP.d[i] - D[Math.floor(i / S.c)]));
    }
  }
  if (b === 'probs') {
    const z = tensor('logits'),
      lse = tensor('lse'),
      width = z.cols.length,
      p = like(z, i => Math.exp(z.d[i] - lse.d[Math.floor(i / width)]));
    if (k === '') return p;
    if (k === 'd') return tensor('d:logits');
    const dz = tensor('D:logits'),
      dlse = tensor('D:lse');
    return like(z, i => p.d[i] * Math.expm1(dz.d[i] - dlse.d[Math.floor(i / width)]));
  }
  if (name === 'positions' && study.config.position_embedding === 'sinusoidal') {
    const x = tensor('embd'),
      width = x.cols.length;
    return like(x, i => sinusoid(x.rows[Math.floor(i / width)], x.cols[i % width]));
  }
  if (k === 'm' || k === 'v') return tensor(b) && like(tensor(b), () => 0); // before the first step
  return null;
}
function softmax(S, beta = 1) {
  const P = like(S, () => 0);
  for (let t = 0; t < S.r; t++) {
    const s = row(S, t),
      most = Math.max(...s),
      e = Array.from(s, x => Math.exp(beta === 0 ? (x === -Infinity ? -Infinity : 0) : beta * (x - most)));
    const Z = sum(e);
    e.forEach((x, u) => {
      P.d[t * S.c + u] = x / Z;
    });
  }
  return P;
}
