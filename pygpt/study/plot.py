"""The panels of a result as a picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.files.picture import new_figure, save_figure
from pygpt.study.result import Curves, Map, Result

LARGEST_SIDE = 40.0
"""Inches; more panels are drawn smaller."""

MOST_NAMES = 40
"""Names that fit beside an axis."""

NAMED = 10
"""Lines with a colour and a name of their own; more are shaded in their order, and the first and the last are named."""


def plot(path: str | Path, result: Result) -> None:
    """Write a PNG with all panels in a grid.  Raises UserError when the file cannot be written."""
    columns = math.ceil(math.sqrt(len(result.panels)))
    rows = math.ceil(len(result.panels) / columns)
    side = min(4.0, LARGEST_SIDE / columns)
    figure = new_figure(side * columns + 1, side * rows + 0.5)
    figure.suptitle(textwrap.fill(result.title, int(10 * figure.get_figwidth())), fontsize="medium")
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
    extent = None
    if panel.reach is not None:  # of the middles of the outermost cells
        edge = panel.reach * (1 + 1 / (len(panel.values) - 1))
        extent = (-edge, edge, edge, -edge)
    image = axes.imshow(panel.values, aspect="auto", interpolation="nearest", extent=extent, **colours)
    figure.colorbar(image, ax=axes)
    for axis in (axes.xaxis, axes.yaxis):
        if 0 < len(panel.names) <= MOST_NAMES:
            axis.set_ticks(range(len(panel.names)), panel.names)
        elif panel.reach is None:
            axis.set_major_locator(MaxNLocator(integer=True))


def _draw_curves(axes: Any, panel: Curves) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    last, style = len(panel.lines) - 1, "-" if panel.joined else ""
    shades = [colormaps["viridis"](number / last) for number in range(last + 1)] if last >= NAMED else None
    for number, (label, values) in enumerate(panel.lines.items()):
        dots = not panel.joined or len(panel.at) <= 30 or np.isnan(values).any()  # between two gaps there is no line
        look: dict[str, Any] = {"marker": "." if dots else "", "linestyle": style}
        if shades is not None:
            look["color"] = shades[number]
        axes.plot(panel.at, values, label=label if shades is None or number in (0, last) else None, **look)
    if np.issubdtype(panel.at.dtype, np.integer):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.log and any((values > 0).any() for values in panel.lines.values()):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
