"""Log-likelihoods of tokens that follow others, in batches.

    loss of token t = −ln p(token t | the tokens before it)         nats

Sequences of different lengths share a batch: the shorter ones are filled up behind their end, where causal attention
does not look.  What does not fit into the model's positions is cut off on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pygpt.backends.interface import Generator
from pygpt.errors import UserError
from pygpt.generation.sampling import log_probability
from pygpt.model import GPT2
from pygpt.reference.arrays import Array
from pygpt.text.tokenizer import Tokens


@dataclass(frozen=True)
class Query:
    """Tokens of which the last `scored` are predicted, each from all before it; at least one has to be before them."""

    tokens: Tokens  # (n,)
    scored: int  # 1 to n - 1
    name: str  # for errors


@dataclass(frozen=True)
class Answer:
    number: int  # of the query
    losses: NDArray[np.float64]  # (scored,), in nats
    logits: Callable[[], Array]  # (scored,V), until the next answer is asked for


Evaluated = GPT2 | Generator
"""What is measured: a model, or a generator of one sequence, whose weights may have fewer bits."""


def answer_all(model: Evaluated, queries: Sequence[Query], batch_size: int, quiet: bool = False) -> Iterator[Answer]:
    """The answer to each query, those with the most tokens first.  quiet: no bar on a terminal.

    batch_size: queries at a time; a generator takes one at a time.
    Raises UserError where more tokens are to be predicted than the model has positions, for tokens outside the
    vocabulary, and when a loss is not finite.
    """
    for query in queries:
        if query.scored > model.config.n_positions:
            raise UserError(
                f"{query.name}: {query.scored} tokens are to be predicted, and the model has "
                f"{model.config.n_positions} positions"
            )
    rows = [query.tokens[-_longest(model) :] for query in queries]
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    with tqdm(total=len(order), desc="sequences", disable=quiet or None) as bar:
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            batch, scored = [rows[number] for number in numbers], [queries[number].scored for number in numbers]
            for number, (losses, logits) in zip(numbers, _scores(model, batch, scored), strict=True):
                if not np.isfinite(losses).all():
                    raise UserError(f"{queries[number].name}: the model's loss is not finite; its weights are damaged")
                yield Answer(number, losses, logits)
            bar.update(len(numbers))


_Scores = tuple[NDArray[np.float64], Callable[[], Array]]  # losses and logits of an Answer


def _scores(model: Evaluated, rows: Sequence[Tokens], scored: Sequence[int]) -> Iterator[_Scores]:
    """Of each row of a batch, of which the longest comes first."""
    if isinstance(model, GPT2):
        return _by_model(model, rows, scored)
    return _by_generator(model, rows, scored)


def _by_model(model: GPT2, rows: Sequence[Tokens], scored: Sequence[int]) -> Iterator[_Scores]:
    tokens = np.zeros((len(rows), len(rows[0]) - 1), np.int32)
    targets = np.full_like(tokens, -1)
    for place, (row, count) in enumerate(zip(rows, scored, strict=True)):
        tokens[place, : len(row) - 1] = row[:-1]
        targets[place, len(row) - 1 - count : len(row) - 1] = row[-count:]
    model.forward(tokens, targets)
    losses = model.activations["losses"].astype(np.float64)
    for place, (row, count) in enumerate(zip(rows, scored, strict=True)):
        first = len(row) - 1 - count
        yield losses[place, first : first + count], partial(model.logits_at, place, first, count)


def _by_generator(generator: Generator, rows: Sequence[Tokens], scored: Sequence[int]) -> Iterator[_Scores]:
    for row, count in zip(rows, scored, strict=True):
        generator.rewind([0])
        logits = generator.feed([row[:-count]])
        if count > 1:
            logits = np.concatenate([logits, generator.feed([row[-count:-1]], every=True)])
        losses = [-log_probability(*scores) for scores in zip(logits, row[-count:], strict=True)]
        yield np.array(losses), partial(np.asarray, logits)


def count_truncated(model: Evaluated, queries: Sequence[Query]) -> int:
    """How many queries are too long, so that their first tokens are left out."""
    return sum(len(query.tokens) > _longest(model) for query in queries)


def _longest(model: Evaluated) -> int:
    """The last token of a sequence is predicted, and not seen."""
    return model.config.n_positions + 1
