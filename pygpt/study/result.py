"""What an instrument found: a table to read, arrays by name, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pygpt.reference.arrays import Array


@dataclass(frozen=True)
class Map:
    """A matrix to draw; signed: in two colours, with 0 between them.

    reach: both axes go from -reach to reach; names: what both axes count.
    """

    title: str
    values: Array
    x: str
    y: str
    signed: bool = False
    reach: float | None = None
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Curves:
    """Lines over one axis to draw, by their labels; joined: whether neighbours are more alike than others."""

    title: str
    at: Array
    lines: Mapping[str, Array]
    x: str
    y: str
    log: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Result:
    """title: a line above the table.  notes: lines below it.  failed: whether it found what must not be."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    arrays: Mapping[str, Array]
    panels: Sequence[Map | Curves] = ()
    notes: Sequence[str] = ()
    failed: bool = False

    def table(self) -> str:
        """The result for people; words to the left, numbers to the right."""
        cells = [[_text(value) for value in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.columns, *cells, strict=True)]
        left = [not any(isinstance(row[i], (int, float)) for row in self.rows) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                f"{cell:{'<' if to_left else '>'}{width}}"
                for cell, width, to_left in zip(row, widths, left, strict=True)
            )
            for row in [self.columns, *cells]
        ]
        return "\n".join(line.rstrip() for line in [self.title, *lines, *self.notes])

    def as_json(self) -> dict[str, Any]:
        """Each array as nested lists."""
        return {name: np.asarray(value).tolist() for name, value in self.arrays.items()}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
