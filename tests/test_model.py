"""The whole model over every backend: bounds, identities, equal bits where they are due, answers to wrong input."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from backends import PRESENT, Backend
from variations import VARIED

import pygpt
from pygpt import GPT2, GPT2Config, UserError, memory_needed
from pygpt.backends import native_model
from pygpt.backends.library import check, ffi
from pygpt.backends.native_parts import KINDS
from pygpt.comparing.compare import compare, perturb, verdict
from pygpt.comparing.metrics import relative_l2
from pygpt.parameters import parameter_table

Array = np.ndarray[Any, Any]

LEAST = GPT2Config(vocab_size=2, n_positions=1, n_embd=8, n_layer=1, n_head=1)
ODD = GPT2Config(vocab_size=37, n_positions=19, n_embd=24, n_layer=2, n_head=3, n_inner=40)
DROPOUT = replace(ODD, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3)
# name: configuration, B, T; with few numbers in a tensor ρ would be left to chance
SHAPES = {
    "least": (LEAST, 1, 1),
    "odd": (ODD, 2, 13),
    "dropout": (DROPOUT, 2, 13),
    "one_position": (ODD, 3, 1),
    "all_positions": (ODD, 1, 19),
    "head_size_32": (GPT2Config(vocab_size=65, n_positions=33, n_embd=64, n_layer=1, n_head=2), 2, 33),
    "head_size_64": (GPT2Config(vocab_size=65, n_positions=8, n_embd=128, n_layer=1, n_head=2), 3, 7),
    "head_size_80": (GPT2Config(vocab_size=65, n_positions=8, n_embd=160, n_layer=1, n_head=2), 3, 7),
    "head_size_128": (GPT2Config(vocab_size=65, n_positions=8, n_embd=128, n_layer=1, n_head=1), 3, 7),
    "large_vocabulary": (GPT2Config(vocab_size=50257, n_positions=10, n_embd=8, n_layer=1, n_head=1), 7, 10),
    "large_epsilon": (replace(ODD, layer_norm_epsilon=0.1), 2, 13),
    "many_tokens": (GPT2Config(vocab_size=11, n_positions=35, n_embd=8, n_layer=1, n_head=1), 30, 35),
    **{name: (replace(DROPOUT, **settings), 2, 13) for name, settings in VARIED.items()},
}

NATIVE = [backend for backend in PRESENT if backend.device != "numpy"]
ON_CPU = [backend for backend in PRESENT if backend.device == "cpu"]
every_backend = pytest.mark.parametrize("backend", PRESENT, ids=str)
every_native_backend = pytest.mark.parametrize("backend", NATIVE, ids=str)


def model_of(backend: Backend, config: GPT2Config, **settings: Any) -> GPT2:
    """A model in which no gradient is accidentally small."""
    model = backend.model(config, **settings)
    perturb(model, seed=1)
    return model


def batch(config: GPT2Config, B: int, T: int, seed: int = 0) -> tuple[Array, Array]:
    tokens, targets = np.random.default_rng(seed).integers(0, config.vocab_size, (2, B, T))
    if B * T > 2:
        targets[0, 0] = -1
    return tokens, targets


def copies(tensors: Any) -> dict[str, Array]:
    return {name: value.copy() for name, value in tensors.items()}


def results(model: GPT2) -> dict[str, Array]:
    """All that should not depend on how the model was run."""
    last = model.config.head_input
    return {**copies(model.gradients), last: model.activations[last].copy(), "logits": model.logits}


def assert_same_bits(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


# ---- against numpy in float64 ----


@every_backend
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_is_within_the_bounds(backend: Backend, shape: str) -> None:
    config, B, T = SHAPES[shape]
    rows = compare(model_of(backend, config), backend.layers(), *batch(config, B, T))
    assert not any(row.violations for row in rows), verdict(rows)


UPDATES: dict[str, Callable[[GPT2], None]] = {
    "adamw": lambda model: model.adamw_step(lr=1e-2, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.1),
    "sgd": lambda model: model.sgd_step(lr=1.0, weight_decay=0.1),
    "momentum": lambda model: model.sgd_step(lr=0.1, momentum=0.9, weight_decay=0.1),
    "muon": lambda model: model.muon_step(1e-2, 1e-2, 0.9, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.1),
}


@every_backend
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_optimizer_steps_follow_float64(backend: Backend, update: Callable[[GPT2], None]) -> None:
    """With clipping, and an ε above the rounding errors of gradients that are 0: Adam would blow those up."""
    exact = GPT2(ODD, device="numpy", dtype="float64")
    model = model_of(backend, ODD)
    for name, value in model.parameters.items():
        exact.set_parameter(name, value)
    start = copies(model.parameters)
    for step in range(5):
        for each in (exact, model):
            each.zero_grad()
            each.forward_backward(*batch(ODD, 2, 13, seed=step))
        norms = [each.clip_grad_norm(0.5) for each in (exact, model)]
        assert norms[0] > 0.5  # it does clip
        assert abs(norms[1] / norms[0] - 1) <= (1e-5 if backend.dtype == "float32" else 5e-3)
        for each in (exact, model):
            update(each)
    assert model.steps == 5
    for name, value in exact.parameters.items():
        moved = value - start[name]
        bound = 1e-4 if backend.dtype == "float32" else 0.05  # Adam enlarges what is uncertain
        assert relative_l2(model.parameters[name] - start[name].astype(np.float64), moved) <= bound, name


@every_native_backend
def test_moments_stay_when_the_optimizer_changes(backend: Backend) -> None:
    """Muon makes room for AdamW's second moments alone, which are moved when AdamW updates all, or one is written."""
    always_whole, model = (model_of(backend, ODD) for _ in range(2))
    for name, v in always_whole.second_moments.items():
        always_whole.set_moments(name, v, v)
    for update in ("muon", "adamw"):
        for each in (always_whole, model):
            each.zero_grad()
            each.forward_backward(*batch(ODD, 2, 13))
            UPDATES[update](each)
    for kind in ("parameters", "first_moments", "second_moments"):
        found, expected = getattr(model, kind), getattr(always_whole, kind)
        assert all(np.array_equal(found[name], value) for name, value in expected.items())


