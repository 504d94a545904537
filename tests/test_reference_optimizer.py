"""Optimizers and clipping in numpy, against formulas worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pygpt.backends.interface import LINEAR, AdamW
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.config import GPT2Config
from pygpt.reference import clipping, muon

ops = ReferenceLayers()
CONFIG = GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2)
ADAMW = AdamW(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.5)


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


def test_momentum_against_python_floats() -> None:
    lr, momentum, decay = 0.1, 0.75, 0.5
    gradients = [0.5, -0.25, 2.0]
    w, m, plain = np.array([1.5]), np.zeros(1), np.array([1.5])
    expected_w = expected_plain = 1.5
    for step, g in enumerate(gradients):
        ops.sgd_step(w, m, np.array([g]), lr, momentum, decay)
        ops.sgd_step(plain, None, np.array([g]), lr, 0.0, decay)
        expected_m = sum(momentum ** (step - i) * gradients[i] for i in range(step + 1))
        expected_w -= lr * (expected_m + decay * expected_w)
        expected_plain -= lr * (g + decay * expected_plain)
        assert m[0] == pytest.approx(expected_m, rel=1e-14)
        assert w[0] == pytest.approx(expected_w, rel=1e-14)
        assert plain[0] == pytest.approx(expected_plain, rel=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (5, 7), (24, 24), (40, 8)])
def test_newton_schulz_maps_singular_values_and_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    u = np.random.default_rng(0).normal(size=shape)
    left, values, right = np.linalg.svd(u, full_matrices=False)
    s = values / (np.linalg.norm(u) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert muon.orthogonalized(u) == pytest.approx((left * s) @ right, rel=1e-10, abs=1e-12)


def test_the_singular_values_that_the_docstring_of_muon_promises() -> None:
    """p applied to diagonal matrices of two values, the larger of which sets the norm."""
    for s in np.geomspace(0.002, 0.7, 300):
        found = np.diag(muon.orthogonalized(np.diag([s, np.sqrt(1 - s**2)])))
        assert np.all((found > 0.68) & (found < 1.21))


def test_muon_is_nesterov_s_momentum_made_orthogonal() -> None:
    """With orthogonal gradients every singular value is the same, and two steps can be written down."""
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    s = 1 / 2  # of a (4,4) matrix with equal singular values and norm 1
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    w, m = np.ones((4, 4)), np.zeros((4, 4))
    for g, expected_m, sign in ((3.0, 3.0, 1), (-4.0, -4.0 + 0.5 * 3.0, -1), (3.0, 3.0 - 0.5 * 2.5, 1)):
        expected_w = w - 0.1 * (sign * s * q + 0.25 * w)
        ops.muon_step(w, m, g * q, 0.1, 0.5, 0.25)
        assert m == pytest.approx(expected_m * q, rel=1e-12)
        assert w == pytest.approx(expected_w, rel=1e-6)  # ε


def test_muon_steps_are_larger_for_more_outputs_than_inputs_and_each_part_is_orthogonal_by_itself() -> None:
    g = np.random.default_rng(2).normal(size=(4, 24))
    w, m = np.zeros((4, 24)), np.zeros((4, 24))
    ops.muon_step(w, m, g, 1.0, 0.95, 0.0, parts=3)
    for part in np.split(np.arange(24), 3):
        assert w[:, part] == pytest.approx(-np.sqrt(8 / 4) * muon.orthogonalized(1.95 * g[:, part]), rel=1e-10)
    w, m = np.zeros((24, 4)), np.zeros((24, 4))
    ops.muon_step(w, m, g.T, 1.0, 0.95, 0.0)
    assert w == pytest.approx(-muon.orthogonalized(1.95 * g).T, rel=1e-10)


def test_muon_updates_the_matrices_of_the_blocks_and_adamw_all_others() -> None:
    config = GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=2, n_head=2)
    by_muon = {f"h.{layer}.{name}.weight" for layer in range(2) for name in LINEAR}
    both, adamw = ReferenceGPT2(config), ReferenceGPT2(config)
    for model in (both, adamw):
        for gradient, value in zip(model.gradients.values(), model.parameters.values(), strict=True):
            gradient[...] = np.random.default_rng(0).normal(size=gradient.shape)
            value[...] = 1
    both.muon_step(0.02, 0.95, ADAMW, step=1)
    adamw.adamw_step(ADAMW, step=1)
    for name, value in both.parameters.items():
        assert np.array_equal(value, adamw.parameters[name]) == (name not in by_muon), name
        assert both.second_moments[name].any() == (name not in by_muon), name
    w, m = np.ones((4, 12)), np.zeros((4, 12))
    ops.muon_step(w, m, both.gradients["h.1.attn.c_attn.weight"], 0.02, 0.95, 0.5, parts=3)
    assert np.array_equal(both.parameters["h.1.attn.c_attn.weight"], w)


UPDATES: dict[str, Callable[[ReferenceGPT2], None]] = {
    "adamw": lambda model: model.adamw_step(ADAMW, step=1),
    "sgd": lambda model: model.sgd_step(lr=0.1, momentum=0.0, weight_decay=0.5),
    "momentum": lambda model: model.sgd_step(lr=0.1, momentum=0.9, weight_decay=0.5),
    "muon": lambda model: model.muon_step(0.1, 0.95, ADAMW, step=1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_only_matrices_decay(dtype: Any, update: Callable[[ReferenceGPT2], None]) -> None:
    model = ReferenceGPT2(CONFIG, dtype)
    for value in model.parameters.values():
        value[...] = 1
    update(model)
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
