"""From text to tokens and back.

`byte` takes the 256 bytes of UTF-8 as they are; `char` has one token for each character that its corpus holds;
`gpt2` is GPT-2's byte pair encoding, by tiktoken.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pygpt.errors import UserError
from pygpt.files.atomic import finish, write_file
from pygpt.files.json_file import read_json_object
from pygpt.reference.bpe import BYTES, ESCAPED_BYTE, PATTERN
from pygpt.text import bpe
from pygpt.text.vocabulary_files import SAVED as VOCABULARY_FILES
from pygpt.text.vocabulary_files import holds_vocabulary, read_vocabulary, save_vocabulary

NAMES = ("byte", "char", "gpt2")
FILE_NAME = "pygpt_tokenizer.json"
SAVED = (FILE_NAME, *VOCABULARY_FILES)  # what save() may write

Tokens = NDArray[np.int32]


class Tokenizer(ABC):
    name: str
    vocab_size: int
    eot_token: int | None = None  # the end-of-text token, which stands before each document

    @abstractmethod
    def encode(self, text: str) -> Tokens:
        """The tokens of a text: (n,).  Raises UserError where it has none for a character."""

    @abstractmethod
    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The UTF-8 text, of which a token may hold a part of a character.  Raises UserError for unknown tokens."""

    def known_tokens(self) -> Tokens:
        """The numbers that have a token, ascending: not all below vocab_size where a vocabulary has holes."""
        return np.arange(self.vocab_size, dtype=np.int32)

    @abstractmethod
    def byte_lengths(self) -> NDArray[np.int64]:
        """How many bytes of a text each token stands for, 0 for a special one: (vocab_size,)."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text, with U+FFFD where it is not valid UTF-8.  Raises UserError for unknown tokens."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def decode_stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text in pieces as the tokens come; a character appears when its last byte has come."""
        decoder = StreamDecoder(self)
        for token in tokens:
            if piece := decoder.add(token):
                yield piece
        if piece := decoder.end():
            yield piece

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The same for two tokenizers only if they give the same tokens: 64 hexadecimal digits."""

    def save(self, folder: str | Path) -> None:
        """Write the files from which load_tokenizer() makes it again.  Raises UserError when they cannot be written."""
        with write_file(Path(folder) / FILE_NAME) as file:
            file.write(json.dumps(self.settings()).encode())

    def settings(self) -> dict[str, object]:
        """The contents of its FILE_NAME."""
        return {"name": self.name, "vocab_size": self.vocab_size, **self._settings()}

    def _settings(self) -> dict[str, str]:
        return {}


class StreamDecoder:
    """The text of tokens that come one by one, with U+FFFD where it is not valid UTF-8."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The characters that this token completes.  Raises UserError for an unknown token."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def end(self) -> str:
        """No token follows: what half a character becomes."""
        return self._decoder.decode(b"", final=True)


class ByteTokenizer(Tokenizer):
    """One token for each byte of UTF-8."""

    name = "byte"
    vocab_size = 256

    def encode(self, text: str) -> Tokens:
        return self.encode_bytes(_utf8(text))

    def encode_bytes(self, data: bytes) -> Tokens:
        """Any bytes, UTF-8 or not."""
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return _in_vocabulary(tokens, self).astype(np.uint8).tobytes()

    def byte_lengths(self) -> NDArray[np.int64]:
        return np.ones(self.vocab_size, np.int64)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"byte").hexdigest()


class CharTokenizer(Tokenizer):
    """One token for each character of a vocabulary, numbered in its order."""

    name = "char"

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise UserError("a character-level vocabulary must hold at least one character, and each only once")
        self.characters = characters
        self.vocab_size = len(characters)
        self._codes = _codes(characters)
        self._numbers = np.full(self._codes.max() + 1, -1, np.int32)
        self._numbers[self._codes] = np.arange(self.vocab_size)

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The characters of a text, sorted."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> Tokens:
        codes = _codes(text)
        known = codes < len(self._numbers)
        tokens = np.where(known, self._numbers[np.where(known, codes, 0)], -1)
        if len(tokens) and tokens.min() < 0:
            character = text[int(tokens.argmin())]
            raise UserError(
                f"character {character!r} (U+{ord(character):04X}) is not among the {self.vocab_size} of the vocabulary"
            )
        return tokens

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        codes = self._codes[_in_vocabulary(tokens, self)]
        return codes.tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogatepass")

    def byte_lengths(self) -> NDArray[np.int64]:
        return np.array([len(self.decode_bytes([token])) for token in range(self.vocab_size)])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"char" + self._codes.tobytes()).hexdigest()

    def _settings(self) -> dict[str, str]:
        return {"characters": self.characters}


