/* Only in a served page: type, and the model runs again; go a step of training on, and back. */
{
  const box = $('typed'),
    alert = $('trouble');
  let asked = 0,
    delay;

  $('typing').hidden = $('stepper').hidden = false;
  box.value = study.typed;

  async function ask(number) {
    const mine = ++asked;
    document.body.setAttribute('aria-busy', 'true');
    try {
      const answer = await fetch('/step', {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ text: box.value, number }),
      });
      const found = await answer.json();
      if (mine !== asked) return; // a later question is on its way
      alert.textContent = found.error ?? '';
      if (!found.error) replace(found);
    } catch {
      if (mine === asked) alert.textContent = 'The server does not answer: is it still running?';
    }
    if (mine === asked) document.body.removeAttribute('aria-busy');
  }
  function replace(found) {
    study = found.study;
    blockText = k => found.blocks[k];
    build();
    past.length = 0;
    if (ui.cell?.error || (ui.cell && !Number.isFinite(val(ui.cell.n, ui.cell.i, ui.cell.j)))) ui.cell = null;
    if (ui.t >= T) ui.t = null;
    render();
    footer();
  }
  box.addEventListener('input', () => {
    clearTimeout(delay);
    delay = setTimeout(ask, 300, 1);
  });
  document.addEventListener('click', e => {
    const by = e.target.closest('[data-step]')?.dataset.step;
    if (by) ask(Math.max(1, study.step.n + +by));
  });
}
