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

from pygpt.errors import UserError
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


def answer_all(model: GPT2, queries: Sequence[Query], batch_size: int, quiet: bool = False) -> Iterator[Answer]:
    """The answer to each query, those with the most tokens first.  quiet: no bar on a terminal.

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
            tokens = np.zeros((len(numbers), len(rows[numbers[0]]) - 1), np.int32)
            targets = np.full_like(tokens, -1)
            for place, number in enumerate(numbers):
                row, scored = rows[number], queries[number].scored
                tokens[place, : len(row) - 1] = row[:-1]
                targets[place, len(row) - 1 - scored : len(row) - 1] = row[-scored:]
            model.forward(tokens, targets)
            losses = model.activations["losses"].astype(np.float64)
            for place, number in enumerate(numbers):
                stop, scored = len(rows[number]) - 1, queries[number].scored
                found = losses[place, stop - scored : stop]
                if not np.isfinite(found).all():
                    raise UserError(f"{queries[number].name}: the model's loss is not finite; its weights are damaged")
                yield Answer(number, found, partial(model.logits_at, place, stop - scored, scored))
            bar.update(len(numbers))


def count_truncated(model: GPT2, queries: Sequence[Query]) -> int:
    """How many queries are too long, so that their first tokens are left out."""
    return sum(len(query.tokens) > _longest(model) for query in queries)


def _longest(model: GPT2) -> int:
    """The last token of a sequence is predicted, and not seen."""
    return model.config.n_positions + 1
