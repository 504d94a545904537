"""Philox, and what is drawn with it: dropout masks, fresh weights, uniform numbers for sampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.parameters import parameter_table
from pygpt.reference import dropout, philox
from pygpt.reference.dropout import Dropout


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def scalar_philox(c: tuple[int, ...], k: tuple[int, ...]) -> tuple[int, ...]:
    """The definition with Python's integers, one counter at a time."""
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = ((p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32)
        k = ((k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32)
    return c


def box_muller(i: int, stream: int, key: tuple[int, int]) -> float:
    """Element i of the normal numbers that initialise parameter number `stream`."""
    w = scalar_philox((i // 4, 0, stream, 2**32 - 1), key)
    u1, u2 = ((word + 0.5) / 2**32 for word in (w[:2] if i % 4 < 2 else w[2:]))
    turn = math.sin if i % 2 else math.cos
    return math.sqrt(-2 * math.log(u1)) * turn(2 * math.pi * u2)


@pytest.mark.parametrize(
    "counter, key, words",
    [  # Random123, tests/kat_vectors, philox4x32 10
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter: str, key: str, words: str) -> None:
    c: Any = integers(counter)
    k: Any = integers(key)
    assert tuple(philox.philox4x32(c, k)) == integers(words)
    assert scalar_philox(c, k) == integers(words)


def test_words_are_numbered_through_the_blocks() -> None:
    seed = 0x0123456789ABCDEF
    words = philox.words(4 * philox._CHUNK + 7, seed, 5, 6)  # one chunk and a bit: the seam must not show
    for i in (0, 1, 2, 3, 4, 4 * philox._CHUNK - 1, 4 * philox._CHUNK, 4 * philox._CHUNK + 6):
        assert words[i] == scalar_philox((i // 4, 0, 5, 6), (0x89ABCDEF, 0x01234567))[i % 4]


def test_uniform() -> None:
    index = np.array([0, 1, 2**32 + 3])
    values = philox.uniform(2**63 + 1, 9, index)
    for i, value in zip(index.tolist(), values, strict=True):
        w = scalar_philox((i % 2**32, i >> 32, 9, 2**32 - 2), (1, 2**31))
        assert value == ((w[0] >> 5) * 2**26 + (w[1] >> 6)) / 2**53
    assert philox.uniform(2**63 + 1, 9, 1) == values[1]
    many = philox.uniform(0, 0, np.arange(20000))
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean() - 0.5) < 5 / math.sqrt(12 * 20000)
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 5 / math.sqrt(20000)


def test_mask_is_the_documented_one() -> None:
    drop = Dropout(0.3, seed=(7 << 32) + 1, site=4, step=5)
    keep = drop.keep((3, 5, 2)).reshape(-1)
    threshold = math.floor(float(np.float32(0.3)) * 2**32)
    for i in range(30):
        assert keep[i] == (scalar_philox((i // 4, 0, 4, 5), (1, 7))[i % 4] >= threshold)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_dropout_keeps_the_expected_share_and_the_mean(p: float) -> None:
    n = 40000
    y = dropout.forward(np.ones(n), Dropout(p, seed=1, site=2, step=3))
    kept = (y != 0).mean()
    assert abs(kept - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / n)
    assert np.all(y[y != 0] == 1 / (1 - float(np.float32(p))))
    assert dropout.forward(np.ones(n), None).sum() == n


def test_masks_differ_between_seeds_sites_and_steps() -> None:
    masks = [Dropout(0.5, *names).keep((256,)) for names in [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 0, 1)]]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 80 < (a == b).sum() < 176


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"p": 1.0}, "dropout p is 1"),
        ({"p": 1 - 1e-9}, "dropout p is 1"),  # it is 1 in float32
        ({"p": -0.1}, "dropout p is -0.1"),
        ({"p": float("nan")}, "dropout p is nan"),
        ({"p": 0.5, "seed": 2**64}, "dropout seed"),
        ({"p": 0.5, "site": -1}, "dropout site"),
        ({"p": 0.5, "step": 2**32}, "dropout step"),
    ],
)
def test_impossible_dropout_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dropout(**arguments)


def test_fresh_weights_follow_the_recipe() -> None:
    config = GPT2Config(vocab_size=7, n_positions=5, n_embd=6, n_layer=2, n_head=2)
    model = ReferenceGPT2(config, np.float32)
    seed = (3 << 32) + 2
    model.init_weights(seed)
    for k, parameter in enumerate(parameter_table(config)):
        value = model.parameters[parameter.name].reshape(-1)
        std = float(np.float32(0.02)) / (2.0 if "c_proj" in parameter.name else 1.0)  # √(2 L) = 2
        for i in (0, 1, 2, 3, 4, value.size - 1):
            if parameter.name.endswith("bias"):
                expected = 0.0
            elif "ln_" in parameter.name:
                expected = 1.0
            else:
                expected = std * box_muller(i, k, (2, 3))
            assert value[i] == pytest.approx(expected, rel=1e-7), (parameter.name, i)


def test_fresh_weights_are_float32_values_in_every_dtype() -> None:
    config = GPT2Config(vocab_size=7, n_positions=5, n_embd=6, n_layer=1, n_head=2)
    single, double = ReferenceGPT2(config, np.float32), ReferenceGPT2(config, np.float64)
    single.init_weights(1)
    double.init_weights(1)
    for name, value in single.parameters.items():
        assert np.array_equal(value, double.parameters[name])


def test_normal_numbers_follow_box_and_muller() -> None:
    """With Python's integers and math, in double."""
    z = philox.normal(11, seed=(3 << 32) + 2, stream=4)
    for i, value in enumerate(z):
        assert value == pytest.approx(box_muller(i, 4, (2, 3)), rel=1e-13), i


def test_normal_numbers_are_normal() -> None:
    n = 4 * philox._CHUNK + 100
    z = philox.normal(n, seed=1, stream=2)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / n), power
    for lag in (1, 2, 3, 4):
        assert abs((z[lag:] * z[:-lag]).mean()) < 5 / math.sqrt(n), lag
