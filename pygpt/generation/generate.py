"""Text from a model, token by token, with a cache of keys and values.

The token at position t of sample i is drawn with the uniform number that Philox gives for (seed, i, t), so that every
backend draws the same text, alone or in a batch, and a text that is continued with the same seed goes on as if it had
not been cut, while it fits into the positions of the model.

Beyond them, all positions shift, with which keys and values change: nothing in the cache is of use then.  With the
window "half" the model forgets the first half of what it sees and computes the last half again, which is seldom; with
"slide" it sees the last tokens that fit, and computes all of them again for each new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.backends.interface import Generator
from pygpt.errors import UserError, check_integer, show
from pygpt.generation.lookup import DRAFT, draft
from pygpt.generation.sampling import DEFAULT, Sampling, log_probability, sample
from pygpt.reference import philox
from pygpt.reference.arrays import Array, row_of_integers
from pygpt.text.tokenizer import Tokenizer

WINDOWS = ("half", "slide")

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@dataclass(frozen=True)
class Drawn:
    """A new token, and the logarithm of the probability that the model gives it (sampling.log_probability), in nats."""

    token: int
    log_probability: float


def generate_samples(
    generator: Generator,
    prompts: Sequence[ArrayLike],
    max_new_tokens: int,
    sampling: Sampling = DEFAULT,
    *,
    seed: int = 0,
    stop_token: int | Sequence[int] | None = None,
    allowed_tokens: ArrayLike | None = None,
    window: str = "half",
    lookup: int | bool = False,
    ends: Callable[[int, int], bool] = lambda sample, token: False,
) -> Iterator[list[list[Drawn]]]:
    """Yield the next tokens of each sample, none of those that have ended, until all have.

    prompts: (T,) integers for each sequence of the generator, T from 1 to its positions; what it held is forgotten.
    A sample ends after max_new_tokens, before a stop_token, which may be several tokens, and after a token for which
    ends(sample, token) is true.  allowed_tokens: (K,) integers, the only tokens that may be drawn, such as what a
    tokenizer's known_tokens() gives; None: the whole vocabulary.  window: "half" or "slide", what the model sees of a
    text that is longer than its positions.  lookup: how many tokens at a time the text so far may propose (lookup.py),
    True for a usual number; that changes how many tokens come together, and not which.
    Raises UserError, on the call, for empty and too long prompts, tokens outside the vocabulary, and settings out of
    range.
    """
    vocab_size = generator.config.vocab_size
    if len(prompts) != len(generator.lengths):
        raise UserError(f"{len(prompts)} prompts were given, expected {len(generator.lengths)}, one for each sequence")
    check_integer("max_new_tokens", max_new_tokens, 1)
    check_integer("seed", seed, 0, 2**64 - 1)
    drafted = DRAFT * lookup if isinstance(lookup, bool) else lookup
    check_integer("lookup", drafted, 0)
    if window not in WINDOWS:
        raise UserError(f"window is {show(window)}, expected {' or '.join(WINDOWS)}")
    stop = row_of_integers("stop_token", [] if stop_token is None else stop_token, scalar=True)
    allowed: NDArray[np.int64] | None = None
    if allowed_tokens is not None:
        wanted = [*row_of_integers("allowed_tokens", allowed_tokens), *stop]
        allowed = np.intersect1d(np.arange(vocab_size), wanted)
        if not allowed.size:
            raise UserError(
                f"none of the allowed tokens is in the vocabulary, expected some from 0 to {vocab_size - 1}"
            )
        allowed = None if allowed.size == vocab_size else allowed
    positions = generator.positions
    cut_to = max(1, positions // 2) if window == "half" else positions
    names = ["the prompt"] if len(prompts) == 1 else [f"prompt {number}" for number in range(len(prompts))]
    tokens = [_prompt(*named, vocab_size, positions) for named in zip(names, prompts, strict=True)]
    texts = [_Text(prompt, len(prompt) + max_new_tokens) for prompt in tokens]

    def grow(stream: int, logits: list[Array], guesses: list[int]) -> Iterator[Drawn]:
        """The tokens that follow a text, as long as the guesses, for which the logits were computed, are right."""
        text = texts[stream]
        for row, guess in zip(logits, [*guesses, None], strict=True):
            uniform = philox.uniform(seed, stream, len(text.tokens))
            token = sample(row, uniform, sampling, allowed, text.tokens)
            if token in stop:
                text.running = False
                return
            text.tokens.append(token)
            yield Drawn(token, log_probability(row, token))
            text.running = not ends(stream, token) and len(text.tokens) < text.last
            if token != guess or not text.running:
                return

    def run() -> Iterator[list[list[Drawn]]]:
        while any(text.running for text in texts):
            fresh = [text.fresh(positions, cut_to) for text in texts]
            one_each = max(map(len, fresh)) == 1  # otherwise there would be logits of all of a prompt
            drafts = [text.draft(drafted, positions) if one_each else [] for text in texts]
            generator.rewind([text.cached for text in texts])
            fed = [first + more for first, more in zip(fresh, drafts, strict=True)]
            logits = iter(generator.feed(fed, every=any(drafts)))
            step: list[list[Drawn]] = [[] for _ in texts]
            for stream, text in enumerate(texts):
                if text.running:
                    rows = [next(logits) for _ in range(len(drafts[stream]) + 1)]
                    step[stream] = list(grow(stream, rows, drafts[stream]))
                    text.cached = len(text.tokens) - text.start - 1
            if any(step):
                yield step

    return run()


@dataclass
class _Text:
    """A text that grows."""

    tokens: list[int]
    last: int  # the length with which it ends
    start: int = 0  # of what the model sees
    cached: int = 0  # how many tokens of that have their keys and values in the generator
    running: bool = True

    def fresh(self, positions: int, cut_to: int) -> list[int]:
        """The tokens that the generator does not have yet."""
        if not self.running:
            return []
        if len(self.tokens) - self.start > positions:
            self.start, self.cached = len(self.tokens) - cut_to, 0
        return self.tokens[self.start + self.cached :]

    def draft(self, count: int, positions: int) -> list[int]:
        """Tokens that may follow, as many as there is room for."""
        room = min(self.start + positions, self.last - 1) - len(self.tokens)
        return draft(self.tokens, min(count, room)) if self.running else []


def _prompt(name: str, tokens: ArrayLike, vocab_size: int, positions: int) -> list[int]:
    prompt = row_of_integers(name, tokens)
    if not prompt.size:
        raise UserError(f"{name} is empty, expected at least one token")
    if prompt.size > positions:
        raise UserError(f"{name} has {prompt.size} tokens, expected at most {positions}, which fit into the context")
    if prompt.min() < 0 or prompt.max() >= vocab_size:
        outside = prompt.min() if prompt.min() < 0 else prompt.max()
        raise UserError(f"token {outside} of {name} is outside the vocabulary, expected 0 to {vocab_size - 1}")
    return prompt.tolist()


def start_token(tokenizer: Tokenizer, bos_token: int | None) -> int:
    """What stands before a text that has no prompt: the model's token for it, the end-of-text token, or a newline."""
    for token in (bos_token, tokenizer.eot_token):
        if token is not None:
            return token
    try:
        return int(tokenizer.encode("\n")[0])
    except UserError:
        return 0  # a character-level vocabulary without newline


def printable(text: str) -> str:
    """The text as a terminal can show it: control characters, but for tab and newline, become their symbols."""
    return text.translate(_CONTROLS)
