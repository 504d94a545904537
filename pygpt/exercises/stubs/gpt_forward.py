"""GPT-2's forward pass, from tokens to losses.

    embd                     embedding of tokens and positions, wte.weight and wpe.weight
    L blocks, h = "h.0" ...  {h}.ln_1   {h}.attn.c_attn   {h}.attn.heads   {h}.attn.c_proj   {h}.resid_mid
                             {h}.ln_2   {h}.mlp.c_fc      {h}.mlp.act      {h}.mlp.c_proj    {h}.resid_post
    ln_f                     the last LayerNorm
    losses                   the head is wteᵀ, then cross-entropy: ops.classifier_forward

Return every activation under its name, so that the first one that is off shows where the fault is; also the mean and
rstd of each LayerNorm ("ln_f.mean", "ln_f.rstd") and "{h}.attn.lse". Parameters have the name of their layer, with
.weight or .bias. There is no dropout.

Read: docs/architecture.md, which lists the methods of ops, and the activations; Radford et al. 2019.
"""

from __future__ import annotations

import numpy as np

from pygpt.backends.interface import Layers
from pygpt.config import GPT2Config


def forward(
    ops: Layers, p: dict[str, np.ndarray], config: GPT2Config, tokens: np.ndarray, targets: np.ndarray
) -> dict[str, np.ndarray]:
    """ops: the layers; p: parameters by name; tokens, targets: (B,T).  Returns the activations by name."""
    raise NotImplementedError
