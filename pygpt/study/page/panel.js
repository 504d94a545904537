/* The explanation of one number, and the way from one number to the next. */
let deps = new Set(),
  shown = null;

const num = x =>
  x.n
    ? `<button class="num" data-n="${x.n}" data-i="${x.i}" data-j="${x.j}" title="${pretty(x.n)} [${x.i}, ${x.j}]">${fmt(x.minus ? -x.v : x.v)}</button>`
    : (x.text ?? fmt(x.v));
function lineHTML(l) {
  const one = (v, before) => {
    if (typeof v === 'string') return esc(v);
    const x = typeof v === 'number' ? v : v.v,
      text = typeof v === 'number' ? fmt(v) : num(v);
    return x < 0 && /[−×+] $/.test(before) ? `(${text})` : text;
  };
  return (
    '<p>' +
    l.s
      .map(
        (s, k) =>
          esc(s).replace(/ {3,}/g, '<span style="display:inline-block;width:1.2em"></span>') +
          (k < l.v.length ? one(l.v[k], s) : ''),
      )
      .join('') +
    '</p>'
  );
}
function barHTML(v, most) {
  const w = most ? (50 * Math.abs(v)) / most : 0;
  return `<td class="bar"><i aria-hidden="true"><b style="${v < 0 ? 'right' : 'left'}:50%;width:${w}%;background:var(--${v < 0 ? 'minus' : 'plus'})"></b></i></td>`;
}
function sumTable(terms, head, total, label = 'sum') {
  const most = Math.max(...terms.map(t => Math.abs(t.v))),
    wide = Math.max(...terms.map(t => t.f.length)),
    long = terms.length > 10;
  let shownTerms = terms,
    rest = null;
  if (long && !ui.all) {
    shownTerms = [...terms].sort((a, b) => Math.abs(b.v) - Math.abs(a.v)).slice(0, 8);
    rest = terms.length - 8;
  }
  const cells = t => many(wide, k => `<td>${k < t.f.length ? num(t.f[k]) : ''}</td>`).join('');
  const product = wide > 1 ? '<th>product</th>' : '';
  return `<table><thead><tr>${many(wide + 1, k => `<th>${tex(String(head[k] ?? ''))}</th>`).join('')}${product}<th></th></tr></thead><tbody>
    ${shownTerms.map(t => `<tr><td>${esc(t.k)}</td>${cells(t)}${wide > 1 ? `<td>${fmt(t.v)}</td>` : ''}${barHTML(t.v, most)}</tr>`).join('')}
    ${rest ? `<tr><td colspan="${wide + 1}"><button class="num" data-all="1">${rest} smaller terms</button></td><td>${fmt(total - sum(shownTerms.map(t => t.v)))}</td><td></td></tr>` : ''}
    <tr class="sum"><td colspan="${wide > 1 ? wide + 1 : 1}">${label}</td><td>${fmt(total)}</td><td></td></tr></tbody></table>${long && ui.all ? '<button class="num small" data-all="0">only the largest eight</button>' : ''}`;
}
function placeInWords(b, i, j) {
  if (headOf(b)) return `t ${at(i)} asks, u ${at(j)} answers`;
  if (b === 'wte.weight' || b === HEAD) return `word “${wordOf(i)}”, channel ${j}`;
  if (isParameter(b)) return `row ${i}, column ${j}`;
  if (b === 'losses') return `t ${at(i)}`;
  if (b === 'logits' || b === 'probs') return `t ${at(i)}, word “${wordOf(j)}”`;
  const q = /(c_attn|rotary)$/.test(b) ? qkvPart(j) : null;
  return `t ${at(i)}, channel ${j}${q ? `: ${'qkv'[q.part]} of head ${q.n}, channel ${q.i}` : ''}`;
}
/* The terms of a softmax: the largest ten and the one that is explained, and the rest of Z. */
function barTable(e, b, hn) {
  const isProbs = b === 'probs',
    Z = sum(e.bars.map(x => x.e)) + (e.others ?? 0),
    most = Math.max(...e.bars.map(x => x.e));
  const long = e.bars.length > 12 && !ui.all,
    top = new Set([...e.bars].sort((x, y) => y.e - x.e).slice(0, 10));
  const shownBars = long ? e.bars.filter(x => top.has(x) || x.k === e.mark) : e.bars;
  const left = Z - sum(shownBars.map(x => x.e)),
    more = e.bars.length - shownBars.length;
  const rest = more
    ? `<tr><td colspan="2"><button class="num" data-all="1">${more} smaller${e.others ? ', and all others' : ''}</button></td><td>${fmt(left)}</td><td></td></tr>`
    : e.others
      ? `<tr><td colspan="2">all other words</td><td>${fmt(e.others)}</td><td></td></tr>`
      : '';
  const power = isProbs ? 'e^z' : ui.beta !== 1 && hn ? 'e^{βS}' : 'e^S';
  return `<table><thead><tr><th></th><th>${tex(isProbs ? 'z' : 'S')}</th><th>${tex(power)}</th><th></th></tr></thead><tbody>
    ${shownBars.map(x => `<tr class="${x.k === e.mark ? 'mark' : ''}"><td>${esc(e.label(x.k))}</td><td>${num(x.s)}</td><td>${fmt(x.e)}</td>${barHTML(x.e, most)}</tr>`).join('')}
    ${rest}<tr class="sum"><td colspan="2">Z</td><td>${fmt(Z)}</td><td></td></tr></tbody></table>`;
}
/* Numbers are stored in float32: where the sum made of them differs in the last digits, by how much. */
function rounding(e) {
  const off = e.calc - e.value;
  return fmt(e.calc) === fmt(e.value)
    ? ''
    : `<p class="check">The sum of the stored numbers is ${fmt(e.calc)}: ${signed(off, 2)} by rounding to float32.</p>`;
}
const link = (text, path) =>
  study.root === null
    ? `<span class="mono">${text}</span>`
    : `<a class="mono" href="${esc(study.root + path)}">${text}</a>`;
