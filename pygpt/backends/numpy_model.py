"""The whole model in numpy: pygpt/reference/ behind the interface of all backends."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pygpt.backends.interface import AdamW
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.parameters import Parameter, parameter_table
from pygpt.reference import clipping, gpt2
from pygpt.reference.arrays import Array, Operands, exact
from pygpt.reference.dropout import Dropout
from pygpt.reference.generator import Generator


class ReferenceGPT2:
    """GPT-2 in numpy, in float32, float64 or complex128.  Parameters are zero until they are set or drawn.

    operands: applied to those of products; stored: to tensors that are kept (pygpt/reference/gpt2.py).
    """

    def __init__(
        self,
        config: GPT2Config,
        dtype: DTypeLike = np.float64,
        operands: Operands = exact,
        stored: Operands = exact,
    ) -> None:
        self.config = config
        self.dtype = np.dtype(dtype)
        self.ops = ReferenceLayers(operands, stored)
        self.parameters = gpt2.zeros(config, dtype)
        self.summed_loss: Any = 0.0  # of scale * loss over the backward passes since zero_grad()
        self.activations: dict[str, Array] = {}
        self.activation_gradients: dict[str, Array] = {}
        self._tokens: Array | None = None
        self._targets: Array | None = None
        self._dropout: Dropout | None = None

    @cached_property
    def gradients(self) -> dict[str, Array]:
        """Name -> gradient of the loss; allocated when first asked for."""
        return gpt2.zeros(self.config, self.dtype)

    @cached_property
    def first_moments(self) -> dict[str, Array]:
        """Name -> the optimizer's m; allocated when first asked for."""
        return gpt2.zeros(self.config, self.dtype)

    @cached_property
    def second_moments(self) -> dict[str, Array]:
        """Name -> the optimizer's v; allocated when first asked for.  Zeros that nobody touches take no memory."""
        return gpt2.zeros(self.config, self.dtype)

    def init_weights(self, seed: int) -> None:
        """Draw fresh parameters, the same as every backend draws from this seed."""
        gpt2.init_weights(self.parameters, self.config, seed)

    def forward(self, tokens: Array, targets: Array | None = None, dropout: Dropout | None = None) -> Any:
        """tokens, targets: (B,T) integers; of dropout, the seed and the step are used.

        targets[b,t] is the token to predict after tokens[b,t]: nothing is shifted here.  Returns the mean loss over the
        targets that are not negative, in nats, 0 where all are; None without targets.  Raises UserError for sequences
        longer than n_positions and for tokens and targets outside the vocabulary.
        """
        check_batch(self.config, tokens, targets)
        self._tokens, self._targets, self._dropout = tokens, targets, dropout
        self.activations = gpt2.forward(
            self.ops, self.parameters, self.config, tokens, targets, dropout, self.ops.stored
        )
        return None if targets is None else self._loss(targets)

    def backward(self, scale: float = 1.0) -> None:
        """gradients += scale * d(loss)/d(parameter), for the latest forward pass.

        Raises UserError if that had no targets.
        """
        self._backward(scale)

    def forward_backward(
        self, tokens: Array, targets: Array, scale: float = 1.0, dropout: Dropout | None = None
    ) -> Any:
        """Both passes, the head computed once instead of twice; returns the loss.  Raises UserError as they do."""
        check_batch(self.config, tokens, targets)
        self.forward(tokens, None, dropout)
        self._targets = targets
        self._backward(scale)
        return self._loss(targets)

    def accumulate(self, tokens: Array, targets: Array, scale: float = 1.0, dropout: Dropout | None = None) -> None:
        """forward_backward() whose loss is only in summed_loss."""
        self.forward_backward(tokens, targets, scale, dropout)

    def _backward(self, scale: float) -> None:
        if self._tokens is None or self._targets is None:
            raise UserError("the backward pass needs a forward pass with targets before it")
        dlosses = gpt2.mean_loss_backward(self._targets, scale, self.dtype)
        self.activations["losses"], self.activation_gradients = gpt2.backward(
            self.ops,
            self.parameters,
            self.gradients,
            self.activations,
            self.config,
            self._tokens,
            self._targets,
            dlosses,
            self._dropout,
            self.ops.stored,
        )
        self.summed_loss += scale * self._loss(self._targets)

    def _loss(self, targets: Array) -> Any:
        return gpt2.mean_loss(self.activations["losses"], targets).item()

    @property
    def shape(self) -> tuple[int, int]:
        """B and T of the latest forward pass; 0 and 0 before it."""
        B, T = (0, 0) if self._tokens is None else self._tokens.shape
        return B, T

    def logits(self, first: int, count: int) -> Array:
        """Logits of rows first ... first + count - 1 of the latest forward pass: (count,V)."""
        x = self._activation(self.config.head_input).reshape(-1, self.config.n_embd)
        if first < 0 or count < 0 or first + count > len(x):
            raise UserError(f"logits of rows {first} to {first + count - 1}: the latest forward pass has {len(x)} rows")
        head = self.ops.stored(self.parameters[self.config.head])
        return self.ops.stored(self.ops.matmul(x[first : first + count], head, transpose_b=True))

    def attention_probabilities(self, layer: int) -> Array:
        """Attention probabilities of one layer in the latest forward pass, before dropout: (B,NH,T,T)."""
        if not 0 <= layer < self.config.n_layer:
            raise UserError(f"layer is {layer}, expected 0 to {self.config.n_layer - 1}")
        lse, qkv = (self._activation(f"h.{layer}.attn.{name}") for name in ("lse", gpt2.attended(self.config)))
        return self.ops.attention_probabilities(
            lse, qkv, self.config.n_head, self.config.attention_scale(layer), self.config.causal
        )

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for gradient in self.gradients.values():
            gradient[...] = 0
        self.summed_loss = 0.0

    def clip_grad_norm(self, max_norm: float) -> Any:
        """Scale the gradients to the norm max_norm if they exceed it; max_norm <= 0 only measures.

        Returns the norm before.
        """
        return clipping.clip(self.gradients.values(), max_norm).item()

    def adamw_step(self, adamw: AdamW, step: int) -> None:
        """Update all parameters; only matrices decay; step counts from 1."""
        for parameter in parameter_table(self.config):
            self._adamw(parameter, adamw, step)

    def sgd_step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Update all parameters; only matrices decay."""
        for parameter in parameter_table(self.config):
            m = self.first_moments[parameter.name] if momentum else None
            w, dw = self.parameters[parameter.name], self.gradients[parameter.name]
            self.ops.sgd_step(w, m, dw, lr, momentum, weight_decay if parameter.weight_decay else 0.0)

    def muon_step(self, muon_lr: float, momentum: float, adamw: AdamW, step: int) -> None:
        """Update the matrices of the blocks by Muon, and all others by AdamW; step counts from 1."""
        for parameter in parameter_table(self.config):
            if not parameter.muon:
                self._adamw(parameter, adamw, step)
                continue
            w, m, dw = (tensors[parameter.name] for tensors in (self.parameters, self.first_moments, self.gradients))
            self.ops.muon_step(w, m, dw, muon_lr, momentum, adamw.weight_decay, parameter.muon)

    def _adamw(self, parameter: Parameter, adamw: AdamW, step: int) -> None:
        tensors = (self.parameters, self.first_moments, self.second_moments, self.gradients)
        w, m, v, dw = (tensor[parameter.name] for tensor in tensors)
        settings = adamw if parameter.weight_decay else adamw._replace(weight_decay=0.0)
        self.ops.adamw_step(w, m, v, dw, *settings, step)

    def generator(self, weights: str, cache: str, batch_size: int, positions: int) -> Generator:
        """A snapshot of the parameters with a cache of keys and values.  Raises UserError for complex parameters."""
        if self.dtype.kind == "c":
            raise UserError(f"a generator computes in float32 or float64, found {self.dtype}")
        return Generator(self.parameters, self.config, weights, cache, batch_size, positions)

    def _activation(self, name: str) -> Array:
        if not self.activations:
            raise UserError(f"activation {name} needs a forward pass before it")
        return self.activations[name]


def check_batch(config: GPT2Config, tokens: Array, targets: Array | None) -> None:
    """Raises UserError unless a model of this configuration can run on tokens and targets, (B,T) integers."""
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise UserError(f"tokens has shape {tokens.shape}, expected (B, T)")
    if tokens.shape[1] > config.n_positions:
        raise UserError(f"sequence length is {tokens.shape[1]}, expected at most n_positions = {config.n_positions}")
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        found = tokens.min() if tokens.min() < 0 else tokens.max()
        raise UserError(f"token {found} is outside the vocabulary, expected 0 to {config.vocab_size - 1}")
    if targets is None:
        return
    if targets.shape != tokens.shape:
        raise UserError(f"targets has shape {targets.shape}, expected {tokens.shape} as tokens")
    if targets.max() >= config.vocab_size:
        raise UserError(f"target {targets.max()} is outside the vocabulary, expected less than {config.vocab_size}")
