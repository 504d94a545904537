"""Pictures by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pygpt.files.atomic import write_file


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure to draw on; its size is in inches."""
    # Imported here because it takes a second; the Figure is made without pyplot, so no display is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: str | Path, figure: Any) -> None:
    """Write it as a PNG, whole or not at all.  Raises UserError when that cannot be done."""
    with write_file(path) as file:
        figure.savefig(file, format="png")
