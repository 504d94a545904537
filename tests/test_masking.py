"""Masked tokens: how many, what becomes of them, and that nothing but the seed and the window's number decides it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pygpt.text.masking import TRAINING, VALIDATION, masked

V, MASK = 100, 100
TOKENS = np.random.default_rng(0).integers(0, V, (400, 64)).astype(np.int32)


def drawn(tokens: Any = TOKENS, first: int = 0, seed: int = 1, stream: int = TRAINING) -> Any:
    return masked((tokens, tokens), first, seed, stream, V, MASK)


def test_of_the_tokens_that_are_predicted_most_are_hidden() -> None:
    """Of the 4000 that are predicted, each share within four standard deviations."""
    inputs, targets = drawn()
    predicted = targets >= 0
    assert np.all(predicted.sum(1) == 10)  # 0.15 * 64
    assert np.array_equal(targets[predicted], TOKENS[predicted])
    assert np.array_equal(inputs[~predicted], TOKENS[~predicted])
    found, true = inputs[predicted], TOKENS[predicted]
    hidden, kept = found == MASK, found == true
    for share, expected in (
        (hidden, 0.8),
        (kept, 0.1 + 0.1 / V),
        (~hidden & ~kept, 0.1 * (1 - 1 / V)),
    ):
        assert share.mean() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5)
    others = found[~hidden & ~kept]
    assert (others.min(), others.max()) >= (0, V - 10) and others.max() < V and len(np.unique(others)) > 80


def test_every_place_is_predicted_equally_often() -> None:
    counts = (drawn()[1] >= 0).sum(0)
    assert abs(counts - 62.5).max() <= 5 * 62.5**0.5


def test_a_window_is_masked_alike_in_every_batch() -> None:
    whole = drawn()
    for part in (slice(0, 1), slice(7, 30)):
        for found, expected in zip(drawn(TOKENS[part], part.start), whole, strict=True):
            assert np.array_equal(found, expected[part])


def test_seeds_streams_and_windows_have_masks_of_their_own() -> None:
    masks = [drawn(**settings)[1] for settings in ({}, {"seed": 2}, {"stream": VALIDATION}, {"first": 1})]
    for number, mask in enumerate(masks):
        for other in masks[:number]:
            assert np.all(np.any(mask != other, axis=1).mean() > 0.99)


@pytest.mark.parametrize("T, count", [(1, 1), (3, 1), (10, 2), (100, 15)])
def test_at_least_one_token_of_a_window_is_predicted(T: int, count: int) -> None:
    assert np.all((drawn(np.zeros((3, T), np.int32))[1] >= 0).sum(1) == count)