@every_native_backend
def test_second_moments_that_muon_has_not_are_zero(backend: Backend) -> None:
    model = model_of(backend, ODD)
    for _ in range(2):
        model.forward_backward(*batch(ODD, 2, 13))
        UPDATES["muon"](model)
        held = copies(model.second_moments)
        assert {parameter.name for parameter in parameter_table(ODD) if parameter.muon} == {
            name for name, v in held.items() if not v.any()
        }
    name = "h.0.attn.c_attn.weight"
    model.set_moments(name, model.first_moments[name], np.ones_like(held[name]))
    assert model.second_moments[name].all()
    assert all(np.array_equal(model.second_moments[other], v) for other, v in held.items() if other != name)


@every_native_backend
def test_fresh_weights_are_those_of_numpy(backend: Backend) -> None:
    for seed in (0, 2**64 - 1):
        expected = GPT2(ODD, device="numpy", dtype="float32", seed=seed).parameters
        for name, value in backend.model(ODD, seed=seed).parameters.items():
            assert value.shape == expected[name].shape
            assert relative_l2(value, expected[name]) <= 1e-7, name


# ---- identities ----


@every_backend
@pytest.mark.parametrize("V", [2, 65, 1000])
def test_fresh_model_knows_nothing(backend: Backend, V: int) -> None:
    config = GPT2Config(vocab_size=V, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    assert backend.model(config).forward(*batch(config, 4, 16)) == pytest.approx(np.log(V), rel=0.05)


@every_backend
def test_key_bias_has_no_gradient_and_unused_rows_get_exactly_nothing(backend: Backend) -> None:
    model = model_of(backend, ODD)
    tokens, targets = batch(ODD, 2, 13)
    model.forward_backward(tokens, targets)
    for layer in range(2):
        query, key, value = np.split(model.gradients[f"h.{layer}.attn.c_attn.bias"].astype(np.float64), 3)
        summands = np.split(model.activation_gradients[f"h.{layer}.attn.c_attn"], 3, axis=-1)[1]
        rounded = backend.error_of_attention(np.linalg.norm(summands))
        assert np.linalg.norm(key) <= 2e-6 * np.linalg.norm(query) + rounded
        assert np.linalg.norm(key) <= 2e-6 * np.linalg.norm(value) + rounded
    assert np.all(model.gradients["wpe.weight"][13:] == 0)
    assert np.all(model.gradients["wpe.weight"][:13] != 0)
    assert np.all((model.gradients["wte.weight"] != 0).any(1))  # every row takes part in the tied head


@every_backend
def test_the_future_does_not_change_one_bit_of_the_past(backend: Backend) -> None:
    model = model_of(backend, ODD)
    tokens, _ = batch(ODD, 2, 13)
    model.forward(tokens)
    before = model.logits
    for t in (1, 2, 7, 12):
        changed = tokens.copy()
        changed[:, t:] = (changed[:, t:] + 1) % ODD.vocab_size
        model.forward(changed)
        assert np.array_equal(model.logits[:, :t], before[:, :t])
        assert not np.any(np.all(model.logits[:, t:] == before[:, t:], axis=-1))


@every_backend
def test_targets_that_are_left_out_do_not_count(backend: Backend) -> None:
    model = model_of(backend, ODD)
    tokens, targets = batch(ODD, 2, 13)
    targets[1] = -1
    loss = model.forward_backward(tokens, targets)
    alone = model_of(backend, ODD)
    assert alone.forward_backward(tokens[:1], targets[:1]) == pytest.approx(loss, rel=1e-6)
    assert np.all(model.activations["losses"][1] == 0)
    for name, gradient in alone.gradients.items():
        if "c_attn.bias" not in name:
            assert relative_l2(model.gradients[name], gradient.astype(np.float64)) <= 2e-6, name


@every_backend
def test_no_target_that_counts_is_a_loss_of_nothing(backend: Backend) -> None:
    """Such a micro-batch may stand among others; everything of it is 0, not 0/0."""
    model = model_of(backend, ODD)
    tokens, targets = batch(ODD, 2, 13)
    model.forward_backward(tokens, targets)
    before, nothing = copies(model.gradients), np.full_like(targets, -1)
    assert model.forward(tokens, nothing) == 0
    model.backward()
    assert model.forward_backward(tokens, nothing) == 0
    model.accumulate(tokens, nothing)
    for tensors in (model.activation_gradients, {"losses": model.activations["losses"]}):
        for name, value in tensors.items():
            assert not value.any(), name
    assert_same_bits(copies(model.gradients), before)


# ---- the same results whichever way ----


@every_backend
def test_forward_and_backward_apart_give_the_same_bits(backend: Backend) -> None:
    tokens, targets = batch(DROPOUT, 2, 13)
    together, apart = model_of(backend, DROPOUT), model_of(backend, DROPOUT)
    loss = together.forward_backward(tokens, targets, scale=0.5, dropout_step=3)
    assert apart.forward(tokens, targets, dropout_step=3) == loss
    apart.backward(scale=0.5)
    assert_same_bits(results(apart), results(together))
    assert_same_bits(copies(apart.activations), copies(together.activations))
    assert_same_bits(copies(apart.activation_gradients), copies(together.activation_gradients))


@every_native_backend
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(ODD, id="odd"),
        pytest.param(DROPOUT, id="dropout"),
        pytest.param(replace(ODD, n_layer=1), id="one_layer"),
        pytest.param(replace(ODD, n_layer=3), id="three_layers"),
        pytest.param(replace(ODD, layer_norm_epsilon=0.1), id="large_epsilon"),
        *(pytest.param(replace(ODD, **settings), id=name) for name, settings in VARIED.items()),
    ],
)
def test_recomputing_gives_the_same_bits(backend: Backend, config: GPT2Config) -> None:
    tokens, targets = batch(config, 2, 13)
    found = {}
    for recompute in ("none", "cheap", "block"):
        model = model_of(backend, config, recompute=recompute)
        losses = [model.forward_backward(*batch(config, *shape), dropout_step=1) for shape in ((1, 5), (2, 13))]
        losses.append(model.forward(tokens, targets, dropout_step=2))
        model.backward()
        found[recompute] = {**results(model), "losses": np.array(losses)}
    assert_same_bits(found["block"], found["none"])
    if backend.stores_bfloat16 and backend.kernels == "fast":
        # a product that applies GELU on its way has what it applies it to in float32, "cheap" has what was stored
        for name, value in found["none"].items():
            if "c_attn.bias" not in name:  # the key's part is 0 but for rounding
                assert relative_l2(found["cheap"][name], value.astype(np.float64)) <= 2e-2, name
    else:
        assert_same_bits(found["cheap"], found["none"])