function checkHTML([text, terms, want]) {
  const v = sum(terms),
    holds = Math.abs(v - want) <= 1e-5 * sum(terms.map(Math.abs));
  return `<p class="check"><span aria-hidden="true">${holds ? '✓' : '✗'}</span> ${esc(text)} <b>${holds && want === 1 ? '1' : fmt(v)}</b>${want === 0 ? ' (0 up to rounding)' : ''}</p>`;
}
function sourceHTML([tongue, path, n, code]) {
  return `<dt><span class="soft">${tongue}</span> ${link(`${path}:${n}`, `${path}#L${n}`)}</dt><dd><code>${esc(code)}</code></dd>`;
}
function explanation() {
  const box = $('explain'),
    c = ui.cell;
  deps = new Set();
  if (!c) {
    box.innerHTML = `<button class="grip" aria-expanded="false">explanation</button><div class="top"><p class="soft" style="margin:0">Choose a cell of a map: here stands where its number comes from.</p></div>`;
    return;
  }
  if (c.error) return errorExplanation(box, c);
  const e = (shown = explain(c.n, c.i, c.j)),
    b = split(c.n)[1],
    hn = headOf(b);
  for (const list of [e.terms, e.side?.terms])
    for (const t of list ?? []) for (const f of t.f) if (f.n) deps.add(`${f.n}|${f.i}|${f.j}`);
  for (const x of e.bars ?? []) deps.add(`${x.s.n}|${x.s.i}|${x.s.j}`);
  const of = placeInWords(b, c.i, c.j);
  const say =
    e.say ??
    (e.slope
      ? `Were ${isParameter(b) ? 'this weight' : 'the value here'} larger by 0.01, the mean loss would change by about ${signed(e.value * 0.01, 3)}.`
      : '');
  const factor = e.bars ? Math.max(...e.bars.map(x => x.e)) : 0;
  box.innerHTML = `<button class="grip" aria-expanded="${!box.classList.contains('closed')}">${box.classList.contains('closed') ? 'show the sum ▴' : 'close ▾'}</button>
    <div class="top"><div><h2 class="mono" style="font-size:14px;overflow-wrap:anywhere">${esc(pretty(c.n))} [${c.i}, ${c.j}]</h2><div class="small soft">${esc(of)}</div><p class="value">${fmt(e.value, 5)}</p></div>
    ${past.length ? '<button class="plain" data-back aria-label="Back to the number before">←</button>' : ''}</div>
    ${say ? `<p style="margin:4px 0 0;font-size:14px">${esc(say)}</p>` : ''}
    <h3>In symbols</h3><div class="math">${tex(e.sym)}</div>
    <h3>In numbers</h3><div class="lines">${e.lines.map(lineHTML).join('')}</div>
    ${e.side ? `<div class="small soft">${tex(e.side.title.split(',')[0])},${e.side.title.split(',')[1]}</div>${sumTable(e.side.terms, e.side.head, e.side.sum, 'D')}` : ''}
    ${e.terms?.length ? sumTable(e.terms, e.head, sum(e.terms.map(t => t.v))) : ''}
    ${e.bars ? barTable(e, b, hn) : ''}
    <div class="lines">${e.post.map(lineHTML).join('')}</div>
    ${e.checks.map(checkHTML).join('')}
    ${rounding(e)}
    <h3>Where it stands</h3><dl class="where">${study.where[e.where].map(sourceHTML).join('')}
    <dt><span class="soft">note</span> ${link(e.note, e.note)}</dt></dl>`;
}
function reveal(c) {
  // open the layer in which a cell is drawn
  const [, b] = split(c.n),
    o = owner[b],
    hn = headOf(b),
    here = owner[ui.layer];
  const drawn = [here.id, ...here.ins, here.w + '.weight', here.w + '.bias'];
  if (here.kind === 'classifier') drawn.push(HEAD);
  if (!(drawn.includes(b) || (here.kind === 'attention' && o === here))) ui.layer = o.id;
  if (hn) ui.head = +hn[2];
  else if (/attn\.(c_attn|rotary|heads)$/.test(b) && !isParameter(b)) ui.head = qkvPart(c.j).n;
}
function show(c, keepFocus) {
  const focus =
    document.activeElement?.dataset?.map === undefined
      ? null
      : views.find(v => v.id === +document.activeElement.dataset.map)?.name;
  const before = ui.layer + ui.head + ui.mode;
  if (ui.cell && (ui.cell.n !== c.n || ui.cell.i !== c.i || ui.cell.j !== c.j))
    past.push({ ...ui.cell, mode: ui.mode, layer: ui.layer, head: ui.head });
  ui.cell = c;
  ui.all = false;
  if (!c.error) {
    const [k, b] = split(c.n);
    if (!isParameter(b)) ui.t = c.i;
    reveal(c); // a number of another direction turns the switch; ← turns it back
    const need = k === 'd' ? 'backward' : k === 'D' ? 'step' : 'forward';
    if (need !== ui.mode && !/\.P\.\d+$/.test(c.n)) setMode(need, true);
  }
  if (!keepFocus) $('explain').classList.remove('closed');
  render(ui.layer + ui.head + ui.mode !== before);
  if (focus) views.find(v => v.name === focus && v.canvas?.isConnected)?.canvas.focus({ preventScroll: true });
  if (!c.error) $('live').textContent = `${pretty(c.n)}, ${placeInWords(split(c.n)[1], c.i, c.j)}: ${fmt(shown.value)}`;
}
function back() {
  const c = past.pop();
  if (!c) return;
  ui.cell = c;
  setMode(c.mode, true);
  ui.layer = c.layer;
  ui.head = c.head;
  render();
}
