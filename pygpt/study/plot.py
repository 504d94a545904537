"""The panels of a result as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.files.picture import new_figure, save_figure
from pygpt.study.result import Curves, Map, Result

LARGEST_SIDE = 40.0
"""Inches; more panels are drawn smaller."""


def plot(path: str | Path, result: Result) -> None:
    """Write a PNG with all panels in a grid.  Raises UserError when the file cannot be written."""
    columns = math.ceil(math.sqrt(len(result.panels)))
    rows = math.ceil(len(result.panels) / columns)
    side = min(4.0, LARGEST_SIDE / columns)
    figure = new_figure(side * columns + 1, side * rows + 0.5)
    figure.suptitle(result.title)
    for number, panel in enumerate(result.panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_title(panel.title, fontsize="small")
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        if isinstance(panel, Map):
            _draw_map(figure, axes, panel)
        else:
            _draw_curves(axes, panel)
    save_figure(path, figure)


def _draw_map(figure: Any, axes: Any, panel: Map) -> None:
    from matplotlib.ticker import MaxNLocator

    colours: dict[str, Any] = {"cmap": "viridis"}
    if panel.signed:
        largest = float(np.nanmax(abs(panel.values)))
        colours = {"cmap": "PuOr", "vmin": -largest, "vmax": largest}
    extent = None if panel.reach is None else (-panel.reach, panel.reach, panel.reach, -panel.reach)
    image = axes.imshow(panel.values, aspect="auto", interpolation="nearest", extent=extent, **colours)
    figure.colorbar(image, ax=axes)
    if panel.reach is None:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))


def _draw_curves(axes: Any, panel: Curves) -> None:
    for label, values in panel.lines.items():
        axes.plot(panel.at, values, label=label, marker="." if len(panel.at) <= 30 else "")
    if panel.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
