"""JSON files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pygpt.errors import UserError, reading
from pygpt.files import lfs
from pygpt.files.atomic import write_file

_LARGEST = 2**24


def read_json_object(path: Path, largest: int = _LARGEST) -> dict[str, Any]:
    """The JSON object in a file of at most `largest` bytes.  Raises UserError, naming the file, when there is none."""
    with reading(path), path.open("rb") as file:
        text = file.read(largest + 1)
    if len(text) > largest:
        raise UserError(f"{path}: is longer than {largest} bytes")
    lfs.refuse_pointer(path, text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a JSON {type(values).__name__}, expected an object")
    return values


def write_json_object(path: Path, values: dict[str, Any]) -> None:
    """Write a file that people can read, too.  Raises OSError as open() and write() do."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write numbers for programs, whole or not at all.  Raises UserError when that cannot be done."""
    text = json_text(values)
    with write_file(path) as file:
        file.write(text.encode())


def json_text(values: dict[str, Any]) -> str:
    """Numbers for programs; those that are not finite, which JSON does not have, become words."""
    return json.dumps(finite(values), indent=1)


def finite(value: Any) -> Any:
    """A value with a word for each number in it that is not finite."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
