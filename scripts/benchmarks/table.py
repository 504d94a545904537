"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def render(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], left: int, notes: Iterable[str] = ()) -> str:
    """A table under its title, notes below.  The first `left` columns are set left, the others right."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    return "\n".join([title, line(head), *map(line, rows), *(f"  {note}" for note in notes)])


def number(value: float | None, digits: int = 1) -> str:
    """A number, or "absent" for None."""
    return "absent" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return "absent" if value is None else f"{100 * value:.0f} %"


def ratio(value: float | None) -> str:
    return "absent" if value is None else f"{value:.2f}"
