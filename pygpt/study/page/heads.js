/* Attention: all heads as thumbnails, one of them opened, with β as a what-if. */
const entropy = r => -sum(Array.from(r, p => (p > 0 ? p * Math.log(p) : 0)));
const SHOWN = { forward: ['', 'P'], backward: ['d:', 'S'], step: ['D:', 'P'] }; // what the thumbnails show

function heads(o, moving) {
  const n = ui.head,
    forward = ui.mode === 'forward',
    attn = o.id.replace('.heads', ''),
    S = `${attn}.S.${n}`,
    P = `${attn}.P.${n}`;
  const free = $('maps').clientWidth,
    room =
      innerWidth < 700
        ? innerWidth - 30
        : T > 20
          ? Math.min(460, Math.floor((free - 24) / 2))
          : Math.min(270, Math.floor((free - 46) / 3));
  const labels = TEXT,
    columns = many(T, k => [...TEXT[k]].slice(0, 3).join(''));
  const square = (name, title, extra) =>
    map({
      name,
      title: `<b>${title}</b>`,
      labels,
      columns,
      square: true,
      byToken: true,
      cell: 28,
      room,
      style: `width:${room}px`,
      ...extra,
    });
  const mark = { forward: '', backward: 'd', step: 'Δ' }[ui.mode];
  const channels = (name, part, title, extra) =>
    map({
      name: PRE[ui.mode] + name,
      only: j => Math.floor(j / C) === part && Math.floor((j % C) / HS) === n,
      title: `<b>${mark}${title}</b>`,
      labels,
      byToken: true,
      cell: 28,
      cellH: innerWidth < 700 ? 22 : 15,
      room,
      style: `width:${room}px`,
      ...extra,
    });
  const beta = ui.beta,
    table = softmax(tensor(S), beta),
    p = { kind: 'seq', most: 1, foot: 'each row sums to 1' };
  const mid = {
    forward: () =>
      square(S, 'S') +
      square(P, beta === 1 ? 'P' : `P at β = ${beta.toFixed(2)}`, {
        ...p,
        value: (a, b) => get(table, a, b),
        rows: T,
        n: T,
      }) +
      thermo(tensor(S), table, room),
    backward: () => square(P, 'P', p) + square('d:' + P, 'dP') + square('d:' + S, 'dS', { foot: 'each row sums to 0' }),
    step: () => square(P, 'P before', p) + square('D:' + P, 'ΔP') + square('D:' + S, 'ΔS'),
  }[ui.mode]();
  const by = scaleOf(o.block).sym;
  const body =
    `<div class="rowset">${['q', 'k', 'v'].map((x, part) => channels(o.ins[0], part, x)).join('')}</div>` +
    flow(`S = q k^T${by}     P = softmax(S)`, `dq = dS k${by}     dk = dS^T q${by}`, 'ΔS') +
    `<div class="rowset">${mid}</div>` +
    flow('y = P v', 'dP = dy v^T     dS = P ⊙ (dP − D)     dv = P^T dy', 'Δy') +
    channels(o.id, 0, `y</b> <span class="soft">of head ${n}</span><b>`, { style: `width:${Math.max(room, 300)}px` });
  return moving
    ? body
    : `<div class="tools">${thumbnails(+o.block)}${controls()}</div>
    <p class="whatif" id="betanote" style="margin:0 0 8px" ${beta === 1 ? 'hidden' : ''}>A what-if for this map; all else on the page stays at β = 1.</p><div id="headbody">${body}</div>`;
}
function controls() {
  const off = ui.mode === 'forward' ? '' : 'disabled',
    beta = ui.beta;
  return `<div style="display:grid;gap:2px"><label><input type="checkbox" id="hide0" ${ui.hide0 ? 'checked' : ''}> hide position 0</label>
    <label for="beta" class="${off ? 'soft' : ''}">β <input type="range" id="beta" min="0" max="4" step="0.05" value="${beta}" ${off} aria-describedby="betanote">
    <output style="width:3em">${beta.toFixed(2)}</output> <button class="plain" id="beta1" style="min-height:28px;padding:1px 8px" ${!off && beta !== 1 ? '' : 'disabled'}>β = 1</button></label></div>`;
}
/* log Z = β⟨S⟩ + H, row by row. */
function thermo(S, table, room) {
  const fixed = x => x.toFixed(2).replace('-', '−').replace('−0.00', '0.00'),
    beta = ui.beta;
  const rows = many(T, t => {
    const s = row(S, t).subarray(0, keyCount(t)),
      p = row(table, t).subarray(0, keyCount(t)),
      most = beta * Math.max(...s);
    const logZ = most + Math.log(sum(s.map(x => Math.exp(beta * x - most)))),
      mean = beta * dot(p, s);
    return `<tr class="${t === ui.t ? 'mark' : ''}"><td>${esc(at(t))}</td><td>${fixed(logZ)}</td><td>${fixed(mean)}</td><td>${fixed(entropy(p))}</td></tr>`;
  });
  return `<figure style="width:${room}px"><figcaption><span><b>row by row</b></span></figcaption><div class="tall"><table class="thermo"><thead><tr><th></th><th>log Z</th><th>β⟨S⟩</th><th>entropy H</th></tr></thead>
    <tbody>${rows.join('')}</tbody></table></div><div class="readout">log Z = β⟨S⟩ + H in each row</div></figure>`;
}
/* A grid, layers down and heads across; of a model with few of them all stand in one row. */
function thumbnails(open) {
  const drawn = many(L, l => l).filter(l => tensor(`h.${l}.attn.S.0`)),
    size = NH * drawn.length <= 4 ? 56 : NH > 8 ? 34 : 44;
  const across = NH * drawn.length <= 4 ? NH * drawn.length : NH;
  const one = (l, h) => {
    const P = tensor(`h.${l}.attn.P.${h}`),
      H = sum(many(T, t => entropy(row(P, t)))) / T;
    const label = ui.mode === 'forward' ? `${l}.${h} H ${H.toFixed(2)}` : `${l}.${h}`;
    return `<button data-thumb="${l},${h}" aria-pressed="${l === open && h === ui.head}" aria-label="Block ${l}, head ${h}${ui.mode === 'forward' ? `, mean entropy ${H.toFixed(2)}` : ''}" title="${label}"><canvas width="1" height="1" style="width:${size}px;height:${size}px"></canvas>${size > 40 ? `<span>${label}</span>` : ''}</button>`;
  };
  return `<div class="scroller tall"><div class="thumbs" role="group" aria-label="All heads" style="grid-template-columns:repeat(${across},max-content)">${drawn.flatMap(l => many(NH, h => one(l, h))).join('')}</div></div>`;
}
function drawThumbs() {
  for (const button of document.querySelectorAll('[data-thumb]')) {
    const [l, h] = button.dataset.thumb.split(','),
      [k, q] = SHOWN[ui.mode],
      m = tensor(`${k}h.${l}.attn.${q}.${h}`);
    const cv = button.firstChild,
      g = cv.getContext('2d'),
      image = g.createImageData(T, T);
    cv.width = cv.height = T;
    let most = 0;
    for (let i = 0; i < T; i++) for (let j = +ui.hide0; j < keyCount(i); j++) most = Math.max(most, Math.abs(m.d[i * T + j]));
    for (let i = 0; i < T; i++)
      for (let j = 0; j < keyCount(i); j++) {
        image.data.set(
          [...shade(ui.hide0 && j === 0 ? 0 : m.d[i * T + j], most, ui.mode === 'forward' ? 'seq' : 'div'), 255],
          4 * (i * T + j),
        );
      }
    g.putImageData(image, 0, 0);
  }
}
