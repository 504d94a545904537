"""Packages that only some file formats need."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pygpt.errors import UserError


def import_for(path: Path, package: str) -> Any:
    """The package that reads or writes a file.  Raises UserError, which says how to install it, where it is absent."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{path}: this format needs the package {package}: pip install {package}") from None
