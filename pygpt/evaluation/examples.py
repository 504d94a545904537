"""The examples of a published task: a file with a JSON object in each line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pygpt.errors import UserError, reading
from pygpt.files import lfs
from pygpt.files.download import Download, fetch_file

Example = TypeVar("Example")

FOLDER = Path("data", "download")


def read_examples(
    path: str | Path | None,
    published: Download,
    parse: Callable[[dict[str, Any], str], Example],
    limit: int | None = None,
) -> list[Example]:
    """What `parse` makes of the objects in the file, or in the published one, which is downloaded once, without a path.

    parse: gets an object and where it is, for errors.  limit: how many, from the beginning; by default all.
    Raises UserError when the file cannot be had, or is in another format.
    """
    if path is None:
        path = fetch_file(published, FOLDER, f"--data FILE takes a copy of {published.file_name}")
    examples = [parse(values, where) for where, values in itertools.islice(_objects(Path(path)), limit)]
    if not examples:
        raise UserError(f"{path}: holds no examples")
    return examples


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}: line {number}"
            lfs.refuse_pointer(path, line)
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                raise UserError(f"{where} is not a JSON object")
            yield where, values
