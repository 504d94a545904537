"""The model's graph, reference/gpt2.py, over other layers than numpy's: a library's, and those that only note."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import backends
import numpy as np
import pytest
from variations import VARIED

import pygpt
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.backends.recorder import OUTPUTS, Place, record
from pygpt.reference import gpt2
from pygpt.reference.dropout import Dropout

Array = np.ndarray[Any, Any]

PLAIN = pygpt.GPT2Config(vocab_size=37, n_positions=11, n_embd=24, n_layer=2, n_head=3, n_inner=40)
CONFIGS = {
    "no dropout": PLAIN,
    "on the embedding": replace(PLAIN, embd_pdrop=0.1),
    "in attention": replace(PLAIN, attn_pdrop=0.2),
    "on branches": replace(PLAIN, resid_pdrop=0.3),
    "everywhere": replace(PLAIN, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3),
}
POST_NORM = replace(CONFIGS["everywhere"], norm_position="post")  # in which gradients are added up beside the calls
DROP = Dropout(0.0, seed=7, step=3)
CPU = [backend for backend in backends.PRESENT if backend.device == "cpu"]


def batch() -> tuple[Array, Array]:
    """Tokens are repeated, and a target is left out."""
    tokens, targets = np.random.default_rng(0).integers(0, 37, (2, 2, 9), np.int32)
    targets[0, 2] = -1
    return tokens, targets


def expect_the_same_bits(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("drop", [None, DROP], ids=["evaluation", "training"])
@pytest.mark.parametrize("config", [*CONFIGS.values(), POST_NORM], ids=[*CONFIGS, "post-norm"])
@pytest.mark.parametrize("backend", CPU, ids=str)
def test_over_the_layers_of_a_library_it_is_the_model_of_the_library(
    backend: backends.Backend, config: pygpt.GPT2Config, drop: Dropout | None
) -> None:
    model, (tokens, targets) = backend.model(config, seed=DROP.seed), batch()
    model.forward_backward(tokens, targets, dropout_step=drop and drop.step)
    gradients = gpt2.zeros(config, np.float32)
    p, ops = model.parameters, backend.layers()
    a = gpt2.forward(ops, p, config, tokens, targets, drop)
    dlosses = gpt2.mean_loss_backward(targets, 1.0, np.float32)
    losses, da = gpt2.backward(ops, p, gradients, a, config, tokens, targets, dlosses, drop)
    expect_the_same_bits(a, model.activations)
    expect_the_same_bits(da, model.activation_gradients)
    expect_the_same_bits(gradients, model.gradients)
    assert np.array_equal(losses, a["losses"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_recorded_calls_made_one_after_the_other_are_the_passes(config: pygpt.GPT2Config) -> None:
    model, (tokens, targets) = ReferenceGPT2(config), batch()
    model.init_weights(0)
    model.forward_backward(tokens, targets, dropout=DROP)
    ops = ReferenceLayers()
    made: dict[tuple[str, str | None], Array] = {}
    made["activation_gradients", "losses"] = gpt2.mean_loss_backward(targets, 1.0, np.float64)
    for name, value in gpt2.zeros(config, np.float64).items():
        made["gradients", name] = value
    for call in record(config, model.parameters, tokens, targets, DROP):
        operation = getattr(ops, call.operation)
        places = {name: (place.kind, place.name) for name, place in call.outputs.items()}
        added_to = places.keys() & signature(operation).parameters.keys()
        buffers = {name: made[places[name]] for name in added_to if places[name] in made}
        inputs = {name: made[v.kind, v.name] if isinstance(v, Place) else v for name, v in call.inputs.items()}
        found = operation(**inputs, **buffers)
        outputs = zip(OUTPUTS[call.operation], found if isinstance(found, tuple) else (found,), strict=True)
        made |= {places[name]: value for name, value in outputs if name in places}
    for kind in ("activations", "activation_gradients", "gradients"):
        expect_the_same_bits({n: value for (k, n), value in made.items() if k == kind}, getattr(model, kind))


def test_recorded_calls_have_the_names_of_activations() -> None:
    config = CONFIGS["everywhere"]
    calls = record(config, gpt2.zeros(config, np.float64), *batch(), DROP)
    forward = [call.name for call in calls if call.direction == "forward"]
    backward = [call.name for call in calls if call.direction == "backward"]
    assert forward[:3] == ["embd", "drop", "h.0.ln_1"] and forward[-2:] == ["ln_f", "losses"]
    assert sorted(backward) == sorted(forward) and backward[0] == "losses" and backward[-1] == "embd"


def test_every_layer_is_called_by_some_model() -> None:
    called = set()
    for fields in VARIED.values():
        config = replace(CONFIGS["everywhere"], **fields)
        called |= {call.layer for call in record(config, gpt2.zeros(config, np.float64), *batch(), DROP)}
    assert called == {name.rpartition("_")[0] for name in OUTPUTS}


def test_outputs_of_layers_have_the_documented_names() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^ops\.(\w+)\(.*?\) +-> (\w+(?:, \w+)*)", text, re.MULTILINE))
    for operation, outputs in OUTPUTS.items():
        assert ", ".join(outputs) == documented[operation], operation