@every_native_backend
@pytest.mark.parametrize("recompute", ["cheap", "block"])
def test_recomputing_puts_back_what_the_forward_pass_had(backend: Backend, recompute: str) -> None:
    config = replace(DROPOUT, n_layer=1)  # the one block has the buffers for itself
    model = model_of(backend, config, recompute=recompute)
    model.forward(*batch(config, 2, 13), dropout_step=1)
    before = copies(model.activations)
    model.backward()
    assert_same_bits(copies(model.activations), before)


@pytest.fixture
def threads() -> Iterator[Callable[[int | None], None]]:
    yield partial(pygpt.set_threads, beyond_cores=True)
    pygpt.set_threads(None)


@pytest.mark.parametrize("backend", ON_CPU, ids=str)
def test_same_bits_for_any_number_of_threads(backend: Backend, threads: Callable[[int], None]) -> None:
    config = replace(DROPOUT, n_embd=96, n_inner=None, n_positions=67)
    found = []
    for count in (1, 2, 3, 4, 1):
        threads(count)
        model = model_of(backend, config)
        for step in range(2):
            model.forward_backward(*batch(config, 3, 67, seed=step), dropout_step=step)
            norm = model.clip_grad_norm(1.0)
            model.adamw_step(lr=1e-3)
        found.append({**results(model), **copies(model.parameters), "norm": np.array(norm)})
    for other in found[1:]:
        assert_same_bits(other, found[0])


