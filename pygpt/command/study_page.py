"""`pygpt study page`: flags to a page in a file, or on a loopback address."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np

from pygpt.command.flags import number_list
from pygpt.errors import UserError, check_integer
from pygpt.files.atomic import check_writable, write_file
from pygpt.memory import check_memory
from pygpt.study.opening import Subject
from pygpt.study.page.build import MASK_LABEL, About, build_page, fitting_window, link_root, page_data, token_label
from pygpt.study.page.errors import Errors, measure
from pygpt.study.page.serve import listen, serve
from pygpt.study.page.window import Window
from pygpt.study.result import Curves, Result
from pygpt.study.step import Step, next_step, step

LEARNING_RATE = 1e-3
OUTPUT = "page.html"
PORT = 8000
FLAGS = ("output", "layers", "channels", "learning_rate", "serve", "port", "masked")

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
    if flags.serve:
        with listen(PORT if flags.port is None else flags.port) as server:
            return studio.serve(flags.text, server)
    path = Path(flags.output or OUTPUT)
    check_writable(path)
    first = studio.step(flags.text, 1)
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
        names = dict.fromkeys(name for error in errors for name in getattr(error, direction))
        found = {e.name: np.array([getattr(e, direction).get(name, np.nan) for name in names]) for e in errors}
        arrays |= {f"{direction} error, {name}": values for name, values in found.items()}
        title_of, layers = f"error of each layer, {direction}", np.arange(len(names))
        panels.append(Curves(title_of, layers, found, "layer", "relative L2", log=True, joined=False))
    return Result(title, columns, rows, arrays, panels)


def learning_rate(flags: argparse.Namespace) -> float:
    """The one that is asked for, or the usual one.  Raises UserError for what cannot be one."""
    rate = flags.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise UserError(f"--learning-rate is {rate:g}, expected a positive number")
    return LEARNING_RATE if rate is None else float(rate)


class _Studio:
    """The model, and the steps that were taken on the latest text."""

    def __init__(self, flags: argparse.Namespace, subject: Subject) -> None:
        self._subject = subject
        n_layer = subject.config.n_layer
        self._blocks = None if flags.layers is None else number_list("--layers", flags.layers, "blocks", n_layer)
        self._channels: int | None = flags.channels
        self._rate = learning_rate(flags)
        self._masked: str | None = flags.masked
        self._text: str | None = None
        self._steps: list[Step] = []

    def step(self, text: str, number: int) -> Step:
        """A step on a text, from the model in the folder on; those before it are taken too."""
        if text != self._text:
            reading, model = self._subject.read(text, self._masked), self._subject.model
            self._room()
            T = len(reading.tokens) - self._subject.config.causal  # but the last, whose next token is not there
            self._steps = [step(model, reading.tokens[:T], reading.targets[:T], lr=self._rate)]
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
        if self._subject.is_mask(token):
            return MASK_LABEL
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
        if not config.causal:
            heading += f"; {self._subject.read(text, self._masked).note}"
        made = f"By pygpt: forward, backward and AdamW (learning rate {rate:g}) in float64."
        return About(heading, made, text, root, errors)

    def serve(self, text: str, server: ThreadingHTTPServer) -> Result:
        """The page of a text's first step, and of other texts and further steps, until Ctrl-C."""
        step = self.step(text, 1)
        errors = measure(step)

        def numbers(text: str, number: int) -> bytes:
            found = self.step(text, number)
            data, blocks = page_data(found, self.window(found), self.word, self.about(found, text, "", ()))
            return f'{{"study":{data},"blocks":{json.dumps(blocks)}}}'.encode(errors="replace")

        first = self.about(step, text, "", errors)
        serve(server, build_page(step, self.window(step), self.word, first, served=True), numbers, _announce)
        return _result("served", step, errors)

    def _room(self) -> None:
        check_memory(8 * COPIES * self._subject.config.num_parameters, "take a smaller model, or fewer steps")


def _announce(address: str) -> None:
    print(f"{address} until Ctrl-C", flush=True)
