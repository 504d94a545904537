"""The backends that are on this machine, and the layer calls of a pass, on which each is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.backends.interface import Layers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.comparing.compare import bfloat16_layers
from pygpt.comparing.model_calls import ModelCall, Pass, backward_calls, forward_calls
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.model import layers
from pygpt.reference.dropout import Dropout
from pygpt.study.trace import Trace

EMULATED_UP_TO = 200_000
"""Parameters of the largest model for which the emulated GPU, slow by nature, is measured too."""

NAMES = {"numpy": "numpy", "cpu": "C", "cuda": "CUDA", "cuda-emulated": "CUDA, emulated"}


@dataclass(frozen=True)
class Backend:
    device: str
    dtype: str
    kernels: str

    @property
    def stores_bfloat16(self) -> bool:
        return self.dtype == "bfloat16" and DEVICES[self.device].stores_bfloat16

    @property
    def name(self) -> str:
        kernels = f", {self.kernels}" if len(DEVICES[self.device].kernels) > 1 else ""
        return f"{NAMES[self.device]}{kernels}{', bf16' if self.dtype == 'bfloat16' else ''}"

    @property
    def emulation(self) -> ReferenceLayers | None:
        """Of where bfloat16 is rounded to; None in float32."""
        return bfloat16_layers(self.device, self.kernels) if self.dtype == "bfloat16" else None

    def layers(self) -> Layers:
        return layers(self.device, self.dtype, self.kernels)


def backends(config: GPT2Config) -> list[Backend]:
    """Those whose library is here."""
    found = [Backend("numpy", "float32", "fast")]
    for device in ("cpu", "cuda", "cuda-emulated"):
        if device == "cuda-emulated" and config.num_parameters > EMULATED_UP_TO:
            continue
        with suppress(UserError):
            resolve_device(device)
            found += [Backend(device, "float32", kernels) for kernels in DEVICES[device].kernels]
            found.append(Backend(device, "bfloat16", "fast"))
    return found


def calls(found: Trace) -> Iterator[tuple[str, ModelCall]]:
    """Each call of the pass with its direction, up and down again, with inputs in float32."""
    parameters = {name: value.astype(np.float32) for name, value in found.parameters.items()}
    logits = found.activations["logits"].reshape(-1, found.config.vocab_size)
    held = Pass(found.loss, logits, found.activations, found.activation_gradients, found.gradients)
    batch = found.config, parameters, held, found.tokens, found.targets, Dropout(0.0)
    for direction, made in (("forward", forward_calls(*batch)), ("backward", backward_calls(*batch))):
        for call in made:
            yield direction, call
