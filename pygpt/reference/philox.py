"""Philox4x32-10, a counter-based random number generator (Salmon, Moraes, Dror & Shaw 2011, section 3.3).

Ten rounds of

    (c0, c1, c2, c3) ← (hi(M1 c2) ⊕ c1 ⊕ k0,  lo(M1 c2),  hi(M0 c0) ⊕ c3 ⊕ k1,  lo(M0 c0))

with the keys raised by Weyl constants between the rounds. It has no state: the four words of a counter need no other
counter, so every backend draws the same numbers in any order. The key is the seed in two words; the counter is the
block of four elements in two words, and two words that say what the numbers are for:

    dropout           site, step
    initialisation    parameter's number in the table, 2³² − 1
    sampling          stream, 2³² − 2
    masked tokens     stream, 2³² − 3
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint32]

INITIALISATION = 2**32 - 1
SAMPLING = 2**32 - 2
MASKING = 2**32 - 3

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_CHUNK = 2**16  # counters at a time, so that the rounds work in the processor's cache


def philox4x32(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[int, int]) -> Words:
    """counter: four arrays of one shape, or integers, below 2^32; key: two such integers.  Returns words: (...,4)."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in counter))
    for round in range(10):
        k0, k1 = ((key[i] + round * _WEYL[i]) % 2**32 for i in range(2))
        p0, p1 = _MULTIPLIER[0] * c0, _MULTIPLIER[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(count: int, seed: int, c2: int, c3: int) -> Words:
    """Words 0 ... count - 1 of the stream that seed (64 bits), c2 and c3 (32 bits each) name: (count,)."""
    values = np.empty((-(-count // 4), 4), np.uint32)
    for part, block in _chunks(seed, c2, c3, len(values)):
        values[part] = block
    return values.reshape(-1)[:count]


def blocks(count: int, first: int, seed: int, c2: int, c3: int) -> Words:
    """Blocks first ... first + count - 1 of the stream that seed, c2 and c3 name, as in words(): (count,4)."""
    index = np.arange(count, dtype=np.uint64) + np.uint64(first)
    return philox4x32((index & _LOW, index >> _SHIFT, c2, c3), _key(seed))


def normal(count: int, seed: int, stream: int) -> NDArray[np.float64]:
    """Standard normal numbers for initialisation, (count,), by the transform of Box & Muller 1958.

    Words (w0, w1) of a block give √(−2 ln u1) cos(2π u2) and √(−2 ln u1) sin(2π u2), with u = (w + ½) / 2³², which is
    never 0; (w2, w3) give the next two.
    """
    values = np.empty((-(-count // 4), 2, 2))
    for part, block in _chunks(seed, stream, INITIALISATION, len(values)):
        u = ((block + 0.5) / 2**32).reshape(-1, 2, 2)
        radius, angle = np.sqrt(-2 * np.log(u[..., 0])), 2 * np.pi * u[..., 1]
        values[part, :, 0] = radius * np.cos(angle)
        values[part, :, 1] = radius * np.sin(angle)
    return values.reshape(-1)[:count]


def uniform(seed: int, stream: int, index: ArrayLike) -> Any:
    """Uniform numbers in [0, 1) with 53 bits for sampling: one for each index (64 bits), of its shape."""
    index = np.asarray(index, np.uint64)
    block = philox4x32((index & _LOW, index >> _SHIFT, stream, SAMPLING), _key(seed))
    high, low = block[..., 0] >> np.uint32(5), block[..., 1] >> np.uint32(6)
    return (high * 2.0**26 + low) / 2.0**53


def _chunks(seed: int, c2: int, c3: int, blocks: int) -> Iterator[tuple[slice, Words]]:
    for first in range(0, blocks, _CHUNK):
        part = slice(first, min(first + _CHUNK, blocks))
        index = np.arange(part.start, part.stop, dtype=np.uint64)
        yield part, philox4x32((index & _LOW, index >> _SHIFT, c2, c3), _key(seed))


def _key(seed: int) -> tuple[int, int]:
    return seed & 0xFFFFFFFF, seed >> 32
