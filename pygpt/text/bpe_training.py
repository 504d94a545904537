"""A vocabulary of byte pair encoding, trained on a text.

The merges are those of pygpt/reference/bpe.py, which counts all pairs again for each. Here a merge costs what it
changes: the words that differ stand one behind another in one list, each with a separator behind it; for each pair it
is known how often it occurs and where; the most frequent is the first in a heap, whose outdated entries are skipped.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import regex

from pygpt.reference.bpe import BYTES, LEAST_COUNT, PATTERN, number_tokens
from pygpt.text.bpe import END_OF_TEXT, Merges, Vocabulary
from pygpt.text.encoding import Bar
from pygpt.text.pieces import Cuts, Piece, groups

CUTS = Cuts(words=True, mark=END_OF_TEXT.encode())

_WORDS = regex.compile(PATTERN)
# The same in ASCII, where Python's own expressions suffice, which take half the time.
_ASCII_WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+$|\s+(?!\S)|\s", re.ASCII)

_SEPARATOR, _MERGED = -1, -2  # in place of a token: behind a word, and where a token has become part of another


def train_on(pieces: Iterable[Piece], vocab_size: int, bar: Bar) -> Vocabulary:
    """At most `vocab_size` tokens: the bytes, merged ones, <|endoftext|>.

    What the pieces say for <|endoftext|> is no text to learn from.  Raises UserError where one cannot be read.
    """
    words: Counter[str] = Counter()
    for group in groups(pieces, CUTS):
        for piece in group:
            text = piece.read_text()
            pattern = _ASCII_WORDS if text.isascii() else _WORDS
            for document in text.split(END_OF_TEXT):
                words.update(pattern.findall(document))
            bar.update(piece.size)
    merges = train_merges(words, vocab_size - 1)
    ranks = number_tokens(merges)
    end = {END_OF_TEXT: len(ranks)}
    return Vocabulary(ranks, end, merges=merges, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def train_merges(words: Counter[str], vocab_size: int) -> Merges:
    """The pairs that make at most `vocab_size` tokens, the bytes included.  words: how often each occurs."""
    numbers = {byte[0]: number for number, byte in enumerate(BYTES)}
    tokens, frequency = [_SEPARATOR], [0]
    for word, count in words.items():
        data = word.encode()
        tokens += [*map(numbers.__getitem__, data), _SEPARATOR]
        frequency += [count] * (len(data) + 1)
    before, after = list(range(-1, len(tokens) - 1)), list(range(1, len(tokens) + 1))
    counts: dict[tuple[int, int], int] = defaultdict(int)
    places: dict[tuple[int, int], list[int]] = defaultdict(list)  # of the first token; some have been merged since
    for i in range(len(tokens) - 1):
        pair = tokens[i], tokens[i + 1]
        if _SEPARATOR not in pair:
            counts[pair] += frequency[i]
            places[pair].append(i)
    heap = [(-count, *pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    made, merges = list(BYTES), []
    while len(made) < vocab_size and heap:
        negative, a, b = heapq.heappop(heap)
        if counts[a, b] != -negative:
            continue
        if -negative < LEAST_COUNT:
            break
        new, changed = len(made), set()
        made.append(made[a] + made[b])
        merges.append((made[a], made[b]))
        for i in places.pop((a, b)):
            j = after[i]
            if tokens[i] != a or tokens[j] != b:
                continue
            left, right = before[i], after[j]
            for old, pair, place in (
                ((tokens[left], a), (tokens[left], new), left),
                ((b, tokens[right]), (new, tokens[right]), i),
            ):
                if _SEPARATOR not in pair:
                    counts[old] -= frequency[i]
                    counts[pair] += frequency[i]
                    places[pair].append(place)
                    changed |= {old, pair}
            tokens[i], tokens[j] = new, _MERGED
            after[i], before[right] = right, i
        del counts[a, b]
        for pair in changed - {(a, b)}:
            heapq.heappush(heap, (-counts[pair], *pair))
    return merges
