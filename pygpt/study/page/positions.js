/* Positions that are not learned: angles that grow with the position t, in a table of sines that is added to the embedding, or
 * as the turn of queries and keys. */
const angle = (t, i, n) => t * 10000 ** ((-2 * i) / n);
const sinusoid = (t, c) => (c % 2 ? Math.cos : Math.sin)(angle(t, c >> 1, C)) / Math.sqrt(C);

/* What the embedding adds for position t in channel c, if anything, with its place. */
const positionTerms = (k, t, c) => {
  const n = { learned: 'wpe.weight', sinusoidal: 'positions' }[study.config.position_embedding];
  return n && tensor(k + n) ? [term(`position ${t}`, R(k + n, t, c))] : [];
};
function sinusoidal(e, t, c) {
  const name = c % 2 ? 'cos' : 'sin',
    theta = angle(t, c >> 1, C);
  e.sym = `P_{t,${c % 2 ? '2i+1' : '2i'}} = ${name} θ_{ti} / √C      θ_{ti} = t / 10000^{2i/C}`;
  e.where = 'positions';
  e.say = 'Of a table that is not learned: the position as sines and cosines of many wavelengths.';
  e.lines = [
    line`i = ${c >> 1}      θ = ${t} / 10000^(${2 * (c >> 1)}/${C}) = ${theta}`,
    line`P = ${name} θ / √${C} = ${e.value}`,
  ];
  e.calc = sinusoid(t, c);
}

/* Channel j of what rotary.py turns, or turns back: own number and partner's. mark: of both sides, as Δ; x: what is turned. */
function turn(e, x, t, j, mark, back) {
  const { part, i } = qkvPart(j),
    half = HS / 2,
    first = i < half,
    [to, from] = back ? ['dx', 'dy'] : [`${mark}y`, `${mark}x`];
  e.where = back ? 'drotary' : part === 2 ? 'rotary value' : first ? 'rotary' : 'rotary partner';
  e.head = ['channel', '', ''];
  if (part === 2) {
    e.sym = `${to} = ${from}`;
    if (!back) e.say = 'Values are not turned, only queries and keys.';
    e.terms = [term('its own', R(x, t, j))];
    return;
  }
  const theta = angle(t, i % half, HS),
    plus = first === back,
    names = first ? ['i', 'j'] : ['j', 'i'];
  e.sym = `${to}_${names[0]} = ${from}_${names[0]} cos θ ${plus ? '+' : '−'} ${from}_${names[1]} sin θ      j = i + HS/2      θ = t / 10000^{2i/HS}`;
  e.lines = [
    line`i = ${i % half}      θ = ${t} / 10000^(${2 * (i % half)}/${HS}) = ${theta}`,
    line`cos θ = ${Math.cos(theta)}      sin θ = ${Math.sin(theta)}`,
  ];
  e.terms = [
    term('its own', R(x, t, j), K(Math.cos(theta))),
    term('its partner', R(x, t, first ? j + half : j - half), K(plus ? Math.sin(theta) : -Math.sin(theta))),
  ];
}
