"""The vocabulary of GPT-2's byte pair encoding (Sennrich, Haddow & Birch 2016; Radford et al. 2019, section 2.2).

A text is cut into words by a pattern, and each word, a sequence of bytes, is merged pair by pair: always the pair
that stands first in the list of merges. tiktoken does that; here is what it is built from. Two files carry a
vocabulary: `vocab.json` (token -> number) and `merges.txt` (pairs in order), in OpenAI's release called `encoder.json`
and `vocab.bpe`. In them a byte is written as a printable character: itself where it is one in Latin-1, otherwise
the next free character from U+0100 on.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pygpt.atomic import write_file
from pygpt.errors import UserError

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"

# What belongs together: a contraction's ending, letters, digits or other signs (each with a space before), white space.
# White space before a word leaves its last character to the word.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTER_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
_BYTE_OF_CHARACTER = {character: byte for byte, character in _CHARACTER_OF_BYTE.items()}

Merges = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Vocabulary:
    """ranks: the bytes of a token -> its number, and merged tokens are numbered in the order of their merges;
    special_tokens: what no text encodes to, such as the end of a text; merges: the pairs in order, or None where they
    follow from the ranks."""

    ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    merges: Merges | None = None

    @classmethod
    def from_tiktoken(cls) -> Vocabulary:
        """GPT-2's own, which tiktoken downloads once.  Raises UserError when it cannot."""
        try:
            encoding = _import_tiktoken().get_encoding("gpt2")
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                "tiktoken could not download the gpt2 vocabulary (is there a network?); "
                "--vocab FOLDER reads it from vocab.json and merges.txt instead"
            ) from error
        eot = encoding.eot_token
        ranks = {encoding.decode_single_token_bytes(i): i for i in range(encoding.n_vocab) if i != eot}
        return cls(ranks, {END_OF_TEXT: eot})

    @classmethod
    def from_folder(cls, folder: str | Path) -> Vocabulary:
        """Read vocab.json and merges.txt, or encoder.json and vocab.bpe.  Raises UserError where they are unusable."""
        vocab_path, merges_path = _find_files(Path(folder))
        vocab = _read_vocab(vocab_path)
        merges = _read_merges(merges_path)
        merged = [a + b for a, b in merges]
        mergeable = [*_CHARACTER_OF_BYTE.values(), *merged]
        for token in mergeable:
            if token not in vocab:
                raise UserError(f"{vocab_path}: token {token!r} is missing, though {merges_path.name} makes it")
        for previous, following in itertools.pairwise(merged):
            if vocab[previous] >= vocab[following]:
                raise UserError(
                    f"{vocab_path}: token {following!r} has number {vocab[following]}, expected more than "
                    f"{vocab[previous]}, because {merges_path.name} makes it after {previous!r}"
                )
        ranks = {_to_bytes(token): vocab[token] for token in mergeable}
        for pair in merges:
            for part in pair:
                if _to_bytes(part) not in ranks:
                    raise UserError(f"{merges_path}: the merge {' '.join(pair)!r} joins {part!r}, which is no token")
        special_tokens = {token: vocab[token] for token in vocab.keys() - set(mergeable)}
        return cls(ranks, special_tokens, [(_to_bytes(a), _to_bytes(b)) for a, b in merges])

    def save(self, folder: str | Path) -> None:
        """Write vocab.json and merges.txt.  Raises UserError when they cannot be written."""
        merges = derive_merges(self.ranks) if self.merges is None else self.merges
        vocab = {_to_text(token): number for token, number in self.ranks.items()} | self.special_tokens
        vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
        lines = ["#version: 0.2", *(f"{_to_text(a)} {_to_text(b)}" for a, b in merges)]
        vocab_name, merges_name = _FILES[0]
        with write_file(Path(folder) / vocab_name) as file:
            file.write(json.dumps(vocab, ensure_ascii=False).encode())
        with write_file(Path(folder) / merges_name) as file:
            file.write(("\n".join(lines) + "\n").encode())

    def encoding(self) -> tiktoken.Encoding:
        """tiktoken's encoder."""
        encoding: tiktoken.Encoding = _import_tiktoken().Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens=self.special_tokens
        )
        return encoding


def derive_merges(ranks: dict[bytes, int]) -> Merges:
    """The pair that makes each token: what merging its bytes leaves when only earlier merges are allowed."""
    merges: Merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            first = min(range(len(pairs)), key=pairs.__getitem__)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _import_tiktoken() -> Any:
    """Only where it is needed: importing it takes longer than everything else that byte-level tokens need."""
    try:
        import tiktoken
    except ImportError as error:
        raise UserError("gpt2 tokens need the package tiktoken: pip install tiktoken") from error
    return tiktoken


def _find_files(folder: Path) -> tuple[Path, Path]:
    for vocab, merges in _FILES:
        if (folder / vocab).is_file() and (folder / merges).is_file():
            return folder / vocab, folder / merges
    expected = " or ".join(f"{vocab} and {merges}" for vocab, merges in _FILES)
    raise UserError(f"{folder} holds no GPT-2 vocabulary: expected {expected}")


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        vocab = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(vocab, dict):
        raise UserError(f"{path}: expected a JSON object of tokens and their numbers")
    taken: dict[int, str] = {}
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise UserError(f"{path}: token {token!r} has number {number!r}, expected an integer from 0 on")
        if number in taken:
            raise UserError(f"{path}: tokens {taken[number]!r} and {token!r} both have number {number}")
        taken[number] = token
    return vocab


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts) or not _BYTE_OF_CHARACTER.keys() >= set(parts[0] + parts[1]):
            raise UserError(f"{path}: line {number} is {line[:80]!r}, expected two tokens with a space between")
        merges.append((parts[0], parts[1]))
    return merges


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error})") from error


def _to_bytes(token: str) -> bytes:
    return bytes([_BYTE_OF_CHARACTER[character] for character in token])


def _to_text(token: bytes) -> str:
    return "".join([_CHARACTER_OF_BYTE[byte] for byte in token])