@every_backend
def test_buffers_of_another_size_change_nothing(backend: Backend) -> None:
    """Small, large, small, as many tokens in another shape: the results are those of a new model."""
    reused = model_of(backend, DROPOUT)
    for shape in ((1, 2), (3, 19), (1, 2), (2, 13), (19, 3), (1, 19), (2, 6), (3, 4), (4, 3)):
        tokens, targets = batch(DROPOUT, *shape)
        new = model_of(backend, DROPOUT)
        reused.zero_grad()
        for each in (new, reused):
            each.forward_backward(tokens, targets, dropout_step=1)
        assert_same_bits(results(reused), results(new))
        assert_same_bits(copies(reused.activations), copies(new.activations))
        assert_same_bits(copies(reused.activation_gradients), copies(new.activation_gradients))


@every_native_backend
def test_chunks_of_the_head_do_not_depend_on_earlier_sizes(backend: Backend) -> None:
    """Sums over the rows of a chunk are rounded at its end."""
    config = GPT2Config(vocab_size=50257, n_positions=500, n_embd=8, n_layer=1, n_head=1)
    larger, smaller = ((3, 500), (3, 433)) if backend.device == "cpu" else ((3, 32), (1, 31))
    tokens, targets = batch(config, *larger)
    new, reused = model_of(backend, config), model_of(backend, config)
    reused.forward(*batch(config, *smaller))
    for each in (new, reused):
        each.forward_backward(tokens, targets)
    assert_same_bits(copies(reused.gradients), copies(new.gradients))


@pytest.mark.parametrize("backend", [backend for backend in NATIVE if backend.device != "cuda-emulated"], ids=str)
def test_logits_have_room_where_a_longer_pass_would_need_less(backend: Backend) -> None:
    """The second pass is one chunk; one of twice its length, for which buffers grow, would be two smaller ones."""
    config = GPT2Config(vocab_size=50257, n_positions=1024, n_embd=8, n_layer=1, n_head=1)
    B = {"cpu": 2, "cuda": 8}[backend.device]
    model = model_of(backend, config)
    model.forward(*batch(config, B, 600))
    tokens, targets = batch(config, B, 650)
    assert model.forward(tokens, targets) == model_of(backend, config).forward(tokens, targets)


@every_backend
def test_forward_pass_of_another_size_between(backend: Backend) -> None:
    """A validation pass leaves the gradients alone; a backward pass goes back the latest forward pass."""
    model = model_of(backend, ODD)
    first, second = batch(ODD, 2, 13), batch(ODD, 3, 7, seed=1)
    model.forward_backward(*first)
    before = copies(model.gradients)
    model.forward(*second)
    assert_same_bits(copies(model.gradients), before)
    model.zero_grad()
    model.backward()
    expected = model_of(backend, ODD)
    expected.forward_backward(*second)
    assert_same_bits(copies(model.gradients), copies(expected.gradients))


@every_backend
def test_views_outlive_growth_and_the_model(backend: Backend) -> None:
    model = model_of(backend, ODD)
    model.forward_backward(*batch(ODD, 1, 2))
    kinds = (model.parameters, model.gradients, model.activations, model.activation_gradients)
    views = [dict(kind.items()) for kind in kinds]
    before = [copies(view) for view in views]
    for shape in ((2, 13), (8, 19)):  # the activations move; parameters and gradients stay
        model.forward(*batch(ODD, *shape))
    after_growth = [copies(view) for view in views]
    del model, kinds
    gc.collect()
    for _ in range(20):  # takes the memory that was given back, if there was any
        model_of(backend, ODD).forward_backward(*batch(ODD, 2, 3))
    for view, growth, start in zip(views, after_growth, before, strict=True):
        assert_same_bits(growth, start)
        assert_same_bits(view, start)


