/* The error of each layer of each backend, given the exact inputs, against float64: measured when the page was made. */
const column = b => (ui.mode === 'backward' ? layers.length - 1 - b : b);
const errorOf = (a, id) => study.errors[a][ui.mode]?.[id] ?? NaN;
const WHOSE = {
  forward: 'each layer’s output',
  backward: 'each layer’s gradients, the largest of them',
  step: 'each layer’s new weights and moments, the largest of them',
};

function ribbon() {
  views = views.filter(v => !v.keep);
  const el = $('ribbon');
  el.hidden = !study.errors.length;
  if (el.hidden) return;
  const names = study.errors.map(e => e.name),
    unit = a => study.errors[a].unit,
    most = 8;
  const found = (a, b) => errorOf(a, layers[column(b)].id);
  const figure = map({
    keep: true,
    name: 'error',
    label: 'errors',
    rows: names.length,
    n: layers.length,
    labels: names,
    wide: innerWidth > 700 ? 190 : 118,
    kind: 'seq',
    most,
    cell: 34,
    cellH: 20,
    minH: 18,
    legend: `0 <i style="background:${gradientOf('seq')}"></i> ${most} ε`,
    title: ui.mode === 'step' ? 'of each layer that has parameters' : `in the order of the ${ui.mode} pass`,
    value: (a, b) => found(a, b) / unit(a),
    framed: (a, b) => found(a, b) > study.errors[a].bound,
    tell: (a, b) =>
      `${layers[column(b)].id}, ${names[a]}: ${fmt(found(a, b) / unit(a), 2)} ε, bound ${fmt(study.errors[a].bound / unit(a), 3)} ε`,
    pick: (a, b, keep) => show({ error: true, n: 'error', i: a, j: b }, keep),
  });
  el.innerHTML = `<h2>Error of each backend against float64</h2><p class="small soft" style="margin:2px 0 8px">‖y − y₆₄‖ / ‖y₆₄‖ of ${WHOSE[ui.mode]}, with the exact inputs, in units ε of the type’s rounding, 2⁻²⁴ or 2⁻⁸. A cell above its bound is framed.</p>${figure}`;
}
function errorExplanation(box, c) {
  const id = layers[column(c.j)].id,
    { name, unit, bound } = study.errors[c.i],
    v = errorOf(c.i, id),
    closed = box.classList.contains('closed');
  box.innerHTML = `<button class="grip" aria-expanded="${!closed}">${closed ? 'show the bound ▴' : 'close ▾'}</button><div class="top"><div><h2 class="mono" style="font-size:14px">${id}, ${esc(name)}</h2><p class="value">${fmt(v, 3)}</p></div>${past.length ? '<button class="plain" data-back aria-label="Back to the number before">←</button>' : ''}</div>
    <h3>In symbols</h3><div class="math">${tex('‖y − y_{64}‖ / ‖y_{64}‖')}</div><h3>In numbers</h3><div class="lines"><p>unit of rounding ε = 2${unit > 1e-4 ? '⁻⁸' : '⁻²⁴'} = ${fmt(unit, 3)}</p><p>measured = ${fmt(v / unit, 3)} ε</p><p>bound of the tests = ${fmt(bound / unit, 3)} ε = ${fmt(bound, 3)}</p><p>measured / bound = <b>${fmt(v / bound, 3)}</b></p></div>
    <h3>Where it stands</h3><dl class="where"><dt><span class="soft">note</span> ${link('docs/comparing.md', 'docs/comparing.md')}</dt></dl>`;
}
