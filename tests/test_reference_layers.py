"""Each layer of the numpy reference against mathematics: complex-step derivatives, adjoints, identities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.reference import attention, positions
from pygpt.reference.dropout import Dropout

ops = ReferenceLayers()
Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
H = 1e-30  # of the complex step: f(x + ih) = f(x) + ih f'(x) exactly, because h² vanishes beside 1


@dataclass(frozen=True)
class Case:
    """One layer at one size: an output as a function of named inputs, and their gradients."""

    name: str
    inputs: Arrays
    forward: Callable[[Arrays], Array]
    backward: Callable[[Array, Arrays], Arrays]

    def output_gradient(self) -> Array:
        return np.random.default_rng(1).normal(size=self.forward(self.inputs).shape)


def embedding(B: int, T: int, V: int, C: int, positions: int | None) -> Case:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, T))
    inputs = {"wte": rng.normal(size=(V, C))}
    if positions is not None:
        inputs["wpe"] = rng.normal(size=(positions, C))

    def backward(dx: Array, i: Arrays) -> Arrays:
        gradients = ops.embedding_backward(dx, tokens, i["wte"], i.get("wpe"))
        return {name: gradient for name, gradient in zip(("wte", "wpe"), gradients, strict=True) if name in i}

    return Case(
        f"embedding-{B}-{T}-{V}-{C}",
        inputs,
        lambda i: ops.embedding_forward(tokens, i["wte"], i.get("wpe")),
        backward,
    )


def layernorm(*shape: int, bias: bool = True) -> Case:
    rng = np.random.default_rng(0)
    C = shape[-1]
    inputs = {"x": rng.normal(2, 3, size=shape), "weight": rng.normal(size=C)}
    if bias:
        inputs["bias"] = rng.normal(size=C)

    def forward(i: Arrays) -> tuple[Array, Array, Array]:
        return ops.layernorm_forward(i["x"], i["weight"], i.get("bias"))

    def backward(dy: Array, i: Arrays) -> Arrays:
        _, mean, rstd = forward(i)
        found = ops.layernorm_backward(dy, i["x"], i["weight"], mean, rstd)
        gradients = dict(zip(("x", "weight", "bias"), found, strict=True))
        return {name: gradients[name] for name in i}

    return Case(f"layernorm-{shape}-{bias}", inputs, lambda i: forward(i)[0], backward)


def linear(IC: int, OC: int, *rows: int, bias: bool = True) -> Case:
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(*rows, IC)), "weight": rng.normal(size=(IC, OC))}
    if bias:
        inputs["bias"] = rng.normal(size=OC)

    def backward(dy: Array, i: Arrays) -> Arrays:
        gradients = dict(zip(("x", "weight", "bias"), ops.linear_backward(dy, i["x"], i["weight"]), strict=True))
        return {name: gradients[name] for name in i}

    return Case(
        f"linear-{IC}-{OC}-{rows}-{bias}",
        inputs,
        lambda i: ops.linear_forward(i["x"], i["weight"], i.get("bias")),
        backward,
    )


def rotary_case(B: int, T: int, NH: int, HS: int) -> Case:
    return Case(
        f"rotary-{B}-{T}-{NH}-{HS}",
        {"qkv": np.random.default_rng(0).normal(size=(B, T, 3 * NH * HS))},
        lambda i: ops.rotary_forward(i["qkv"], NH),
        lambda dy, i: {"qkv": ops.rotary_backward(dy, NH)},
    )


def attention_case(
    B: int, T: int, NH: int, HS: int, dropout: Dropout | None = None, scale: float | None = None, causal: bool = True
) -> Case:
    inputs = {"qkv": np.random.default_rng(0).normal(size=(B, T, 3 * NH * HS))}

    def backward(dy: Array, i: Arrays) -> Arrays:
        y, lse = ops.attention_forward(i["qkv"], NH, dropout, scale, causal)
        return {"qkv": ops.attention_backward(dy, y, lse, i["qkv"], NH, dropout, scale, causal)}

    name = f"attention-{B}-{T}-{NH}-{HS}" + ("-dropout" if dropout else "") + ("-scale" if scale else "")
    name += "" if causal else "-bidirectional"
    return Case(name, inputs, lambda i: ops.attention_forward(i["qkv"], NH, dropout, scale, causal)[0], backward)


def activation(layer: str, *shape: int) -> Case:
    forward, backward = (getattr(ops, f"{layer}_{direction}") for direction in ("forward", "backward"))
    inputs = {"x": np.random.default_rng(0).normal(0, 2, size=shape)}
    return Case(f"{layer}-{shape}", inputs, lambda i: forward(i["x"]), lambda dy, i: {"x": backward(dy, i["x"])})


def residual(*shape: int) -> Case:
    rng = np.random.default_rng(0)
    inputs = {"x1": rng.normal(size=shape), "x2": rng.normal(size=shape)}
    return Case(
        f"residual-{shape}",
        inputs,
        lambda i: ops.residual_forward(i["x1"], i["x2"]),
        lambda dy, i: dict(zip(("x1", "x2"), ops.residual_backward(dy), strict=True)),
    )


def dropout(p: float, *shape: int) -> Case:
    drop = Dropout(p, seed=2, site=3, step=4)
    inputs = {"x": np.random.default_rng(0).normal(size=shape)}
    return Case(
        f"dropout-{p}-{shape}",
        inputs,
        lambda i: ops.dropout_forward(i["x"], drop),
        lambda dy, i: {"x": ops.dropout_backward(dy, drop)},
    )


def targets_of(N: int, V: int) -> Array:
    targets = np.random.default_rng(2).integers(0, V, N)
    targets[1::3] = -1
    return targets


def cross_entropy(N: int, V: int, Vp: int) -> Case:
    targets = targets_of(N, V)
    inputs = {"logits": np.random.default_rng(0).normal(0, 3, size=(N, Vp))}
    return Case(
        f"cross_entropy-{N}-{V}-{Vp}",
        inputs,
        lambda i: ops.cross_entropy_forward(i["logits"], targets, V),
        lambda dy, i: {"logits": ops.cross_entropy_backward(dy, i["logits"], targets, V)},
    )


def classifier(N: int, C: int, V: int, rows: int | None) -> Case:
    rng = np.random.default_rng(0)
    targets = targets_of(N, V)
    inputs = {"x": rng.normal(size=(N, C)), "wte": rng.normal(size=(V, C))}

    def backward(dy: Array, i: Arrays) -> Arrays:
        return dict(zip(("x", "wte"), ops.classifier_backward(dy, i["x"], i["wte"], targets, rows)[1:], strict=True))

    return Case(
        f"classifier-{N}-{C}-{V}-{rows}",
        inputs,
        lambda i: ops.classifier_forward(i["x"], i["wte"], targets, rows),
        backward,
    )


CASES = [
    embedding(3, 5, 4, 6, positions=7),
    embedding(1, 1, 2, 8, positions=1),
    embedding(3, 5, 4, 6, positions=None),
    layernorm(2, 3, 24),
    layernorm(1, 3),
    layernorm(4, 5, bias=False),
    linear(5, 7, 2, 3),
    linear(8, 24, 1, 1),
    linear(5, 7, 4, bias=False),
    rotary_case(1, 1, 1, 2),
    rotary_case(2, 5, 3, 6),
    attention_case(1, 1, 1, 8),
    attention_case(2, 5, 3, 8),
    attention_case(1, 4, 2, 32),
    attention_case(1, 3, 1, 64),
    attention_case(1, 3, 1, 80),
    attention_case(1, 4, 2, 3, scale=0.7),
    attention_case(2, 6, 2, 5, Dropout(0.3, seed=1, site=2, step=3)),
    attention_case(2, 5, 2, 4, causal=False),
    attention_case(2, 5, 2, 4, Dropout(0.3, seed=1, site=2, step=3), causal=False),
    *(activation(layer, *shape) for layer in ("gelu", "exact_gelu", "relu") for shape in ((4, 9), (1,))),
    residual(2, 3, 4),
    dropout(0.5, 3, 7),
    dropout(0.0, 3, 7),
    cross_entropy(5, 65, 65),
    cross_entropy(5, 13, 16),
    cross_entropy(1, 2, 2),
    classifier(7, 5, 11, rows=3),
    classifier(4, 8, 2, rows=None),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def relative_l2(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def complex_step(case: Case, dy: Array) -> Arrays:
    """Gradient of Σ dy ⊙ y with respect to each element of each input."""
    gradients = {}
    for name, value in case.inputs.items():
        gradients[name] = np.empty(value.shape)
        for index in np.ndindex(value.shape):
            stepped = value.astype(np.complex128)
            stepped[index] += 1j * H
            y = case.forward({**case.inputs, name: stepped})
            gradients[name][index] = (dy * y).sum().imag / H
    return gradients


@every_case
def test_backward_is_the_derivative_of_forward(case: Case) -> None:
    dy = case.output_gradient()
    gradients = case.backward(dy, case.inputs)
    assert gradients.keys() == case.inputs.keys()
    for name, expected in complex_step(case, dy).items():
        assert gradients[name].shape == expected.shape
        assert relative_l2(gradients[name], expected) <= 1e-13, name


@every_case
def test_backward_is_the_adjoint_of_the_derivative(case: Case) -> None:
    rng = np.random.default_rng(3)
    dy = case.output_gradient()
    v = {name: rng.normal(size=value.shape) for name, value in case.inputs.items()}
    Jv = case.forward({name: value + 1j * H * v[name] for name, value in case.inputs.items()}).imag / H
    JTw = case.backward(dy, case.inputs)
    forwards = (Jv * dy).sum()
    backwards = sum((v[name] * JTw[name]).sum() for name in v)
    assert abs(forwards - backwards) <= 1e-12 * np.linalg.norm(Jv) * np.linalg.norm(dy)
    assert abs(forwards) > 1e-3 * np.linalg.norm(Jv) * np.linalg.norm(dy)  # the two are not orthogonal by accident


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_dtype_stays(case: Case, dtype: Any) -> None:
    inputs = {name: value.astype(dtype) for name, value in case.inputs.items()}
    y = case.forward(inputs)
    gradients = case.backward(case.output_gradient().astype(dtype), inputs)
    assert y.dtype == dtype
    assert {name: gradient.dtype for name, gradient in gradients.items()} == dict.fromkeys(inputs, np.dtype(dtype))
    bound = 1e-5 if dtype == np.float32 else 1e-14
    assert relative_l2(y, case.forward(case.inputs)) <= bound
    for name, expected in case.backward(case.output_gradient(), case.inputs).items():
        assert relative_l2(gradients[name], expected) <= bound, name


def test_given_gradient_buffers_are_added_to_in_place() -> None:
    rng = np.random.default_rng(0)
    x, w, dy = rng.normal(size=(4, 3)), rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    dx, *fresh = ops.linear_backward(dy, x, w)
    buffers = [rng.normal(size=gradient.shape) for gradient in fresh]
    before = [buffer.copy() for buffer in buffers]
    same_dx, *returned = ops.linear_backward(dy, x, w, *buffers)
    assert np.array_equal(same_dx, dx)  # written, not added to
    for buffer, gradient, start, contribution in zip(buffers, returned, before, fresh, strict=True):
        assert gradient is buffer
        assert np.array_equal(buffer, start + contribution)


def test_fresh_gradients_are_not_views_of_the_input() -> None:
    dy = np.ones(3)
    for gradient in (*ops.residual_backward(dy), ops.dropout_backward(dy, Dropout(0.0))):
        gradient += 1
    assert np.array_equal(dy, np.ones(3))


def test_matmul_transposes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(4, 5))
    at, bt = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    expected = np.einsum("mk,kn->mn", a, b)
    products = [
        ops.matmul(a, b),
        ops.matmul(at, b, transpose_a=True),
        ops.matmul(a, bt, transpose_b=True),
        ops.matmul(at, bt, transpose_a=True, transpose_b=True),
    ]
    for product in products:
        assert relative_l2(product, expected) <= 1e-15


def test_layernorm_gradient_is_orthogonal_to_ones_and_to_x_hat() -> None:
    rng = np.random.default_rng(0)
    x, w, dy = rng.normal(5, 2, (6, 40)), rng.normal(size=40), rng.normal(size=(6, 40))
    _, mean, rstd = ops.layernorm_forward(x, w, np.zeros(40))
    dx, _, _ = ops.layernorm_backward(dy, x, w, mean, rstd)
    x_hat = (x - mean[:, None]) * rstd[:, None]
    size = np.linalg.norm(dx, axis=1)
    assert np.all(abs(dx.sum(1)) <= 1e-13 * size * np.sqrt(40))
    # up to eps: x̂·x̂ / C is 1 − ε r², so the projection leaves ε r² of the component along x̂
    along = (dx * x_hat).sum(1)
    left = (w * dy * x_hat).sum(1) * rstd * 1e-5 * rstd**2
    assert relative_l2(along, left) <= 1e-8
    assert np.all(abs(along) <= 1e-4 * size * np.linalg.norm(x_hat, axis=1))


def test_layernorm_survives_a_large_mean_in_float32() -> None:
    x = np.random.default_rng(0).normal(3000, 1, (4, 64)).astype(np.float32)
    w, b = np.ones(64, np.float32), np.zeros(64, np.float32)
    y, _, _ = ops.layernorm_forward(x, w, b)
    expected, _, _ = ops.layernorm_forward(x.astype(np.float64), w, b)
    assert relative_l2(y, expected) <= 3e-4  # the mean has 24 bits, so x̂ keeps 1e-7 * 3000; E[x²] − μ² leaves nothing


@pytest.mark.parametrize("drop", [None, Dropout(0.4, seed=5, site=1, step=2)], ids=["plain", "dropout"])
def test_rows_of_the_gradient_of_the_scores_sum_to_zero(drop: Dropout | None) -> None:
    rng = np.random.default_rng(0)
    B, T, NH, HS = 2, 7, 3, 8
    qkv, dy = rng.normal(size=(B, T, 3 * NH * HS)), rng.normal(size=(B, T, NH * HS))
    y, lse = ops.attention_forward(qkv, NH, drop)
    p = ops.attention_probabilities(lse, qkv, NH)
    ds = attention.scores_backward(dy, y, p, attention.split(qkv, NH)[2], drop)
    assert np.linalg.norm(ds) > 0.1
    assert np.linalg.norm(ds.sum(-1)) <= 1e-14 * np.linalg.norm(ds)
    # the same seen through the layer: adding one vector to all keys changes nothing
    dk = np.split(ops.attention_backward(dy, y, lse, qkv, NH, drop), 3, axis=-1)[1]
    assert np.linalg.norm(dk.sum(1)) <= 1e-14 * np.linalg.norm(dk)


def test_attention_probabilities_are_causal_and_sum_to_one() -> None:
    qkv = np.random.default_rng(0).normal(size=(2, 7, 3 * 24))
    _, lse = ops.attention_forward(qkv, 3)
    p = ops.attention_probabilities(lse, qkv, 3)
    assert p.shape == (2, 3, 7, 7)
    assert np.all(p[..., ~np.tri(7, dtype=bool)] == 0)
    assert np.all(p[..., np.tri(7, dtype=bool)] > 0)
    assert relative_l2(p.sum(-1), np.ones((2, 3, 7))) <= 1e-15


def test_attention_against_its_definition() -> None:
    """Row by row with loops, and no log-sum-exp."""
    rng = np.random.default_rng(0)
    B, T, NH, HS = 2, 4, 3, 5
    qkv = rng.normal(size=(B, T, 3, NH, HS))
    expected = np.zeros((B, T, NH, HS))
    for b in range(B):
        for t in range(T):
            for h in range(NH):
                weights = np.array([np.exp(qkv[b, t, 0, h] @ qkv[b, s, 1, h] / HS**0.5) for s in range(t + 1)])
                expected[b, t, h] = weights @ qkv[b, : t + 1, 2, h] / weights.sum()
    y, _ = ops.attention_forward(qkv.reshape(B, T, -1), NH)
    assert relative_l2(y, expected.reshape(B, T, -1)) <= 1e-14


def test_attention_scores_may_be_large() -> None:
    qkv = np.random.default_rng(0).normal(0, 200, (1, 5, 24)).astype(np.float32)  # scores of 1e5: exp overflows
    y, lse = ops.attention_forward(qkv, 1)
    assert np.isfinite(y).all() and np.isfinite(lse).all()
    assert np.array_equal(y[0, 0], qkv[0, 0, 16:])  # the first row sees only itself


def test_cross_entropy_gradient_sums_to_zero_over_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    logits, dlosses, targets = rng.normal(0, 5, (6, 65)), rng.normal(size=6), targets_of(6, 65)
    dlogits = ops.cross_entropy_backward(dlosses, logits, targets)
    assert np.linalg.norm(dlogits.sum(1)) <= 1e-15 * 65 * np.linalg.norm(dlogits)
    assert np.all((dlogits == 0).all(1) == (targets < 0))
    assert np.all((ops.cross_entropy_forward(logits, targets) == 0) == (targets < 0))


def test_cross_entropy_leaves_padding_alone() -> None:
    rng = np.random.default_rng(0)
    logits, dlosses, targets = rng.normal(size=(4, 16)), rng.normal(size=4), np.array([0, 12, -100, 5])
    losses, dlogits = (
        ops.cross_entropy_forward(logits, targets, 13),
        ops.cross_entropy_backward(dlosses, logits, targets, 13),
    )
    assert np.all(dlogits[:, 13:] == 0)
    assert np.array_equal(losses, ops.cross_entropy_forward(logits[:, :13].copy(), targets))
    logits[:, 13:] = np.inf
    assert np.array_equal(losses, ops.cross_entropy_forward(logits, targets, 13))


def test_cross_entropy_of_sure_and_hopeless_predictions() -> None:
    logits = np.array([[0.0, 1000.0], [0.0, 1000.0], [-1e4, -1e4]])
    losses = ops.cross_entropy_forward(logits, np.array([1, 0, 0]))
    assert losses[0] == 0
    assert losses[1] == 1000
    assert losses[2] == pytest.approx(np.log(2), rel=1e-10)


def test_classifier_does_not_depend_on_the_rows_at_a_time() -> None:
    rng = np.random.default_rng(0)
    x, wte, dlosses, targets = rng.normal(size=(7, 5)), rng.normal(size=(11, 5)), rng.normal(size=7), targets_of(7, 11)
    logits = x @ wte.T
    losses = ops.cross_entropy_forward(logits, targets)
    dlogits = ops.cross_entropy_backward(dlosses, logits, targets)
    expected = losses, dlogits @ wte, dlogits.T @ x
    for rows in (None, 1, 3, 7, 100):
        found = ops.classifier_backward(dlosses, x, wte, targets, rows)
        for a, b in zip(found, expected, strict=True):
            assert relative_l2(a, b) <= 1e-14
        assert np.array_equal(found[0], ops.classifier_forward(x, wte, targets, rows))


def test_scores_of_turned_queries_and_keys_depend_on_their_distance() -> None:
    """The property for which rotary positions were made (Su et al. 2021, eq. 11)."""
    (T, NH, HS), rng = (9, 2, 6), np.random.default_rng(0)
    qkv = np.tile(rng.normal(size=(1, 1, 3 * NH * HS)), (1, T, 1))  # the same at every position
    q, k, v = attention.split(ops.rotary_forward(qkv, NH), NH)
    s = (q @ k.swapaxes(-1, -2))[0]
    for distance in range(1 - T, T):
        along = np.diagonal(s, distance, 1, 2)
        assert relative_l2(along, np.broadcast_to(along[:, :1], along.shape)) <= 1e-13
    assert np.ptp(s[:, 0], axis=-1).min() > 0.1
    assert np.array_equal(v, attention.split(qkv, NH)[2])


def test_turns_keep_lengths_and_the_first_position() -> None:
    qkv = np.random.default_rng(0).normal(size=(2, 7, 3 * 3 * 4))
    y = ops.rotary_forward(qkv, 3)
    lengths = (np.linalg.norm(x.reshape(2, 7, 9, 4), axis=-1) for x in (y, qkv))
    assert relative_l2(*lengths) <= 1e-15
    assert np.array_equal(y[:, 0], qkv[:, 0])
    assert relative_l2(ops.rotary_backward(y, 3), qkv) <= 1e-15


def test_angles_are_those_of_the_papers() -> None:
    """Channel i of 4 turns by t and t / 100; the table of Vaswani et al. has sine and cosine side by side, over √4."""
    assert relative_l2(positions.angles([0, 3], 4), np.array([[0, 0], [3, 0.03]])) <= 1e-15
    expected = np.array([[0, 1, 0, 1], [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)]]) / 2
    assert relative_l2(positions.sinusoidal(2, 4), expected) <= 1e-15
    assert positions.sinusoidal(5, 3).shape == (5, 3)


def test_a_shift_turns_sinusoidal_positions() -> None:
    """P_t+s is a rotation of P_t that does not depend on t (Vaswani et al. 2017, section 3.5)."""
    table, shift = positions.sinusoidal(12, 6).reshape(12, 3, 2), 5
    theta = positions.angles([shift], 6)[0]
    sine = table[:-shift, :, 0] * np.cos(theta) + table[:-shift, :, 1] * np.sin(theta)
    cosine = table[:-shift, :, 1] * np.cos(theta) - table[:-shift, :, 0] * np.sin(theta)
    assert relative_l2(np.stack([sine, cosine], -1), table[shift:]) <= 1e-14
