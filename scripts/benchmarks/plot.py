"""The benchmark as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling import relative
from pygpt.files import atomic

Results = dict[str, Any]
_COLOURS = {"float32": "tab:blue", "bfloat16": "tab:red"}


def plot(path: str | Path, found: Results) -> None:
    """Write a PNG with a panel for each section that was measured and has a picture.

    Raises UserError when the file cannot be written.
    """
    # Imported here because it takes a second; the Figure is made without pyplot, so no display is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[Callable[..., None], Any]] = []
    for section, drawings in _PANELS.items():
        if section in found:
            panels += [(drawing, found[section]) for drawing in drawings]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7 * columns, 4.5 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (drawing, values) in enumerate(panels):
        drawing(figure.add_subplot(rows, columns, number + 1), values)
    machine = found["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}", fontsize=10)
    with atomic.write_file(path) as file:
        figure.savefig(file, format="png")


def _products(axes: Any, found: Results) -> None:
    """Fraction of the peak, over the size of the product."""
    for dtype, values in found.items():
        rows = values["products"]
        flops = [2 * row["M"] * row["N"] * row["K"] for row in rows]
        fractions = {"pygpt": [row["of_peak"] for row in rows]}
        for other in rows[0]["ratio"]:
            fractions[other] = [(row["gflops"][other] or np.nan) / row["peak_gflops"] for row in rows]
        for name, marker in zip(fractions, "o+x", strict=False):
            axes.plot(flops, fractions[name], marker, color=_COLOURS[dtype], label=f"{name}, {dtype}")
    axes.set(xscale="log", ylim=(0, 1.05), title="matrix products", xlabel="FLOPs", ylabel="fraction of peak")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _steps(axes: Any, found: list[Results]) -> None:
    """Tokens/s of each alternative."""
    places = list(dict.fromkeys((row["dtype"], row["B"], row["T"]) for row in found))
    names = list(dict.fromkeys(row["alternative"] for row in found))
    for number, name in enumerate(names):
        speeds = [row["tokens_per_second"] or 0 for row in found if row["alternative"] == name]
        axes.bar(np.arange(len(places)) + (number - len(names) / 2 + 0.5) * 0.8 / len(names), speeds, 0.8 / len(names))
    axes.set_xticks(range(len(places)), [f"{dtype}\n{B} x {T}" for dtype, B, T in places], fontsize=8)
    axes.set(title="training step", ylabel="tokens/s")
    axes.legend(names, fontsize=8)
    axes.grid(alpha=0.3, axis="y")


def _layers(axes: Any, found: Results) -> None:
    """Time of each layer with its bound."""
    names = [f"{row['name']}, {row['direction']}" for row in next(iter(found.values()))["layers"]]
    height = 0.8 / len(found)
    for number, (dtype, values) in enumerate(found.items()):
        places = np.arange(len(names)) + (number - len(found) / 2 + 0.5) * height
        seconds = [row["seconds"] for row in values["layers"]]
        bounds = [row["bound"] for row in values["layers"]]
        axes.barh(places, seconds, height, color=_COLOURS[dtype], alpha=0.35, label=f"{dtype}, measured")
        axes.barh(places, bounds, height, color=_COLOURS[dtype], label=f"{dtype}, bound")
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.invert_yaxis()
    axes.set(title="layers of a training step", xlabel="seconds")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="x")


def _scaling_in_b(axes: Any, found: Results) -> None:
    _scaling(axes, found, "B")


def _scaling_in_t(axes: Any, found: Results) -> None:
    _scaling(axes, found, "T")


def _scaling(axes: Any, found: Results, grows: str) -> None:
    """Time of a token over B or T; dashed, what its FLOPs would make of the first point."""
    fixed = "T" if grows == "B" else "B"
    for dtype, values in found.items():
        rows = [row for row in values["points"] if row["grows"] == grows]
        sizes = [row[grows] for row in rows]
        seconds = [1e3 * row["seconds_per_token"] for row in rows]
        expected = [seconds[0] * relative(rows, row)[1] for row in rows]
        axes.plot(sizes, seconds, "o-", color=_COLOURS[dtype], label=f"{dtype}, {fixed} = {rows[0][fixed]}")
        axes.plot(sizes, expected, "--", color=_COLOURS[dtype], linewidth=1, label="as its FLOPs grow")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set(title=f"cost of a token as {grows} grows", xlabel=grows, ylabel="ms a token, forward and backward")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "products": (_products,),
    "layers": (_layers,),
    "steps": (_steps,),
    "scaling": (_scaling_in_b, _scaling_in_t),
}

HAVE_PICTURE = tuple(_PANELS)
