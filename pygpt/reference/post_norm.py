"""The blocks of the first GPT (Radford et al. 2018): LayerNorm after each residual connection, not within its branch.

    forward    x = LN_1(x + attention(x))      x = LN_2(x + feed-forward(x))       (Vaswani et al. 2017, section 3.1)
    backward   of m = LN_1(r), y = m + f(m):   dm = dy + (∂f/∂m)ᵀ dy

The branches and the LayerNorms are those of gpt2.py, which hands them over. What a branch reads also goes past it, so
its gradient has two sources, where in GPT-2's block LayerNorm's backward pass adds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .arrays import Array


class Forward(NamedTuple):
    """What gpt2.forward() lends; each keeps what it returns, and names are those of activations."""

    attention: Callable[[int, Array], Array]  # of a layer and its input: the branch's output
    feed_forward: Callable[[int, Array], Array]  # likewise
    norm: Callable[[str, Array], Array]
    add: Callable[[str, Array, Array], Array]


class Backward(NamedTuple):
    """What gpt2.backward() lends: each takes the gradient of an output, an activation, to that of an input."""

    attention: Callable[[int, Array, str], None]  # of a layer, the gradient of the branch's output, and its input
    feed_forward: Callable[[int, Array, str], None]  # likewise
    norm: Callable[[str, str], None]  # of output and input
    split: Callable[[str], tuple[Array, Array]]  # the gradient of a sum into those of its two terms
    add: Callable[[str, Array], None]  # to a gradient, one more source of it


def forward(of: Forward, n_layer: int, x: Array) -> Array:
    """x: (B,T,C), the embedding.  Returns what the head reads: (B,T,C)."""
    for layer in range(n_layer):
        h = f"h.{layer}"
        x = of.norm(f"{h}.ln_1", of.add(f"{h}.resid_mid", x, of.attention(layer, x)))
        x = of.norm(f"{h}.ln_2", of.add(f"{h}.resid_post", x, of.feed_forward(layer, x)))
    return x


def backward(of: Backward, n_layer: int, embedded: str) -> None:
    """embedded: the activation that the first block reads.  Its gradient is complete at the end."""
    inputs = [embedded] + [f"h.{layer}.ln_2" for layer in range(n_layer)]
    for layer in reversed(range(n_layer)):
        h = f"h.{layer}"
        of.norm(f"{h}.ln_2", f"{h}.resid_post")
        dx, dy = of.split(f"{h}.resid_post")
        of.feed_forward(layer, dy, f"{h}.ln_1")
        of.add(f"{h}.ln_1", dx)
        of.norm(f"{h}.ln_1", f"{h}.resid_mid")
        dx, dy = of.split(f"{h}.resid_mid")
        of.attention(layer, dy, inputs[layer])
        of.add(inputs[layer], dx)
