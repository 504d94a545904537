"""Every backend that a test can run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pygpt
from pygpt.backends.reference import ReferenceLayers
from pygpt.errors import UserError
from pygpt.reference.bfloat16 import round_bfloat16


@dataclass(frozen=True)
class Backend:
    """What pygpt.layers() and pygpt.GPT2() are opened with."""

    device: str
    dtype: str
    kernels: str

    def __str__(self) -> str:
        return f"{self.device}-{self.dtype}" + (f"-{self.kernels}" if self.device != "numpy" else "")

    @property
    def settings(self) -> dict[str, str]:
        return {"device": self.device, "dtype": self.dtype, "kernels": self.kernels}

    def layers(self) -> Any:
        return pygpt.layers(**self.settings)

    def model(self, config: pygpt.GPT2Config, **settings: Any) -> pygpt.GPT2:
        return pygpt.GPT2(config, **self.settings, **settings)

    @property
    def emulation(self) -> ReferenceLayers | None:
        """What rounds where this backend rounds, for ρ."""
        return ReferenceLayers(round_bfloat16) if self.dtype == "bfloat16" else None

    def absence(self) -> str | None:
        """Why it cannot be opened, None if it can."""
        try:
            self.layers()
        except UserError as error:
            return str(error)
        return None


ALL = [
    Backend(device, dtype, kernels)
    for device in ("numpy", "cpu", "cuda-emulated", "cuda")
    for dtype in ("float32", "bfloat16")
    for kernels in (("plain",) if device == "numpy" else ("plain", "fast"))
]
ABSENT = {backend: sentence for backend in ALL if (sentence := backend.absence())}
PRESENT = [backend for backend in ALL if backend not in ABSENT]
