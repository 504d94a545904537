"""Text from a model, one token after the other.

The model sees the last n_positions tokens, and computes all of them again for each new one. The token at position
t of sample i is drawn with the uniform number that Philox gives for (seed, i, t), so that every backend draws the same
text, alone or in a batch, and a text that is continued with the same seed goes on as if it had not been cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.generation.sampling import check_integer, check_sampling, sample
from pygpt.reference import philox
from pygpt.text.tokenizer import Tokenizer

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class Predictor(Protocol):
    """What predicts the next token: of a pygpt.GPT2, what is used here."""

    @property
    def config(self) -> GPT2Config: ...
    def forward(self, tokens: NDArray[np.int32], /) -> object: ...
    def last_logits(self) -> NDArray[Any]: ...


def generate(
    model: Predictor,
    prompt_tokens: ArrayLike,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | Sequence[int] | None = None,
    allowed_tokens: ArrayLike | None = None,
) -> Iterator[int]:
    """Yield new tokens until there are max_new_tokens, or before stop_token, which may be several tokens.

    prompt_tokens: (T,) integers.  allowed_tokens: (K,) integers, the only tokens that may be drawn, such as what a
    tokenizer's known_tokens() gives; None: the whole vocabulary.
    Raises UserError, on the call, for an empty prompt, tokens outside the vocabulary, and settings out of range.
    """
    samples = generate_samples(
        model, prompt_tokens, 1, max_new_tokens, temperature, top_k, top_p, seed, stop_token, allowed_tokens
    )
    return (token for (token,) in samples if token is not None)


def generate_samples(
    model: Predictor,
    prompt_tokens: ArrayLike,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | Sequence[int] | None = None,
    allowed_tokens: ArrayLike | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of each sample, None for those that have stopped, until all have.

    The samples are computed together as one batch.  Raises UserError as generate() does.
    """
    check_sampling(temperature, top_k, top_p)
    vocab_size = model.config.vocab_size
    prompt = _tokens("the prompt", prompt_tokens)
    if not prompt.size:
        raise UserError("the prompt is empty, expected at least one token")
    if prompt.min() < 0 or prompt.max() >= vocab_size:
        outside = prompt.min() if prompt.min() < 0 else prompt.max()
        raise UserError(f"token {outside} of the prompt is outside the vocabulary, expected 0 to {vocab_size - 1}")
    check_integer("num_samples", num_samples, 1)
    check_integer("max_new_tokens", max_new_tokens, 1)
    check_integer("seed", seed, 0, 2**64 - 1)
    stop = _tokens("stop_token", [] if stop_token is None else stop_token, scalar=True)
    allowed = np.arange(vocab_size)
    if allowed_tokens is not None:
        allowed = np.intersect1d(allowed, [*_tokens("allowed_tokens", allowed_tokens), *stop])
    if not allowed.size:
        raise UserError(f"none of the allowed tokens is in the vocabulary, expected some from 0 to {vocab_size - 1}")

    def draw() -> Iterator[list[int | None]]:
        texts = np.repeat(prompt[None, -model.config.n_positions :].astype(np.int32), num_samples, axis=0)
        running = np.arange(num_samples)
        for position in range(prompt.size, prompt.size + max_new_tokens):
            model.forward(texts)
            logits = model.last_logits()
            if allowed.size < vocab_size:
                logits = logits[:, allowed]
            uniforms = [philox.uniform(seed, int(stream), position) for stream in running]
            drawn = allowed[[sample(*pair, temperature, top_k, top_p) for pair in zip(logits, uniforms, strict=True)]]
            going = ~np.isin(drawn, stop)
            running, drawn, texts = running[going], drawn[going], texts[going]
            if not running.size:
                return
            row: list[int | None] = [None] * num_samples
            for stream, token in zip(running, drawn, strict=True):
                row[stream] = int(token)
            yield row
            texts = np.concatenate([texts, drawn[:, None].astype(np.int32)], axis=1)[:, -model.config.n_positions :]

    return draw()


def _tokens(name: str, values: Any, scalar: bool = False) -> NDArray[Any]:
    """One row of integers, or, where scalar allows it, one integer."""
    try:
        tokens = np.asarray(values)
    except ValueError:
        raise UserError(f"{name} has rows of different lengths, expected integers of shape (T,)") from None
    if not tokens.size and tokens.ndim == 1:
        return np.zeros(0, np.int64)
    if scalar and tokens.ndim == 0:
        tokens = tokens[None]
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UserError(f"{name} has shape {tokens.shape} and dtype {tokens.dtype}, expected integers of shape (T,)")
    return tokens.astype(np.int64)


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
