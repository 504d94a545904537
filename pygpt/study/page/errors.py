"""The error of each layer on each backend that is here, given the exact inputs: docs/comparing.md, teacher-forced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.backends.interface import Layers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.comparing.compare import bfloat16_layers
from pygpt.comparing.metrics import TEACHER_FORCED
from pygpt.comparing.model_calls import ModelCall, Pass, backward_calls, forward_calls
from pygpt.errors import UserError
from pygpt.model import layers
from pygpt.reference.dropout import Dropout
from pygpt.study.trace import Trace

EMULATED_UP_TO = 200_000
"""Parameters of the largest model for which the emulated GPU, slow by nature, is measured too."""

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
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


@dataclass
class Errors:
    """‖y − y₆₄‖ / ‖y₆₄‖ of one backend by layer, of gradients the largest; in units of rounding and against a bound."""

    name: str
    unit: float
    bound: float
    forward: dict[str, float] = field(default_factory=dict)
    backward: dict[str, float] = field(default_factory=dict)


def backends(trace: Trace) -> list[Backend]:
    """Those whose library is here."""
    found = [Backend("numpy", "float32", "fast")]
    for device in ("cpu", "cuda", "cuda-emulated"):
        if device == "cuda-emulated" and trace.config.num_parameters > EMULATED_UP_TO:
            continue
        with suppress(UserError):
            resolve_device(device)
            found += [Backend(device, "float32", kernels) for kernels in DEVICES[device].kernels]
            found.append(Backend(device, "bfloat16", "fast"))
    return found


def measure(trace: Trace) -> list[Errors]:
    """The errors of every backend, all from the same exact results."""
    parameters = {name: value.astype(np.float32) for name, value in trace.parameters.items()}
    logits = trace.activations["logits"].reshape(-1, trace.config.vocab_size)
    held = Pass(trace.loss, logits, trace.activations, trace.activation_gradients, trace.gradients)
    batch = trace.config, parameters, held, trace.tokens, trace.targets, Dropout(0.0)
    asked = backends(trace)
    ops = [layers(backend.device, backend.dtype, backend.kernels) for backend in asked]
    emulations = [bfloat16_layers(b.device) if b.stores_bfloat16 else None for b in asked]
    errors = [Errors(b.name, UNIT[b.dtype], float(TEACHER_FORCED[b.dtype].relative_l2 or math.inf)) for b in asked]
    for direction, calls in (("forward", forward_calls(*batch)), ("backward", backward_calls(*batch))):
        for call in calls:
            for found, layers_of, emulation in zip(errors, ops, emulations, strict=True):
                error = max(_errors(call, layers_of, emulation))
                if math.isfinite(error):
                    getattr(found, direction)[call.name] = error
    return errors


def _errors(call: ModelCall, ops: Layers, emulation: ReferenceLayers | None) -> Iterator[float]:
    """Of each output; emulation: of what the device stores in bfloat16, whose rounding of the inputs is no error."""
    return (found.relative_l2 for found in call.call.differences(ops, emulation).values())
