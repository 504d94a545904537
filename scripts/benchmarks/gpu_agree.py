"""GPT-2 beside torch's: one loss and its gradient, with the same weights and the same tokens.

What is right is torch in float32, whose own errors lie far under the bounds: those of a whole model beside numpy,
FREE_RUNNING. They leave room for 124M parameters in bfloat16: a gradient there has passed some 300 tensors that are
stored in it. Each rounds by 0.4 · 2⁻⁸ in the root mean square, all of them by √300 times that: 2.7 %, or
1 − cos = 4e-4, and the bound is 1e-3. torch under autocast, which stores fewer of them, is shown beside it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.gpu_sides import torch_device
from benchmarks.steps import Step
from pygpt.backends.interface import DTYPES
from pygpt.comparing.metrics import FREE_RUNNING, difference
from pygpt.config import GPT2Config
from pygpt.files.json_file import finite
from pygpt.model import GPT2
from pygpt.reference.arrays import Array

Gradients = Mapping[str, Array]


def beside_torch(config: GPT2Config, B: int, T: int, device: str) -> Iterator[dict[str, Any]]:
    """A row for each dtype: the losses, the differences of the gradient as a whole and of each tensor, what is out of
    bounds in words, and the verdict in one line.
    """
    batch = Step(B, T).random_batch(config.vocab_size)
    exact: tuple[float, Gradients] | None = None
    for dtype in DTYPES:
        model = GPT2(config, device=device, dtype=dtype)
        _fill_vectors(model)
        loss = model.forward_backward(*batch)
        gradients = {name: np.asarray(value) for name, value in model.gradients.items()}
        theirs = _torch_pass(model, batch, device, dtype)
        exact = exact or theirs  # float32 comes first
        yield _row(dtype, (loss, gradients), theirs, exact)


def _fill_vectors(model: GPT2) -> None:
    """Add random numbers to biases and LayerNorms, which are 0 and 1 in a fresh model: one left out would not show."""
    rng = np.random.default_rng(0)
    for name, value in model.parameters.items():
        if value.ndim == 1:
            model.set_parameter(name, value + rng.normal(0, 0.02, value.shape))


def _torch_pass(model: GPT2, batch: tuple[Array, Array], device: str, dtype: str) -> tuple[float, Gradients]:
    """The loss and its gradient in torch; in float32 with softmax(q kᵀ) v spelt out."""
    torch: Any = importlib.import_module("torch")
    attention: Any = importlib.import_module("torch.nn.attention")
    where = torch_device(device)
    twin = importlib.import_module("benchmarks.torch_gpt2").TorchGPT2(model.config)
    twin.load({name: np.array(value, np.float32) for name, value in model.parameters.items()})
    twin.to(where)
    spelt_out = attention.sdpa_kernel(attention.SDPBackend.MATH) if dtype == "float32" else nullcontext()
    with torch.autocast(where, torch.bfloat16, enabled=dtype == "bfloat16"), spelt_out:
        loss = twin(*(torch.from_numpy(part).long().to(where) for part in batch))
        loss.backward()
    return float(loss.detach()), twin.gradients(model.parameters)


def _row(
    dtype: str, found: tuple[float, Gradients], theirs: tuple[float, Gradients], exact: tuple[float, Gradients]
) -> dict[str, Any]:
    bounds = FREE_RUNNING[dtype]
    loss = difference(np.array(found[0]), np.array(exact[0]))
    whole = difference(_flat(found[1]), _flat(exact[1]))
    tensors = {name: difference(found[1][name], value) for name, value in exact[1].items()}
    violations = [f"loss: {words}" for words in bounds["loss"].violations(loss)]
    for name, of in {"gradient": whole, **tensors}.items():
        violations += [f"{name}: {words}" for words in bounds["backward"].violations(of)]
    worst = max(tensors, key=lambda name: tensors[name].one_minus_cosine)
    verdict = (
        f"loss {found[0]:.6f} and {exact[0]:.6f}; gradient 1 - cos {whole.one_minus_cosine:.1e}, "
        f"at most {tensors[worst].one_minus_cosine:.1e} ({worst})"
    )
    if dtype != "float32":
        autocast = difference(_flat(theirs[1]), _flat(exact[1]))
        verdict += f"; torch under autocast {autocast.one_minus_cosine:.1e}"
    return {
        "dtype": dtype,
        "loss": found[0],
        "torch_loss": theirs[0],
        "exact_loss": exact[0],
        "gradient": finite(asdict(whole)),
        "tensors": {name: finite(asdict(of)) for name, of in tensors.items()},
        "violations": violations,
        "verdict": f"{verdict}: {'; '.join(violations) or 'within the bounds'}",
    }


def _flat(gradients: Gradients) -> Array:
    return np.concatenate([gradients[name].reshape(-1) for name in sorted(gradients)])
