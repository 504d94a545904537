"""Exercises on generation: from logits to a token, the cache, and weights of few bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pygpt.comparing.metrics import TEACHER_FORCED
from pygpt.exercises import mathematics
from pygpt.exercises.exercise import Call, Exercise, floats, project_file
from pygpt.generation import sampling
from pygpt.generation.sampling import Sampling
from pygpt.reference import packed


def _sampling() -> Iterator[Call]:
    rng = np.random.default_rng(1)
    settings = [Sampling(), Sampling(0.5), Sampling(2.0, top_k=3), Sampling(top_p=0.6), Sampling(min_p=0.2)]
    settings += [Sampling(0.8, top_k=5, top_p=0.7, min_p=0.3), Sampling(1e-3, top_k=50)]
    for setting in settings:
        for logits in (floats(rng, 9, std=2), np.repeat(floats(rng, 3), 3)):
            yield Call("candidates", {"logits": logits, "sampling": setting}, ("tokens", "p"))
            for uniform in (0.0, 0.37, 0.999):
                yield Call("sample", {"logits": logits, "uniform": uniform, "sampling": setting}, ("token",))
    yield Call("sample", {"logits": floats(rng, 9), "uniform": 0.9, "sampling": Sampling(0.0)}, ("token",))


def _kv_cache() -> Iterator[Call]:
    rng = np.random.default_rng(2)
    for NH, HS, cached, n in ((1, 4, 0, 1), (2, 3, 5, 1), (3, 4, 2, 4)):
        inputs = {"qkv": floats(rng, n, 3 * NH * HS), "n_head": NH}
        inputs |= {name: floats(rng, NH, cached, HS) for name in ("keys", "values")}
        yield Call("attend", inputs, ("y", "keys", "values"))


def _quantise() -> Iterator[Call]:
    rng = np.random.default_rng(3)
    for K, N in ((1, 1), (32, 3), (75, 4)):
        w = floats(rng, K, N)
        w[:, 0] = abs(w[:, 0])
        yield Call("int8", {"w": w}, ("w8",))
        yield Call("int4", {"w": w}, ("w4",))
    w = floats(rng, 64, 2)
    w[:32] = 0
    yield Call("int8", {"w": w}, ("w8",))
    yield Call("int4", {"w": w}, ("w4",))


EXERCISES = [
    Exercise(
        "sampling",
        sampling,
        _sampling,
        "np.argsort(-p, kind='stable') keeps the smaller number first. top-p keeps the tokens up to the first "
        "cumulative sum that reaches it, that one included. np.searchsorted(np.cumsum(p), uniform, side='right') "
        "draws.",
        project_file(sampling),
    ),
    Exercise(
        "kv_cache",
        mathematics,
        _kv_cache,
        "(n,3,NH,HS) with the axes in the order (3,NH,n,HS) is q, k and v. np.tri(n, t + n, t) is the mask of n "
        "new rows behind t cached ones.",
    ),
    Exercise(
        "quantise",
        packed,
        _quantise,
        "Take 32 rows at a time: w*, s = packed.bfloat16(...), np.clip(np.round(w / s), ...) * s, with 0 where s "
        "is 0. For w* with its sign, abs(group).argmax(0) says where it stands.",
        project_file(packed),
        TEACHER_FORCED["float32"],  # the project rounds in float32
    ),
]
