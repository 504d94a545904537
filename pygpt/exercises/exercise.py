"""What an exercise is: a stub that is to be filled in, and calls of its functions whose results are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.backends.sources import CHECKOUT
from pygpt.comparing.metrics import Bound

EXACT = Bound(relative_l2=1e-12)
"""Of results in float64: the order of a sum may differ, and no more."""

_STUBS = Path(__file__).parent / "stubs"


class WrongResultError(Exception):
    """A sentence about what a function returned: not the things that were expected of it."""


@dataclass(frozen=True)
class Call:
    """A call of one of an exercise's functions, with its arguments by name; random numbers are float32.

    outputs: the names of what it returns; changed: of the arguments that it changes.
    """

    function: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        described = [f"{name} {text}" for name, value in self.inputs.items() if (text := _described(value))]
        return f"{self.function}: {', '.join(described)}"

    def run(self, functions: Any, dtype: DTypeLike) -> dict[str, Any]:
        """The outputs by name, made by the function of this name in a module or object from inputs in this dtype.

        Raises WrongResultError where it returns something else, and whatever the function raises.
        """
        arguments: dict[str, Any] = _copied(self.inputs, dtype)
        returned = getattr(functions, self.function)(**arguments)
        values = returned if isinstance(returned, tuple) else () if returned is None else (returned,)
        if len(values) != len(self.outputs):
            one = "nothing" if returned is None else f"one {type(returned).__name__}"
            found = f"{len(returned)} values" if isinstance(returned, tuple) else one
            names = self.outputs or self.changed
            expected = ("to return {}" if self.outputs else "to change {} in place").format(", ".join(names))
            raise WrongResultError(f"{self.function} returned {found}, expected it {expected}")
        return {**dict(zip(self.outputs, values, strict=True)), **{name: arguments[name] for name in self.changed}}


@dataclass(frozen=True)
class Exercise:
    """One exercise.  Its statement and its functions are in stubs/, in the file of its name.

    reference: a module or an object with functions of the same names, which give the exact results; solution: the
    project's file that is written again, where there is one, as a path in a checkout.
    """

    name: str
    reference: Any
    calls: Callable[[], Iterator[Call]]
    hint: str
    solution: str | None = None
    bound: Bound = EXACT

    @cached_property
    def stub(self) -> Path:
        return next(path for path in _STUBS.glob(f"{self.name}.*") if path.suffix in (".py", ".c", ".cu"))

    @property
    def title(self) -> str:
        """The first line of the statement."""
        return self.stub.read_text(encoding="utf-8").split("\n", 1)[0].strip('"/* .')

    @property
    def dtype(self) -> DTypeLike:
        return np.float64 if self.stub.suffix == ".py" else np.float32


def project_file(module: Any) -> str:
    """The path of a module in a checkout, with forward slashes."""
    return Path(module.__file__).relative_to(CHECKOUT).as_posix()


def floats(rng: np.random.Generator, *shape: int, mean: float = 0.0, std: float = 1.0) -> Any:
    """Normally distributed numbers of float32, so that a kernel gets what the reference gets."""
    return rng.normal(mean, std, shape).astype(np.float32)


def _copied(value: Any, dtype: DTypeLike) -> Any:
    """Arrays and what holds them anew, those of numbers in this dtype; anything else as it is."""
    if isinstance(value, np.ndarray):
        return value.astype(dtype) if value.dtype.kind == "f" else value.copy()
    if isinstance(value, Mapping):
        return {name: _copied(entry, dtype) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(entry, dtype) for entry in value)
    return value


def _described(value: Any) -> str:
    """The shape of an array, a number, or a short text; nothing for what would be long."""
    if isinstance(value, np.ndarray):
        return str(value.shape)
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 and not text.startswith("<") else ""
