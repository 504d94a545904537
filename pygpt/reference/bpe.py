"""Byte pair encoding: how a vocabulary is learned, and how it encodes a text.

Sennrich, Haddow & Birch 2016, algorithm 1; on bytes, as in Radford et al. 2019, section 2.2.

    words     GPT-2's pattern cuts a text into words w, each of which occurs f(w) times; no token crosses a word's end
    tokens    at first the 256 bytes, numbered in GPT-2's order; a word is a sequence of them
    train     n(a, b) = Σ_w f(w) · how often b follows a in w
              The pair with the largest n becomes the next token, ab; of several, the one whose a, then whose b, has the
              smallest number. In every word a b becomes ab, from left to right. And so on.
    encode    In the bytes of a word, the pair that makes the token of the smallest number becomes this token; of
              several, the leftmost. And so on, until no pair makes a token.

pygpt/text/bpe_training.py trains the same vocabulary, and tiktoken encodes the same tokens; both do less work for it
(docs/bpe.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

# What belongs together: a contraction's ending, letters, digits or other signs (each with a space before), white space.
# White space before a word leaves its last character to the word.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

ESCAPED_BYTE = "[\udc80-\udcff]"  # a byte that is not UTF-8, as surrogateescape decodes it

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [bytes([byte]) for byte in (*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE))]
"""In the order of their numbers: first those that are printable characters of Latin-1."""

LEAST_COUNT = 2  # a pair that occurs once is no pattern

Pair = tuple[bytes, bytes]


def split(text: str) -> Iterator[bytes]:
    """The words of a text; a byte that is not UTF-8 is a word of its own."""
    import regex  # Python's re does not know \p{L}

    for part in re.split(f"({ESCAPED_BYTE})", text):
        for word in regex.findall(PATTERN, part):
            yield word.encode("utf-8", "surrogateescape")


def train(texts: Iterable[str], vocab_size: int) -> list[Pair]:
    """The pairs that make `vocab_size` tokens, the bytes included: fewer where no pair occurs LEAST_COUNT times."""
    frequency = Counter(word for text in texts for word in split(text))
    words = {word: [bytes([byte]) for byte in word] for word in frequency}
    numbers = {byte: number for number, byte in enumerate(BYTES)}
    merges: list[Pair] = []
    while len(numbers) < vocab_size:
        count: Counter[Pair] = Counter()
        for word, tokens in words.items():
            for pair in pairwise(tokens):
                count[pair] += frequency[word]
        best = min(count, key=lambda pair: (-count[pair], numbers[pair[0]], numbers[pair[1]]), default=None)
        if best is None or count[best] < LEAST_COUNT:
            break
        merges.append(best)
        numbers[best[0] + best[1]] = len(numbers)
        words = {word: _replace(tokens, best) for word, tokens in words.items()}
    return merges


def number_tokens(merges: Iterable[Pair]) -> dict[bytes, int]:
    """The numbers of the tokens: the bytes, then the merged ones in their order."""
    return {token: number for number, token in enumerate([*BYTES, *(a + b for a, b in merges)])}


def encode(text: str, numbers: Mapping[bytes, int], special_tokens: Mapping[str, int] | None = None) -> list[int]:
    """The tokens of a text, decoded by surrogateescape if it may hold any bytes.

    special_tokens: those that are found in the text; without them <|endoftext|> is text as any other.
    """
    special = special_tokens or {}
    parts = re.split(f"({'|'.join(map(re.escape, special))})", text) if special else [text]
    tokens: list[int] = []
    for part in parts:
        if part in special:
            tokens.append(special[part])
        else:
            tokens += [numbers[token] for word in split(part) for token in merge(word, numbers, len(numbers))]
    return tokens


def merge(word: bytes, numbers: Mapping[bytes, int], below: int) -> list[bytes]:
    """The tokens of a word when only tokens whose numbers are below `below` may be made."""
    tokens = [bytes([byte]) for byte in word]
    while len(tokens) > 1:
        made = [numbers.get(a + b, below) for a, b in pairwise(tokens)]
        first = min(range(len(made)), key=made.__getitem__)
        if made[first] >= below:
            break
        tokens[first : first + 2] = [tokens[first] + tokens[first + 1]]
    return tokens


def decode(tokens: Iterable[int], numbers: Mapping[bytes, int]) -> bytes:
    """The bytes of the tokens, one after another: a text where they end on the end of a character."""
    token_of = {number: token for token, number in numbers.items()}
    return b"".join([token_of[token] for token in tokens])


def _replace(tokens: list[bytes], pair: Pair) -> list[bytes]:
    """The tokens with each occurrence of the pair as one, from left to right."""
    replaced, i = [], 0
    while i < len(tokens):
        width = 2 if tuple(tokens[i : i + 2]) == pair else 1
        replaced.append(b"".join(tokens[i : i + width]))
        i += width
    return replaced
