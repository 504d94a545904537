"""Rounding with error feedback: reference/gptq.py, and generators that are calibrated with it."""

from __future__ import annotations

import numpy as np
import pytest
from backends import GENERATORS, Backend

import pygpt
from pygpt.backends.interface import LINEAR
from pygpt.errors import UserError
from pygpt.reference import gptq, packed

CONFIG = pygpt.GPT2Config(vocab_size=40, n_positions=16, n_embd=48, n_layer=2, n_head=2, n_inner=70)


def correlated(n: int, K: int) -> np.ndarray:
    """(n,K) inputs that vary together."""
    numbers = np.random.default_rng(0)
    return numbers.standard_normal((n, 5)) @ numbers.standard_normal((5, K)) + 0.1 * numbers.standard_normal((n, K))


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("K", [1, 31, 32, 33, 70])
def test_inputs_that_vary_alone_leave_nothing_to_make_up_for(weights, K):
    w = np.random.default_rng(1).standard_normal((K, 7)).astype(np.float32)
    v, scales = gptq.quantise(w, np.eye(K), weights)
    assert np.array_equal(v, packed.WEIGHTS[weights](w))
    assert scales.shape == (-(-K // packed.GROUP), 7)
    assert np.array_equal(scales[0], packed.scale_of(w[: packed.GROUP], weights))


def test_what_is_not_rounded_yet_is_at_its_best():
    """After each rounding, the weights that follow minimise |X w - X v|^2: found here by solving for them."""
    x, w = correlated(50, 6), np.random.default_rng(2).standard_normal((6, 3))
    gram = x.T @ x
    h = gram + gptq.DAMPING * np.trace(gram) / 6 * np.eye(6)
    scale, best = packed.scale_of(w.astype(np.float32), "int4"), w.copy()
    for k in range(6):
        best[k] = packed.rounded(best[k].astype(np.float32), scale, "int4")
        best[k + 1 :] = w[k + 1 :] - np.linalg.solve(h[k + 1 :, k + 1 :], h[k + 1 :, : k + 1] @ (best - w)[: k + 1])
    v, scales = gptq.quantise(w, gram, "int4")
    assert np.array_equal(v, best.astype(np.float32))
    assert np.array_equal(scales, scale[None])


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_outputs_are_nearer_than_with_the_nearest_weights(weights):
    x, w = correlated(400, 100), np.random.default_rng(3).standard_normal((100, 20)).astype(np.float32)
    v, _ = gptq.quantise(w, x.T @ x, weights)
    nearest = packed.WEIGHTS[weights](w)
    assert np.linalg.norm(x @ (v - w)) < 0.5 * np.linalg.norm(x @ (nearest - w))
    assert np.linalg.norm(v - w) > np.linalg.norm(nearest - w)


def test_inputs_that_are_always_zero():
    w = np.random.default_rng(4).standard_normal((40, 3)).astype(np.float32)
    assert np.array_equal(gptq.quantise(w, np.zeros((40, 40)), "int4")[0], packed.int4(w))


def trained(backend: Backend) -> tuple[pygpt.GPT2, np.ndarray]:
    """A model that has learned something, so that its activations vary together, and what it has learned."""
    tokens = np.random.default_rng(5).integers(0, 40, (1, 17)).repeat(6, 0)
    tokens[:, ::3] = np.random.default_rng(6).integers(0, 40, (6, 6))
    model = backend.model(CONFIG, seed=1)
    for _ in range(30):
        model.zero_grad()
        model.forward_backward(tokens[:, :-1], tokens[:, 1:])
        model.adamw_step(1e-2)
    return model, tokens[:, :-1]


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("backend", GENERATORS, ids=str)
def test_a_calibrated_generator(backend, weights):
    """Its layers have the weights that the reference gives, and its logits are nearer to the model's."""
    model, tokens = trained(backend)
    logits = {}
    for name, kind, calibration in (("exact", "float32", None), ("nearest", weights, None), ("own", weights, tokens)):
        generator = model.generator(kind, batch_size=len(tokens), calibration=calibration)
        logits[name] = generator.feed(list(tokens), every=True).astype(np.float64)
    error = {name: np.linalg.norm(found - logits["exact"]) for name, found in logits.items()}
    assert error["own"] > 0
    if weights == "int4":  # of eight bits, most of the error is that of the inputs and of the embedding
        assert error["own"] < 0.9 * error["nearest"]

    numpy = pygpt.GPT2(CONFIG, "numpy", dtype="float64")
    for name, values in model.parameters.items():
        numpy.set_parameter(name, values)
    reference = numpy.generator(weights, batch_size=len(tokens))
    model.forward(tokens)
    inputs = dict(zip(LINEAR, ("ln_1", "attn.heads", "ln_2", "mlp.act"), strict=True))
    for layer in range(CONFIG.n_layer):
        for name, activation in inputs.items():
            x = np.asarray(model.activations[f"h.{layer}.{activation}"], np.float32)
            x = x.reshape(-1, x.shape[-1])
            w = np.asarray(model.parameters[f"h.{layer}.{name}.weight"])
            reference.write(layer, name, *gptq.quantise(w, (x.T @ x).astype(np.float64), weights))
    found = reference.feed(list(tokens), every=True)
    errors = np.linalg.norm(found - logits["own"], axis=-1) / np.linalg.norm(found, axis=-1)
    assert np.median(errors) < 1e-6 and errors.max() < 1e-2  # an input between two of its integers may go either way


def test_what_cannot_be_calibrated():
    model = pygpt.GPT2(CONFIG)
    with pytest.raises(UserError, match="calibration is given, but weights is bfloat16, expected int8 or int4"):
        model.generator("bfloat16", calibration=[[1, 2]])
    with pytest.raises(UserError, match="calibration have shape"):
        model.generator("int4", calibration=[1, 2])
    with pytest.raises(UserError, match="recompute is block, expected none"):
        pygpt.GPT2(CONFIG, recompute="block").generator("int4", calibration=[[1, 2]])
    for device in ("cpu", "numpy"):
        w, scales = np.zeros((48, 48), np.float32), np.ones((2, 48), np.float32)
        with pytest.raises(UserError, match="only weights of 8 or 4 bits have scales"):
            pygpt.GPT2(CONFIG, device).generator().write(0, "attn.c_proj", w, scales)
