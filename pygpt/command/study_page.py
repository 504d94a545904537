"""`pygpt study page`: flags to a page in a file, or on a loopback address."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pygpt.errors import UserError, check_integer
from pygpt.files.atomic import write_file
from pygpt.memory import check_memory
from pygpt.study.opening import Subject
from pygpt.study.page.build import About, build_page, fitting_window, link_root, page_data, token_label
from pygpt.study.page.errors import Errors, measure
from pygpt.study.page.serve import serve
from pygpt.study.page.window import Window
from pygpt.study.result import Curves, Result
from pygpt.study.step import Step, next_step, step

LEARNING_RATE = 1e-3
OUTPUT = "page.html"
PORT = 8000
FLAGS = ("output", "layers", "channels", "learning_rate", "serve", "port")

MOST_STEPS = 1000
"""That are taken in a served page."""

COPIES = 10
"""Arrays of the size of the parameters, in float64, that a step holds with the passes before and after it."""


def page(flags: argparse.Namespace, subject: Subject) -> Result:
    """Write the page, or serve it until Ctrl-C.

    The result is a table of the backends' errors; arrays: loss, (2,): before and after the step, and the errors.
    """
    if flags.port is not None and not flags.serve:
        raise UserError("--port is given without --serve")
    if flags.serve and flags.output is not None:
        raise UserError("--serve and --output are given: expected one of them")
    studio = _Studio(flags, subject)
    first = studio.step(flags.text, 1)
    if flags.serve:
        return studio.serve(first, PORT if flags.port is None else flags.port)
    path = Path(flags.output or OUTPUT)
    errors = measure(first)
    about = studio.about(first, flags.text, link_root(path), errors)
    data = build_page(first, studio.window(first), studio.word, about)
    with write_file(path) as file:
        file.write(data)
    return _result(f"{path}: {len(data) / 1e6:.1f} MB", first, errors)


def _result(title: str, step: Step, errors: Sequence[Errors]) -> Result:
    before, after = step.before.loss, step.after.loss
    directions = ("forward", "backward", "step")
    rows = [(e.name, *(max(getattr(e, direction).values()) for direction in directions), e.bound) for e in errors]
    columns = ("largest relative error of a layer", *directions, "bound")
    title = f"{title}; loss {before:.4f}, after the step {after:.4f}"
    arrays = {"loss": np.array([before, after])}
    panels = []
    for direction in directions:
        found = {error.name: np.array(list(getattr(error, direction).values())) for error in errors}
        arrays |= {f"{direction} error, {name}": values for name, values in found.items()}
        layers = np.arange(max(map(len, found.values())))
        panels.append(Curves(f"error of each layer, {direction}", layers, found, "layer", "relative L2", log=True))
    return Result(title, columns, rows, arrays, panels)


class _Studio:
    """The model, and the steps that were taken on the latest text."""

    def __init__(self, flags: argparse.Namespace, subject: Subject) -> None:
        self._subject = subject
        self._blocks = None if flags.layers is None else parse_layers(flags.layers, subject.config.n_layer)
        self._channels: int | None = flags.channels
        rate = flags.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"--learning-rate is {rate:g}, expected a positive number")
        self._rate = LEARNING_RATE if rate is None else rate
        self._text: str | None = None
        self._steps: list[Step] = []

    def step(self, text: str, number: int) -> Step:
        """A step on a text, from the model in the folder on; those before it are taken too."""
        if text != self._text:
            tokens, model = self._subject.tokens(text), self._subject.model
            self._room()
            self._steps = [step(model, tokens[:-1], tokens[1:], lr=self._rate)]
            self._text = text
        check_integer("number", number, 1, MOST_STEPS)
        while len(self._steps) < number:
            self._room()
            self._steps.append(next_step(self._subject.model, self._steps[-1]))
        return self._steps[number - 1]

    def window(self, step: Step) -> Window:
        """What of the step is stored."""
        return fitting_window(step, self._channels, self._blocks)

    def word(self, token: int) -> str:
        """A token as the page shows it."""
        known = self._subject.tokenizer.known_tokens()
        at = np.searchsorted(known, token)
        if at == len(known) or known[at] != token:
            return f"#{token}"
        return token_label(self._subject.tokenizer.decode_bytes([token]))

    def about(self, step: Step, text: str, root: str | None, errors: Sequence[Errors] = ()) -> About:
        """What the page says of itself."""
        config, rate = self._subject.config, step.settings.lr
        sizes = f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, {config.vocab_size} tokens"
        varied = "".join(f"{name} {str(value).lower()}, " for name, value in config.variations.items())
        heading = f"{self._subject.folder.name}: {varied}{sizes}; a text of {step.before.tokens.size} tokens"
        made = f"By pygpt: forward, backward and AdamW (learning rate {rate:g}) in float64."
        return About(heading, made, text, root, errors)

    def serve(self, step: Step, port: int) -> Result:
        """The page of this step, and of other texts and further steps, until Ctrl-C."""
        errors = measure(step)

        def numbers(text: str, number: int) -> bytes:
            found = self.step(text, number)
            data, blocks = page_data(found, self.window(found), self.word, self.about(found, text, "", ()))
            return f'{{"study":{data},"blocks":{json.dumps(blocks)}}}'.encode()

        assert self._text is not None
        first = self.about(step, self._text, "", errors)
        serve(build_page(step, self.window(step), self.word, first, served=True), numbers, port, _announce)
        return _result("served", step, errors)

    def _room(self) -> None:
        check_memory(8 * COPIES * self._subject.config.num_parameters, "take a smaller model, or fewer steps")


def parse_layers(text: str, n_layer: int) -> list[int]:
    """Blocks such as 0,3-5, ascending.  Raises UserError for others than the model has."""
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < n_layer:
            raise UserError(f"--layers is {text!r}, expected blocks from 0 to {n_layer - 1}, such as 0,3-5")
        numbers |= set(range(first, last + 1))
    return sorted(numbers)


def _announce(address: str) -> None:
    print(f"{address} until Ctrl-C", flush=True)
