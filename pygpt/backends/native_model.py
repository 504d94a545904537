"""The model of a native library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pygpt.backends.interface import DTYPES, KERNELS, OPTIMIZERS, RECOMPUTE, AdamW
from pygpt.backends.library import check, ffi, last_error
from pygpt.backends.native_generator import NativeGenerator
from pygpt.backends.native_tensors import (
    ACTIVATION,
    ACTIVATION_GRADIENT,
    FIRST_MOMENT,
    GRADIENT,
    PARAMETER,
    SECOND_MOMENT,
    NativeTensors,
)
from pygpt.backends.pointers import (
    Floats,
    as_integers,
    c_config,
    c_dropout,
    expect_shape,
    floats,
    integers,
    kernel_table,
    number,
)
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.reference.arrays import Array
from pygpt.reference.dropout import Dropout


class NativeGPT2:
    """A model in a native library: an interface.Model."""

    def __init__(self, config: GPT2Config, library: Any, dtype: str, kernels: str, recompute: str) -> None:
        self.config = config
        self.library = library
        kernel_table(library, kernels, dtype)
        model = ffi().new("GPT2 **")
        check(library, library.gpt2_create(model, c_config(config), _c_options(dtype, kernels, recompute)))
        self.handle = ffi().gc(model[0], library.gpt2_free)
        self.parameters = NativeTensors(library, self.handle, PARAMETER)
        self.gradients = NativeTensors(library, self.handle, GRADIENT)
        self.first_moments = NativeTensors(library, self.handle, FIRST_MOMENT)
        self.second_moments = NativeTensors(library, self.handle, SECOND_MOMENT)
        self.activations = NativeTensors(library, self.handle, ACTIVATION)
        self.activation_gradients = NativeTensors(library, self.handle, ACTIVATION_GRADIENT)

    def init_weights(self, seed: int) -> None:
        check(self.library, self.library.gpt2_init_weights(self.handle, seed))

    def forward(self, tokens: Array, targets: Array | None = None, dropout: Dropout | None = None) -> float | None:
        loss = ffi().new("float *")
        self._run(self.library.gpt2_forward, loss, tokens, targets, dropout)
        return None if targets is None else float(loss[0])

    def backward(self, scale: float = 1.0) -> None:
        self.activation_gradients.forget()
        check(self.library, self.library.gpt2_backward(self.handle, scale))

    def forward_backward(
        self, tokens: Array, targets: Array, scale: float = 1.0, dropout: Dropout | None = None
    ) -> float:
        loss = ffi().new("float *")
        self._run(self.library.gpt2_forward_backward, loss, tokens, targets, dropout, scale)
        return float(loss[0])

    def accumulate(self, tokens: Array, targets: Array, scale: float = 1.0, dropout: Dropout | None = None) -> None:
        self._run(self.library.gpt2_forward_backward, ffi().NULL, tokens, targets, dropout, scale)

    @property
    def summed_loss(self) -> float:
        loss = ffi().new("double *")
        check(self.library, self.library.gpt2_summed_loss(self.handle, loss))
        return float(loss[0])

    def _run(
        self,
        call: Callable[..., int],
        loss: Any,
        tokens: Array,
        targets: Array | None,
        dropout: Dropout | None,
        *more: float,
    ) -> None:
        tokens = as_integers(tokens)
        if tokens.ndim != 2:
            raise UserError(f"tokens has shape {tokens.shape}, expected (B, T)")
        if targets is not None:
            targets = as_integers(targets)
            expect_shape("targets", targets, tokens.shape)
        self.activations.forget()
        self.activation_gradients.forget()
        pointers = integers(tokens), integers(targets)
        check(self.library, call(self.handle, loss, *pointers, *tokens.shape, c_dropout(dropout), *more))

    @property
    def shape(self) -> tuple[int, int]:
        sizes = ffi().new("int64_t[2]")
        check(self.library, self.library.gpt2_shape(self.handle, sizes, sizes + 1))
        return sizes[0], sizes[1]

    @property
    def graphs(self) -> tuple[int, int]:
        """How many passes were launched as a CUDA graph, and how many could not be captured; on CUDA devices only."""
        counts = ffi().new("int64_t[2]")
        check(self.library, self.library.gpt2_graphs(self.handle, counts, counts + 1))
        return counts[0], counts[1]

    def logits(self, first: int, count: int) -> Floats:
        logits = np.empty((max(count, 0), self.config.vocab_size), np.float32)
        check(self.library, self.library.gpt2_logits(self.handle, floats(logits), first, count))
        return logits

    def attention_probabilities(self, layer: int) -> Floats:
        B, T = self.shape
        p = np.empty((B, self.config.n_head, T, T), np.float32)
        check(self.library, self.library.gpt2_attention(self.handle, floats(p), layer, p.size))
        return p

    def zero_grad(self) -> None:
        check(self.library, self.library.gpt2_zero_grad(self.handle))

    def clip_grad_norm(self, max_norm: float) -> float:
        norm = ffi().new("double *")
        check(self.library, self.library.gpt2_clip_grad_norm(self.handle, norm, max_norm))
        return float(norm[0])

    def adamw_step(self, adamw: AdamW, step: int) -> None:
        check(self.library, self.library.gpt2_adamw_step(self.handle, *adamw, step))
        self.second_moments.forget()  # there may be more of them than Muon had

    def sgd_step(self, lr: float, momentum: float, weight_decay: float) -> None:
        check(self.library, self.library.gpt2_sgd_step(self.handle, lr, momentum, weight_decay))

    def muon_step(self, muon_lr: float, momentum: float, adamw: AdamW, step: int) -> None:
        check(self.library, self.library.gpt2_muon_step(self.handle, muon_lr, momentum, *adamw, step))

    def generator(self, weights: str, cache: str, batch_size: int, positions: int) -> NativeGenerator:
        return NativeGenerator(self.library, self.handle, self.config, weights, cache, batch_size, positions)


def native_memory(
    config: GPT2Config,
    library: Any,
    batch_size: int,
    seq_len: int,
    training: bool,
    dtype: str,
    kernels: str,
    recompute: str,
    optimizer: str,
) -> int:
    """Bytes that a model takes in this library.  Raises UserError for sizes that overflow 64 bits."""
    options = _c_options(dtype, kernels, recompute)
    purpose = 1 + number("optimizer", optimizer, OPTIMIZERS) if training else 0
    needed = int(library.gpt2_memory(c_config(config), options, batch_size, seq_len, purpose))
    if needed < 0:
        last_error(library)
        raise UserError(f"a batch of {batch_size} x {seq_len} tokens: the memory it needs overflows 64 bits")
    return needed


def _c_options(dtype: str, kernels: str, recompute: str) -> Any:
    given = (("dtype", dtype, DTYPES), ("kernels", kernels, KERNELS), ("recompute", recompute, RECOMPUTE))
    return ffi().new("GPT2Options *", {name: number(name, value, known) for name, value, known in given})
