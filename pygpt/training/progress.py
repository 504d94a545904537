"""What a run shows while it runs: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


def loss_text(loss: float, tokens_per_byte: float | None) -> str:
    """A loss in nats per token and, where it is known, in nats per byte, which compares runs of any vocabularies.

    Where a token is a byte, the two are one.
    """
    return f"{loss:.4f}" + ("" if tokens_per_byte in (None, 1) else f" ({loss * tokens_per_byte:.4f} per byte)")


class Progress:
    """Counts steps from `first` to `total` on standard output."""

    def __init__(self, first: int, total: int, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._step, self._total = first, total
        self._bar: tqdm[None] | None = None
        self._latest = time.monotonic()
        if self._out.isatty():
            self._bar = tqdm(
                total=total,
                initial=first,
                file=self._out,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps{postfix}",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, loss: str, tokens_per_second: float, seconds_left: float) -> None:
        """Tell that `step` steps are done.  loss: as loss_text() writes it."""
        left = tqdm.format_interval(seconds_left)
        numbers = f"loss {loss}, {tokens_per_second:,.0f} tokens/s, {left} left"
        if self._bar is not None:
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update(step - self._step)
        elif time.monotonic() - self._latest >= _SECONDS_BETWEEN_LINES:
            self._latest = time.monotonic()
            self.say(f"step {step}/{self._total}: {numbers}")
        self._step = step

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(line, file=self._out)
        else:
            print(line, file=self._out, flush=True)
