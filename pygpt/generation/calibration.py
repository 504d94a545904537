"""Weights of eight or four bits that fit the texts which a model sees: reference/gptq.py for each of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pygpt.backends.interface import LINEAR, Generator
from pygpt.reference import gptq
from pygpt.reference.arrays import Array

if TYPE_CHECKING:
    from pygpt.model import GPT2

_INPUTS = {"attn.c_attn": "ln_1", "attn.c_proj": "attn.heads", "mlp.c_fc": "ln_2", "mlp.c_proj": "mlp.act"}
"""The activation that each linear layer of a block takes."""


def calibrate(generator: Generator, model: GPT2, tokens: Array, weights: str) -> None:
    """Replace the weights of a generator's linear layers, but for the head.

    model: which the generator was made of, and which keeps all its activations; tokens: (n,T), windows of a text.
    """
    model.forward(tokens)
    for layer in range(model.config.n_layer):
        for name in LINEAR:
            x = np.asarray(model.activations[f"h.{layer}.{_INPUTS[name]}"], np.float32)
            x = x.reshape(-1, x.shape[-1])
            w = np.asarray(model.parameters[f"h.{layer}.{name}.weight"])
            generator.write(layer, name, *gptq.quantise(w, (x.T @ x).astype(np.float64), weights))
