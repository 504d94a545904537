"""Tokens added to a model, such as the marks of a dialogue, to be learnt by fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pygpt.errors import UserError
from pygpt.files.stored_model import StoredModel
from pygpt.text.tokenizer import GPT2Tokenizer


def add_tokens(model: StoredModel, texts: Sequence[str]) -> StoredModel:
    """The model with a token for each text, which from then on stands for it wherever it is in a text.

    They are numbered after the tokenizer's. Their rows of wte.weight and of the head, new ones or those of padding, are
    the mean of the rows before: the logit of a new token is then a mean, so that it takes little from the others.
    Raises UserError when a text is empty or a token already, or the tokenizer is not of GPT-2's kind.
    """
    tokenizer = model.read_tokenizer()
    if not isinstance(tokenizer, GPT2Tokenizer):
        found = "there is none" if tokenizer is None else f"the model's is {tokenizer.name!r}"
        raise UserError(f"tokens can be added only to a tokenizer of the kind 'gpt2', but {found}")
    first, extended = tokenizer.vocab_size, tokenizer.with_tokens(texts)

    def with_rows(old: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = np.tile(old[:first].mean(0, dtype=np.float64).astype(np.float32), (len(texts), 1))
        return np.concatenate([old[:first], rows, old[first + len(texts) :]])

    matrices = {name: with_rows(model.parameters[name]) for name in ("wte.weight", model.config.head)}
    return StoredModel(
        replace(model.config, vocab_size=len(matrices["wte.weight"])),
        {**model.parameters, **matrices},
        lambda: extended,
    )