@pytest.mark.parametrize("backend", [backend for backend in PRESENT if backend.device in ("numpy", "cpu")], ids=str)
def test_parameters_and_gradients_are_the_model_s_own_memory(backend: Backend) -> None:
    model = model_of(backend, ODD)
    tokens, targets = batch(ODD, 2, 13)
    loss = model.forward_backward(tokens, targets)
    model.parameters["ln_f.weight"][...] *= 1.5
    assert model.forward(tokens, targets) != loss
    model.gradients["wpe.weight"][...] = 7
    model.clip_grad_norm(0.0)
    assert np.all(model.gradients["wpe.weight"] == 7)
    model.zero_grad()
    assert not any(gradient.any() for gradient in model.gradients.values())


@pytest.mark.parametrize("backend", [backend for backend in PRESENT if backend.device.startswith("cuda")], ids=str)
def test_arrays_of_a_device_are_copies_that_nobody_changes_in_vain(backend: Backend) -> None:
    model = model_of(backend, ODD)
    tokens, targets = batch(ODD, 2, 13)
    loss = model.forward_backward(tokens, targets)
    weight = model.parameters["ln_f.weight"]
    for tensors in (model.parameters, model.gradients, model.activations, model.activation_gradients):
        with pytest.raises(ValueError, match="read-only"):
            next(iter(tensors.values()))[...] = 0
    model.set_parameter("ln_f.weight", 1.5 * weight)
    assert np.array_equal(model.parameters["ln_f.weight"], np.float32(1.5) * weight)
    assert model.forward(tokens, targets) != loss


# ---- copies ----


@every_backend
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_copy_goes_on_as_the_model_does_and_shares_nothing(
    backend: Backend, make: Callable[[GPT2], GPT2], update: Callable[[GPT2], None]
) -> None:
    def step(model: GPT2) -> dict[str, Array]:
        model.zero_grad()
        model.forward_backward(*batch(DROPOUT, 2, 13, seed=model.steps), dropout_step=model.steps)
        update(model)
        return copies(model.parameters)

    settings = {} if backend.device == "numpy" else {"recompute": "cheap"}
    model = model_of(backend, DROPOUT, seed=7, **settings)
    fresh = make(model)
    assert_same_bits(copies(fresh.parameters), copies(model.parameters))
    for _ in range(2):
        step(model)
    before, other = copies(model.parameters), make(model)
    for name in ("config", "device", "dtype", "kernels", "recompute", "seed", "steps"):
        assert getattr(other, name) == getattr(model, name)
    expected = step(other)
    assert_same_bits(copies(model.parameters), before)
    assert_same_bits(step(model), expected)


def moments_in_memory(model: GPT2, kind: str) -> set[str]:
    """The parameters of which the model has room for this moment."""
    tensors = getattr(model, kind)
    data, size = ffi().new("float **"), ffi().new("int64_t *")
    check(tensors.library, tensors.library.gpt2_buffer(tensors.handle, data, size, KINDS[kind]))
    tensors.library.pygpt_release(data[0])
    return {name for name in tensors if tensors.place(name).stop <= size[0]}


@every_native_backend
@pytest.mark.parametrize("optimizer", UPDATES)
def test_copy_and_model_have_memory_for_the_moments_of_their_optimizer_alone(backend: Backend, optimizer: str) -> None:
    """Neither copying them nor reading them makes room for more."""
    everything = {parameter.name for parameter in parameter_table(ODD)}
    adamw = {"adamw": everything, "muon": {p.name for p in parameter_table(ODD) if not p.muon}}.get(optimizer, set())
    expected = {"first_moments": set() if optimizer == "sgd" else everything, "second_moments": adamw}
    model = model_of(backend, ODD)
    model.forward_backward(*batch(ODD, 2, 13))
    UPDATES[optimizer](model)
    for kind, names in expected.items():
        assert {name for name, moment in getattr(model, kind).items() if moment.any()} == names
        for each in (model, copy.deepcopy(model)):
            assert moments_in_memory(each, kind) == names


# ---- accumulation ----


def test_head_in_several_chunks_gives_the_sum_of_its_parts() -> None:
    """Of GPT-2's vocabulary, 1,335 rows of logits exist at a time; each half of this batch is one chunk."""
    backend = Backend("cpu", "float32", "fast")
    config = GPT2Config(vocab_size=50257, n_positions=700, n_embd=8, n_layer=1, n_head=1)
    tokens, targets = np.random.default_rng(3).integers(0, config.vocab_size, (2, 2, 700))
    whole, halves = model_of(backend, config), model_of(backend, config)
    loss = whole.forward_backward(tokens, targets)
    losses = [halves.forward_backward(tokens[i : i + 1], targets[i : i + 1], scale=0.5) for i in (0, 1)]
    assert np.mean(losses) == pytest.approx(loss, rel=1e-6)
    assert whole.forward(tokens, targets) == loss
    for name, gradient in whole.gradients.items():
        assert relative_l2(halves.gradients[name], gradient.astype(np.float64)) <= 1e-5, name


