/* All together: what is chosen, the keyboard, the address. */
const ui = { mode: 'forward', layer: '', head: 0, cell: null, t: null, beta: 1, hide0: false, theme: null, all: false };
const past = [];
function render(whole = true) {
  const root = document.documentElement;
  root.dataset.mode = ui.mode;
  for (const b of document.querySelectorAll('[data-mode]'))
    if (b !== root) {
      b.setAttribute('aria-checked', b.dataset.mode === ui.mode);
      b.tabIndex = b.dataset.mode === ui.mode ? 0 : -1;
    }
  explanation();
  tokenStrip();
  if (whole) {
    ribbon();
    openLayer();
    rail();
    tensorTable();
    mount();
    drawThumbs();
  } else
    for (const v of views)
      if (v.canvas?.isConnected) {
        paint(v);
        draw(v);
      }
  clearTimeout(address);
  address = setTimeout(remember, 300);
}
let address;
function remember() {
  // the address names what is on show
  const c = ui.cell;
  history.replaceState(
    null,
    '',
    '#' +
      new URLSearchParams({
        mode: ui.mode,
        layer: ui.layer,
        head: ui.head,
        ...(c && !c.error ? { cell: `${c.n},${c.i},${c.j}` } : {}),
        ...(ui.theme ? { theme: ui.theme } : {}),
      }),
  );
}
function setMode(mode, quiet) {
  if (!PRE.hasOwnProperty(mode)) return;
  const c = ui.cell;
  ui.mode = mode;
  if (mode !== 'forward') ui.beta = 1;
  if (c && !c.error && !quiet) {
    // the same place, seen in the new direction
    const b = split(c.n)[1],
      n = PRE[mode] + b;
    ui.cell = tensor(n) && b !== 'probs' ? { n, i: c.i, j: c.j } : null;
  }
  if (!quiet) render();
}
const go = d => {
  const k = layers.findIndex(n => n.id === ui.layer) + d;
  if (layers[k]) {
    ui.layer = layers[k].id;
    render();
  }
};
function setTheme(t) {
  ui.theme = t;
  document.documentElement.dataset.theme = t ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
}

document.addEventListener('click', e => {
  const b = e.target.closest('button');
  if (!b) return;
  const d = b.dataset;
  if (d.mode) setMode(d.mode);
  else if (d.layer) {
    ui.layer = d.layer;
    render();
    document.querySelector(`.rail [data-layer="${d.layer}"]`)?.focus({ preventScroll: true });
  } else if (d.t) {
    ui.t = ui.t === +d.t ? null : +d.t;
    render();
    document.querySelector(`[data-t="${d.t}"]`).focus({ preventScroll: true });
  } else if (d.thumb) {
    const [l, h] = d.thumb.split(',');
    ui.layer = `h.${l}.attn.heads`;
    ui.head = +h;
    render();
    document.querySelector(`[data-thumb="${d.thumb}"]`)?.focus();
  } else if (d.n) {
    show({ n: d.n, i: +d.i, j: +d.j });
    $('explain').scrollTop = 0;
    $('explain').querySelector('[data-back]')?.focus({ preventScroll: true });
  } else if ('back' in d) {
    back();
    $('explain').querySelector('[data-back]')?.focus({ preventScroll: true });
  } else if (d.all) {
    ui.all = d.all === '1';
    explanation();
  } else if (d.go) go(+d.go);
  else if (b.id === 'theme') {
    setTheme(dark() ? 'light' : 'dark');
    render();
  } else if (b.id === 'help') $('dialog').showModal();
  else if (b.id === 'beta1') {
    ui.beta = 1;
    render();
    $('beta').focus();
  } else if (b.classList.contains('grip')) {
    $('explain').classList.toggle('closed');
    explanation();
  }
});
document.addEventListener('input', e => {
  if (e.target.id === 'beta') {
    // the slider itself must survive while it is dragged
    ui.beta = +e.target.value;
    views = views.filter(v => v.keep);
    e.target.parentNode.querySelector('output').textContent = ui.beta.toFixed(2);
    $('beta1').disabled = $('betanote').hidden = ui.beta === 1;
    explanation();
    $('headbody').innerHTML = heads(
      layers.find(n => n.id === ui.layer),
      true,
    );
    mount();
  }
  if (e.target.id === 'hide0') {
    ui.hide0 = e.target.checked;
    render();
    $('hide0').focus();
  }
  if (e.target.id === 'pick') {
    ui.layer = e.target.value;
    render();
  }
});
document.addEventListener('keydown', e => {
  if (
    e.ctrlKey ||
    e.metaKey ||
    e.altKey ||
    $('dialog').open ||
    e.target.closest?.('select, textarea, input[type=range]')
  )
    return;
  const k = e.key.toLowerCase(),
    mode = { f: 'forward', b: 'backward', s: 'step' }[k];
  const radio = e.target.closest?.('[role=radio]'),
    dir = { arrowright: 1, arrowdown: 1, arrowleft: -1, arrowup: -1 }[k];
  if (radio && dir) {
    const names = Object.keys(PRE);
    setMode(names[(names.indexOf(ui.mode) + dir + 3) % 3]);
    document.querySelector(`[data-mode=${ui.mode}][role]`).focus();
  } else if (mode) setMode(mode);
  else if (k === '[') go(-1);
  else if (k === ']') go(1);
  else if (k === 'backspace') back();
  else if (k === 'h') {
    ui.head = (ui.head + 1) % NH;
    if (!/heads$/.test(ui.layer)) return;
    render();
  } else if (k === 'd') {
    setTheme(dark() ? 'light' : 'dark');
    render();
  } else if (k === '?') $('dialog').showModal();
  else if (k === 'escape' && ui.cell) {
    $('explain').classList.add('closed');
    const v = views.find(v => v.name === ui.cell.n);
    v?.canvas?.focus();
    explanation();
  } else return;
  e.preventDefault();
});
let wait;
addEventListener('resize', () => {
  clearTimeout(wait);
  wait = setTimeout(render, 120);
});

/* What the address names, or else the last head that looks anywhere but at itself. */
function open() {
  build();
  const q = new URLSearchParams(location.hash.slice(1)),
    has = k => q.get(k),
    heads = layers.filter(n => n.kind === 'attention' && isStored(n));
  ui.layer = heads.at(-1).id;
  if (has('mode') in PRE) ui.mode = has('mode');
  if (has('layer') in owner) ui.layer = owner[has('layer')].id;
  if (has('head')) ui.head = Math.max(0, Math.min(NH - 1, +has('head') || 0));
  const [n, i, j] = (has('cell') ?? '').split(',');
  if (n && owner[split(n)[1]] && Number.isFinite(val(n, +i, +j))) {
    ui.cell = { n, i: +i, j: +j };
    if (!isParameter(split(n)[1])) ui.t = +i;
    reveal(ui.cell);
  } else if (!q.size) {
    const t = CAUSAL ? T - 1 : targets.findIndex(v => v >= 0),
      P = tensor(`${ui.layer.replace('.heads', '')}.P.0`),
      p = row(P, t);
    ui.cell = { n: `${ui.layer.replace('.heads', '')}.P.0`, i: t, j: p.indexOf(Math.max(...p)) };
    ui.t = t;
  }
  if (['light', 'dark'].includes(has('theme'))) ui.theme = has('theme');
  setTheme(ui.theme);
  render();
}
open();
