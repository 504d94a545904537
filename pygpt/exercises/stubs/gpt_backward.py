"""GPT-2's backward pass, from losses to the gradients of all parameters.

    the head         ops.classifier_backward, to ln_f and to wte, which it is tied to
    L blocks         in reverse, each branch before what passes by it
    the embedding    adds to wte.weight once more, and to wpe.weight

Gradients of parameters are added to those in dp: pass dp's arrays to the methods of ops, which add to them. Return
the losses, and the gradient of each activation by the names of the exercise gpt_forward, "losses" and "embd" included
(none for mean, rstd and lse). Two names share a gradient where a residual connection only hands it on: {h}.mlp.c_proj
has that of {h}.resid_post.

Read: docs/architecture.md, which lists the methods of ops.
"""

from __future__ import annotations

import numpy as np

from pygpt.backends.interface import Layers
from pygpt.config import GPT2Config


def backward(
    ops: Layers,
    p: dict[str, np.ndarray],
    dp: dict[str, np.ndarray],
    a: dict[str, np.ndarray],
    config: GPT2Config,
    tokens: np.ndarray,
    targets: np.ndarray,
    dlosses: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """a: activations by name; tokens, targets, dlosses: (B,T).  Returns losses: (B,T), gradients of activations."""
    raise NotImplementedError
