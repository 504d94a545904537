"""GPT-2's forward pass for tokens that come one by one, or many at once, with a cache of keys and values.

    x = wte[token] + wpe[position]
    L times    q, k, v = linear(LayerNorm(x))      the cache takes k and v
               S_tu = c q_t·k_u  (u ≤ t)           y_t = Σ_u softmax(S_t)_u v_u, over everything in the cache
               x = x + linear(y)                   x = x + linear(activation(linear(LayerNorm(x))))
    logits = LayerNorm(x) headᵀ        head: wte, or the model's own; c: the scale, 1/√HS in GPT-2

With norm_position "post", x = LayerNorm(x + linear(...)) twice instead, and the head multiplies x.

This is gpt2.py with another attention: keys and values of earlier positions do not depend on later tokens, so they are
kept instead of computed again, and a new token costs one row. A row is a token of one of the sequences; the rows of
all sequences go through the products together. Weights and their inputs are what packed.py makes of them.

A cache in bfloat16 has products of bfloat16: q is rounded as k and v are, and so is P = 2^(S log₂ e − m) in
y = Σ_u P_u v_u / Σ_u P_u. With a whole number m its rounding is the same whichever m is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.config import GPT2Config
from pygpt.errors import UserError, check_integer

from . import exact_gelu, gelu, layernorm, linear, packed, relu, rotary
from .arrays import Array, row_of_integers
from .positions import added_to_embedding


class Generator:
    """A snapshot of a model's parameters, and sequences whose keys and values it keeps: csrc/generator.c in numpy.

    p: parameters by name, in the dtype of everything that is computed; weights, cache: their formats, as in packed.py;
    the embedding and the head have eight bits where weights have four.
    """

    def __init__(
        self, p: Mapping[str, Array], config: GPT2Config, weights: str, cache: str, batch_size: int, positions: int
    ) -> None:
        self.config, self.positions, self.weights = config, positions, weights
        self._activate = {"gelu_new": gelu, "gelu": exact_gelu, "relu": relu}[config.activation_function].forward
        self._inputs = packed.INPUTS[weights]
        self._stored = packed.WEIGHTS[cache]
        shape = (config.n_layer, 2, batch_size, config.n_head, positions, config.head_size)  # 2: keys and values
        dtype = p["wte.weight"].dtype
        if math.prod(shape) * dtype.itemsize > sys.maxsize:
            raise MemoryError(f"no memory for keys and values of {batch_size} sequences of {positions} positions")
        self._cache = np.zeros(shape, dtype)
        self.lengths = (0,) * batch_size
        self._p = {name: self._kept(name, value, weights) for name, value in p.items()}
        self._wpe = added_to_embedding(self._p, config)

    @staticmethod
    def _kept(name: str, value: Array, weights: str) -> Array:
        if name in ("wte.weight", "lm_head.weight"):  # the head is wteᵀ, so that groups lie along the channels
            return packed.WEIGHTS["int8" if weights == "int4" else weights](value.T).T.copy()
        matrix = value.ndim == 2 and name != "wpe.weight"
        return packed.WEIGHTS[weights](value).copy() if matrix else value.copy()

    def feed(self, tokens: Sequence[ArrayLike], every: bool = False) -> Array:
        rows, counts = rows_of_tokens(tokens, len(self.lengths))
        self._check(rows, counts)
        p, config = self._p, self.config
        if not rows.size:
            return np.empty((0, config.vocab_size), p["wte.weight"].dtype)
        ends = np.cumsum(counts)
        parts = [(b, slice(end - n, end)) for b, (end, n) in enumerate(zip(ends, counts, strict=True)) if n]
        positions = np.concatenate([np.arange(self.lengths[b], self.lengths[b] + counts[b]) for b, _ in parts])

        x = p["wte.weight"][rows]
        if self._wpe is not None:
            x = x + self._wpe[positions]
        for layer in range(config.n_layer):
            h = f"h.{layer}"
            if config.norm_position == "pre":
                x = x + self._attention_branch(layer, self._norm(f"{h}.ln_1", x), positions, parts)
                x = x + self._feed_forward_branch(layer, self._norm(f"{h}.ln_2", x))
            else:
                x = self._norm(f"{h}.ln_1", x + self._attention_branch(layer, x, positions, parts))
                x = self._norm(f"{h}.ln_2", x + self._feed_forward_branch(layer, x))

        if not every:
            x = x[[part.stop - 1 for _, part in parts]]
        if config.norm_position == "pre":
            x = self._norm("ln_f", x)
        logits = linear.forward(self._inputs(x), p[config.head].T)
        self.lengths = tuple(start + int(n) for start, n in zip(self.lengths, counts, strict=True))
        return logits

    def write(self, layer: int, name: str, w: Array, scales: Array) -> None:
        if self.weights not in ("int8", "int4"):
            raise UserError("only weights of 8 or 4 bits have scales")
        kept = self._p[f"h.{layer}.{name}.weight"]
        each = np.repeat(scales.astype(np.float32), packed.GROUP, axis=0)[: len(w)]
        kept[...] = packed.rounded(w.astype(np.float32), packed.bfloat16(each), self.weights)

    def rewind(self, lengths: Sequence[int]) -> None:
        self.lengths = kept_lengths(lengths, self.lengths)

    def _norm(self, name: str, x: Array) -> Array:
        w, b = self._p[f"{name}.weight"], self._p.get(f"{name}.bias")
        return layernorm.forward(x, w, b, self.config.layer_norm_epsilon)[0]

    def _affine(self, name: str, x: Array) -> Array:
        return linear.forward(self._inputs(x), self._p[f"{name}.weight"], self._p.get(f"{name}.bias"))

    def _attention_branch(
        self, layer: int, x: Array, positions: NDArray[np.int64], parts: Sequence[tuple[int, slice]]
    ) -> Array:
        """x: (N,C), the rows of all sequences; parts: which of them each sequence has.  Returns y: (N,C)."""
        qkv = self._affine(f"h.{layer}.attn.c_attn", x)
        if self.config.position_embedding == "rotary":
            qkv = rotary.turn(qkv, self.config.n_head, positions)
        y = np.concatenate([self._attention(layer, b, qkv[part]) for b, part in parts])
        return self._affine(f"h.{layer}.attn.c_proj", y)

    def _feed_forward_branch(self, layer: int, x: Array) -> Array:
        y = self._activate(self._affine(f"h.{layer}.mlp.c_fc", x))
        return self._affine(f"h.{layer}.mlp.c_proj", y)

    def _attention(self, layer: int, b: int, qkv: Array) -> Array:
        """Append the keys and values of new tokens of sequence b, and attend.  qkv: (n,3C).  Returns y: (n,C)."""
        n, start = len(qkv), self.lengths[b]
        q, k, v = qkv.reshape(n, 3, self.config.n_head, -1).transpose(1, 2, 0, 3)  # (NH,n,HS)
        keys, values = self._cache[layer, :, b, :, : start + n]  # (NH,positions so far,HS)
        keys[:, start:], values[:, start:] = self._stored(k), self._stored(v)
        s = self._stored(q) @ keys.swapaxes(-1, -2) * self.config.attention_scale(layer) / math.log(2)
        s = np.where(np.tri(n, start + n, start, dtype=bool), s, s.dtype.type(-np.inf))
        P = np.exp2(s - np.ceil(s.max(-1, keepdims=True)))
        y = self._stored(P) @ values / P.sum(-1, keepdims=True)
        return y.swapaxes(0, 1).reshape(n, -1)

    def _check(self, rows: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        V = self.config.vocab_size
        for b, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if count > self.positions - length:
                raise UserError(
                    f"sequence {b} has {length} tokens, and {count} more were to be appended, "
                    f"but there are {self.positions} positions"
                )
        outside = (rows < 0) | (rows >= V)
        if outside.any():
            at = int(outside.argmax())
            b = int(np.searchsorted(np.cumsum(counts), at, side="right"))
            raise UserError(f"token {rows[at]} of sequence {b} is outside the vocabulary, expected 0 ... {V - 1}")


def rows_of_tokens(tokens: Sequence[ArrayLike], batch_size: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The tokens of all sequences, one behind the other, and how many each has: (N,) (B,).

    Raises UserError unless there are integers of shape (n,) for each sequence.
    """
    if len(tokens) != batch_size:
        raise UserError(f"tokens of {len(tokens)} sequences were given, expected those of {batch_size}")
    rows = [row_of_integers(f"tokens of sequence {b}", row) for b, row in enumerate(tokens)]
    # a token that 32 bits cannot hold is outside every vocabulary, and must not wrap around into one
    flat = np.clip(np.concatenate(rows), -(2**31), 2**31 - 1).astype(np.int32)
    return flat, np.array([row.size for row in rows], np.int64)


def kept_lengths(lengths: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    """The lengths after a rewind.  Raises UserError unless each is from 0 to that before."""
    if len(lengths) != len(before):
        raise UserError(f"lengths of {len(lengths)} sequences were given, expected those of {len(before)}")
    for b, (kept, length) in enumerate(zip(lengths, before, strict=True)):
        check_integer(f"the length that sequence {b} keeps", kept, 0, length)
    return tuple(int(kept) for kept in lengths)
