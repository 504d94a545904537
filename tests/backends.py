"""Every backend that a test can run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from required import fail_if_required

import pygpt
from pygpt.backends.devices import DEVICES
from pygpt.backends.interface import DTYPES, Layers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.comparing.compare import bfloat16_layers
from pygpt.errors import UserError
from pygpt.reference.bfloat16 import round_bfloat16

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Backend:
    """What pygpt.layers() and pygpt.GPT2() are opened with."""

    device: str
    dtype: str
    kernels: str

    def __str__(self) -> str:
        return f"{self.device}-{self.dtype}" + (f"-{self.kernels}" if len(DEVICES[self.device].kernels) > 1 else "")

    @property
    def settings(self) -> dict[str, str]:
        return {"device": self.device, "dtype": self.dtype, "kernels": self.kernels}

    def layers(self) -> Layers:
        return pygpt.layers(**self.settings)

    def model(self, config: pygpt.GPT2Config, **settings: Any) -> pygpt.GPT2:
        return pygpt.GPT2(config, **self.settings, **settings)

    @property
    def emulation(self) -> ReferenceLayers | None:
        """What rounds where this backend rounds, for ρ."""
        return bfloat16_layers(self.device, self.kernels) if self.dtype == "bfloat16" else None

    @property
    def stores_bfloat16(self) -> bool:
        """Whether tensors are bfloat16, and not only the operands of products."""
        return self.dtype == "bfloat16" and DEVICES[self.device].stores_bfloat16

    def stored(self, x: Floats) -> Floats:
        """x as this backend holds it: an input that is rounded before says nothing about the layer."""
        return round_bfloat16(x) if self.stores_bfloat16 else x

    def error_of_sum(self, norm: Any) -> Any:
        """What storing the summands, of this norm, adds to a sum; 0 where they stay in float32.

        Each is rounded by at most 2⁻⁸ of itself, by 0.4 times that in the root mean square, and in no preferred
        direction, so the error of the sum has a standard deviation of 0.4 · 2⁻⁸ times the norm: this is five of them.
        """
        return 2.0**-7 * norm if self.stores_bfloat16 else 0.0 * norm

    @property
    def rounds_attention(self) -> bool:
        """Whether what attention multiplies is rounded to bfloat16."""
        return self.emulation is not None and self.emulation.attended is round_bfloat16

    def attended(self, x: Floats) -> Floats:
        """x as attention multiplies it: see stored."""
        return round_bfloat16(x) if self.rounds_attention else x

    def error_of_attention(self, norm: Any) -> Any:
        """The same as error_of_sum of what attention multiplies."""
        return 2.0**-7 * norm if self.rounds_attention else 0.0 * norm

    def absence(self) -> str | None:
        """Why it cannot be opened, None if it can."""
        try:
            self.layers()
        except UserError as error:
            return str(error)
        return None


ALL = [Backend(device, dtype, kernels) for device in DEVICES for dtype in DTYPES for kernels in DEVICES[device].kernels]
ABSENT = {backend: sentence for backend in ALL if (sentence := backend.absence())}
for absent, reason in ABSENT.items():
    fail_if_required(absent.device, reason)
PRESENT = [backend for backend in ALL if backend not in ABSENT]


# a generator has formats of its own instead of a dtype
GENERATORS = [backend for backend in PRESENT if backend.dtype == "float32"]
