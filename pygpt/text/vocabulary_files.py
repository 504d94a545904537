"""The files of a vocabulary of GPT-2's kind.

    tokenizer.json                 everything; transformers 5 saves no other, and where it is there, it alone counts
    vocab.json, merges.txt         token -> number, and the pairs in order; in OpenAI's release called encoder.json and
                                   vocab.bpe
    added_tokens.json              tokens that were added to these later
    tokenizer_config.json, special_tokens_map.json      which tokens begin and end a text

In them a byte is written as a printable character (pygpt.text.bpe.to_text).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pygpt.errors import UserError, reading
from pygpt.files import lfs
from pygpt.files.atomic import write_file
from pygpt.files.json_file import read_json_object
from pygpt.reference.bpe import BYTES
from pygpt.text import bpe
from pygpt.text.text_ends import read_text_ends
from pygpt.text.tokenizer_json import FILE_NAME, LARGEST_FILE, TokenizerJson, format_tokenizer_json, read_tokenizer_json

_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_ADDED = "added_tokens.json"
_CONFIG = "tokenizer_config.json"
_NAMES_OF_TOKENS = (_CONFIG, "special_tokens_map.json")

SAVED = (FILE_NAME, *_PAIRS[0], _CONFIG)
"""The files that save_vocabulary() writes."""

FindEnds = Callable[[dict[str, int]], tuple[str | None, str | None]]

DOWNLOADS = (FILE_NAME, *_PAIRS[0], _ADDED, *_NAMES_OF_TOKENS)
"""The files that a folder on huggingface.co may hold."""


def holds_vocabulary(folder: Path) -> bool:
    """Whether a folder has the files, by their names."""
    return (folder / FILE_NAME).is_file() or _find_pair(folder) is not None


def read_vocabulary(folder: Path) -> bpe.Vocabulary:
    """Read a vocabulary.  Raises UserError where there is none, or it is unusable."""
    path, pair = folder / FILE_NAME, _find_pair(folder)
    if path.is_file():
        content = read_tokenizer_json(path)
        merges_path = path
    elif pair is not None:
        path, merges_path = pair
        added_path = folder / _ADDED
        added = read_json_object(added_path, LARGEST_FILE) if added_path.is_file() else {}
        content = TokenizerJson(read_json_object(path, LARGEST_FILE), _read_merges(merges_path), {}, added)
    else:
        expected = ", or ".join([FILE_NAME, *(" and ".join(names) for names in _PAIRS)])
        raise UserError(f"{folder} holds no GPT-2 vocabulary: expected {expected}")
    return make_vocabulary(path, merges_path, content, lambda tokens: _read_ends(folder, tokens))


def make_vocabulary(path: Path, merges_path: Path, content: TokenizerJson, find_ends: FindEnds) -> bpe.Vocabulary:
    """The vocabulary of tokens and merges that were found in two files, or in one.

    find_ends: from special and added tokens with their numbers to those that begin and end a text.
    Raises UserError where they contradict each other.
    """
    vocab = _number_tokens(path, content)
    merges = [_parse_merge(merges_path, number, entry) for number, entry in enumerate(content.merges, start=1)]
    ranks = _rank(path, merges_path, vocab, merges)
    merged = {bpe.to_text(token) for token in ranks}
    others = {token: vocab[token] for token in vocab if token not in merged or token in content.added_tokens}
    bos, eos = find_ends(others)
    added = {token: number for token, number in others.items() if token in content.added_tokens.keys() - {bos, eos}}
    special = {token: number for token, number in others.items() if token not in added}
    return bpe.Vocabulary(ranks, special, added, [(bpe.to_bytes(a), bpe.to_bytes(b)) for a, b in merges], bos, eos)


def save_vocabulary(vocabulary: bpe.Vocabulary, folder: Path) -> None:
    """Write tokenizer.json, vocab.json and merges.txt, and the names of the tokens that begin and end a text.

    Raises UserError when they cannot be written.
    """
    merges = [f"{bpe.to_text(a)} {bpe.to_text(b)}" for a, b in vocabulary.all_merges()]
    special, added = vocabulary.special_tokens, vocabulary.added_tokens
    vocab = {bpe.to_text(token): number for token, number in vocabulary.ranks.items()} | special | added
    vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
    names = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": vocabulary.bos_token,
        "eos_token": vocabulary.eos_token,
        # CTranslate2 needs one; where there is no <|endoftext|>, transformers would add it
        "unk_token": bpe.END_OF_TEXT if bpe.END_OF_TEXT in special else None,
    }
    _write(folder / FILE_NAME, _json(format_tokenizer_json(TokenizerJson(vocab, merges, special, added))))
    _write(folder / _CONFIG, _json(names))
    _write(folder / _PAIRS[0][0], _json(vocab))
    _write(folder / _PAIRS[0][1], "\n".join(["#version: 0.2", *merges]) + "\n")


def _find_pair(folder: Path) -> tuple[Path, Path] | None:
    for vocab, merges in _PAIRS:
        if (folder / vocab).is_file() and (folder / merges).is_file():
            return folder / vocab, folder / merges
    return None


def _number_tokens(path: Path, content: TokenizerJson) -> dict[str, int]:
    """All tokens with their numbers."""
    vocab: dict[str, int] = {}
    taken: dict[int, str] = {}
    parts = (content.vocab, content.special_tokens, content.added_tokens)
    for token, number in itertools.chain.from_iterable(part.items() for part in parts):
        if type(number) is not int or not 0 <= number < 2**31:
            raise UserError(f"{path}: token {token!r} has number {number!r}, expected an integer from 0 on")
        if vocab.setdefault(token, number) != number:
            raise UserError(f"{path}: token {token!r} has number {vocab[token]}, and was added as {number}")
        if taken.setdefault(number, token) != token:
            raise UserError(f"{path}: tokens {taken[number]!r} and {token!r} both have number {number}")
        if not token.isascii() and any("\ud800" <= character <= "\udfff" for character in token):
            raise UserError(f"{path}: token {token!r} has no UTF-8 bytes")
    return vocab


def _rank(path: Path, merges_path: Path, vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> dict[bytes, int]:
    """The tokens that are bytes or merged from them.  A vocabulary may lack bytes, which its text did not have."""
    merged = [a + b for a, b in merges]
    for token in merged:
        if token not in vocab:
            raise UserError(f"{path}: token {token!r} is missing, though {merges_path.name} makes it")
    for previous, following in itertools.pairwise(merged):
        if vocab[previous] >= vocab[following]:
            raise UserError(
                f"{path}: token {following!r} has number {vocab[following]}, expected more than "
                f"{vocab[previous]}, because {merges_path.name} makes it after {previous!r}"
            )
    single = [character for character in map(bpe.to_text, BYTES) if character in vocab]
    if not single:
        raise UserError(f"{path}: has no token for any byte, expected those of GPT-2's encoding")
    ranks = {bpe.to_bytes(token): vocab[token] for token in (*single, *merged)}
    for pair in merges:
        for part in pair:
            if bpe.to_bytes(part) not in ranks:
                raise UserError(f"{merges_path}: the merge {' '.join(pair)!r} joins {part!r}, which is no token")
    return ranks


def _read_ends(folder: Path, tokens: dict[str, int]) -> tuple[str | None, str | None]:
    """The tokens that begin and end a text, as the tokenizer's files or the model's say, otherwise <|endoftext|>."""
    files = [read_json_object(folder / n, LARGEST_FILE) for n in _NAMES_OF_TOKENS if (folder / n).is_file()]
    token_of = {number: token for token, number in tokens.items()}
    ends = read_text_ends(folder, max(token_of, default=0) + 1)

    def find(name: str, numbers: Iterable[int | None]) -> str | None:
        named = [values.get(name) for values in files]
        named = [value.get("content") if isinstance(value, dict) else value for value in named]
        candidates = [*named, *(token_of.get(number) for number in numbers if number is not None), bpe.END_OF_TEXT]
        return next((token for token in candidates if isinstance(token, str) and token in tokens), None)

    return find("bos_token", [ends.begin]), find("eos_token", ends.end)


def _read_merges(path: Path) -> list[str]:
    with reading(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error})") from error
    lfs.refuse_pointer(path, data)
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if lines[0].startswith("#version"):
        del lines[0]
    return [line for line in lines if line]


def _parse_merge(path: Path, number: int, entry: Any) -> tuple[str, str]:
    """A merge, which is "a b" or ["a", "b"]."""
    parts = entry.split(" ") if isinstance(entry, str) else entry
    match parts:
        case [str(a), str(b)] if a and b and bpe.is_byte_text(a + b):
            return a, b
    raise UserError(f"{path}: merge {number} is {entry!r:.80}, expected two tokens with a space between")


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    with write_file(path) as file:
        file.write(text.encode())
