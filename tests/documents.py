"""The blocks of code in the project's documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """What stands between two fences; GitHub shows only the first word of the info string."""

    heading: str  # that it stands under
    language: str
    notes: tuple[str, ...]  # the other words
    text: str


def blocks(document: Path) -> list[Block]:
    """In their order."""
    found, heading, inside = [], "", None
    for line in document.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("```") and inside is None:
            inside, text = line.strip("`\n ").split(), ""
        elif line.startswith("```") and inside is not None:
            language, *notes = inside or [""]
            found.append(Block(heading, language, tuple(notes), text))
            inside = None
        elif inside is not None:
            text += line
        elif title := re.match(r"#+ (.*)", line):
            heading = title[1].strip()
    assert inside is None, f"{document}: the last block does not end"
    return found
