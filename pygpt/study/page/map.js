/* Maps: a tensor, or a part of it, on one canvas with a cursor.
 *
 * map(o) returns HTML and notes a view, which mount() draws once the HTML is in the page. o: name, title, only(j): which
 * columns; rows, n, value(a, b), tell, pick for a map that is no tensor; cell, cellH (largest size), labels, columns,
 * kind ('seq' from 0, 'div' around 0), most, square (queries by keys), byToken, flip, room (pixels).
 * a and b count what is drawn; i and j, its true numbers, are those of the cell.
 */
let views = [],
  serial = 0;

function map(o) {
  const m = o.value ? null : tensor(o.name),
    is = m?.rows ?? many(o.rows, k => k);
  const js = (m?.cols ?? many(o.n, k => k)).filter(o.only ?? (() => true));
  const view = { kind: 'div', ...o, is, js, rows: is.length, n: js.length, id: serial++ };
  view.value ??= (a, b) => get(m, is[a], js[b]);
  view.blank ??= headOf(o.name ?? '') ? (a, b) => b >= keyCount(a) : () => false;
  const [usual, largest] = view.most ? [view.most, view.most] : endOfColours(view);
  view.most = usual || 1e-300;
  views.push(view);
  const more = usual < largest,
    low = (more ? '≤ ' : '') + fmt(-view.most, 2),
    ends = [view.kind === 'seq' ? '0' : low, (more ? '≥ ' : '') + fmt(view.most, 2)];
  const legend = o.legend ?? `${ends[0]} <i style="background:${gradientOf(view.kind)}"></i> ${ends[1]}`;
  const part =
    m && !m.whole
      ? ` <span class="badge">${js.length < m.c ? `${js.length} of ${m.c} columns` : ''}${is.length < m.r ? ` ${is.length} of ${m.r} rows` : ''}</span>`
      : '';
  return `<figure style="${o.style ?? ''}"><figcaption><span>${o.title}${o.only ? '' : part}</span><span class="legend">${legend}</span></figcaption>
    <div class="scroller"><canvas data-map="${view.id}" tabindex="0" role="application" aria-roledescription="map of numbers"></canvas></div>
    <div class="readout" data-read="${view.id}">${o.foot ?? ''}</div></figure>`;
}
/* The end of a map's colours and the largest number. They are the same unless a few numbers are so large that all others
 * would be as pale as 0: then one number in a hundred lies beyond the end.
 */
function endOfColours(view) {
  const sizes = [0];
  for (let a = 0; a < view.rows; a++)
    for (let b = 0; b < view.n; b++) {
      if (!view.blank(a, b) && !hidden(view, b)) sizes.push(Math.abs(view.value(a, b)));
    }
  const sorted = Float64Array.from(sizes).sort(),
    most = sorted.at(-1),
    usual = sorted[Math.floor(0.99 * (sorted.length - 1))];
  return [usual && most > 3 * usual ? usual : most, most];
}
const hidden = (view, b) => ui.hide0 && view.square && b === 0;
const pretty = n => {
  const [k, b] = split(n);
  return { 'd': 'd ', 'D': 'Δ ', 'm': 'm ', 'v': 'v ', '': '' }[k] + b.replace(/\.([SP])\.(\d+)$/, ' $1, head $2');
};

function place(view, width) {
  const { n, rows } = view,
    [down, across] = view.flip ? [n, rows] : [rows, n];
  view.left = view.labels === null ? 0 : (view.wide ?? 46);
  view.top = view.columns ? 20 : 0;
  view.w = Math.max(3, Math.min(view.cell ?? 26, Math.floor(Math.max(40, width - view.left - 2) / across)));
  view.h = view.square
    ? view.w
    : Math.min(view.cellH ?? (innerWidth < 700 ? 22 : 18), Math.max(view.w, view.minH ?? 15));
  if (!view.square && down > 24) view.h = Math.min(view.h, Math.max(4, Math.floor(480 / down)));
  view.W = view.left + across * view.w + 2;
  view.H = view.top + down * view.h + 2;
}
const corner = (view, a, b) =>
  view.flip ? [view.left + a * view.w, view.top + b * view.h] : [view.left + b * view.w, view.top + a * view.h];

