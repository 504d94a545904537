"""Learning rates as functions of the step, so that a resumed run needs no state for them.

With steps s = 0 ... S − 1, W steps of warm-up, D steps of final decay:

    warm-up     lr = lr_max (s + 1) / (W + 1)                                   s < W
    cosine      lr = lr_min + (lr_max − lr_min) (1 + cos π p) / 2               p = (s − W) / (S − W)
    linear      lr = lr_max + (lr_min − lr_max) p
    constant    lr = lr_max
    wsd         lr = lr_max, then lr_max + (lr_min − lr_max) q                  q = max(0, s − (S − D)) / D

Cosine: Loshchilov & Hutter 2017, eq. 5, without restarts. Warm-up-stable-decay: Hu et al. 2024 (MiniCPM), section 4.
"""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "constant", "wsd")


def learning_rate(
    step: int, *, schedule: str, peak: float, floor: float, warmup_iters: int, max_iters: int, decay_iters: int
) -> float:
    """The learning rate of update `step`, counted from 0; decay_iters is used by "wsd" alone.

    Beyond max_iters the schedule keeps its last value.  Raises ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if step < warmup_iters:
        return peak * (step + 1) / (warmup_iters + 1)
    if schedule == "constant":
        return peak
    first = max_iters - decay_iters if schedule == "wsd" else warmup_iters
    progress = min(max(0, step - first) / max(1, max_iters - first), 1.0)
    if schedule == "cosine":
        return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
    return peak + (floor - peak) * progress
