"""Files that are downloaded once, and known by their checksums."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pygpt.errors import UserError, reading
from pygpt.files.atomic import write_file

_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Download:
    url: str
    sha256: str
    size: int
    file_name: str


def fetch_file(download: Download, folder: Path, advice: str) -> Path:
    """The file in `folder`, into which it is downloaded unless it is there, verified either way.

    advice: what to do without a network.  Raises UserError when the download fails, or is not what it should be.
    """
    path = folder / download.file_name
    if path.is_file():
        verify(download, path)
        return path
    try:
        with urllib.request.urlopen(download.url, timeout=_TIMEOUT) as response:
            text = response.read(download.size + 1)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise UserError(f"{download.url}: cannot be downloaded ({reason}); {advice}") from error
    _check(download, text, download.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_file(path) as file:
        file.write(text)
    return path


def verify(download: Download, path: Path) -> None:
    """Raises UserError when a file cannot be read, or is not the one that would be downloaded."""
    with reading(path), path.open("rb") as file:
        text = file.read(download.size + 1)
    _check(download, text, str(path))


def _check(download: Download, text: bytes, name: str) -> None:
    found = hashlib.sha256(text).hexdigest()
    if found != download.sha256:
        raise UserError(
            f"{name}: is not the expected text of {download.size} bytes with SHA-256 {download.sha256[:16]}...: "
            f"has {'more' if len(text) > download.size else len(text)} bytes and {found[:16]}..."
        )
