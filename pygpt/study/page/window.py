"""Which numbers a page holds: all of a small model, and of a large one a window of channels and words.

The channels of a window are those whose gradients are the largest: Σ dx² over the tokens. All tensors of the residual
stream share theirs; the feed-forward part has its own in each block; a head keeps the same channels of its q, k and v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pygpt.config import GPT2Config
from pygpt.reference.arrays import Array
from pygpt.study.trace import Trace

WORDS = 512
"""A vocabulary up to this size is stored whole."""

Rows = Array | None  # ascending; None for all


@dataclass(frozen=True)
class Window:
    """blocks: whose maps are stored.  qkv, heads, inner: by block."""

    blocks: tuple[int, ...]
    words: Rows
    stream: Rows
    qkv: dict[int, Rows]
    heads: dict[int, Rows]
    inner: dict[int, Rows]

    def axes(self, name: str, config: GPT2Config) -> tuple[Rows, Rows]:
        """Rows and columns of a parameter or activation of two axes that are stored."""
        if name in (config.head, "wte.weight"):
            return self.words, self.stream
        if name in ("wpe.weight", "logits"):
            return None, self.stream if name == "wpe.weight" else self.words
        block = int(name.split(".")[1]) if name.startswith("h.") else -1
        layer = name.removesuffix(".weight").removesuffix(".bias")
        ends = {
            "attn.c_attn": (self.stream, self.qkv.get(block)),
            "attn.c_proj": (self.heads.get(block), self.stream),
            "mlp.c_fc": (self.stream, self.inner.get(block)),
            "mlp.c_proj": (self.inner.get(block), self.stream),
            "attn.rotary": (None, self.qkv.get(block)),
            "attn.heads": (None, self.heads.get(block)),
            "mlp.act": (None, self.inner.get(block)),
        }
        rows, columns = ends.get(layer.removeprefix(f"h.{block}."), (None, self.stream))
        return (rows if name.endswith(".weight") and "ln_" not in name else None), columns


def choose(trace: Trace, channels: int | None, blocks: Sequence[int]) -> Window:
    """The window of so many channels, None for all of them."""
    config, d = trace.config, trace.activation_gradients
    at = range(config.n_layer)
    stream = _largest([d[name] for name in trace.stream], channels)
    inner = {layer: _largest([d[f"h.{layer}.mlp.c_fc"]], channels) for layer in at}
    heads, qkv = {}, {}
    for layer in at:
        heads[layer], qkv[layer] = _head_channels(d[f"h.{layer}.attn.c_attn"], config, channels)
    return Window(tuple(blocks), _words(trace, channels), stream, qkv, heads, inner)


def _largest(gradients: Sequence[Array], count: int | None) -> Rows:
    """The channels of the last axis with the largest squares, each tensor at its own scale."""
    if count is None or count >= gradients[0].shape[-1]:
        return None
    squares = [np.square(d.reshape(-1, d.shape[-1])).sum(0) for d in gradients]
    total = sum(square / (square.sum() or 1) for square in squares)
    return np.sort(np.argsort(-np.asarray(total), kind="stable")[:count])


def _head_channels(dqkv: Array, config: GPT2Config, count: int | None) -> tuple[Rows, Rows]:
    """The columns of attn.heads, and of attn.c_attn: count in all for each of q, k and v, shared by the heads."""
    if count is None or count >= config.n_embd:
        return None, None
    size, each = config.head_size, -(-count // config.n_head)
    parts = np.square(dqkv.reshape(-1, 3, config.n_head, size)).sum((0, 1))
    best = np.sort(np.argsort(-parts, axis=-1, kind="stable")[:, :each], axis=-1)
    heads = (best + size * np.arange(config.n_head)[:, None]).ravel()
    return heads, np.concatenate([part * config.n_embd + heads for part in range(3)])


def _words(trace: Trace, count: int | None) -> Rows:
    """The words of the text, and those whose logits have the largest gradients."""
    if trace.config.vocab_size <= WORDS:
        return None
    text = np.union1d(trace.tokens, trace.targets[trace.targets >= 0])
    squares = np.square(trace.activation_gradients["logits"][0]).sum(0)
    squares[text] = 0
    return np.union1d(text, np.argsort(-squares, kind="stable")[: count or WORDS])
