"""HellaSwag: which of four endings continues a description (Zellers et al. 2019), by completion.

    choice                     argmin over endings of Σ −ln p(token)              over the tokens of " ending"
    length-normalised choice   argmin of the mean of −ln p(token)

An ending is scored after the context `ctx` and a space, as in llm.c.  lm-evaluation-harness puts the activity before
the context, removes brackets and divides by characters, so its values are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.errors import UserError, show
from pygpt.evaluation.examples import read_examples
from pygpt.evaluation.result import Result, ratio
from pygpt.evaluation.scoring import Evaluated, Query, answer_all, count_truncated
from pygpt.files.download import Download
from pygpt.text.tokenizer import Tokenizer

PUBLISHED = Download(
    url="https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
    size=12246618,
    file_name="hellaswag_val.jsonl",
)
ENDINGS = 4
PROTOCOL = (
    "each of four endings, with a space before it, after the context ctx; chosen: the ending with the largest "
    "log-likelihood, normalised: divided by its tokens; what is longer than the model's positions is cut off on the "
    "left"
)


@dataclass(frozen=True)
class Choice:
    context: str
    endings: tuple[str, ...]
    right: int
    where: str


def read_choices(path: str | Path | None = None, limit: int | None = None) -> list[Choice]:
    """The examples of a file in the published format, or of the published one (validation, 10,042).

    Raises UserError as read_examples().
    """
    return read_examples(path, PUBLISHED, _parse, limit)


def evaluate(model: Evaluated, tokenizer: Tokenizer, choices: Sequence[Choice], *, batch_size: int = 8) -> Result:
    """Measure a model.  Raises UserError where the tokenizer has no token for a character, or an ending is too long."""
    queries = []
    for choice in choices:
        context = tokenizer.encode(choice.context)
        for text in choice.endings:
            ending = tokenizer.encode(" " + text)
            queries.append(Query(np.concatenate([context, ending]), len(ending), choice.where))
    losses, means = np.zeros(len(queries)), np.zeros(len(queries))
    for answer in answer_all(model, queries, batch_size):
        losses[answer.number], means[answer.number] = answer.losses.sum(), answer.losses.mean()
    right = np.array([choice.right for choice in choices])
    metrics = {
        "accuracy": ratio(losses.reshape(-1, ENDINGS).argmin(axis=1) == right),
        "normalised_accuracy": ratio(means.reshape(-1, ENDINGS).argmin(axis=1) == right),
    }
    return Result(PROTOCOL, {"examples": len(choices), "truncated": count_truncated(model, queries)}, metrics)


def _parse(values: dict[str, Any], where: str) -> Choice:
    context, endings, right = (values.get(name) for name in ("ctx", "endings", "label"))
    if not isinstance(context, str) or not context:
        raise UserError(f"{where}: ctx is {show(context)}, expected a text")
    if not isinstance(endings, list) or len(endings) != ENDINGS or not all(isinstance(text, str) for text in endings):
        raise UserError(f"{where}: endings are {show(endings)}, expected {ENDINGS} texts")
    if type(right) is not int or not 0 <= right < ENDINGS:
        raise UserError(
            f"{where}: label is {show(right)}, expected 0 to {ENDINGS - 1} (of the test set, it is not known)"
        )
    return Choice(context, tuple(endings), right, where)
