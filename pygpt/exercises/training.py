"""Exercises from text to tokens, and from gradients to a training step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pygpt.exercises.exercise import Call, Exercise, floats, project_file
from pygpt.reference import adamw, bpe, clipping, dropout, philox
from pygpt.training import schedule

TEXTS = (
    ["low lower lowest, low lower newest; newest widest widest newest low"],
    ["aaaa aaa aa aaaa", "banana bandana", "aaaa"],
    ["Ein Bär, zwei Bären: café cafés.\n\n  It's 2024, isn't it? It's 2025."],
)


def _bpe_train() -> Iterator[Call]:
    for texts, extra in zip(TEXTS, (12, 8, 100), strict=True):
        yield Call("train", {"texts": texts, "vocab_size": 256 + extra}, ("merges",))


def _bpe_encode() -> Iterator[Call]:
    for texts in TEXTS:
        numbers = bpe.number_tokens(bpe.train(texts, 256 + 12))
        for word in (b"lowest", b"aaaaa", b"banana", b"x"):
            for below in (256, 260, len(numbers)):
                yield Call("merge", {"word": word, "numbers": numbers, "below": below}, ("tokens",))
        text = " ".join(texts)
        yield Call("encode", {"text": text, "numbers": numbers}, ("tokens",))
        yield Call("decode", {"tokens": bpe.encode(text, numbers), "numbers": numbers}, ("text",))


def _adamw() -> Iterator[Call]:
    rng = np.random.default_rng(1)
    for shape, step, weight_decay in (((1,), 1, 0.0), ((3, 5), 1, 0.1), ((2, 7), 10, 0.1)):
        w, m, dw = (floats(rng, *shape) for _ in range(3))
        v = floats(rng, *shape) ** 2
        m, v = (0 * m, 0 * v) if step == 1 else (m, v)
        rates = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": weight_decay}
        yield Call("update", {"w": w, "m": m, "v": v, "dw": dw, **rates, "step": step}, changed=("w", "m", "v"))


def _clipping() -> Iterator[Call]:
    rng = np.random.default_rng(2)
    for max_norm in (1.0, 100.0, 0.0):
        gradients = [floats(rng, 3, 4), floats(rng, 5), floats(rng, 2, 3)]
        yield Call("clip", {"gradients": gradients, "max_norm": max_norm}, ("norm",), ("gradients",))


def _schedule() -> Iterator[Call]:
    rates: dict[str, Any] = {"peak": 1e-3, "floor": 1e-4, "warmup_iters": 5, "max_iters": 40, "decay_iters": 10}
    for name in schedule.SCHEDULES:
        for step in (0, 4, 5, 20, 30, 33, 39, 40, 60):
            yield Call("learning_rate", {"step": step, "schedule": name, **rates}, ("lr",))


def _philox() -> Iterator[Call]:
    rng = np.random.default_rng(3)
    for shape in ((1,), (3, 5)):
        counter = tuple(rng.integers(0, 2**32, shape, np.uint64) for _ in range(4))
        yield Call("philox4x32", {"counter": counter, "key": (2**32 - 1, 0x12345678)}, ("words",))
    zeros = tuple(np.zeros(1, np.uint64) for _ in range(4))
    yield Call("philox4x32", {"counter": zeros, "key": (0, 0)}, ("words",))


def _dropout() -> Iterator[Call]:
    rng = np.random.default_rng(4)
    for shape, p in (((7,), 0.5), ((3, 5, 11), 0.1), ((4,), 0.0)):
        drop = dropout.Dropout(p, seed=2**40 + 1, site=7, step=11)
        yield Call("forward", {"x": floats(rng, *shape), "dropout": drop}, ("y",))
        yield Call("backward", {"dy": floats(rng, *shape), "dropout": drop}, ("dx",))


EXERCISES = [
    Exercise(
        "bpe_train",
        bpe,
        _bpe_train,
        "Count pairs over the different words, each with its frequency, not over the text. min() with the key "
        "(−count, number of a, number of b) finds the best pair; a dictionary from bytes to number grows with "
        "each merge.",
        project_file(bpe),
    ),
    Exercise(
        "bpe_encode",
        bpe,
        _bpe_encode,
        "numbers.get(a + b, below) of all neighbours; the smallest is the next to merge, and the first of equal "
        "ones. Stop where it is not smaller than `below`. encode() merges with below = len(numbers).",
        project_file(bpe),
    ),
    Exercise(
        "adamw",
        adamw,
        _adamw,
        "Write into the arrays: m[...] = and w -= change them, m = only names a new one. m̂ and v̂ are not kept.",
        project_file(adamw),
    ),
    Exercise(
        "clipping",
        clipping,
        _clipping,
        "The norm is of all tensors together, and it is returned as it was before. g *= factor changes g in place.",
        project_file(clipping),
    ),
    Exercise(
        "schedule",
        schedule,
        _schedule,
        "The warm-up returns first. Everything else is peak, floor and a progress between 0 and 1; wsd is linear "
        "from another first step.",
        project_file(schedule),
    ),
    Exercise(
        "philox",
        philox,
        _philox,
        "A product of two numbers below 2³² fits into uint64: hi is p >> 32, lo is p & 0xFFFFFFFF. Wrap the keys, "
        "which are Python's integers, with % 2**32, and turn them into np.uint64.",
        project_file(philox),
    ),
    Exercise(
        "dropout",
        dropout,
        _dropout,
        "Kept where words >= int(p * 2**32), reshaped to x's shape. The layer is its own transpose, so backward "
        "is forward.",
        project_file(dropout),
    ),
]
