"""What a machine may lack: tests that need it skip, but where PYGPT_REQUIRE names it ("data,nvcc") they fail."""

from __future__ import annotations

import os
import shutil
from typing import Any, NoReturn

import pytest

KINDS = (
    "browser",
    "ctranslate2",
    "cuda-emulated",
    "data",
    "formats",
    "llama-cpp",
    "mpi",
    "nvcc",
    "published",
    "transformers",
)
REQUIRED = {kind for kind in os.environ.get("PYGPT_REQUIRE", "").split(",") if kind}

if not set(KINDS) >= REQUIRED:
    raise ValueError(f"PYGPT_REQUIRE is {os.environ['PYGPT_REQUIRE']!r}, expected some of {', '.join(KINDS)}")


def fail_if_required(kind: str, sentence: str) -> None:
    """End the test, or the reading of its file, where this kind is required and, as the sentence says, absent."""
    if kind in REQUIRED:
        pytest.fail(f"{sentence}; PYGPT_REQUIRE names {kind}", pytrace=False)


def skip(kind: str, sentence: str) -> NoReturn:
    """Skip the test, or the rest of its file, or fail where this kind is required."""
    fail_if_required(kind, sentence)
    pytest.skip(sentence, allow_module_level=True)


def module(name: str, kind: str = "transformers") -> Any:
    """A package with what belongs to it: torch or transformers, or what comes with them, or one of another kind."""
    try:
        return pytest.importorskip(name)
    except pytest.skip.Exception as absence:
        skip(kind, str(absence))


def nvcc() -> str:
    """The path of CUDA's compiler."""
    return shutil.which("nvcc") or skip("nvcc", "needs nvcc")