class GPT2Tokenizer(Tokenizer):
    """Byte pair encoding with GPT-2's pattern and a vocabulary of its kind.

    Text never gives special tokens; an added token is found wherever its text stands.
    """

    name = "gpt2"

    def __init__(self, vocabulary: bpe.Vocabulary) -> None:
        others = vocabulary.special_tokens | vocabulary.added_tokens
        self.eot_token = None if vocabulary.eos_token is None else others[vocabulary.eos_token]
        self._vocabulary = vocabulary
        self._bytes = {number: token for token, number in vocabulary.ranks.items()}
        self._bytes |= {number: token.encode() for token, number in others.items()}
        self.vocab_size = max(self._bytes) + 1
        self._encoding = vocabulary.encoding()
        self._single_bytes = b"".join(byte for byte in BYTES if byte in vocabulary.ranks)
        added = sorted(filter(None, vocabulary.added_tokens), key=len, reverse=True)  # of two that fit, the longer
        self._units = re.compile("(" + "|".join([ESCAPED_BYTE, *map(re.escape, added)]) + ")")

    @classmethod
    def from_tiktoken(cls) -> GPT2Tokenizer:
        """GPT-2's own, which tiktoken downloads once.  Raises UserError when it cannot."""
        return cls(bpe.Vocabulary.from_tiktoken())

    @classmethod
    def from_folder(cls, folder: str | Path) -> GPT2Tokenizer:
        """Read tokenizer.json, or vocab.json and merges.txt, or encoder.json and vocab.bpe.

        Raises UserError where they are unusable.
        """
        return cls(read_vocabulary(Path(folder)))

    @property
    def vocabulary(self) -> bpe.Vocabulary:
        return self._vocabulary

    def with_tokens(self, texts: Sequence[str]) -> GPT2Tokenizer:
        """A tokenizer that has a token more for each text, found wherever the text stands.

        Raises UserError where a text is empty, or a token already.
        """
        added = dict(self._vocabulary.added_tokens)
        for number, text in enumerate(texts, self.vocab_size):
            if not text or _utf8(text) in self._bytes.values() or text in added:
                raise UserError(f"{text!r} cannot be added: {'it is a token already' if text else 'it is empty'}")
            added[text] = number
        return GPT2Tokenizer(replace(self._vocabulary, added_tokens=added))

    def encode(self, text: str) -> Tokens:
        data = _utf8(text)
        if unknown := data.translate(None, self._single_bytes):
            at = data.index(unknown[:1])
            raise UserError(f"byte 0x{unknown[0]:02x} at {at} has no token in this vocabulary of {len(self._bytes)}")
        ordinary = not self._vocabulary.added_tokens and _is_utf8(data)
        parts = []
        for position, part in enumerate([text] if ordinary else self._units.split(text)):
            if position % 2 == 0:
                parts.append(self._encode_ordinary(part))
            else:
                number = self._vocabulary.added_tokens.get(part)
                parts.append(np.array([self._vocabulary.ranks[_utf8(part)] if number is None else number], np.int32))
        return np.concatenate(parts)

    def _encode_ordinary(self, text: str) -> Tokens:
        pieces = [self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in bpe.cut_long_runs(text)]
        return np.concatenate(pieces).astype(np.int32)

    def known_tokens(self) -> Tokens:
        return np.array(sorted(self._bytes), np.int32)

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        try:
            return b"".join([self._bytes[int(token)] for token in tokens])
        except KeyError as error:
            raise UserError(f"token {error} is not in the vocabulary of {self.vocab_size} gpt2 tokens") from error

    def byte_lengths(self) -> NDArray[np.int64]:
        lengths = np.zeros(self.vocab_size, np.int64)
        for number, token in self._bytes.items():
            lengths[number] = len(token)
        lengths[list(self._vocabulary.special_tokens.values())] = 0
        return lengths

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(PATTERN.encode())
        added = self._vocabulary.added_tokens.values()
        for number, token in sorted(self._bytes.items()):
            kind = 2 if number in added else token in self._vocabulary.ranks
            digest.update(b"%d %d %d " % (number, kind, len(token)) + token)
        if self._vocabulary.eos_token != bpe.END_OF_TEXT and self.eot_token is not None:
            digest.update(b"eos %d" % self.eot_token)
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        save_vocabulary(self._vocabulary, Path(folder))
        super().save(folder)


def holds_tokenizer(folder: str | Path) -> bool:
    """Whether a folder has the files of a tokenizer, by their names."""
    return (Path(folder) / FILE_NAME).is_file() or holds_vocabulary(Path(folder))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model, a data set or a Hugging Face folder.  Raises UserError where there is none."""
    folder = Path(folder)
    finish(folder)
    path = folder / FILE_NAME
    if not path.is_file():
        return GPT2Tokenizer.from_folder(folder)
    return tokenizer_from(read_json_object(path), path)


def tokenizer_from(settings: dict[str, object], path: Path) -> Tokenizer:
    """The tokenizer whose settings() were found in a file, beside which is the vocabulary of `gpt2`.

    Raises UserError where they are wrong.
    """
    name = settings.get("name")
    tokenizer: Tokenizer
    if name == "byte":
        tokenizer = ByteTokenizer()
    elif name == "char":
        tokenizer = _char_tokenizer(path, settings.get("characters"))
    elif name == "gpt2":
        tokenizer = GPT2Tokenizer.from_folder(path.parent)
    else:
        raise UserError(f"{path}: unknown tokenizer {name!r:.80}, expected one of {', '.join(NAMES)}")
    if settings.get("vocab_size") != tokenizer.vocab_size:
        raise UserError(f"{path}: vocab_size is {settings.get('vocab_size')!r:.80}, expected {tokenizer.vocab_size}")
    return tokenizer


def _char_tokenizer(path: Path, characters: object) -> CharTokenizer:
    try:
        return CharTokenizer(characters if isinstance(characters, str) else "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _utf8(text: str) -> bytes:
    """The bytes of a text; what Python could not decode, on a command line or in a file name, is what it was."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(f"character U+{ord(text[error.start]):04X} at {error.start} has no UTF-8 bytes") from error


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _in_vocabulary(tokens: Iterable[int], tokenizer: Tokenizer) -> NDArray[np.int64]:
    numbers = np.fromiter(tokens, np.int64)
    outside = (numbers < 0) | (numbers >= tokenizer.vocab_size)
    if outside.any():
        raise UserError(
            f"token {numbers[outside.argmax()]} is not in the vocabulary of "
            f"{tokenizer.vocab_size} {tokenizer.name}-level tokens"
        )
    return numbers
