"""What a folder of token files holds: meta.json beside them, or llm.c's names where there is none."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pygpt.errors import UserError, reading
from pygpt.files.atomic import finish
from pygpt.files.json_file import read_json_object, write_json_object
from pygpt.text.token_file import HEADER_BYTES, LARGEST_SHARD, LARGEST_VOCAB, NAMES, read_tokens

FILE_NAME = "meta.json"

_GPT2_VOCAB = 50257
_LARGEST_TEXT = 2**63 - 1  # bytes


@dataclass(frozen=True)
class Shard:
    file: str  # a name in the folder
    tokens: int


@dataclass(frozen=True)
class Split:
    shards: tuple[Shard, ...]
    sha256: str  # of the tokens as the files hold them, without headers; "" where it is not known
    bytes: int = 0  # of the text that the tokens stand for; 0 where it is not known

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def tokens_per_byte(self) -> float | None:
        """By which a loss in nats per token is one in nats per byte; None where it is not known."""
        return self.tokens / self.bytes if self.bytes else None


@dataclass(frozen=True)
class TokenizerMeta:
    name: str
    vocab_size: int
    fingerprint: str  # "" where it is not known


@dataclass(frozen=True)
class Meta:
    name: str
    source: str  # where the text is from
    source_digest: str  # changes when the text does
    licence: str
    tokenizer: TokenizerMeta
    train: Split
    val: Split
    eot_in_text: bool = False  # its words in the text became the end-of-text token

    def save(self, folder: Path) -> None:
        """Write it into a folder of pygpt.files.atomic.write_files()."""
        write_json_object(folder / FILE_NAME, asdict(self))


def is_token_folder(path: str | Path) -> bool:
    """Whether a folder holds token files, by its names: of some that are damaged, too."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    finish(folder)
    with reading(folder):
        return any(NAMES.fullmatch(entry.name) for entry in folder.iterdir())


def read_meta(folder: str | Path) -> Meta:
    """The description of a folder of token files.

    Without meta.json they are taken for llm.c's: GPT-2 tokens in files such as NAME_train_000001.bin and NAME_val.bin.
    Raises UserError when meta.json is wrong, or there are no token files.
    """
    folder = Path(folder)
    finish(folder)
    path = folder / FILE_NAME
    return _parse(path, read_json_object(path)) if path.exists() else _llmc_meta(folder)


def is_complete(folder: str | Path, meta: Meta) -> bool:
    """Whether all token files are there with their full lengths."""
    for split in (meta.train, meta.val):
        for shard in split.shards:
            path = Path(folder) / shard.file
            if not path.is_file() or path.stat().st_size != HEADER_BYTES + 2 * shard.tokens:
                return False
    return True


def _llmc_meta(folder: Path) -> Meta:
    with reading(folder):
        names = sorted(entry.name for entry in folder.iterdir())
    shards: dict[str, list[Shard]] = {"train": [], "val": []}
    for name in names:
        if match := NAMES.fullmatch(name):
            shards[match[1]].append(Shard(name, len(read_tokens(folder / name))))
    if not any(shards.values()):
        raise UserError(
            f"{folder}: holds no token files: expected {FILE_NAME}, or names such as x_train.bin and x_val.bin"
        )
    train, val = (Split(tuple(found), "") for found in shards.values())
    return Meta(folder.name, str(folder), "", "", TokenizerMeta("gpt2", _GPT2_VOCAB, ""), train, val)


def _parse(path: Path, values: dict[str, Any]) -> Meta:
    tokenizer = _get(path, values, "tokenizer", dict)
    return Meta(
        name=_get(path, values, "name", str),
        source=_get(path, values, "source", str),
        source_digest=_get(path, values, "source_digest", str),
        licence=_get(path, values, "licence", str),
        tokenizer=TokenizerMeta(
            name=_get(path, tokenizer, "name", str),
            vocab_size=_get(path, tokenizer, "vocab_size", int, LARGEST_VOCAB),
            fingerprint=_get(path, tokenizer, "fingerprint", str),
        ),
        train=_parse_split(path, _get(path, values, "train", dict)),
        val=_parse_split(path, _get(path, values, "val", dict)),
        eot_in_text=_get(path, {"eot_in_text": False, **values}, "eot_in_text", bool),  # older files lack it
    )


def _parse_split(path: Path, values: dict[str, Any]) -> Split:
    shards = []
    for entry in _get(path, values, "shards", list):
        name = _get(path, entry, "file", str)
        if Path(name).name != name or name in {"", ".."} or "\0" in name:
            raise UserError(f"{path}: the shard {name!r} is not a file's name in this folder")
        shards.append(Shard(name, _get(path, entry, "tokens", int, LARGEST_SHARD)))
    size = _get(path, values, "bytes", int, _LARGEST_TEXT) if values.get("bytes") else 0  # older files lack it
    return Split(tuple(shards), _get(path, values, "sha256", str), size)


def _get(path: Path, values: Any, key: str, kind: type, largest: int = 0) -> Any:
    """values[key], which must be of this kind; an integer from 1 to `largest`."""
    value = values.get(key) if isinstance(values, dict) else None
    if type(value) is not kind or (kind is int and isinstance(value, int) and not 1 <= value <= largest):
        expected: dict[type, str] = {
            str: "a text",
            dict: "an object",
            list: "a list",
            bool: "true or false",
            int: f"an integer from 1 to {largest}",
        }
        raise UserError(f"{path}: {key} is {str(value)[:60]}, expected {expected[kind]}")
    return value
