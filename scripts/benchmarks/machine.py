"""What the numbers were measured on and with."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.session import Session
from pygpt.backends.library import available_cores, cpu_library, ffi


def describe(session: Session) -> dict[str, Any]:
    """Processor, library, versions; None for a package that is absent."""
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "threads": session.threads,
        "instruction_set": ffi().string(cpu_library().pygpt_library()).decode(),
        "kernels": session.kernels,
        "recompute": session.recompute,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numpy_blas": _blas(),
        "torch": version("torch"),
    }


def text(machine: dict[str, Any]) -> str:
    torch = "not installed" if machine["torch"] is None else machine["torch"]
    return (
        f"{machine['processor']}, {machine['cores']} cores; {machine['threads']} threads on every side\n"
        f"pygpt {machine['instruction_set']}, {machine['kernels']} kernels, recompute {machine['recompute']}; "
        f"numpy {machine['numpy']} ({machine['numpy_blas']}); torch {torch}"
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _blas() -> str:
    try:
        found: Any = np.show_config(mode="dicts")  # type: ignore[call-overload, unused-ignore]
        blas = found["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (TypeError, KeyError):  # before numpy 1.26
        return "BLAS unknown"


def version(package: str) -> str | None:
    """Of an installed package; None if it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
