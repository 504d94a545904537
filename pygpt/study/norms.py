"""The length of the residual stream, of what each branch adds to it, and of the gradients that come back.

    x_mid = x + a      x_post = x_mid + f      cosine = ⟨x, a⟩ / (‖x‖ ‖a‖), of f with x_mid

a and f are the outputs of attention and of the feed-forward part.
"""

from __future__ import annotations

import numpy as np

from pygpt.reference.arrays import Array
from pygpt.study.result import Curves, Result
from pygpt.study.trace import Trace
from pygpt.study.variations import check_stream


def norms(found: Trace) -> Result:
    """Arrays by name of the activation, (B,T): ‖x‖, "d ..." ‖dx‖, and for branches "cosine ...".

    Raises UserError for a model whose stream is not such a sum.
    """
    check_stream(found.config, "norms")
    names, before = ["embd"], "embd"
    cosines = {}
    for layer in range(found.config.n_layer):
        h = f"h.{layer}"
        for branch, after in ((f"{h}.attn.c_proj", f"{h}.resid_mid"), (f"{h}.mlp.c_proj", f"{h}.resid_post")):
            cosines[branch] = _cosine(found.activations[before], found.activations[branch])
            names += [branch, after]
            before = after
    arrays = {name: np.linalg.norm(found.activations[name], axis=-1) for name in names}
    gradients = {name: np.linalg.norm(found.activation_gradients[name], axis=-1) for name in names}
    rows = [
        (
            name,
            float(arrays[name].mean()),
            float(arrays[name][:, 0].mean()),
            float(cosines[name].mean()) if name in cosines else "",
            float(gradients[name].mean()),
        )
        for name in names
    ]
    depth = np.arange(len(found.stream))
    panels = [
        Curves(
            title,
            depth,
            {
                f"position {t}": np.array([of[name][0, t] for name in found.stream])
                for t in range(found.tokens.shape[1])
            },
            "depth",
            "norm",
            log=True,
        )
        for title, of in (("‖x‖ of the residual stream", arrays), ("‖dx‖", gradients))
    ]
    arrays |= {f"d {name}": value for name, value in gradients.items()}
    arrays |= {f"cosine {name}": value for name, value in cosines.items()}
    columns = ("activation", "mean ‖x‖", "at position 0", "cosine with the stream", "mean ‖dx‖")
    return Result("norms over channels, their means over positions", columns, rows, arrays, panels)


def _cosine(x: Array, y: Array) -> Array:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    cosine: Array = (x * y).sum(-1) / np.where(lengths > 0, lengths, 1)
    return cosine
