"""Every layer over every backend: bounds against numpy in float64, identities, and equal bits where they are due."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from backends import ABSENT, ALL, PRESENT, Backend
from cases import CASES, Case, integers, normal, targets_of
from numpy.typing import DTypeLike

import pygpt
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.comparing.metrics import TEACHER_FORCED, relative_l2
from pygpt.reference.bfloat16 import round_bfloat16
from pygpt.reference.dropout import Dropout

Array = np.ndarray[Any, Any]

every_backend = pytest.mark.parametrize("backend", PRESENT, ids=str)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("backend", ALL, ids=str)
def test_backend_is_there(backend: Backend) -> None:
    """What this skips, the tests below leave out."""
    if backend.device.startswith("cuda") and backend in ABSENT:
        pytest.skip(ABSENT[backend])
    assert backend in PRESENT, ABSENT.get(backend)


@every_backend
@every_case
def test_outputs_are_within_the_bounds_and_added_to_buffers(case: Case, backend: Backend) -> None:
    for call in case.calls:
        for output, found in call.differences(backend.layers(), backend.emulation).items():
            violations = TEACHER_FORCED[backend.dtype].violations(found)
            assert not violations, f"{call.operation}, {output}: {violations}"


def poisoned(shape: int | tuple[int, ...], dtype: DTypeLike = np.float64) -> Array:
    """What np.empty may give: floats are NaN, integers -1."""
    return np.full(shape, np.frombuffer(b"\xff" * np.dtype(dtype).itemsize, dtype)[0])


@every_backend
@every_case
def test_given_buffers_are_returned_and_what_is_in_others_does_not_count(
    case: Case, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in case.calls:
        fresh = call.run(backend.layers())
        buffers = {name: np.zeros_like(fresh[name]) for name in call.gradients}
        with monkeypatch.context() as memory:
            memory.setattr(np, "empty", poisoned)
            memory.setattr(np, "empty_like", lambda like: poisoned(like.shape, like.dtype))
            into = call.run(backend.layers(), buffers=buffers)
        for output, value in fresh.items():
            assert np.array_equal(into[output], value), f"{call.operation}, {output}"
            assert value.dtype == np.float32
        assert all(into[name] is buffer for name, buffer in buffers.items())


@pytest.fixture
def threads() -> Iterator[Callable[[int | None], None]]:
    yield partial(pygpt.set_threads, beyond_cores=True)
    pygpt.set_threads(None)


@pytest.mark.parametrize("backend", [backend for backend in PRESENT if backend.device != "numpy"], ids=str)
@every_case
def test_same_bits_for_any_number_of_threads(case: Case, backend: Backend, threads: Callable[[int], None]) -> None:
    ops = backend.layers()
    for call in case.calls:
        threads(1)
        expected = call.run(ops)
        for count in (1, 2, 3, 4) if backend.device == "cpu" else (1,):  # the second time with 1: from run to run
            threads(count)
            for output, value in call.run(ops).items():
                assert np.array_equal(value, expected[output]), f"{call.operation}, {output}, {count} threads"


@pytest.mark.parametrize("backend", [b for b in PRESENT if b.device == "cpu" and b.dtype == "bfloat16"], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith(("linear", "matmul"))], ids=str)
def test_bfloat16_rounds_the_operands_to_nearest_and_nothing_else(case: Case, backend: Backend) -> None:
    """Twice the error of rounding would pass as ρ = 2, so the products of rounded operands are asked for exactly."""

    def rounded(x: Array) -> Array:
        return round_bfloat16(x.astype(np.float32)).astype(np.float64)

    for call in case.calls:
        expected = call.run(ReferenceLayers(rounded), np.float64)
        for output, value in call.run(backend.layers()).items():
            assert relative_l2(value, expected[output]) <= 2e-6, f"{call.operation}, {output}"


@pytest.mark.parametrize("backend", [b for b in PRESENT if b.device == "cpu" and b.dtype == "bfloat16"], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if re.match(r"attention-B\d-T1?\d-", c.name)], ids=str)
def test_bfloat16_rounds_what_attention_multiplies_to_nearest_and_nothing_else(case: Case, backend: Backend) -> None:
    """Or nothing at all.  T is below any block of keys: relative to another largest score, P is rounded differently."""
    emulation = backend.emulation
    assert emulation is not None
    for call in case.calls:
        expected = call.run(emulation)
        for output, value in call.run(backend.layers()).items():
            # a few P and dS lie so near the middle of two bfloat16 that float32 takes them to either side
            bound = 5e-5 if backend.rounds_attention else 2e-6
            found = relative_l2(value, expected[output].astype(np.float64))
            assert found <= bound, f"{call.operation}, {output}: {found:.1e}"


@pytest.mark.parametrize("backend", [backend for backend in PRESENT if backend.device == "cpu"], ids=str)
@pytest.mark.parametrize("N", [1, 5])  # few rows have a product of their own
def test_sums_of_nothing_are_zero_or_the_bias(backend: Backend, N: int) -> None:
    ops, x, weight, bias = backend.layers(), normal(N, 0), normal(0, 7), normal(7)
    assert np.array_equal(ops.linear_forward(x, weight, bias), np.tile(bias, (N, 1)))
    assert not ops.linear_forward(x, weight).any()
    assert not ops.matmul(x, weight).any()


def test_product_of_several_blocks() -> None:
    """Both operands have more rows than are packed at a time (csrc/fast/gemm.c): where blocks meet and end."""
    M, N, K = 5472, 5463, 769
    a, b = normal(M, K), normal(N, K, seed=1)
    c = pygpt.layers("cpu").matmul(a, b, transpose_b=True)
    for first in (0, 5440, 5461):
        rows = slice(first, first + 7)
        assert relative_l2(c[rows], a[rows].astype(np.float64) @ b.T) <= 2e-6
        assert relative_l2(c[:, rows], a.astype(np.float64) @ b[rows].T) <= 2e-6


# ---- identities ----


@every_backend
def test_gradient_of_layernorm_is_orthogonal_to_ones_and_to_x_hat(backend: Backend) -> None:
    ops, (N, C) = backend.layers(), (6, 80)
    x, weight, dy = backend.stored(normal(N, C, mean=5.0, std=2.0)), normal(C), normal(N, C, seed=1)
    _, mean, rstd = ops.layernorm_forward(x, weight, np.zeros(C, np.float32))
    dx, _, _ = (gradient.astype(np.float64) for gradient in ops.layernorm_backward(dy, x, weight, mean, rstd))
    x_hat = (x.astype(np.float64) - mean[:, None]) * rstd[:, None]
    size = np.linalg.norm(dx, axis=1)
    assert np.all(size > 0.1)
    assert np.all(abs(dx.sum(1)) <= 1e-6 * size * C**0.5 + backend.error_of_sum(size))
    # up to ε r² of what dy has along x̂
    along, sizes = (dx * x_hat).sum(1), size * np.linalg.norm(x_hat, axis=1)
    assert np.all(abs(along) <= 1e-5 * sizes + backend.error_of_sum(np.linalg.norm(dx * x_hat, axis=1)))


@every_backend
def test_layernorm_survives_a_large_mean(backend: Backend) -> None:
    x, ones = backend.stored(normal(4, 64, mean=3000.0)), np.ones(64, np.float32)
    y, _, _ = backend.layers().layernorm_forward(x, ones, 0 * ones)
    expected, _, _ = pygpt.layers("numpy").layernorm_forward(x.astype(np.float64), ones, 0 * ones)
    # the mean has 24 bits, so x̂ keeps 1e-7 * 3000; E[x²] − μ² leaves nothing
    assert relative_l2(y, expected) <= 3e-4 + backend.error_of_sum(1.0)


@every_backend
@pytest.mark.parametrize("drop", [None, Dropout(0.3, seed=1, site=2, step=3)], ids=["no_dropout", "dropout"])
def test_rows_of_the_gradient_of_the_scores_sum_to_zero(backend: Backend, drop: Dropout | None) -> None:
    """With q_t the unit vector t, Σ_u dk_u = Σ_t q_t Σ_u dS_tu / √HS has the sum of row t as its element t."""
    ops, (B, T, NH, HS) = backend.layers(), (2, 31, 2, 32)
    qkv = normal(B, T, 3 * NH * HS).reshape(B, T, 3, NH, HS)
    qkv[:, :, 0] = np.eye(HS, dtype=np.float32)[:T, None]
    qkv, dy = qkv.reshape(B, T, -1), normal(B, T, NH * HS, seed=1)
    y, lse = ops.attention_forward(qkv, NH, drop)
    dk = ops.attention_backward(dy, y, lse, qkv, NH, drop).reshape(B, T, 3, NH, HS)[:, :, 1].astype(np.float64)
    row_sums, row_norms = dk.sum(1), np.linalg.norm(dk, axis=1)  # dk_u has dS_tu / √HS as its element t
    assert np.all(abs(row_sums[..., T:]) == 0)
    rms = np.sqrt((row_norms[..., :T] ** 2).mean())  # a row of which everything is dropped has no size of its own
    assert rms > 0.01
    through_y = np.sqrt(((dy * y) ** 2).mean())  # Σ_i dy_i y_i / √HS, which the backward pass subtracts
    assert np.all(abs(row_sums[..., :T]) <= 2e-6 * T**0.5 * rms + backend.error_of_attention(rms + through_y))


@every_backend
def test_key_bias_has_no_gradient(backend: Backend) -> None:
    """Measured on the query's and the value's bias, because it has no size of its own."""
    ops, (B, T, NH, HS) = backend.layers(), (2, 67, 3, 8)
    qkv, dy = normal(B, T, 3 * NH * HS), normal(B, T, NH * HS, seed=1)
    y, lse = ops.attention_forward(qkv, NH)
    dqkv = ops.attention_backward(dy, y, lse, qkv, NH).astype(np.float64)
    query, key, value = np.split(dqkv.sum((0, 1)), 3)
    rounded = backend.error_of_attention(np.linalg.norm(np.split(dqkv, 3, axis=-1)[1]))
    assert np.linalg.norm(key) <= 2e-6 * np.linalg.norm(query) + rounded
    assert np.linalg.norm(key) <= 2e-6 * np.linalg.norm(value) + rounded


@every_backend
@pytest.mark.parametrize("V, Vp", [(2, 2), (65, 80), (50257, 50304)])
def test_gradient_of_the_logits_sums_to_zero_and_leaves_padding_alone(backend: Backend, V: int, Vp: int) -> None:
    ops, N = backend.layers(), 5
    logits, targets, dlosses = normal(N, Vp, std=3.0), targets_of(N, V), normal(N)
    logits[:, V:] = np.inf
    dlogits = ops.cross_entropy_backward(dlosses, logits, targets, V)
    assert np.all((dlogits[:, :V] == 0).all(1) == (targets < 0))
    assert np.all((ops.cross_entropy_forward(logits, targets, V) == 0) == (targets < 0))
    sums, norms = dlogits[:, :V].astype(np.float64).sum(1), np.linalg.norm(dlogits[:, :V], axis=1)
    assert np.all(abs(sums) <= 4e-6 * abs(dlosses) + backend.error_of_sum(norms))
    assert np.all(dlogits[:, V:] == 0)
    losses, in_place = ops.cross_entropy_in_place(dlosses, logits, targets, V)
    assert np.array_equal(losses, ops.cross_entropy_forward(logits, targets, V))
    assert np.all((in_place == 0).all(1) == (targets < 0))
    assert np.all(abs(in_place.astype(np.float64).sum(1)) <= 4e-6 * abs(dlosses) + backend.error_of_sum(norms))


@every_backend
def test_sure_and_hopeless_predictions(backend: Backend) -> None:
    ops = backend.layers()
    logits = np.array([[0, 100], [0, 1000], [0, 1000], [-1e4, -1e4]], np.float32)
    losses = ops.cross_entropy_forward(logits, np.array([1, 1, 0, 0], np.int32))
    assert np.all(losses[:2] == 0)
    assert losses[2] == 1000
    assert abs(losses[3] - np.log(2)) <= 1e-7 * 1e4  # what a logit of 1e4 keeps in float32


@every_backend
def test_unused_rows_of_the_embeddings_get_exactly_nothing(backend: Backend) -> None:
    (B, T, V, C), positions = (2, 5, 20, 24), 9
    tokens = integers(V // 2, B, T) * 2  # even ones
    wte, wpe, dx = normal(V, C), normal(positions, C, seed=1), normal(B, T, C, seed=2)
    dwte, dwpe = normal(V, C, seed=3), normal(positions, C, seed=4)
    before = dwte.copy(), dwpe.copy()
    backend.layers().embedding_backward(dx, tokens, wte, wpe, dwte, dwpe)
    assert np.array_equal(dwte[1::2], before[0][1::2])
    assert np.array_equal(dwpe[T:], before[1][T:])
    assert np.all((dwte != before[0]).any(1) == np.isin(np.arange(V), tokens))
    assert np.all(dwpe[:T] != before[1][:T])


@every_backend
def test_embedding_is_exact(backend: Backend) -> None:
    """One addition of two numbers has one right result."""
    tokens, wte, wpe = integers(65, 2, 7), backend.stored(normal(65, 24)), backend.stored(normal(9, 24, seed=1))
    expected = backend.stored(wte[tokens] + wpe[:7])
    assert np.array_equal(backend.layers().embedding_forward(tokens, wte, wpe), expected)


@every_backend
@pytest.mark.parametrize("HS", [8, 64])
@pytest.mark.parametrize("drop", [None, Dropout(0.2, seed=4)], ids=["no_dropout", "dropout"])
def test_the_future_does_not_change_one_bit_of_the_past(backend: Backend, HS: int, drop: Dropout | None) -> None:
    ops, (B, T, NH) = backend.layers(), (2, 67, 2)
    qkv = normal(B, T, 3 * NH * HS)
    y, lse = ops.attention_forward(qkv, NH, drop)
    for t in (1, 2, 16, 31, 32, 33, 64, 66):
        changed = qkv.copy()
        changed[:, t:] = 30 * normal(B, T - t, 3 * NH * HS, seed=t)  # other maxima in the running softmax
        y_changed, lse_changed = ops.attention_forward(changed, NH, drop)
        assert np.array_equal(y_changed[:, :t], y[:, :t])
        assert np.array_equal(lse_changed[..., :t], lse[..., :t])
        assert not np.any(np.all(y_changed[:, t:] == y[:, t:], axis=-1))


@every_backend
def test_a_past_position_gets_no_gradient_from_one_before_it(backend: Backend) -> None:
    """dy of position t reaches the keys and values up to t, the query t, and nothing else."""
    ops, (B, T, NH, HS) = backend.layers(), (1, 37, 2, 8)
    qkv = normal(B, T, 3 * NH * HS)
    y, lse = ops.attention_forward(qkv, NH)
    for t in (0, 5, 31, 32, 36):
        dy = np.zeros_like(y)
        dy[:, t] = 1
        dq, dk, dv = np.split(ops.attention_backward(dy, y, lse, qkv, NH)[0], 3, axis=-1)
        assert np.all(dk[t + 1 :] == 0) and np.all(dv[t + 1 :] == 0)
        assert np.all(dv[: t + 1] != 0)
        assert np.all(np.delete(dq, t, axis=0) == 0)


@every_backend
def test_attention_probabilities_are_causal_and_sum_to_one(backend: Backend) -> None:
    ops, (B, T, NH) = backend.layers(), (2, 37, 3)
    qkv = normal(B, T, 3 * NH * 8)
    _, lse = ops.attention_forward(qkv, NH)
    p = ops.attention_probabilities(lse, qkv, NH)
    past = np.tri(T, dtype=bool)
    assert np.all(p[..., ~past] == 0) and np.all(p[..., past] > 0)
    assert relative_l2(p.sum(-1, dtype=np.float64), np.ones((B, NH, T))) <= 2e-6


@every_backend
@pytest.mark.parametrize("drop", [None, Dropout(0.2, seed=4)], ids=["no_dropout", "dropout"])
def test_without_the_mask_every_position_sees_all_others(backend: Backend, drop: Dropout | None) -> None:
    """In any order: as queries are permuted, so are the outputs, where causal ones would be others."""
    ops, (B, T, NH) = backend.layers(), (2, 37, 3)
    qkv = backend.stored(normal(B, T, 3 * NH * 8))
    y, lse = ops.attention_forward(qkv, NH, causal=False)
    p = ops.attention_probabilities(lse, qkv, NH, causal=False)
    assert np.all(p > 0)
    assert relative_l2(p.sum(-1, dtype=np.float64), np.ones((B, NH, T))) <= 2e-6
    turned, _ = ops.attention_forward(qkv[:, ::-1], NH, causal=False)
    assert relative_l2(turned[:, ::-1], y.astype(np.float64)) <= TEACHER_FORCED[backend.dtype].relative_l2
    dy = np.zeros_like(y)
    dy[:, 0] = 1
    y, lse = ops.attention_forward(qkv, NH, drop, causal=False)
    dv = np.split(ops.attention_backward(dy, y, lse, qkv, NH, drop, causal=False), 3, axis=-1)[2].reshape(B, T, NH, 8)
    kept = np.ones((B, NH, T)) if drop is None else drop.keep((B, NH, T, T))[:, :, 0]
    assert np.array_equal((dv != 0).all(-1), kept.swapaxes(1, 2) != 0)


@every_backend
def test_attention_scores_may_be_large(backend: Backend) -> None:
    qkv = backend.attended(normal(1, 37, 3 * 64, std=200.0))  # scores of 1e5: exp overflows
    y, lse = backend.layers().attention_forward(qkv, 1)
    assert np.isfinite(y).all() and np.isfinite(lse).all()
    assert np.array_equal(y[0, 0], qkv[0, 0, 128:])  # the first row sees only itself


@every_backend
def test_classifier_does_not_depend_on_the_rows_at_a_time(backend: Backend) -> None:
    ops, (N, C, V) = backend.layers(), (67, 24, 65)
    x, wte, targets, dlosses = normal(N, C), normal(V, C, std=0.3), targets_of(N, V), normal(N)
    whole = ops.classifier_backward(dlosses, x, wte, targets)
    bound = TEACHER_FORCED["float32"].relative_l2
    for rows in (1, 16, 64, 67, 1000):
        for found, expected in zip(ops.classifier_backward(dlosses, x, wte, targets, rows), whole, strict=True):
            assert relative_l2(found, expected.astype(np.float64)) <= bound
    assert relative_l2(ops.classifier_forward(x, wte, targets), whole[0].astype(np.float64)) <= bound


# ---- dropout ----


@every_backend
@pytest.mark.parametrize("n", [1, 3, 4, 1003])
@pytest.mark.parametrize("seed, site, step", [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 3), (2**33, 5, 7)])
def test_dropout_draws_the_mask_of_numpy(backend: Backend, n: int, seed: int, site: int, step: int) -> None:
    drop = Dropout(0.3, seed, site, step)
    ones = np.ones(n, np.float32)
    y = backend.layers().dropout_forward(ones, drop)
    scale = backend.stored(np.array(drop.scale, np.float32))
    assert np.array_equal(y, np.where(drop.keep((n,)), scale, np.float32(0)))
    assert np.array_equal(backend.layers().dropout_backward(ones, drop), y)


@every_backend
def test_attention_dropout_draws_the_mask_of_numpy(backend: Backend) -> None:
    """With zero queries and v_u the unit vector u, y_tu is m_tu / (t + 1)."""
    B, T, NH, HS = 2, 31, 2, 32
    drop = Dropout(0.4, seed=3, site=4, step=5)
    qkv = np.zeros((B, T, 3, NH, HS), np.float32)
    qkv[:, :, 2] = np.eye(HS, dtype=np.float32)[:T, None]
    y, _ = backend.layers().attention_forward(qkv.reshape(B, T, -1), NH, drop)
    y = y.reshape(B, T, NH, HS).swapaxes(1, 2)
    assert np.array_equal(y[..., :T] != 0, drop.keep((B, NH, T, T)) & np.tri(T, dtype=bool))
    assert np.all(y[..., T:] == 0)
