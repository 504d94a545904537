/* Numbers, formulas and colours. */
const $ = id => document.getElementById(id);
const esc = s => String(s).replace(/[&<>"]/g, c => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]);
const SUP = '⁰¹²³⁴⁵⁶⁷⁸⁹';
function fmt(x, n = 4) {
  if (x === 0) return '0';
  if (Number.isNaN(x)) return '–';
  if (!isFinite(x)) return x < 0 ? '−∞' : '∞';
  const a = Math.abs(x),
    sign = x < 0 ? '−' : '';
  if (String(a).length <= n + 1 && a < 1e5 && a >= 1e-4) return sign + a;
  if (a >= 1e-3 && a < 10 ** n) return sign + a.toPrecision(n);
  const [m, e] = a.toExponential(n - 2).split('e');
  return `${sign}${m}·10${e[0] === '-' ? '⁻' : ''}${[...e.slice(1)].map(c => SUP[c]).join('')}`;
}
const signed = (x, n) => (x > 0 ? '+' : '') + fmt(x, n);
const UPRIGHT = new Set([
  'exp',
  'log',
  'tanh',
  'lse',
  'target',
  'token',
  'lr',
  'gelu',
  'relu',
  'max',
  'erfc',
  'cos',
  'sin',
  'where',
  'otherwise',
  'wte',
  'wpe',
  'dwte',
  'dwpe',
  'Δwte',
  'Δwpe',
  'dhead',
  'Δhead',
  'stream',
  'embd',
  'after',
  'before',
  'HS',
  'head',
  'fresh',
  'times',
  'plus',
  'each',
  'softmax',
  'and',
  'sum',
  'minus',
  'one',
  'AdamW',
]);
function tex(s) {
  return s
    .split(/ {3,}/)
    .map(part => {
      let out = '',
        k = 0;
      while (k < part.length) {
        const c = part[k];
        if (c === '_' || c === '^') {
          let n = k + 2,
            body = part[k + 1];
          if (body === '{') {
            let depth = 1;
            while (depth) {
              if (part[n] === '{') depth++;
              if (part[n] === '}') depth--;
              n++;
            }
            body = part.slice(k + 2, n - 1);
          }
          out += c === '_' ? `<sub>${tex(body)}</sub>` : `<sup>${tex(body)}</sup>`;
          k = n;
        } else {
          const w = /^[A-Za-zα-ωΔℓ\u0302]+/.exec(part.slice(k).normalize('NFD'))?.[0];
          if (w) {
            out += UPRIGHT.has(w) ? w : `<i>${w}</i>`;
            k += w.length;
          } else {
            out += esc(c);
            k++;
          }
        }
      }
      return out;
    })
    .join('<span class="gap"></span>');
}
const RAMP = {
  light: {
    zero: [241, 239, 233],
    seq: [
      [176, 160, 208],
      [53, 28, 104],
    ],
    plus: [
      [133, 178, 219],
      [8, 66, 130],
    ],
    minus: [
      [240, 166, 112],
      [150, 52, 4],
    ],
  },
  dark: {
    zero: [38, 42, 49],
    seq: [
      [120, 98, 186],
      [232, 220, 255],
    ],
    plus: [
      [62, 122, 184],
      [190, 224, 255],
    ],
    minus: [
      [184, 98, 44],
      [255, 212, 172],
    ],
  },
};
const dark = () => document.documentElement.dataset.theme === 'dark';
function shade(x, most, kind) {
  // [r, g, b]: zero is the colour of the paper, in every map
  const ramp = RAMP[dark() ? 'dark' : 'light'],
    [mid, end] = kind === 'seq' ? ramp.seq : x < 0 ? ramp.minus : ramp.plus;
  const r = most ? Math.min(1, Math.abs(x) / most) : 0,
    [a, b, f] = r < 0.5 ? [ramp.zero, mid, r * 2] : [mid, end, r * 2 - 1];
  return a.map((v, k) => Math.round(v + (b[k] - v) * f));
}
const colour = (x, most, kind) => `rgb(${shade(x, most, kind).join(',')})`;
const gradientOf = kind =>
  `linear-gradient(90deg,${many(9, k => colour(kind === 'seq' ? k / 8 : k / 4 - 1, 1, kind)).join(',')})`;
