"""A tokenizer in the metadata of GGUF, so that llama.cpp gives the same tokens.

    gpt2         tokenizer.ggml.model "gpt2": tokens, merges, kinds of tokens
    byte, char   model "rwkv", which takes the longest token that fits, and unlike "gpt2" need not end a text with a
                 token; pygpt.tokenizer holds what pygpt_tokenizer.json does
    none         model "none": llama.cpp takes and gives the numbers of tokens

Every row of the embedding has a token: those of padding and of holes in a vocabulary are called [PAD50257], and unused.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from pygpt.config import GPT2Config
from pygpt.errors import UserError, show
from pygpt.text import bpe
from pygpt.text.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer, tokenizer_from
from pygpt.text.tokenizer_json import TokenizerJson
from pygpt.text.vocabulary_files import make_vocabulary

_MODEL = "tokenizer.ggml.model"
_PRE = "tokenizer.ggml.pre"
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_MERGES = "tokenizer.ggml.merges"
_SETTINGS = "pygpt.tokenizer"
_IDS = {"bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id"}
_NORMAL, _CONTROL, _ADDED, _UNUSED = 1, 3, 4, 5  # kinds of tokens
_NO_MERGE = "ÿ ÿ"  # of two bytes that no UTF-8 text holds: llama.cpp wants a list, which must not be empty


def add_tokenizer(writer: Any, tokenizer: Tokenizer | None, config: GPT2Config) -> None:
    """Add the metadata to a writer of the package gguf.  Raises UserError when there are more tokens than rows."""
    if tokenizer is None:
        writer.add_string(_MODEL, "none")
        return
    size = config.vocab_size
    if tokenizer.vocab_size > size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, expected at most {size}, the model's vocab_size"
        )
    ends: dict[str, int | None] = {name: getattr(config, name) for name in _IDS}
    if isinstance(tokenizer, GPT2Tokenizer):
        vocabulary = tokenizer.vocabulary
        numbers = vocabulary.special_tokens | vocabulary.added_tokens
        for name, token in zip(_IDS, (vocabulary.bos_token, vocabulary.eos_token), strict=True):
            if ends[name] is None:
                ends[name] = numbers.get(token or "")
        tokens = [f"[PAD{number}]" for number in range(size)]
        types = [_UNUSED] * size
        texts = {bpe.to_text(token): number for token, number in vocabulary.ranks.items()}
        kinds = ((texts, _NORMAL), (vocabulary.special_tokens, _CONTROL), (vocabulary.added_tokens, _ADDED))
        for some, kind in kinds:
            for token, number in some.items():
                tokens[number], types[number] = token, kind
        merges = [f"{bpe.to_text(a)} {bpe.to_text(b)}" for a, b in vocabulary.all_merges()]
        writer.add_string(_MODEL, "gpt2")
        writer.add_string(_PRE, "gpt-2")
        writer.add_array(_MERGES, merges or [_NO_MERGE])
        if ends["eos_token_id"] is None:
            warnings.warn("the vocabulary has no token that ends a text: llama.cpp takes token 11 for it", stacklevel=2)
    else:
        texts_of = [tokenizer.decode_bytes([number]) for number in range(tokenizer.vocab_size)]
        tokens = ["".join(f"\\x{byte:02x}" for byte in text) for text in texts_of]
        tokens += [rf"\xff[PAD{number}]" for number in range(len(tokens), size)]  # \xff: in no text
        types = [_NORMAL] * tokenizer.vocab_size + [_UNUSED] * (size - tokenizer.vocab_size)
        writer.add_string(_MODEL, "rwkv")
        writer.add_string(_SETTINGS, json.dumps(tokenizer.settings()))
        if isinstance(tokenizer, CharTokenizer) and not tokenizer.characters.isascii():
            warnings.warn(
                "llama.cpp never ends on a prompt with a character that is not in this vocabulary, but begins with the "
                "same byte as one that is",
                stacklevel=2,
            )
    writer.add_array(_TOKENS, tokens)
    writer.add_array(_TYPES, types)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    for name, key in _IDS.items():
        end = ends[name]
        if end is not None:
            writer.add_uint32(key, end)


def token_ids(fields: dict[str, Any], vocab_size: int) -> dict[str, int]:
    """bos_token_id and eos_token_id of the configuration, as far as the metadata have them."""
    found = {name: fields.get(key) for name, key in _IDS.items()}
    return {name: number for name, number in found.items() if isinstance(number, int) and 0 <= number < vocab_size}


def read_tokenizer(path: Path, fields: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer in the metadata of a file, None if there is none.

    Raises UserError when it is damaged, or gives other tokens than pygpt's do.
    """
    model, pre = fields.get(_MODEL), fields.get(_PRE, "gpt-2")
    if _SETTINGS in fields:
        try:
            settings = json.loads(fields[_SETTINGS])
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: {_SETTINGS} is not JSON: {error}") from None
        if not isinstance(settings, dict):
            raise UserError(f"{path}: {_SETTINGS} is {show(settings)}, expected an object")
        return tokenizer_from(settings, path)
    if model in (None, "none", "no_vocab"):
        return None
    if model != "gpt2" or pre != "gpt-2":
        raise UserError(
            f"{path}: has a tokenizer {show(model)}, {show(pre)}, which is not implemented, expected 'gpt2', 'gpt-2'; "
            f"--tokenizer FOLDER takes that of a folder instead"
        )
    tokens = _list(path, fields, _TOKENS, str)
    types = _list(path, fields, _TYPES, int)
    if len(tokens) != len(types):
        raise UserError(f"{path}: has {len(tokens)} tokens, but the kinds of {len(types)}")
    by_kind: dict[int, dict[str, Any]] = {kind: {} for kind in (_NORMAL, _CONTROL, _ADDED, _UNUSED)}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        by_kind.get(kind, by_kind[_NORMAL])[token] = number
    merges = [merge for merge in _list(path, fields, _MERGES, str) if merge != _NO_MERGE]
    content = TokenizerJson(by_kind[_NORMAL], merges, by_kind[_CONTROL], by_kind[_ADDED])

    def find_ends(others: dict[str, int]) -> tuple[str | None, str | None]:
        token_of = {number: token for token, number in others.items()}
        bos, eos = (token_of.get(fields.get(key, -1)) for key in _IDS.values())
        return bos, eos

    return GPT2Tokenizer(make_vocabulary(path, path, content, find_ends))


def _list(path: Path, fields: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = fields.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise UserError(f"{path}: {key} is {show(values)}, expected a list of {kind.__name__}")
    return values
