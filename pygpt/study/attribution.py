"""A difference of two logits, split among everything that wrote to the residual stream.

The stream at the end is a sum, x = wte[token] + wpe[t] + Σ heads + Σ neurons + biases, and with the last LayerNorm's
scale r = rstd held as it is, the difference between the logits of tokens a and b is linear in it:

    z_a − z_b = ⟨x, d⟩ + ⟨bias_f, u⟩      u = head[a] − head[b]      d = r (w_f ⊙ u − mean(w_f ⊙ u))

head is wte unless the model has its own. A head of attention writes y_h W_o[its rows], a neuron act_j W_proj[j]. The
parts add up to the difference exactly; where a model has no biases, or adds no positions, their parts are 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pygpt.errors import UserError
from pygpt.reference import positions
from pygpt.reference.arrays import Array
from pygpt.study.result import Map, Result
from pygpt.study.trace import Trace
from pygpt.study.variations import check_stream

SHOWN = 20


def attribution(
    found: Trace,
    position: int | None = None,
    a: int | None = None,
    b: int | None = None,
    word: Callable[[int], str] = str,
) -> Result:
    """At a position, the last if not given, of the first row; a, b: the two most likely tokens there, if not given.

    Arrays: embedding, (2,): of token and position; heads, (L,NH); neurons, (L,n_inner); biases, (L,2): of attention and
    feed-forward; last_bias; difference.  Raises UserError for a position or token that is not there, and for a model
    whose stream is not such a sum.
    """
    check_stream(found.config, "attribution")
    config, T = found.config, found.tokens.shape[1]
    t = T - 1 if position is None else position
    if not 0 <= t < T:
        raise UserError(f"position is {t}, expected 0 to {T - 1}")
    logits = np.asarray(found.activations["logits"], np.float64)[0, t]
    likely = np.argsort(-logits, kind="stable")
    a, b = int(likely[0]) if a is None else a, int(likely[1]) if b is None else b
    for token in (a, b):
        if not 0 <= token < config.vocab_size:
            raise UserError(f"token {token} is outside the vocabulary, expected 0 to {config.vocab_size - 1}")
    p = {name: np.asarray(value, np.float64) for name, value in found.parameters.items()}
    u = p[config.head][a] - p[config.head][b]
    d = p["ln_f.weight"] * u
    d = float(found.activations["ln_f.rstd"][0, t]) * (d - d.mean())
    wpe = positions.added_to_embedding(p, config)

    def of_bias(name: str, direction: Array) -> float:
        return float(p[name] @ direction) if name in p else 0.0

    arrays = {
        "embedding": np.array([p["wte.weight"][found.tokens[0, t]] @ d, 0.0 if wpe is None else wpe[t] @ d]),
        "heads": np.stack([_heads(found, p, layer, t, d) for layer in range(config.n_layer)]),
        "neurons": np.stack([_neurons(found, p, layer, t, d) for layer in range(config.n_layer)]),
        "biases": np.array(
            [
                [of_bias(f"h.{layer}.{part}.c_proj.bias", d) for part in ("attn", "mlp")]
                for layer in range(config.n_layer)
            ]
        ),
        "last_bias": np.array(of_bias("ln_f.bias", u)),
    }
    parts = sorted(_named(arrays), key=lambda part: -abs(part[1]))
    rest = float(sum(value for _, value in parts[SHOWN:]))
    rows = [*parts[:SHOWN], *([(f"{len(parts) - SHOWN:,} others", rest)] if parts[SHOWN:] else [])]
    difference = float(logits[a] - logits[b])
    total = float(sum(value.sum() for value in arrays.values()))
    panels = [
        Map("added by each head", arrays["heads"], "head", "layer", signed=True),
        Map("added by each neuron", arrays["neurons"], "neuron", "layer", signed=True),
    ]
    place = "after" if config.causal else "at"
    title = f"logit of {word(a)} minus logit of {word(b)} {place} position {t}: {difference:.6g}"
    notes = [f"sum of all parts: {total:.6g}"]
    arrays["difference"] = np.array(difference)
    return Result(title, ("part", "adds"), rows, arrays, panels, notes)


def _heads(found: Trace, p: dict[str, Array], layer: int, t: int, d: Array) -> Array:
    y = np.asarray(found.activations[f"h.{layer}.attn.heads"], np.float64)[0, t]
    parts: Array = (y * (p[f"h.{layer}.attn.c_proj.weight"] @ d)).reshape(found.config.n_head, -1).sum(1)
    return parts


def _neurons(found: Trace, p: dict[str, Array], layer: int, t: int, d: Array) -> Array:
    y = np.asarray(found.activations[f"h.{layer}.mlp.act"], np.float64)[0, t]
    parts: Array = y * (p[f"h.{layer}.mlp.c_proj.weight"] @ d)
    return parts


def _named(arrays: dict[str, Array]) -> list[tuple[str, float]]:
    token, position = arrays["embedding"]
    named = [("token embedding", float(token)), ("position embedding", float(position))]
    for kind, name in (("heads", "head"), ("neurons", "neuron")):
        named += [(f"layer {layer}, {name} {i}", float(value)) for (layer, i), value in np.ndenumerate(arrays[kind])]
    for (layer, i), value in np.ndenumerate(arrays["biases"]):
        named.append((f"layer {layer}, bias of {('attention', 'feed-forward')[i]}", float(value)))
    return [*named, ("bias of the last LayerNorm", float(arrays["last_bias"]))]
