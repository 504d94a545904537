"""What every test may ask for."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import required

# The tests run in parallel already; more threads than cores would only wait for each other.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with tiny Shakespeare and GPT-2's vocabulary; a test that needs it skips where it is absent."""
    folder = Path(os.environ.get("PYGPT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        required.skip("data", f"needs the data folder {folder} (set PYGPT_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's browser, started."""
    path = shutil.which("chromium") or required.skip("browser", "needs chromium")
    sync_api = required.module("playwright.sync_api", "browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
