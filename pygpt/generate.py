"""Text from a model, one token after the other.

The model sees the last n_positions tokens, and computes all of them again for each new one. The token at position
t of sample i is drawn with the uniform number that Philox gives for (seed, i, t), so that every backend draws the same
text, alone or in a batch, and a text that is continued with the same seed goes on as if it had not been cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pygpt.errors import UserError
from pygpt.reference import philox
from pygpt.sampling import check_sampling, sample
from pygpt.tokenizer import Tokenizer

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def generate(
    model: Any,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | None = None,
) -> Iterator[int]:
    """Yield new tokens until there are max_new_tokens, or before stop_token.

    Raises UserError, on the call, for an empty prompt, tokens outside the vocabulary, and settings out of range.
    """
    samples = generate_samples(model, prompt_tokens, 1, max_new_tokens, temperature, top_k, top_p, seed, stop_token)
    return (token for (token,) in samples if token is not None)


def generate_samples(
    model: Any,
    prompt_tokens: Sequence[int],
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of each sample, None for those that have stopped, until all have.

    The samples are computed together as one batch.  Raises UserError as generate() does.
    """
    check_sampling(temperature, top_k, top_p)
    prompt = np.asarray(prompt_tokens, np.int64).reshape(-1)
    vocab_size = model.config.vocab_size
    if not prompt.size:
        raise UserError("the prompt is empty, expected at least one token")
    if prompt.min() < 0 or prompt.max() >= vocab_size:
        outside = prompt.min() if prompt.min() < 0 else prompt.max()
        raise UserError(f"token {outside} of the prompt is outside the vocabulary, expected 0 to {vocab_size - 1}")
    for name, value in (("num_samples", num_samples), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise UserError(f"{name} is {value}, expected at least 1")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed is {seed}, expected an integer from 0 to 2^64 - 1")

    def draw() -> Iterator[list[int | None]]:
        texts = np.repeat(prompt[None, -model.config.n_positions :], num_samples, axis=0)
        running = np.arange(num_samples)
        for position in range(prompt.size, prompt.size + max_new_tokens):
            model.forward(texts.astype(np.int32))
            logits = model.last_logits()
            uniforms = [philox.uniform(seed, int(stream), position) for stream in running]
            drawn = np.array([sample(*pair, temperature, top_k, top_p) for pair in zip(logits, uniforms, strict=True)])
            going = drawn != stop_token if stop_token is not None else np.ones(drawn.size, bool)
            running, drawn, texts = running[going], drawn[going], texts[going]
            if not running.size:
                return
            row: list[int | None] = [None] * num_samples
            for stream, token in zip(running, drawn, strict=True):
                row[stream] = int(token)
            yield row
            texts = np.concatenate([texts, drawn[:, None]], axis=1)[:, -model.config.n_positions :]

    return draw()


def start_token(tokenizer: Tokenizer) -> int:
    """What stands before a text that has no prompt: the end-of-text token, or a newline where there is none."""
    if tokenizer.eot_token is not None:
        return tokenizer.eot_token
    try:
        return int(tokenizer.encode("\n")[0])
    except UserError:
        return 0  # a character-level vocabulary without newline


def printable(text: str) -> str:
    """The text as a terminal can show it: control characters, but for tab and newline, become their symbols."""
    return text.translate(_CONTROLS)
