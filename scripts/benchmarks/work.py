"""How much work there is to do: the FLOPs of a training step.

A multiply-add counts 2. A token costs 6 for each parameter, of which each is multiplied once forward and twice backward
(Kaplan et al. 2020), and for attention, where a position sees (T + 1) / 2 others on average, 12 L C T / 2. This is the
work of the model: what a method computes again is not counted for it.
"""

from __future__ import annotations

from pygpt.config import GPT2Config

FORMULA = "6 N + 6 L C T FLOPs a token"


def flops_per_token(config: GPT2Config, T: int) -> float:
    """6 N + 6 L C T: forward and backward, causal; 803.3e6 for GPT-2 124M at T = 1024."""
    return 6.0 * config.num_parameters + 6.0 * config.n_layer * config.n_embd * T
