"""The generator of a native library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pygpt.backends.interface import CACHES, LINEAR, WEIGHTS
from pygpt.backends.library import check, ffi, last_error
from pygpt.backends.pointers import Floats, as_floats, c_config, expect_shape, floats, integers, number
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.reference.generator import kept_lengths, rows_of_tokens
from pygpt.reference.packed import GROUP


class NativeGenerator:
    """A generator in a native library: an interface.Generator.  It outlives the model that it was made from."""

    def __init__(
        self, library: Any, model: Any, config: GPT2Config, weights: str, cache: str, batch_size: int, positions: int
    ) -> None:
        self.config, self.library, self.positions = config, library, positions
        generator = ffi().new("Generator **")
        check(library, library.generator_create(generator, model, *_formats(weights, cache), batch_size, positions))
        self.handle = ffi().gc(generator[0], library.generator_free)
        self.lengths = (0,) * batch_size

    def feed(self, tokens: Sequence[ArrayLike], every: bool = False) -> Floats:
        rows, counts = rows_of_tokens(tokens, len(self.lengths))
        logits = np.empty((rows.size if every else np.count_nonzero(counts), self.config.vocab_size), np.float32)
        pointers = floats(logits), integers(rows), ffi().new("int64_t[]", counts.tolist())
        check(self.library, self.library.generator_feed(self.handle, *pointers, every))
        self.lengths = tuple(length + int(count) for length, count in zip(self.lengths, counts, strict=True))
        return logits

    def write(self, layer: int, name: str, w: Floats, scales: Floats) -> None:
        w, scales = as_floats(w), as_floats(scales)
        expect_shape("scales", scales, (-(-w.shape[0] // GROUP), w.shape[1]))
        pointers = floats(w), floats(scales)
        check(self.library, self.library.generator_write(self.handle, layer, LINEAR.index(name), *pointers, w.size))

    def rewind(self, lengths: Sequence[int]) -> None:
        kept = kept_lengths(lengths, self.lengths)
        check(self.library, self.library.generator_rewind(self.handle, ffi().new("int64_t[]", kept)))
        self.lengths = kept


def native_generator_memory(
    config: GPT2Config, library: Any, weights: str, cache: str, batch_size: int, positions: int
) -> int:
    """Bytes that a generator takes in this library.  Raises UserError for sizes that overflow 64 bits."""
    needed = int(library.generator_memory(c_config(config), *_formats(weights, cache), batch_size, positions))
    if needed < 0:
        last_error(library)
        raise UserError(f"{batch_size} sequences of {positions} tokens: the memory that they need overflows 64 bits")
    return needed


def _formats(weights: str, cache: str) -> tuple[int, int]:
    return number("weights", weights, WEIGHTS), number("cache", cache, CACHES)
