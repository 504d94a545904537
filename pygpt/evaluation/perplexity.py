"""Perplexity of a text, per token and per byte.

    loss = Σ −ln p(token) / tokens         perplexity = exp(loss)          bits per byte = Σ −log₂ p(token) / bytes

A text that is longer than the model's context is read in windows.  Each token but the first is predicted once: by the
first window its whole width, by each later one the `stride` tokens that follow, each from more than width - stride
tokens before it.  The smaller the stride, the more context they have and the longer it takes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pygpt.errors import UserError
from pygpt.evaluation.result import Result, bits, perplexity, ratio
from pygpt.evaluation.scoring import Evaluated, Query, answer_all
from pygpt.text.batches import TokenDataset
from pygpt.text.corpora import find_corpus
from pygpt.text.encoding import Encoder, progress
from pygpt.text.pieces import Piece
from pygpt.text.prepare import ensure
from pygpt.text.text_files import select_texts
from pygpt.text.tokenizer import Tokenizer, Tokens


def read_text(data: str, tokenizer: Tokenizer) -> Tokens:
    """All tokens of a text file, after an end-of-text token if there is one, or the validation part of other data.

    data: a file, a folder of token files, or what training takes otherwise.  Raises UserError when it cannot be used.
    """
    if not Path(data).is_file():
        dataset = TokenDataset(ensure(data, tokenizer), "val")
        dataset.check_tokenizer(tokenizer)
        return dataset.tokens()
    files = select_texts(find_corpus(data).files, data, any_bytes=tokenizer.name == "byte")
    pieces = [Piece(path, 0, path.stat().st_size) for path in files]
    with progress(f"{data}: {tokenizer.name} tokens", pieces[0].size) as bar:
        return np.concatenate(list(Encoder(tokenizer, eot_in_text=False, workers=1).encode(pieces, bar)))


def windows(tokens: Tokens, width: int, stride: int, name: str) -> list[Query]:
    """Queries that predict all tokens but the first, each once.  width: of what the model sees, in tokens."""
    queries, done = [], 1
    while done < len(tokens):
        stop = min(done + (width if done == 1 else stride), len(tokens))
        queries.append(Query(tokens[max(0, stop - width - 1) : stop], stop - done, name))
        done = stop
    return queries


def evaluate(
    model: Evaluated,
    tokenizer: Tokenizer,
    tokens: Tokens,
    name: str,
    *,
    width: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> Result:
    """Measure a text.  tokens: (n,); width: all of the model's positions by default; stride: half the width.

    limit: how many windows, from the beginning; by default all.  Raises UserError for sizes that do not fit.
    """
    positions = model.config.n_positions
    width = width or positions
    stride = stride or max(1, width // 2)
    if width > positions:
        raise UserError(f"the window is {width} tokens, expected at most {positions}, the model's positions")
    if stride > width:
        raise UserError(f"the stride is {stride} tokens, expected at most {width}, the window")
    if len(tokens) < 2:
        raise UserError(f"{name}: has {len(tokens)} token, and the first is not predicted, expected at least 2")
    queries = windows(tokens, width, stride, name)[:limit]
    lengths = tokenizer.byte_lengths()
    scored = np.array([query.scored for query in queries])
    covered = np.array([lengths[query.tokens[-query.scored :]].sum() for query in queries])
    nats = np.zeros(len(queries))
    for answer in answer_all(model, queries, batch_size):
        nats[answer.number] = answer.losses.sum()

    stretches = np.arange(0, len(queries), math.ceil(width / stride))  # of at least `width` tokens
    nats, scored, covered = (np.add.reduceat(values, stretches) for values in (nats, scored, covered))
    loss = ratio(nats, scored)
    metrics = {"loss_per_token": loss, "perplexity_per_token": perplexity(loss)}
    if covered.sum():
        by_byte = ratio(nats, covered)
        metrics |= {
            "loss_per_byte": by_byte,
            "perplexity_per_byte": perplexity(by_byte),
            "bits_per_byte": bits(by_byte),
        }
    protocol = (
        f"windows of {width} tokens with stride {stride}: each token but the first is scored once, "
        f"given the {width - stride + 1} to {width} tokens before it, or fewer where the text begins; "
        f"losses in nats; standard errors take stretches of {width} tokens as independent"
    )
    if tokenizer.eot_token is not None:
        protocol += "; end-of-text tokens are scored and count no bytes"
    counts = {"tokens": int(scored.sum()), "bytes": int(covered.sum()), "windows": len(queries)}
    return Result(protocol, counts, metrics)
