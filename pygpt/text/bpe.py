"""GPT-2's byte pair encoding, by tiktoken: what it is built from.  The encoding itself: pygpt/reference/bpe.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pygpt.errors import UserError
from pygpt.reference.bpe import BYTES, PATTERN, PRINTABLE, Pair, merge

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"

LONGEST_RUN = 100_000  # characters of white space; tiktoken goes back over a run, which ends in an error at a million

_WHITE_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"  # \s in PATTERN; Python's has more

_CHARACTER_OF_BYTE = {
    byte[0]: chr(byte[0] if number < len(PRINTABLE) else 256 + number - len(PRINTABLE))
    for number, byte in enumerate(BYTES)
}
_BYTE_OF_CHARACTER = {character: byte for byte, character in _CHARACTER_OF_BYTE.items()}

Merges = list[Pair]


@dataclass(frozen=True)
class Vocabulary:
    """ranks: the bytes of a token -> its number, and merged tokens are numbered in the order of their merges;
    special_tokens: what no text encodes to, such as the end of a text; added_tokens: what stands in a text for one
    token, whatever the merges say; merges: the pairs in order, or None where they follow from the ranks;
    bos_token, eos_token: the special tokens that begin and end a text."""

    ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    added_tokens: dict[str, int] = field(default_factory=dict)
    merges: Merges | None = None
    bos_token: str | None = None
    eos_token: str | None = None

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
        return cls(ranks, {END_OF_TEXT: eot}, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)

    def encoding(self) -> tiktoken.Encoding:
        """tiktoken's encoder of ordinary text: it knows no special or added tokens."""
        encoding: tiktoken.Encoding = _import_tiktoken().Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens={}
        )
        return encoding

    def all_merges(self) -> Merges:
        """The pairs in order, worked out where they were not given."""
        return derive_merges(self.ranks) if self.merges is None else self.merges


def derive_merges(ranks: dict[bytes, int]) -> Merges:
    """The pair that makes each token: what merging its bytes leaves when only earlier merges are allowed."""
    merges: Merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = merge(token, ranks, below=rank)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def cut_long_runs(text: str, longest: int = LONGEST_RUN) -> Iterator[str]:
    """The text in pieces whose tokens are those of the text, cut where `longest` or more characters are white space.

    The pattern begins a word where such a run begins, and ends it before the run's last character, which it leaves to
    what follows: there is the cut. The piece before it ends in white space, which the pattern takes in one step.
    """
    begin = 0
    # a run of twice the length fills a block: an ordinary text costs no more than a look at each block's beginning
    if any(text[i : i + longest].isspace() for i in range(0, len(text), longest)):
        for run in re.finditer(rf"(?<!{_WHITE_SPACE}){_WHITE_SPACE}{{{longest},}}", text):
            if run.end() < len(text):
                yield text[begin : run.end() - 1]
                begin = run.end() - 1
    yield text[begin:]


def is_byte_text(token: str) -> bool:
    """Whether a token of a vocabulary's files stands for bytes."""
    return _BYTE_OF_CHARACTER.keys() >= set(token)


def to_bytes(token: str) -> bytes:
    """The bytes of a token as a vocabulary's files write it."""
    return bytes([_BYTE_OF_CHARACTER[character] for character in token])


def to_text(token: bytes) -> str:
    """A token as a vocabulary's files write it: each byte as a printable character, itself where it is one in Latin-1,
    otherwise the next free character from U+0100 on."""
    return "".join([_CHARACTER_OF_BYTE[byte] for byte in token])


def _import_tiktoken() -> Any:
    """Only where it is needed: importing it takes longer than everything else that byte-level tokens need."""
    try:
        import tiktoken
    except ImportError as error:
        raise UserError("gpt2 tokens need the package tiktoken: pip install tiktoken") from error
    return tiktoken
