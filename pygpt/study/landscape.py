"""The loss along a direction through the parameters, or on a plane.

    L(w + α d)      d: down the gradient, −g ‖w‖ / ‖g‖, or random with each row as long as the weights' (Li et al. 2018)

Biases and LayerNorm's weights stay where they are in a random direction.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pygpt.errors import UserError
from pygpt.model import GPT2, layers
from pygpt.reference import gpt2
from pygpt.reference.arrays import Array
from pygpt.reference.clipping import global_norm
from pygpt.study.result import Curves, Map, Result
from pygpt.study.trace import Trace, trace

Direction = dict[str, Array]

DIRECTIONS = ("random", "gradient")


def landscape(
    model: GPT2,
    tokens: ArrayLike,
    direction: str = "random",
    *,
    targets: ArrayLike | None = None,
    plane: bool = False,
    extent: float = 0.5,
    points: int = 21,
    seed: int = 0,
) -> Result:
    """α from −extent to extent in so many points, 0 among them; plane: a random direction besides.

    targets: as in trace().

    Arrays: at, (points,), losses, (points,) or (points,points), and slopes, (1,) or (2,): ⟨g, d⟩, the derivative at 0.
    Raises UserError for other directions, an even number of points, and an extent that is not positive.
    """
    if direction not in DIRECTIONS:
        raise UserError(f"direction is {direction!r}, expected {' or '.join(DIRECTIONS)}")
    if points < 3 or points % 2 == 0:
        raise UserError(f"points is {points}, expected an odd number of at least 3, so that 0 is among them")
    if not 0 < extent < math.inf:
        raise UserError(f"extent is {extent:g}, expected a positive number")
    found = trace(model, tokens, targets)
    rng = np.random.default_rng(seed)
    directions = [_downhill(found) if direction == "gradient" else _random(found, rng)]
    if plane:
        directions.append(_random(found, rng))
    at = np.linspace(-extent, extent, points)
    shape = (points,) * len(directions)
    losses = np.reshape([_loss(model, found, directions, at[list(place)]) for place in np.ndindex(*shape)], shape)
    slopes = np.array([sum((found.gradients[name] * d[name]).sum() for name in d) for d in directions])
    middle, spacing = points // 2, at[1] - at[0]
    rows = []
    for number, slope in enumerate(slopes):
        line = np.moveaxis(losses, number, 0)[:, middle] if plane else losses
        curvature = float((line[middle + 1] - 2 * line[middle] + line[middle - 1]) / spacing**2)
        best = int(line.argmin())
        name = direction if number == 0 else "random"
        rows.append((name, float(slope), curvature, float(at[best]), float(line[best])))
    columns = ("direction", "slope at 0", "curvature at 0", "least at", "loss there")
    panel: Map | Curves = (
        Map("loss, nats a token", losses, "second direction", f"first direction ({direction})", reach=extent)
        if plane
        else Curves("loss", at, {direction: losses}, "α", "nats a token")
    )
    arrays = {"at": at, "losses": losses, "slopes": slopes}
    title = f"loss around the model, {found.loss:.6f} nats a token at 0, α from {-extent:g} to {extent:g}"
    return Result(title, columns, rows, arrays, [panel])


def _downhill(found: Trace) -> Direction:
    factor = -global_norm(found.parameters.values()) / global_norm(found.gradients.values())
    return {name: factor * g for name, g in found.gradients.items()}


def _random(found: Trace, rng: np.random.Generator) -> Direction:
    direction = {}
    for name, w in found.parameters.items():
        d = rng.normal(size=w.shape)
        lengths = np.linalg.norm(d, axis=-1, keepdims=True)
        direction[name] = d * np.linalg.norm(w, axis=-1, keepdims=True) / lengths if w.ndim == 2 else np.zeros_like(w)
    return direction


def _loss(model: GPT2, found: Trace, directions: list[Direction], alphas: Array) -> float:
    p = dict(found.parameters)
    for alpha, direction in zip(alphas, directions, strict=True):
        p = {name: (w + alpha * direction[name]).astype(w.dtype) for name, w in p.items()}
    ops = layers(model.device, model.dtype, model.kernels)
    a = gpt2.forward(ops, p, found.config, found.tokens, found.targets)
    return float(gpt2.mean_loss(np.asarray(a["losses"], np.float64), found.targets))
