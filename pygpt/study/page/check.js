/* The page checks itself: every explanation of a sample of cells adds up to its number, and prints the result below. */
function selfCheck(most = 3000) {
  const names = Object.keys(study.tensors)
    .filter(n => n in owner || owner[split(n)[1]])
    .filter(n => !/^[mv]:/.test(n) && tensor(n));
  const beta = ui.beta,
    each = Math.max(1, Math.floor(most / names.length));
  let cells = 0,
    worst = 0,
    where = '';
  ui.beta = 1;
  for (const name of names) {
    const m = tensor(name),
      scale = Math.sqrt(dot(m.d.filter(Number.isFinite), m.d.filter(Number.isFinite)) / m.d.length) || 1,
      stride = Math.max(1, Math.floor(m.d.length / each));
    for (let k = stride >> 1; k < m.d.length; k += stride) {
      const i = m.rows[Math.floor(k / m.cols.length)],
        j = m.cols[k % m.cols.length];
      if (headOf(name) && j >= keyCount(i)) continue;
      const e = explain(name, i, j),
        off =
          Math.abs(e.calc - e.value) /
          Math.max(scale, Math.abs(e.value), ...(e.terms ?? []).map(t => Math.abs(t.v * e.scale)));
      cells++;
      if (!(off <= worst)) {
        worst = off;
        where = `${name} [${i}, ${j}]`;
      }
    }
  }
  ui.beta = beta;
  return { cells, worst, where };
}
function footer() {
  const c = selfCheck();
  $('foot').textContent =
    `${study.made} Checked just now: ${c.cells} explanations add up to their numbers within ${fmt(c.worst, 2)} of the largest term (numbers are stored in float32).`;
}
(window.requestIdleCallback ?? (f => setTimeout(f, 50)))(footer);
window.pageOfNumbers = {
  explain: (...cell) => explain(...cell),
  val,
  tensor,
  row: (n, i) => Array.from(row(tensor(n), i)),
  selfCheck,
  softmax,
  ui,
  layers: () => layers,
};
