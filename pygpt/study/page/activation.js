/* The nonlinearities of the feed-forward part, by the names of their files: y = f(x) and its slope, as functions and in
 * symbols, and the lines that have their numbers. */
const GK = Math.sqrt(2 / Math.PI),
  GC = 0.044715;
const geluTanh = x => Math.tanh(GK * (x + GC * x ** 3));
const density = x => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
/* Φ(x): a continued fraction in the tail, and nearer to 0 the series of Marsaglia (2004). */
function distribution(x) {
  if (x > 0) return 1 - distribution(-x);
  if (x < -3) return density(x) / many(60, k => 60 - k).reduce((f, k) => k / f - x, -x);
  let part = x,
    s = x;
  for (let k = 3; k < 80; k += 2) s += part *= (x * x) / k;
  return 0.5 + density(x) * s;
}

const ACTIVATIONS = {
  gelu: {
    note: 'docs/layers/gelu.md',
    name: 'gelu',
    sym: 'y = ½ x (1 + t)      t = tanh(√(2/π) (x + 0.044715 x³))',
    dsym: 'dx = dy · gelu′(x)',
    of: x => 0.5 * x * (1 + geluTanh(x)),
    slope: x => {
      const t = geluTanh(x);
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GK * (1 + 3 * GC * x * x);
    },
    lines: (x, y) => [
      line`t = tanh(${GK * (x + GC * x ** 3)}) = ${geluTanh(x)}`,
      line`y = ½ × ${x} × (1 + ${geluTanh(x)}) = ${y}`,
    ],
    slopeLines: x => [line`gelu′(x) = ${ACTIVATIONS.gelu.slope(x)}`],
  },
  exact_gelu: {
    note: 'docs/variations.md',
    name: 'gelu',
    sym: 'y = x Φ(x)      Φ(x) = ½ erfc(−x/√2)',
    dsym: 'dx = dy (Φ(x) + x φ(x))      φ(x) = e^{−x²/2} / √(2π)',
    of: x => x * distribution(x),
    slope: x => distribution(x) + x * density(x),
    lines: (x, y) => [line`Φ(x) = ${distribution(x)}`, line`y = ${x} × ${distribution(x)} = ${y}`],
    slopeLines: x => [
      line`Φ(x) = ${distribution(x)}      φ(x) = ${density(x)}`,
      line`gelu′(x) = ${distribution(x)} + ${x} × ${density(x)} = ${ACTIVATIONS.exact_gelu.slope(x)}`,
    ],
  },
  relu: {
    note: 'docs/variations.md',
    name: 'relu',
    sym: 'y = max(x, 0)',
    dsym: 'dx = dy where x > 0, otherwise 0',
    of: x => Math.max(x, 0),
    slope: x => (x > 0 ? 1 : 0),
    lines: (x, y) => [line`y = max(${x}, 0) = ${y}`],
    slopeLines: x => [line`relu′(x) = ${ACTIVATIONS.relu.slope(x)}`],
  },
};
