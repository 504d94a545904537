"""A block of the Transformer.

    x = x + linear(attention(linear(LayerNorm(x))))          ln_1, attn.c_attn, attn.c_proj
    x = x + linear(GELU(linear(LayerNorm(x))))               ln_2, mlp.c_fc, mlp.c_proj

Both branches begin with a LayerNorm and end in the residual stream, to which they only add (GPT-2 differs in this
from Vaswani et al., who normalise after the sum). p holds the parameters by name: "ln_1.weight", "ln_1.bias",
"attn.c_attn.weight", ... The layers are given: pygpt.layers("numpy") has layernorm_forward, linear_forward,
attention_forward and gelu_forward; or import what you have written. ε of LayerNorm is 1e-5.

Read: docs/architecture.md, docs/layers/residual.md; Radford et al. 2019, section 2.3.
"""

from __future__ import annotations

import numpy as np


def block(x: np.ndarray, p: dict[str, np.ndarray], n_head: int) -> np.ndarray:
    """x: (B,T,C); matrices of p: (in,out).  Returns the block's output: (B,T,C)."""
    raise NotImplementedError