@every_backend
def test_gradients_add_up(backend: Backend) -> None:
    """Two halves of a batch give what the whole gives."""
    tokens, targets = np.random.default_rng(3).integers(0, ODD.vocab_size, (2, 4, 13))
    whole, halves = model_of(backend, ODD), model_of(backend, ODD)
    loss = whole.forward_backward(tokens, targets)
    losses = [halves.forward_backward(tokens[i : i + 2], targets[i : i + 2], scale=0.5) for i in (0, 2)]
    assert np.mean(losses) == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.gradients.items():
        # in bfloat16 the products of half a batch are rounded alike, sums of them are not
        assert relative_l2(halves.gradients[name], gradient.astype(np.float64)) <= 1e-5, name


@every_backend
def test_micro_batches_that_count_different_numbers_of_targets_add_up(backend: Backend) -> None:
    """The scale of each is the number of its targets that count, divided by that in all."""
    tokens, targets = np.random.default_rng(3).integers(0, ODD.vocab_size, (2, 4, 13))
    targets[0, 3:] = targets[2] = targets[3, 1] = -1
    counted = [(targets[i : i + 1] >= 0).sum() for i in range(4)]
    assert len(set(counted)) == 4 and 0 in counted
    whole, parts = model_of(backend, ODD), model_of(backend, ODD)
    loss = whole.forward_backward(tokens, targets)
    for i in range(4):
        parts.accumulate(tokens[i : i + 1], targets[i : i + 1], scale=counted[i] / sum(counted))
    assert parts.summed_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.gradients.items():
        assert relative_l2(parts.gradients[name], gradient.astype(np.float64)) <= 1e-5, name


@every_backend
def test_loss_that_is_read_later_is_the_same(backend: Backend) -> None:
    """Of every backward pass since the gradients were zero, and of nothing else."""
    model = model_of(backend, ODD)
    assert model.summed_loss == 0
    for step in range(3):
        model.forward(*batch(ODD, 1, 5, seed=step))
        model.zero_grad()
        assert model.summed_loss == 0
        first = model.forward_backward(*batch(ODD, 2, 13, seed=step), scale=0.5)
        model.accumulate(*batch(ODD, 2, 7, seed=step), scale=0.25)
        norm, both = model.clip_grad_norm(0), model.summed_loss
        second = model.forward(*batch(ODD, 2, 7, seed=step))
        expected = 0.5 * first + 0.25 * second
        assert both == pytest.approx(expected, rel=1e-7) and norm > 0
        model.adamw_step(lr=1e-3)
        model.forward(*batch(ODD, 2, 7, seed=step))
        assert model.summed_loss == both
        model.backward(scale=2.0)
        assert model.summed_loss > both


@every_backend
def test_what_is_wrong_with_a_pass_shows_when_its_loss_is_read(backend: Backend) -> None:
    model = model_of(backend, ODD)
    with pytest.raises(UserError, match=r"token 37 .*expected 0 (to|\.\.\.) 36"):
        model.accumulate(np.array([[0, 37]]), np.array([[0, 1]]))
        model.clip_grad_norm(1.0)
    assert model.forward_backward(*batch(ODD, 2, 3)) > 0


@every_backend
def test_backward_twice_and_scaled(backend: Backend) -> None:
    model = model_of(backend, ODD)
    model.forward_backward(*batch(ODD, 2, 13))
    once = copies(model.gradients)
    model.backward(scale=0.5)
    for name, gradient in model.gradients.items():
        assert relative_l2(gradient, 1.5 * once[name].astype(np.float64)) <= 2e-6, name


@every_backend
@pytest.mark.parametrize("config", [ODD, replace(ODD, vocab_size=25000)], ids=lambda c: f"{c.vocab_size}")
def test_clipping(backend: Backend, config: GPT2Config) -> None:
    """Of 8 thousand numbers, and of 600 thousand, which are summed in more than one round (cuda/layers/norm.cu)."""
    model = model_of(backend, config)
    model.forward_backward(*batch(config, 1, 3))
    before = copies(model.gradients)
    expected = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in before.values()))
    assert model.clip_grad_norm(0.0) == pytest.approx(expected, rel=1e-7)
    assert model.clip_grad_norm(2 * expected) == pytest.approx(expected, rel=1e-7)
    assert_same_bits(copies(model.gradients), before)
    assert model.clip_grad_norm(expected / 3) == pytest.approx(expected, rel=1e-7)
    for name, gradient in model.gradients.items():
        assert relative_l2(gradient, before[name] / 3.0) <= 1e-6, name


