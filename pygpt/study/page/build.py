"""One HTML file with everything in it: the table of numbers, the blocks, the style and the script."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.backends.sources import CHECKOUT
from pygpt.errors import UserError
from pygpt.reference.arrays import Array, log_sum_exp
from pygpt.study.lens import lens_logits
from pygpt.study.page import sources
from pygpt.study.page.errors import Errors
from pygpt.study.page.graph import graph
from pygpt.study.page.stored import encode, tensors
from pygpt.study.page.window import Window, choose
from pygpt.study.step import Step

LARGEST = 10_000_000
"""Bytes of a page."""

TABLES = 1_000_000
"""Of these, what is kept for all that is not in the blocks."""

CHANNELS = (None, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 8)
"""From which the window is chosen: the first that fits."""

HERE = Path(__file__).parent
SCRIPTS = (
    "data",
    "graph",
    "activation",
    "positions",
    "explain_forward",
    "explain_backward",
    "explain_step",
    "format",
    "map",
    "panel",
    "layer",
    "heads",
    "overview",
    "errors",
    "main",
    "check",
)


@dataclass(frozen=True)
class About:
    """What a page says of itself."""

    heading: str  # the line under the title
    made: str  # the line at the foot
    typed: str  # the text
    root: str | None = None  # what leads to the checkout in links; None where pygpt is installed without one
    errors: Sequence[Errors] = ()  # of the backends


def page_size(step: Step, window: Window) -> int:
    """Bytes of a page with this window, at most."""
    return TABLES + sum(tensor.size for tensor in tensors(step, window)) * 16 // 3


def fitting_window(step: Step, channels: int | None, blocks: Sequence[int] | None) -> Window:
    """The window that is asked for; without channels the largest with which the page has at most LARGEST bytes.

    blocks: None for all.  Raises UserError, with a way on, where none fits.
    """
    config = step.before.config
    at = range(config.n_layer) if blocks is None else blocks
    windows = [choose(step.before, count, at) for count in ((channels,) if channels else CHANNELS)]
    fits = [window for window in windows if page_size(step, window) <= LARGEST]
    if fits:
        return fits[0]
    size = page_size(step, windows[-1])
    asked = f"with {channels} channels" if channels else f"even with {CHANNELS[-1]} channels"
    way = _way_on(step, channels, at)
    raise UserError(f"{asked} the page would have {size / 1e6:.0f} MB, expected at most {LARGEST / 1e6:.0f}: {way}")


def _way_on(step: Step, channels: int | None, blocks: Sequence[int]) -> str:
    """The flags with which a page would fit."""
    fewer = [c for c in CHANNELS if c is not None and (channels is None or c < channels)]
    for count in fewer:
        if page_size(step, choose(step.before, count, blocks)) <= LARGEST:
            return f"--channels {count} fits"
    for most in range(len(blocks) - 1, 0, -1):
        if page_size(step, choose(step.before, CHANNELS[-1], blocks[:most])) <= LARGEST:
            layers = f"{blocks[0]}-{blocks[most - 1]}" if most > 1 else f"{blocks[0]}"
            return f"--layers {layers} --channels {CHANNELS[-1]} fits"
    return "take a shorter text"


def build_page(step: Step, window: Window, words: Callable[[int], str], about: About, served: bool = False) -> bytes:
    """The page of a training step, in HTML; what is no UTF-8 in a text or a path becomes question marks.

    words: from a token to what is shown; served: with what asks the server for other texts and further steps.
    """
    data, blocks = page_data(step, window, words, about)
    parts = {
        "page.css": _part("page.css"),
        "study": f'<script type="application/json" id="study">{data}</script>\n',
        "blocks": "".join(f'<script type="text/plain" id="block-{k}">{text}</script>\n' for k, text in blocks.items()),
        "scripts": "".join(f"<script>\n{_part(f'{name}.js')}</script>\n" for name in _scripts(served)),
        "policy": "connect-src 'self'; " if served else "",
    }
    return re.sub(r"/\*! ([\w.]+) \*/", lambda found: parts[found[1]], _part("template.html")).encode(errors="replace")


def page_data(step: Step, window: Window, words: Callable[[int], str], about: About) -> tuple[str, dict[int, str]]:
    """The JSON of a page, in which < is escaped, and its blocks in base64."""
    trace, settings = step.before, step.settings
    table, windows, blocks = encode(list(tensors(step, window)))
    shown = range(trace.config.vocab_size) if window.words is None else window.words.tolist()
    data = {
        "config": {**asdict(trace.config), "n_inner": trace.config.inner},
        "facts": about.heading,
        "made": about.made,
        "typed": about.typed,
        "root": about.root,
        "tokens": trace.tokens[0].tolist(),
        "targets": trace.targets[0].tolist(),
        "text": [words(token) for token in trace.tokens[0].tolist()],
        "next": [words(token) if token >= 0 else "" for token in trace.targets[0].tolist()],
        "words": {token: words(token) for token in shown},
        "step": {
            **asdict(settings),
            "n": step.number,
            "total": step.norm,
            "clip": step.clip,
            "loss": trace.loss,
            "loss_after": step.after.loss,
            "promise": sum(update["promise"] for update in _updates(step)),
        },
        "layers": [asdict(layer) for layer in graph(trace)],
        "tensors": table,
        "windows": windows,
        "sizes": _sizes(step),
        "embedding_gradient_norms": np.linalg.norm(trace.activation_gradients["embd"][0], axis=1).tolist(),
        "updates": _updates(step),
        "lens": _lens(step, window, words),
        "spectra": _spectra(step, window),
        "errors": [asdict(error) for error in about.errors],
        "where": sources.where(),
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"), blocks


MASK_LABEL = "▒"
"""How the page shows the token that hides others."""


def token_label(data: bytes) -> str:
    """A token as the page shows it: white space by signs, bytes that are no text by their numbers."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)
    text = text.translate({ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"})
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def link_root(page: Path) -> str | None:
    """What leads from a page's folder to the checkout, for links; None where pygpt is installed without its sources."""
    if not (CHECKOUT / "docs").is_dir():
        return None
    return Path(os.path.relpath(CHECKOUT, page.resolve().parent)).as_posix() + "/"


def _scripts(served: bool) -> tuple[str, ...]:
    return (*SCRIPTS, "serve") if served else SCRIPTS


@cache
def _part(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _sizes(step: Step) -> dict[str, dict[str, float]]:
    """The norm of each layer's output a token, in each direction: √(Σ x² / T)."""
    trace = step.before
    of: Mapping[str, Callable[[str], Array]] = {
        "forward": trace.activations.__getitem__,
        "backward": trace.activation_gradients.__getitem__,
        "step": step.change,
    }
    T = trace.tokens.shape[1]
    return {
        direction: {layer.id: _round(math.sqrt(np.square(values(layer.id)).sum() / T)) for layer in graph(trace)}
        for direction, values in of.items()
    }


def _updates(step: Step) -> list[dict[str, Any]]:
    """What the step did to each tensor, in the order of what its gradient promised."""
    trace = step.before
    rows = []
    for name, gradient in trace.gradients.items():
        change = step.change(name)
        rows.append(
            {
                "name": name,
                "gradient": float(np.linalg.norm(gradient)),
                "weight": float(np.linalg.norm(trace.parameters[name])),
                "update": float(np.linalg.norm(change)),
                "promise": float((gradient * change).sum()),
            }
        )
    return sorted(rows, key=lambda row: row["promise"])


def _lens(step: Step, window: Window, words: Callable[[int], str]) -> dict[str, Any]:
    """What the head would read from the stream: for each token three words with probabilities, and the target's."""
    trace = step.before
    targets = trace.targets[0]
    branches = ("resid_mid", "resid_post") if trace.config.norm_position == "pre" else ("ln_1", "ln_2")
    names = [f"h.{layer}.{name}" for layer in window.blocks for name in branches]
    found = {}
    for name in ["embd", *names]:
        z = lens_logits(trace, name)[0]
        chances = np.exp(z - log_sum_exp(z))
        best = np.argpartition(chances, -min(3, chances.shape[-1]))[:, -3:]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(chances, best, -1), kind="stable"), -1)
        found[name] = [
            {
                "best": [(words(token), _round(chances[t, token])) for token in best[t].tolist()],
                "target": _round(chances[t, targets[t]]) if targets[t] >= 0 else None,
                "hit": int(np.flatnonzero(best[t] == targets[t])[0]) if targets[t] in best[t] else -1,
            }
            for t in range(len(targets))
        ]
    return found


def _spectra(step: Step, window: Window) -> dict[str, Any]:
    """The singular values of each matrix on show, and the root mean square of its entries."""
    p = step.before.parameters
    linear = [layer for layer in graph(step.before) if layer.kind == "linear"]
    names = [f"{layer.id}.weight" for layer in linear if layer.block in window.blocks]
    return {
        name: {
            "values": [_round(value) for value in _singular_values(p[name])],
            "rms": float(np.sqrt(np.mean(p[name] ** 2))),
        }
        for name in names
    }


def _singular_values(matrix: Array) -> Array:
    """Descending: square roots of the eigenvalues of the smaller Gram matrix, which takes a tenth of an SVD's time."""
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def _round(value: float) -> float:
    """To six digits, which is more than the page shows."""
    return float(f"{value:.6g}")
