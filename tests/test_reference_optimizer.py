"""AdamW and clipping in numpy, against formulas worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.config import GPT2Config
from pygpt.reference import clipping

ops = ReferenceLayers()
CONFIG = GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2)


def test_adamw_against_python_floats() -> None:
    lr, beta1, beta2, eps, decay = 0.01, 0.8, 0.9, 1e-3, 0.1
    gradients = [0.5, -0.25, 2.0]
    w, m, v = np.array([1.5]), np.zeros(1), np.zeros(1)
    expected_w = 1.5
    for step, g in enumerate(gradients, start=1):
        ops.adamw_step(w, m, v, np.array([g]), lr, beta1, beta2, eps, decay, step)
        # both moments as the sums that the recursions unroll to
        expected_m = sum((1 - beta1) * beta1 ** (step - 1 - i) * gradients[i] for i in range(step))
        expected_v = sum((1 - beta2) * beta2 ** (step - 1 - i) * gradients[i] ** 2 for i in range(step))
        m_hat, v_hat = expected_m / (1 - beta1**step), expected_v / (1 - beta2**step)
        expected_w = expected_w * (1 - lr * decay) - lr * m_hat / (math.sqrt(v_hat) + eps)
        assert m[0] == pytest.approx(expected_m, rel=1e-14)
        assert v[0] == pytest.approx(expected_v, rel=1e-14)
        assert w[0] == pytest.approx(expected_w, rel=1e-14)


def test_first_step_has_the_size_of_the_learning_rate() -> None:
    """m̂ / √v̂ = g / |g|, whatever the gradient's size."""
    dw = np.array([1e-6, -1e3, 0.0])
    w, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    ops.adamw_step(w, m, v, dw, 0.01, 0.9, 0.999, 0.0 + 1e-30, 0.0, 1)
    assert w[:2] == pytest.approx([-0.01, 0.01], rel=1e-12)
    assert w[2] == 0


def test_weight_decay_alone_shrinks_the_weights() -> None:
    w, m, v = np.array([2.0, -4.0]), np.zeros(2), np.zeros(2)
    ops.adamw_step(w, m, v, np.zeros(2), 0.1, 0.9, 0.999, 1e-8, 0.5, 1)
    assert w == pytest.approx([2.0 * 0.95, -4.0 * 0.95], rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_only_matrices_decay(dtype: Any) -> None:
    model = ReferenceGPT2(CONFIG, dtype)
    for value in model.parameters.values():
        value[...] = 1
    model.adamw_step(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.5, step=1)
    for name, value in model.parameters.items():
        decays = value.ndim == 2
        assert value == pytest.approx(np.full(value.shape, 0.95 if decays else 1.0), rel=1e-6), name
        assert value.dtype == dtype


def filled_model(dtype: Any) -> ReferenceGPT2:
    rng = np.random.default_rng(0)
    model = ReferenceGPT2(CONFIG, dtype)
    for gradient in model.gradients.values():
        gradient[...] = rng.normal(size=gradient.shape)
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_scales_all_gradients_to_the_norm(dtype: Any) -> None:
    model = filled_model(dtype)
    before = {name: gradient.copy() for name, gradient in model.gradients.items()}
    norm = math.sqrt(sum(float(x) ** 2 for gradient in before.values() for x in gradient.reshape(-1)))
    assert norm > 10
    bound = 1e-6 if dtype == np.float32 else 1e-13
    assert model.clip_grad_norm(2.0) == pytest.approx(norm, rel=1e-13)
    assert model.clip_grad_norm(0.0) == pytest.approx(2.0, rel=bound)
    for name, gradient in model.gradients.items():
        assert gradient == pytest.approx(before[name] * (2.0 / norm), rel=bound), name
        assert gradient.dtype == dtype


@pytest.mark.parametrize("max_norm", [0.0, -1.0, 1e9])
def test_clipping_leaves_what_it_should(max_norm: float) -> None:
    model = filled_model(np.float64)
    before = {name: gradient.copy() for name, gradient in model.gradients.items()}
    model.clip_grad_norm(max_norm)
    for name, gradient in model.gradients.items():
        assert np.array_equal(gradient, before[name])


def test_norm_of_gradients_whose_squares_overflow_float32() -> None:
    assert clipping.global_norm([np.full(4, 1e25, np.float32)]) == pytest.approx(2e25, rel=1e-6)
