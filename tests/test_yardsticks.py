"""The losses of simple predictors, with which that of a run is compared."""

from collections import Counter
from itertools import pairwise
from math import log

import numpy as np
import pytest
from test_batches import make_folder

from pygpt.text.batches import TokenDataset
from pygpt.text.tokenizer import ByteTokenizer
from pygpt.training import yardsticks
from pygpt.training.yardsticks import Yardsticks, measure


def measured(tmp_path, train, val):
    folder = make_folder(tmp_path / "x", train, val, shard_size=10**7)
    return measure(TokenDataset(folder, "train"), TokenDataset(folder, "val"), ByteTokenizer())


def test_by_the_formulas(tmp_path):
    """Counted with dictionaries; token 9 occurs in validation only."""
    rng = np.random.default_rng(0)
    train, val = rng.integers(0, 5, 50).tolist(), [*rng.integers(0, 5, 20).tolist(), 9, 3, 9, 9]
    singles, pairs = Counter(train[1:]), Counter(pairwise(train))

    def p1(b):
        return (singles[b] + 1) / (sum(singles.values()) + 256)

    def p2(a, b):
        n, d = sum(pairs[a, c] for c in range(256)), sum((a, c) in pairs for c in range(256))
        return (pairs[a, b] + d * p1(b)) / (n + d) if n else p1(b)

    assert sum(p2(3, b) for b in range(256)) == pytest.approx(1)
    found = measured(tmp_path, train, val)
    assert found.uniform == log(256)
    assert found.unigram == pytest.approx(np.mean([-log(p1(b)) for b in val[1:]]))
    assert found.bigram == pytest.approx(np.mean([-log(p2(a, b)) for a, b in pairwise(val)]))


def test_against_known_entropies(tmp_path):
    """A chain that stays with probability 0.9, otherwise draws one of four tokens."""
    rng = np.random.default_rng(0)
    new = rng.integers(0, 4, 120_000)
    kept = rng.random(len(new)) < 0.9
    chain = new[np.maximum.accumulate(np.where(kept, 0, np.arange(len(new))))]
    found = measured(tmp_path, chain[:100_000], chain[100_000:])
    stay, move = 0.9 + 0.025, 0.025
    assert found.unigram == pytest.approx(log(4), abs=0.02)
    assert found.bigram == pytest.approx(-stay * log(stay) - 3 * move * log(move), abs=0.02)
    assert found.bigram < found.gzip < found.unigram


def test_a_long_text_is_sampled_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(yardsticks, "TRAINING_SAMPLE", 2 * 4096)
    found = measured(tmp_path, np.repeat([1, 2], 50_000), [1, 2, 1, 2])
    assert found.unigram < 1  # from its beginning alone, token 2 would never have been seen


def test_the_line():
    line = Yardsticks(5.545, 3.3, 2.5, 1.6)
    assert line.describe(None) == line.describe(1)
    assert line.describe(1) == "uniform 5.54, unigram 3.30, bigram 2.50, gzip 1.60 nats per token"
    assert line.describe(0.5).endswith("per token; per byte: uniform 2.77, unigram 1.65, bigram 1.25, gzip 0.80")
