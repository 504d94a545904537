/* Around the opened layer: the text, the list of layers with the stream beside it, the tensors of the step. */
function tokenStrip() {
  const { loss, loss_after: after, total, clip, max_norm: limit, promise } = study.step,
    f = ui.mode;
  const before = tensor('losses').d,
    change = tensor('D:losses').d,
    norms = study.embedding_gradient_norms;
  const paid = CAUSAL
    ? 'Under each token: what it pays for the token that follows.'
    : `Under each of the ${PREDICTED} masked tokens: what the model pays for the token that stood there, behind the arrow; ▒ is the mask.`;
  const summary = {
    forward: `Mean loss <b>${loss.toFixed(3)}</b> nats, perplexity ${fmt(Math.exp(loss))}. <span class="soft">Guessing among ${V} tokens costs log ${V} = ${Math.log(V).toFixed(3)}. ${paid}</span>`,
    backward: `The gradient of all parameters has norm <b>${fmt(total)}</b>${clip < 1 ? `, clipped to ${limit} (× ${fmt(clip, 3)})` : ''}. <span class="soft">Under each token: the norm of the gradient that reaches its embedding.</span>`,
    step: `Mean loss <b>${loss.toFixed(3)} → ${after.toFixed(3)}</b>: <b>${signed(after - loss, 3)}</b>; the gradient promised ⟨g, Δw⟩ = ${signed(promise, 3)}, the rest is curvature. <span class="soft">Under each token: its loss after the step; the mark is before.</span>`,
  };
  $('summary').innerHTML = summary[f];
  const top = f === 'backward' ? Math.max(...norms) : Math.max(...before, ...before.map((x, t) => x + change[t]));
  $('tokens').classList.toggle('masked', !CAUSAL);
  $('tokens').style.setProperty('--t', Math.min(T, 16));
  $('tokens').innerHTML = many(T, t => {
    const costs = f === 'backward' || hasTarget(t);
    const v = f === 'backward' ? norms[t] : f === 'step' ? before[t] + change[t] : before[t];
    const mark = f === 'step' && costs ? `<b style="left:calc(${(100 * before[t]) / top}% - 1px)"></b>` : '';
    const moved =
      f === 'step' && costs
        ? `<span class="${change[t] > 0 ? 'up' : 'down'}">${change[t] > 0 ? '▲' : '▼'} ${Math.abs(change[t]).toFixed(2)}</span>`
        : '';
    return `<li><button data-t="${t}" aria-pressed="${ui.t === t}"><span class="n"><span class="w">${esc(TEXT[t])}</span><span class="soft t">${hasTarget(t) ? `→ ${esc(NEXT[t])}` : ''}</span></span>
      <span class="bar" style="display:block"><i style="width:${(100 * v) / top}%"></i>${mark}</span><span class="n"><span>${f === 'backward' ? fmt(v, 3) : costs ? v.toFixed(3) : '–'}</span>${moved}</span></button></li>`;
  }).join('');
  $('facts').textContent = study.facts;
  $('stepno').textContent = `step ${study.step.n}`;
}
const size = id => study.sizes[ui.mode][id];
function rail() {
  const title = {
    forward: ['Forward ↓', '‖x‖ a token'],
    backward: ['Backward ↑', '‖dx‖ a token'],
    step: ['Change in the step', '‖Δx‖ a token'],
  }[ui.mode];
  $('railtitle').innerHTML = `<b>${title[0]}</b><span>${title[1]}</span>`;
  let html = '',
    block;
  for (const n of layers) {
    if (n.block !== block) {
      block = n.block;
      html += `<li class="block">${block ? `block ${block}` : 'head'}</li>`;
    }
    html += `<li class="${n.stream ? 'stream' : ''}${isStored(n) ? '' : ' absent'}"><button data-layer="${n.id}" aria-current="${n.id === ui.layer}"><code>${n.kind === 'residual' ? '+ ' : ''}${n.short}</code><span>${fmt(size(n.id), 3)}</span></button></li>`;
  }
  $('rail').innerHTML = html;
  $('pick').innerHTML = layers
    .map(n => `<option value="${n.id}" ${n.id === ui.layer ? 'selected' : ''}>${n.id}   ${fmt(size(n.id), 3)}</option>`)
    .join('');
  drawStream();
  const nav = document.querySelector('.rail'),
    open = $('rail').querySelector('[aria-current=true]');
  if (open && nav.scrollHeight > nav.clientHeight) {
    const y = open.getBoundingClientRect().top - nav.getBoundingClientRect().top;
    if (y < 0 || y > nav.clientHeight - 30) nav.scrollTop += y - nav.clientHeight / 2;
  }
}
/* The stream, as wide as its norm; branches leave it and return at each ⊕. */
function drawStream() {
  const box = $('rail').getBoundingClientRect();
  if (!box.height) return;
  const y = {};
  for (const b of $('rail').querySelectorAll('button')) {
    const r = b.getBoundingClientRect();
    y[b.dataset.layer] = r.top - box.top + r.height / 2;
  }
  const spine = layers.filter(n => n.stream || n.id === 'logits' || n.id === 'losses'),
    sizes = spine.map(n => size(n.id)),
    last = spine.findLastIndex(n => n.stream && n.id !== 'ln_f'), // behind it the width stays
    most = Math.max(...sizes.slice(0, last + 1));
  const half = k => 1.5 + 7.5 * Math.min(1, sizes[Math.min(k, last)] / most),
    cx = 16,
    up = ui.mode === 'backward';
  let left = '',
    right = [];
  spine.forEach((n, k) => {
    left += `${k ? 'L' : 'M'}${cx - half(k)} ${y[n.id]}`;
    right.unshift(`L${cx + half(k)} ${y[n.id]}`);
  });
  let out = `<path d="${left}${right.join('')}Z" fill="var(--accent)" opacity=".3"/>`;
  for (const n of layers.filter(n => n.kind === 'residual')) {
    const sum = layers.indexOf(n),
      branch = layers.slice(layers.findLastIndex((m, k) => k < sum && m.stream) + 1, sum),
      a = branch[0],
      y0 = y[a.id] - 15,
      x1 = 46;
    out += `<path d="M${cx} ${y0}C${cx} ${y[a.id]} ${x1} ${y0 + 2} ${x1} ${y[a.id] + 2}V${y[branch.at(-1).id] - 2}C${x1} ${y[n.id] - 2} ${cx + 6} ${y[n.id] - 12} ${cx + 8} ${y[n.id]}" fill="none" stroke="var(--soft)" stroke-width="1.3"/>`;
    const ym = (y[branch[1].id] + y[branch[2].id]) / 2;
    if (ui.mode !== 'step')
      out += `<path d="M${x1 - 4} ${ym + (up ? 3 : -3)}l4 ${up ? -6 : 6}l4 ${up ? 6 : -6}" fill="none" stroke="var(--soft)" stroke-width="1.5"/>`;
    for (const m of branch)
      out += `<circle cx="${x1}" cy="${y[m.id]}" r="${m.id === ui.layer ? 5 : 3}" fill="${m.id === ui.layer ? 'var(--accent)' : 'var(--paper)'}" stroke="var(--soft)"/>`;
  }
  spine.forEach((n, k) => {
    const here = n.id === ui.layer,
      plus = n.kind === 'residual';
    if (k && ui.mode !== 'step')
      for (const f of [0.3, 0.5, 0.7].slice(0, y[n.id] - y[spine[k - 1].id] > 60 ? 3 : 0)) {
        const ym = y[spine[k - 1].id] + f * (y[n.id] - y[spine[k - 1].id]);
        out += `<path d="M${cx - 4} ${ym + (up ? 2.5 : -2.5)}l4 ${up ? -5 : 5}l4 ${up ? 5 : -5}" fill="none" stroke="var(--accent)" stroke-width="1.8"/>`;
      }
    out +=
      `<circle cx="${cx}" cy="${y[n.id]}" r="${plus ? 7.5 : 4.5}" fill="${here ? 'var(--accent)' : 'var(--paper)'}" stroke="var(--accent)" stroke-width="1.5"/>` +
      (plus
        ? `<path d="M${cx - 4} ${y[n.id]}h8M${cx} ${y[n.id] - 4}v8" stroke="${here ? 'var(--on-accent)' : 'var(--accent)'}" stroke-width="1.5"/>`
        : '');
  });
  $('stream').setAttribute('width', 64);
  $('stream').setAttribute('height', box.height);
  $('stream').innerHTML = out;
}
function tensorTable() {
  const el = $('tensors');
  el.hidden = ui.mode !== 'step';
  if (el.hidden) return;
  const rows = study.updates,
    top = rows.slice(0, 8),
    rest = rows.slice(8),
    most = Math.max(...rows.map(r => Math.abs(r.promise)));
  const bar = r =>
    `<td style="width:110px"><i style="display:block;height:10px;width:${(100 * Math.abs(r.promise)) / most}%;background:var(--${r.promise < 0 ? 'minus' : 'plus'})" aria-hidden="true"></i></td>`;
  const tensorRow = r =>
    `<tr><td><button class="num mono" data-layer="${owner[r.name].id}">${r.name}</button></td><td>${fmt(r.gradient, 3)}</td><td>${r.weight ? `${fmt((100 * r.update) / r.weight, 3)} %` : '–'}</td><td>${fmt(r.promise, 3)}</td>${bar(r)}</tr>`;
  const { total, promise, loss, loss_after: after } = study.step;
  el.innerHTML = `<h2>The step, tensor by tensor</h2><p class="small soft" style="margin:2px 0 8px">By the share of the fall that the gradient promised: ⟨g, Δw⟩ = Σ g Δw.</p>
    <div class="scroller"><table><thead><tr><th>tensor</th><th>‖g‖</th><th>‖Δw‖ / ‖w‖</th><th>⟨g, Δw⟩</th><th></th></tr></thead><tbody>${top.map(tensorRow).join('')}
    <tr><td>${rest.length} more</td><td></td><td></td><td>${fmt(sum(rest.map(r => r.promise)), 3)}</td><td></td></tr>
    <tr class="sum"><td>promised</td><td>${fmt(total, 3)}</td><td></td><td>${fmt(promise, 3)}</td><td></td></tr>
    <tr><td>happened</td><td></td><td></td><td>${fmt(after - loss, 3)}</td><td></td></tr></tbody></table></div>`;
}