/* The cells and labels, which stay while the cursor moves. */
function paint(view) {
  const css = getComputedStyle(document.documentElement),
    soft = css.getPropertyValue('--soft'),
    accent = css.getPropertyValue('--accent');
  const dpr = window.devicePixelRatio || 1,
    cv = (view.base = document.createElement('canvas')),
    g = cv.getContext('2d');
  cv.width = view.W * dpr;
  cv.height = view.H * dpr;
  g.scale(dpr, dpr);
  g.font = '13px ' + css.getPropertyValue('--sans');
  g.textBaseline = 'middle';
  const shades = many(511, k => colour(k - 255, 255, view.kind)),
    gap = view.w >= 9 ? 1 : 0,
    gapH = view.h >= 9 ? 1 : 0;
  for (let a = 0; a < view.rows; a++)
    for (let b = 0; b < view.n; b++) {
      if (view.blank(a, b)) continue;
      const [x, y] = corner(view, a, b),
        hide = hidden(view, b),
        r = view.value(a, b) / view.most;
      g.fillStyle =
        hide || Number.isNaN(r) ? shades[255] : shades[255 + Math.round(255 * Math.max(-1, Math.min(1, r)))];
      g.fillRect(x, y, view.w - gap, view.h - gapH);
      if (hide) {
        g.strokeStyle = soft;
        g.beginPath();
        g.moveTo(x + 1, y + view.h - 2);
        g.lineTo(x + view.w - 2, y + 1);
        g.stroke();
      }
      if (view.framed?.(a, b)) {
        g.strokeStyle = css.getPropertyValue('--warn');
        g.lineWidth = 2;
        g.strokeRect(x + 1, y + 1, view.w - 3, view.h - 3);
      }
    }
  if (view.labels !== null) {
    const names = view.labels ?? (view.flip ? view.js : view.is),
      every = Math.ceil(13 / view.h);
    g.textAlign = 'right';
    for (let k = 0; k < names.length; k += every) {
      g.fillStyle = view.byToken && k === ui.t ? accent : soft;
      g.fillText(
        [...String(names[k])].slice(0, view.wide ? 20 : 6).join(''),
        view.left - 7,
        view.top + (k + 0.5) * view.h,
        view.left - 8,
      );
    }
  }
  if (view.columns) {
    const fits = view.columns.every(s => g.measureText(s).width < view.w - 2),
      every = fits ? 1 : Math.ceil((g.measureText(view.js.at(-1)).width + 6) / view.w);
    g.textAlign = 'center';
    for (let b = 0; b < view.n; b += every) {
      g.fillStyle = view.square && b === ui.t ? accent : soft;
      g.fillText(fits ? view.columns[b] : view.js[b], view.left + (b + 0.5) * view.w, 9);
    }
  }
}
function draw(view) {
  const css = getComputedStyle(document.documentElement),
    ink = css.getPropertyValue('--ink'),
    accent = css.getPropertyValue('--accent');
  const cv = view.canvas,
    dpr = window.devicePixelRatio || 1,
    g = cv.getContext('2d');
  cv.width = view.W * dpr;
  cv.height = view.H * dpr;
  cv.style.width = view.W + 'px';
  cv.style.height = view.H + 'px';
  g.drawImage(view.base, 0, 0);
  g.scale(dpr, dpr);
  const frame = (a, b, style, wide, dash) => {
    const [x, y] = corner(view, a, b);
    g.strokeStyle = style;
    g.lineWidth = wide;
    g.setLineDash(dash);
    g.strokeRect(x - 0.5, y - 0.5, view.w, view.h);
    g.setLineDash([]);
  };
  for (const key of deps) {
    const [n, i, j] = key.split('|');
    if (n !== view.name) continue;
    const [a, b] = position(view, +i, +j);
    if (a >= 0 && b >= 0) frame(a, b, accent, 1.5, [2, 1.5]);
  }
  if (ui.cell?.n === view.name) {
    const [a, b] = position(view, ui.cell.i, ui.cell.j);
    if (a >= 0 && b >= 0) frame(a, b, ink, 2.5, []);
  }
  if (view.hover) frame(...view.hover, ink, 1, []);
}
const position = (view, i, j) => [view.is.indexOf(i), view.js.indexOf(j)];

function under(view, e) {
  const r = view.canvas.getBoundingClientRect();
  const x = Math.floor((e.clientX - r.left - view.left) / view.w),
    y = Math.floor((e.clientY - r.top - view.top) / view.h);
  const [a, b] = view.flip ? [x, y] : [y, x];
  return a >= 0 && b >= 0 && a < view.rows && b < view.n && !view.blank(a, b) ? [a, b] : null;
}
function describe(view, a, b) {
  if (view.tell) return view.tell(a, b);
  const where = view.square ? `u ${at(b)}` : view.columns ? view.columns[b] : `column ${view.js[b]}`;
  return `${view.byToken ? `t ${at(a)}` : `row ${view.is[a]}`}, ${where}: ${fmt(view.value(a, b))}`;
}
function readOut(view, p) {
  const box = document.querySelector(`[data-read="${view.id}"]`);
  if (p) box.textContent = describe(view, ...p);
  else box.innerHTML = view.foot ?? '';
}
function mount() {
  for (const view of views) {
    const cv = (view.canvas = document.querySelector(`canvas[data-map="${view.id}"]`));
    if (!cv) continue;
    place(view, view.room ?? cv.closest('figure').clientWidth);
    cv.setAttribute(
      'aria-label',
      `${view.label ?? pretty(view.name)}, ${view.rows} by ${view.n}. Arrow keys move, Enter explains.`,
    );
    cv.onpointermove = e => {
      view.hover = under(view, e);
      readOut(view, view.hover);
      draw(view);
    };
    cv.onpointerleave = () => {
      view.hover = null;
      readOut(view, null);
      draw(view);
    };
    cv.onclick = e => {
      const p = under(view, e);
      if (p) choose(view, ...p);
    };
    cv.onkeydown = e => moveCursor(view, e);
    paint(view);
    draw(view);
  }
}
function moveCursor(view, e) {
  const moves = {
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    Home: [0, -1e9],
    End: [0, 1e9],
  };
  if (e.key === 'Enter') {
    e.preventDefault();
    if (ui.cell) $('explain').querySelector('button:not(.grip)')?.focus();
    return;
  }
  if (!moves[e.key]) return;
  e.preventDefault();
  e.stopPropagation();
  const [da, db] = view.flip ? [...moves[e.key]].reverse() : moves[e.key];
  const here = ui.cell?.n === view.name ? position(view, ui.cell.i, ui.cell.j) : [-1, -1];
  let a = 0,
    b = 0;
  if (here[0] >= 0 && here[1] >= 0) {
    a = Math.max(0, Math.min(view.rows - 1, here[0] + da));
    b = Math.max(0, Math.min(view.n - 1, here[1] + db));
    while (b > 0 && view.blank(a, b)) b--;
  }
  choose(view, a, b, true);
}
function choose(view, a, b, keep) {
  if (view.pick) view.pick(a, b, keep);
  else show({ n: view.name, i: view.is[a], j: view.js[b] }, keep);
}
