"""Tokens of a text in colours that tell how likely the model found them."""

from __future__ import annotations

import math
import os
from typing import TextIO

WHEN = ("auto", "always", "never")

# The least probability, and the code of the terminal's own colour (ECMA-48, "select graphic rendition").
SCALE = ((1 / 2, 32), (1 / 8, 36), (1 / 32, 33), (0.0, 31))
LEGEND = "green: a probability of at least 1/2, cyan: 1/8, yellow: 1/32, red: less"
_USUAL = 39


def is_wanted(when: str, out: TextIO) -> bool:
    """Whether `out` gets colours: with "auto" a terminal does, unless NO_COLOR is set and not empty (no-color.org)."""
    return when == "always" or (when == "auto" and out.isatty() and not os.environ.get("NO_COLOR"))


def paint(text: str, log_probability: float) -> str:
    """The text in the colour of its token's probability, of which the natural logarithm is given."""
    colour = next(code for least, code in SCALE if math.exp(log_probability) >= least)
    return f"\x1b[{colour}m{text}\x1b[{_USUAL}m"
