"""How GPT-2's parameters begin.

    matrices, wte, wpe             normal, mean 0, standard deviation σ = initializer_range (0.02)
    attn.c_proj and mlp.c_proj     normal, mean 0, standard deviation σ / √(2L)
    biases                         0
    weights of LayerNorm           1

The 2L projections end in the residual stream, a sum: divided by √(2L) they leave its variance independent of depth.

So that the result can be graded, the numbers are given: parameter number k, in the order of the dictionary, is filled
in row-major order with philox.normal(size, seed, k), times its standard deviation. (Their seed and number are all
that they depend on: every device draws the same.)

Read: docs/models.md; Radford et al. 2019, section 2.3; video 3 of "Neural Networks: Zero to Hero".
"""

from __future__ import annotations

import numpy as np

from pygpt.config import GPT2Config
from pygpt.reference import philox


def init_weights(parameters: dict[str, np.ndarray], config: GPT2Config, seed: int) -> None:
    """Fill the arrays of parameters in place, by name: "h.0.attn.c_proj.weight", "h.0.ln_1.weight", "ln_f.bias", ..."""
    raise NotImplementedError