# ---- dropout ----


@every_backend
def test_dropout_draws_the_masks_of_numpy(backend: Backend) -> None:
    """Each residual branch, element by element; the rest of the masks shows in the bounds above."""
    tokens, targets = batch(DROPOUT, 2, 13)
    model = model_of(backend, DROPOUT, seed=2**40 + 3)
    losses = []
    for step in (0, 5, 2**32 - 3):
        losses.append(model.forward(tokens, targets, dropout_step=step))
        for site, name in ((0, "drop"), (2, "h.0.attn.resid_dropout"), (3, "h.0.mlp.dropout"), (6, "h.1.mlp.dropout")):
            p = DROPOUT.embd_pdrop if site == 0 else DROPOUT.resid_pdrop
            mask = pygpt.Dropout(p, seed=2**40 + 3, site=site, step=step).keep((2, 13, 24))
            assert np.array_equal(model.activations[name] != 0, mask), name
    losses.append(model.forward(tokens, targets))
    assert len(set(losses)) == 4
    assert np.all(model.activations["drop"] == model.activations["embd"])
    assert model.forward(tokens, targets, dropout_step=5) == losses[1]


# ---- what can be asked for ----


@every_backend
def test_logits_and_attention_probabilities(backend: Backend) -> None:
    model = model_of(backend, ODD)
    tokens, _ = batch(ODD, 2, 13)
    assert model.forward(tokens) is None
    logits = model.logits
    assert logits.shape == (2, 13, 37)
    assert relative_l2(model.last_logits(), logits[:, -1].astype(np.float64)) <= 2e-6
    exact = GPT2(ODD, device="numpy", dtype="float64")
    for name, value in model.parameters.items():
        exact.set_parameter(name, value)
    exact.forward(tokens)
    for layer in range(2):
        p = model.attention_probabilities(layer)
        assert p.shape == (2, 3, 13, 13)
        bound = 1e-5 if backend.dtype == "float32" else 2e-2
        assert relative_l2(p, exact.attention_probabilities(layer)) <= bound


