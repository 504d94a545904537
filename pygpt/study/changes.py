"""A pass in which some activations are changed on the way: layers that change what they put out.

forward    x ← value  or  x ← x + value      in a part of the activation x, which the next layers then get
backward   where x was replaced, its layer gets the gradient 0: what it computed did not matter
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from numpy.typing import ArrayLike

from pygpt.backends.interface import Layers
from pygpt.backends.recorder import Call
from pygpt.command.flags import nearest
from pygpt.errors import UserError
from pygpt.reference.arrays import Array
from pygpt.text.text_files import listing

Part = tuple[int | slice | EllipsisType, ...]


@dataclass(frozen=True)
class Change:
    """What becomes of a part of an activation, whose names are those of docs/architecture.md."""

    name: str
    value: ArrayLike = 0.0  # of the part's shape, or one that is broadcast to it
    part: Part = (...,)  # an index of the activation
    add: bool = False  # value is added, else it takes the part's place

    def forward(self, x: Array) -> Array:
        """The activation with the change, a copy.  Raises UserError where value or part do not fit x."""
        x = x.copy()
        try:
            x[self.part] = x[self.part] + self.value if self.add else self.value
        except (ValueError, IndexError) as error:
            raise UserError(f"the change of {self.name}, which has shape {x.shape}, does not fit: {error}") from None
        return x

    def backward(self, dx: Array) -> Array:
        """The gradient of what the layer computed, from that of the activation."""
        if self.add:
            return dx
        dx = dx.copy()
        dx[self.part] = 0
        return dx


class ChangedLayers:
    """Layers for one forward and one backward pass, in the order of `calls`, with changes."""

    def __init__(self, ops: Layers, calls: Sequence[Call], changes: Sequence[Change]) -> None:
        """calls: as pygpt.backends.recorder.record() gives them.  Raises UserError for a name that no call puts out."""
        self._ops = ops
        self._calls = iter(calls)
        self._changes: Mapping[str, list[Change]] = {change.name: [] for change in changes}
        for change in changes:
            self._changes[change.name].append(change)
        self._computed: dict[str, Array] = {}  # by the layers, before the changes
        known = [call.name for call in calls if call.direction == "forward"]
        for name in self._changes:
            if name not in known:
                raise UserError(f"there is no activation {name}, expected {listing(known)}{nearest(name, known)}")

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            call = next(self._calls)
            assert call.operation == operation
            changes = self._changes.get(call.name, [])
            if not changes:
                return getattr(self._ops, operation)(*inputs)
            if call.direction == "backward":
                return self._backward(operation, call.name, changes, *inputs)
            return self._forward(operation, call.name, changes, *inputs)

        return run

    def _forward(self, operation: str, name: str, changes: Sequence[Change], *inputs: Any) -> Any:
        found = getattr(self._ops, operation)(*inputs)
        y, *others = found if isinstance(found, tuple) else (found,)
        self._computed[name] = y
        for change in changes:
            y = change.forward(y)
        return (y, *others) if others else y

    def _backward(self, operation: str, name: str, changes: Sequence[Change], dy: Array, *inputs: Any) -> Any:
        for change in reversed(changes):
            dy = change.backward(dy)
        if operation == "attention_backward":  # it needs its own output, the only layer that does
            inputs = (self._computed[name], *inputs[1:])
        return getattr(self._ops, operation)(dy, *inputs)
