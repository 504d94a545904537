"""The validation losses of an experiment's variants as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pygpt.experiment.run import Result
from pygpt.files import atomic


def loss_curves(path: Path, title: str, results: Sequence[Result]) -> None:
    """Write a PNG: for each variant the mean over its seeds, in a band from the least to the largest.

    results: of one task.  Runs that diverged are left out.  Raises UserError when the file cannot be written.
    """
    # Imported here because it takes a second; the Figure is made without pyplot, so no display is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for variant in dict.fromkeys(result.run.variant for result in results):
        runs = [result.val_losses for result in results if result.run.variant == variant and not result.diverged]
        if not runs:
            continue
        common = min(map(len, runs))  # a run may have stopped early
        table = np.array([run[:common] for run in runs])
        steps, losses = table[0, :, 0], table[:, :, 1]
        (line,) = axes.plot(steps, losses.mean(0), label=f"{variant}, {losses[:, -1].mean():.3f}")
        axes.fill_between(steps, losses.min(0), losses.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats per token")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    with atomic.write_file(path) as file:
        figure.savefig(file, format="png")