@every_native_backend
def test_interrupt_after_a_pass_leaves_its_sizes_known(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches Python when the library's call returns."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    model = model_of(backend, ODD)
    model.forward(*batch(ODD, 1, 2))
    monkeypatch.setattr(native_model, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.forward(*batch(ODD, 3, 13))
    monkeypatch.undo()
    assert model.attention_probabilities(0).shape == (3, 3, 13, 13)
    assert model.logits.shape == (3, 13, 37)
    assert model.activations["embd"].shape == (3, 13, 24)


@every_backend
def test_tensors_have_the_documented_names(backend: Backend) -> None:
    model, reference = model_of(backend, DROPOUT), GPT2(DROPOUT, device="numpy")
    for each in (model, reference):
        each.forward_backward(*batch(DROPOUT, 2, 3), dropout_step=0)
    for kind in ("parameters", "gradients", "first_moments", "second_moments", "activations", "activation_gradients"):
        found, expected = getattr(model, kind), getattr(reference, kind)
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in expected.items()
        }
    assert model.num_parameters == sum(value.size for value in model.parameters.values())


# ---- wrong input ----

ONE = np.zeros((1, 2), int)
FAR = np.arange(58 * 19).reshape(58, 19) == 58 * 19 - 1  # the last one of more than 1,024
AT_ITS_END = "(at row 57, position 18|is outside the vocabulary)"


@every_backend
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.forward(np.zeros((1, 20), int)), "20|19"),
        (lambda m: m.forward(np.array([[0, 37]])), "token 37 .*expected 0 (to|\\.\\.\\.) 36"),
        (lambda m: m.forward(np.array([[-1, 4]])), "token -1 .*expected 0 (to|\\.\\.\\.) 36"),
        (lambda m: m.forward(np.array([[2**32, 4]])), "token 2147483647 .*expected 0"),
        (lambda m: m.forward(np.zeros(3, int)), r"tokens have shape \(3,\)"),
        (lambda m: m.forward(np.zeros((1, 3))), "dtype float64, expected integers"),
        (lambda m: m.forward(np.zeros((0, 3), int)), r"tokens ha(ve|s) shape \(0, 3\)"),
        (lambda m: m.forward(np.zeros((2, 0), int)), r"tokens ha(ve|s) shape \(2, 0\)"),
        (lambda m: m.forward(ONE, np.array([[37, 0]])), "target 37"),
        (lambda m: m.forward(np.where(FAR, 37, 0)), f"token 37 {AT_ITS_END}"),
        (lambda m: m.forward(np.where(FAR, 0, 1), np.where(FAR, 37, 0)), f"target 37 {AT_ITS_END}"),
        (lambda m: m.forward(ONE, np.zeros((1, 3), int)), r"targets has shape \(1, 3\), expected \(1, 2\)"),
        (lambda m: m.forward_backward(ONE, np.zeros((1, 3), int)), r"targets has shape \(1, 3\)"),
        (lambda m: m.backward(), "needs a forward pass with"),
        (lambda m: (m.forward(ONE), m.backward()), "needs a forward pass with"),
        (lambda m: m.logits, "forward pass"),
        (lambda m: m.last_logits(), "forward pass"),
        (lambda m: m.attention_probabilities(0), "forward pass"),
        (lambda m: (m.forward(ONE), m.attention_probabilities(2)), "expected 0 (to|\\.\\.\\.) 1"),
        (lambda m: (m.forward(ONE), m.attention_probabilities(-1)), "expected 0 (to|\\.\\.\\.) 1"),
        (lambda m: m.set_parameter("wte", 0), "parameter wte is unknown"),
        (lambda m: m.set_parameter("ln_f.bias", np.zeros(3)), r"ln_f.bias has shape \(3,\), expected \(24,\)"),
    ],
)
def test_wrong_input_is_answered_in_a_sentence(backend: Backend, call: Callable[[GPT2], Any], message: str) -> None:
    model = backend.model(ODD)
    with pytest.raises(UserError, match=message):
        call(model)
    assert model.forward_backward(*batch(ODD, 2, 3)) > 0  # and the model works as before


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"device": "tpu"}, "device is 'tpu', expected auto, cpu, cuda, cuda-emulated, numpy"),
        ({"dtype": "float16"}, "dtype is 'float16', expected 'float32' or 'bfloat16'"),
        ({"device": "numpy", "dtype": "float16"}, "dtype is 'float16'"),
        ({"kernels": "fastest"}, "kernels is 'fastest', expected 'plain' or 'fast'"),
        ({"recompute": "all"}, "recompute is 'all', expected 'none' or 'cheap' or 'block'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_wrong_settings_are_answered_in_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPT2(ODD, **settings)
    if "seed" not in settings:
        with pytest.raises(UserError, match=message):
            memory_needed(ODD, batch_size=1, seq_len=1, training=False, **settings)


@every_native_backend
def test_activations_that_are_not_there(backend: Backend) -> None:
    model = backend.model(ODD)
    with pytest.raises((UserError, KeyError)):
        model.activations["embd"]
    model.forward(*batch(ODD, 1, 2))
    with pytest.raises(UserError, match="before a backward pass"):
        model.activation_gradients["embd"]
    model.backward()
    model.forward(*batch(ODD, 8, 19))
    with pytest.raises(UserError, match="before a backward pass"):  # the former ones have another size
        model.activation_gradients["embd"]
    with pytest.raises(KeyError):
        model.activations["h.2.ln_1"]


def test_recomputing_keeps_no_attention_to_ask_for() -> None:
    model = GPT2(ODD, recompute="block")
    model.forward(*batch(ODD, 1, 2))
    with pytest.raises(UserError, match='this model has "block"'):
        model.attention_probabilities(0)


def test_model_that_no_memory_can_hold() -> None:
    with pytest.raises(MemoryError, match=r"no memory for the parameters: .* GiB"):
        GPT2(GPT2Config(vocab_size=2**31 - 1, n_positions=1, n_embd=2**20, n_layer=1, n_head=1))


@pytest.mark.parametrize("threads", [0, 10_000])
def test_threads_that_cannot_help(threads: int) -> None:
    with pytest.raises(UserError, match=f"threads is {threads}, expected at "):
        pygpt.set_threads(threads)


def test_bfloat16_without_its_products_says_so_once() -> None:
    program = "import pygpt; [pygpt.GPT2(pygpt.GPT2Config(2, 1, 8, 1, 1), dtype='bfloat16') for _ in range(2)]"
    environment = {**os.environ, "PYGPT_ISA": "baseline"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stderr.count("baseline has no bfloat16 products") == 1


def test_import_is_quick() -> None:
    """It loads neither what reads and downloads files nor what shows anything: those take longer than all else."""
    slow = ["huggingface_hub", "matplotlib", "safetensors", "tiktoken", "tqdm", "urllib.request"]
    program = f"import pygpt, sys; print([name for name in {slow} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
