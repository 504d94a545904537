"""LAMBADA: the last word of a passage, which a reader guesses from the passage and not from its last sentence.

The passages are those of OpenAI's file, 5,153 with natural punctuation and capitals (Radford et al. 2019).  The
original data set (Paperno et al. 2016) has lower-case words with spaces around punctuation, which gives other values.
The last word is what follows the last space.  Its tokens are those of " word", with the space; all before it is the
context.

    last word        right: each token of the word is the likeliest, given the right ones before it.
                     perplexity: exp of the mean of −ln p(word | context), p the product over its tokens
                     This is `lambada_openai` of lm-evaluation-harness.
    stop-word filter right: the same, where the first token is the likeliest of those that are no stop word by
                     themselves, without spaces around them.  As Radford et al. say, nothing of the task tells a model
                     that the word ends the sentence, which a stop word cannot.  Their code is not published.
    last token       the last token of the passage, given all others, which may be the beginning of the word.
                     Easier than the task, and different with each tokenizer, but often quoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.errors import UserError
from pygpt.evaluation.examples import read_examples
from pygpt.evaluation.result import Result, perplexity, ratio
from pygpt.evaluation.scoring import Evaluated, Query, answer_all, count_truncated
from pygpt.evaluation.stop_words import STOP_WORDS
from pygpt.files.download import Download
from pygpt.text.tokenizer import Tokenizer

PUBLISHED = Download(
    url="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    size=1819752,
    file_name="lambada_test.jsonl",
)
PROTOCOL = (
    "the last word of each passage, with the space before it, given all before that; right: each of its tokens is the "
    "likeliest, for stop_word_filter the first one among those that are no stop word; last_token: the passage's last "
    "token, given all others; what is longer than the model's positions is cut off on the left"
)


@dataclass(frozen=True)
class Passage:
    context: str
    word: str  # begins with the space
    where: str


def read_passages(path: str | Path | None = None, limit: int | None = None) -> list[Passage]:
    """The passages of a file with {"text": ...} in each line, or of the published one.

    Raises UserError as read_examples().
    """
    return read_examples(path, PUBLISHED, _parse, limit)


def evaluate(model: Evaluated, tokenizer: Tokenizer, passages: Sequence[Passage], *, batch_size: int = 8) -> Result:
    """Measure a model.  Raises UserError where the tokenizer has no token for a character, or a word is too long."""
    queries = []
    for passage in passages:
        word = tokenizer.encode(passage.word)
        queries.append(Query(np.concatenate([tokenizer.encode(passage.context), word]), len(word), passage.where))
    stop_tokens = _stop_tokens(tokenizer)
    losses, last_losses, right, filtered, last = (np.zeros(len(queries)) for _ in range(5))
    for answer in answer_all(model, queries, batch_size):
        number, word = answer.number, queries[answer.number].tokens[-queries[answer.number].scored :]
        logits = answer.logits()
        likeliest = logits.argmax(axis=-1) == word
        without = logits[0].copy()
        without[stop_tokens] = -np.inf
        losses[number], last_losses[number] = answer.losses.sum(), answer.losses[-1]
        right[number], last[number] = likeliest.all(), likeliest[-1]
        filtered[number] = without.argmax() == word[0] and likeliest[1:].all()
    metrics = {
        "accuracy": ratio(right),
        "perplexity": perplexity(ratio(losses)),
        "stop_word_filter_accuracy": ratio(filtered),
        "last_token_accuracy": ratio(last),
        "last_token_perplexity": perplexity(ratio(last_losses)),
    }
    return Result(PROTOCOL, {"passages": len(queries), "truncated": count_truncated(model, queries)}, metrics)


def _parse(values: dict[str, Any], where: str) -> Passage:
    text = values.get("text")
    context, space, word = text.strip().rpartition(" ") if isinstance(text, str) else ("", "", "")
    if not context.strip():
        raise UserError(f"{where} is no passage, expected a text of at least two words under the key text")
    return Passage(context, space + word, where)


def _stop_tokens(tokenizer: Tokenizer) -> NDArray[np.int64]:
    known = tokenizer.known_tokens().tolist()
    return np.array([token for token in known if tokenizer.decode([token]).strip() in STOP_WORDS], np.int64)
