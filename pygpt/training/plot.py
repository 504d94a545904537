"""The loss curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.files.picture import new_figure, save_figure
from pygpt.training.progress import loss_text


def loss_curve(path: str | Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Write a PNG with the training and validation losses of a log (pygpt/training/run_folder.py).

    The training loss of each step is drawn pale, and its mean over windows of a fiftieth of the run on top.
    Raises UserError when the file cannot be written.
    """
    steps, losses = _column(records, "loss")
    val_steps, val_losses = _column(records, "val_loss")
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    if steps.size:
        window = max(1, steps.size // 50)
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.7)
        mean = _mean(losses, window)
        middle = (window - 1) // 2
        axes.plot(steps[middle : middle + mean.size], mean, color="tab:blue", label="training")
    if val_steps.size:
        best = val_losses.argmin()
        per_byte = "val_loss_per_byte"
        ratio = next((record[per_byte] / record["val_loss"] for record in records if per_byte in record), None)
        label = f"validation, best {loss_text(val_losses[best], ratio)} at step {val_steps[best]:.0f}"
        axes.plot(val_steps, val_losses, color="tab:red", marker="o", markersize=4, label=label)
        if ratio is not None:
            right = axes.secondary_yaxis(
                "right", functions=(partial(np.multiply, ratio), partial(np.multiply, 1 / ratio))
            )
            right.set_ylabel("nats per byte of the validation text")
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.grid(alpha=0.3)
    if steps.size or val_steps.size:
        axes.legend()
    save_figure(path, figure)


def _column(records: Sequence[dict[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of the records that have the value."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of each `window` successive values: (n - window + 1,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[window:] - sums[:-window]) / window
