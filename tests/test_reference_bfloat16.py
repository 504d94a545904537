"""Rounding to bfloat16, and the emulation of the bf16 model."""

from __future__ import annotations

import numpy as np
import pytest

from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.config import GPT2Config
from pygpt.reference.bfloat16 import FLOAT32, round_bfloat16
from pygpt.reference.dropout import Dropout


def bits(*patterns: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(patterns, np.uint32).view(np.float32)


def test_rounds_to_nearest_and_ties_to_even() -> None:
    given = bits(0x3F800000, 0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F818000, 0x3F817FFF, 0xBF808001, 0x80000000)
    expected = bits(0x3F800000, 0x3F800000, 0x3F800000, 0x3F810000, 0x3F820000, 0x3F810000, 0xBF810000, 0x80000000)
    assert np.array_equal(round_bfloat16(given).view(np.uint32), expected.view(np.uint32))


def test_ends_of_the_range() -> None:
    given = bits(0x7F7FFFFF, 0x7F7F7FFF, 0x7F800000, 0xFF800000, 0x00000001, 0x00008001)
    expected = bits(0x7F800000, 0x7F7F0000, 0x7F800000, 0xFF800000, 0x00000000, 0x00010000)
    assert np.array_equal(round_bfloat16(given).view(np.uint32), expected.view(np.uint32))
    nans = bits(0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF)  # adding half a unit would carry these to infinity or zero
    assert np.isnan(round_bfloat16(nans)).all()


def test_every_result_is_a_nearest_bfloat16() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) < 3e38)]
    y = round_bfloat16(x)
    assert np.all(y.view(np.uint32) & 0xFFFF == 0)
    below = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)  # towards zero
    above = ((x.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    nearest = np.minimum(np.abs(below - x), np.abs(above - x))
    assert np.array_equal(np.abs(y.astype(np.float64) - x), nearest)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        round_bfloat16(np.zeros(2))


def test_operands_of_linear_are_rounded_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    x, w, dy = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 33), (33, 17), (9, 17)))
    b = rng.normal(size=17).astype(np.float32)
    ops, exact = ReferenceLayers(round_bfloat16), ReferenceLayers()
    rx, rw, rdy = round_bfloat16(x), round_bfloat16(w), round_bfloat16(dy)
    assert np.array_equal(ops.linear_forward(x, w, b), rx @ rw + b)
    dx, dw, db = ops.linear_backward(dy, x, w)
    assert np.array_equal(dx, rdy @ rw.T)
    assert np.array_equal(dw, rx.T @ rdy)
    assert np.array_equal(db, dy.sum(0))
    assert np.array_equal(ops.matmul(x, w), rx @ rw)
    qkv = rng.normal(size=(1, 5, 24)).astype(np.float32)
    assert np.array_equal(ops.attention_forward(qkv, 2)[0], exact.attention_forward(qkv, 2)[0])


def test_bf16_model_is_near_the_exact_one_but_not_equal() -> None:
    config = GPT2Config(vocab_size=65, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 65, (2, 2, 16))
    models = [ReferenceGPT2(config, np.float64), ReferenceGPT2(config, np.float32, round_bfloat16)]
    losses = []
    for model in models:
        model.init_weights(0)
        losses.append(model.forward_backward(tokens, targets))
    assert 1e-7 < abs(losses[1] / losses[0] - 1) < 5e-3
    for name, exact in models[0].gradients.items():
        rounded = models[1].gradients[name].astype(np.float64)
        cosine = (exact * rounded).sum() / np.linalg.norm(exact) / np.linalg.norm(rounded)
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert cosine >= 0.999, name
        assert error > 1e-4, name  # eight bits of significand cannot give more
    assert models[1].activations["h.1.mlp.act"].dtype == np.float32


def test_what_the_model_stores_is_rounded_and_statistics_are_not() -> None:
    config = GPT2Config(
        vocab_size=65, n_positions=16, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1
    )
    model = ReferenceGPT2(config, np.float32, round_bfloat16, round_bfloat16)
    model.init_weights(0)
    tokens, targets = np.random.default_rng(0).integers(0, 65, (2, 2, 16))
    model.forward_backward(tokens, targets, dropout=Dropout(0.0, seed=1))
    for kind in (model.activations, model.activation_gradients):
        for name, value in kind.items():
            if name != "losses" or kind is model.activations:  # d(losses) is one number
                stays = name.rpartition(".")[2] in FLOAT32
                assert np.array_equal(value, round_bfloat16(value)) != stays, name
