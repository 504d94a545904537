"""The sections of the benchmark, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import end_to_end, generation, layers, machine, memory, peaks, products, scaling
from benchmarks.session import Session
from pygpt.command.flags import nearest
from pygpt.errors import UserError

Section = tuple[Callable[[Session], Any], Callable[[Session, Any], str]]

SECTIONS: dict[str, Section] = {
    "peaks": (peaks.measure, peaks.table),
    "products": (products.measure, products.table),
    "layers": (layers.measure, layers.table),
    "steps": (end_to_end.measure_steps, end_to_end.steps_table),
    "character": (end_to_end.measure_character, end_to_end.character_table),
    "memory": (memory.measure, memory.table),
    "scaling": (scaling.measure, scaling.table),
    "generation": (generation.measure, generation.table),
}


def chosen(names: str | None) -> tuple[str, ...]:
    """The sections in a text such as "peaks,steps", all for None, in the order in which they are measured.

    Raises UserError for an unknown one.
    """
    if names is None:
        return tuple(SECTIONS)
    asked = [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in SECTIONS:
            raise UserError(f"{name!r} is not a section: {', '.join(SECTIONS)}{nearest(name, list(SECTIONS))}")
    return tuple(name for name in SECTIONS if name in asked)


def run(session: Session, sections: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure, and print each section's table when it is done.  Yields all numbers so far, whenever there are more.

    Raises UserError when this library cannot be measured.
    """
    found: dict[str, Any] = {"machine": machine.describe(session), "repeats": session.repeats, "quick": session.quick}
    print(machine.text(found["machine"]), flush=True)
    try:
        for name in sections:
            measure, table = SECTIONS[name]
            found[name] = measure(session)
            print("\n" + table(session, found[name]), flush=True)
            yield found
    finally:
        session.close()
