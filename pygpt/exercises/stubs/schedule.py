"""The learning rate as a function of the step.

    With steps s = 0 ... S − 1 (max_iters), W steps of warm-up, D steps of final decay:

    warm-up     lr = lr_max (s + 1) / (W + 1)                                   s < W
    cosine      lr = lr_min + (lr_max − lr_min) (1 + cos π p) / 2               p = (s − W) / (S − W)
    linear      lr = lr_max + (lr_min − lr_max) p
    constant    lr = lr_max
    wsd         lr = lr_max, then lr_max + (lr_min − lr_max) q                  q = max(0, s − (S − D)) / D

The warm-up is common to all. From step S on, the last value stays: p and q are at most 1.

Read: docs/training.md; Loshchilov & Hutter 2017, eq. 5; Hu et al. 2024, section 4.
"""

from __future__ import annotations


def learning_rate(
    step: int, *, schedule: str, peak: float, floor: float, warmup_iters: int, max_iters: int, decay_iters: int
) -> float:
    """The learning rate of a step; peak and floor are lr_max and lr_min, decay_iters is of "wsd" alone."""
    raise NotImplementedError
