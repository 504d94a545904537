"""Back-propagation by hand through a block of the Transformer.

    forward    x1 = x + c_proj(attention(c_attn(ln_1(x))))      y = x1 + c_proj(GELU(c_fc(ln_2(x1))))
    backward   from dy to dx and the gradients of all twelve parameters

Run the forward pass, keeping what the layers' backward passes need; then go back. Where the stream forks, into a
branch and past it, gradients add: dx1 is dy plus what comes back through ln_2. pygpt.layers("numpy") has the backward
pass of each layer; docs/architecture.md lists what they take and return.

It is graded by derivatives of the forward pass. If attn.c_attn.bias is off in its middle third only: the gradient of
the keys' bias is 0 exactly.

Read: docs/architecture.md, docs/layers/residual.md; video 4 of "Neural Networks: Zero to Hero".
"""

from __future__ import annotations

import numpy as np


def block_backward(
    dy: np.ndarray, x: np.ndarray, p: dict[str, np.ndarray], n_head: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """dy, x: (B,T,C); p as in the exercise block.  Returns dx: (B,T,C), and the gradients by the names of p."""
    raise NotImplementedError
