"""The whole numpy model: derivative, identities, the table of parameters, and what it answers to wrong input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from variations import VARIED

from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.parameters import parameter_table
from pygpt.reference.dropout import Dropout

Array = np.ndarray[Any, Any]
H = 1e-30

LEAST = GPT2Config(vocab_size=2, n_positions=1, n_embd=8, n_layer=1, n_head=1)
TINY = GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=2, n_head=2, n_inner=6)
TINY_DROPOUT = GPT2Config(
    vocab_size=5, n_positions=4, n_embd=4, n_layer=2, n_head=2, embd_pdrop=0.2, attn_pdrop=0.3, resid_pdrop=0.4
)
ODD = GPT2Config(vocab_size=37, n_positions=11, n_embd=24, n_layer=2, n_head=3, n_inner=40)


def relative_l2(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def model_of(config: GPT2Config, dtype: Any = np.float64) -> ReferenceGPT2:
    """A model whose parameters are all far from zero, so that no gradient is accidentally small."""
    rng = np.random.default_rng(0)
    model = ReferenceGPT2(config, dtype)
    for name, value in model.parameters.items():
        value[...] = rng.normal(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.4, value.shape)
    return model


def batch(config: GPT2Config, B: int, T: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
    if B * T > 2:
        targets[0, 0] = -1
    return tokens, targets


def complex_copy(model: ReferenceGPT2) -> ReferenceGPT2:
    copy = ReferenceGPT2(model.config, np.complex128)
    for name, value in model.parameters.items():
        copy.parameters[name][...] = value
    return copy


@pytest.mark.parametrize(
    "config, B, T, dropout",
    [
        pytest.param(LEAST, 1, 1, None, id="least"),
        pytest.param(TINY, 2, 3, None, id="tiny"),
        pytest.param(TINY_DROPOUT, 2, 4, Dropout(0.0, seed=3, step=7), id="dropout"),
        *(pytest.param(replace(TINY, **settings), 2, 4, None, id=name) for name, settings in VARIED.items()),
    ],
)
def test_every_gradient_is_the_derivative_of_the_loss(
    config: GPT2Config, B: int, T: int, dropout: Dropout | None
) -> None:
    """Element by element."""
    model = model_of(config)
    tokens, targets = batch(config, B, T)
    model.forward_backward(tokens, targets, dropout=dropout)
    stepped = complex_copy(model)
    for name, value in stepped.parameters.items():
        expected = np.empty(value.shape)
        for index in np.ndindex(value.shape):
            value[index] += 1j * H
            expected[index] = stepped.forward(tokens, targets, dropout).imag / H
            value[index] = value[index].real
        if expected.any() or model.gradients[name].any():
            assert relative_l2(model.gradients[name], expected) <= 1e-13, name


def test_gradients_along_random_directions() -> None:
    """A larger model, one parameter at a time."""
    model = model_of(ODD)
    tokens, targets = batch(ODD, 2, 7)
    model.forward_backward(tokens, targets)
    stepped = complex_copy(model)
    rng = np.random.default_rng(2)
    for name, value in stepped.parameters.items():
        gradient = model.gradients[name]
        direction = rng.normal(size=value.shape) + gradient / np.linalg.norm(gradient)  # never orthogonal to it
        value += 1j * H * direction
        expected = stepped.forward(tokens, targets).imag / H
        value[...] = value.real
        along = (gradient * direction).sum()
        assert abs(along - expected) <= 1e-13 * np.linalg.norm(gradient) * np.linalg.norm(direction), name


def test_activation_gradients_are_derivatives_too() -> None:
    """Through the bias behind an activation: d(loss)/d(bias) = Σ over positions of d(loss)/d(activation)."""
    model = model_of(ODD)
    model.forward_backward(*batch(ODD, 2, 7))
    layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2"]
    for name in [f"h.{layer}.{part}" for layer in range(2) for part in layers] + ["ln_f"]:
        total = model.activation_gradients[name].sum((0, 1))
        assert relative_l2(total, model.gradients[f"{name}.bias"]) <= 1e-13, name
    assert relative_l2(model.activation_gradients["embd"].sum(0), model.gradients["wpe.weight"][:7]) <= 1e-15


def test_activations_have_the_documented_names_and_shapes() -> None:
    B, T, C, inner, NH = 2, 3, 4, 16, 2
    model = model_of(TINY_DROPOUT)
    model.forward_backward(*batch(TINY_DROPOUT, B, T), dropout=Dropout(0.0, seed=1))
    shapes: dict[str, tuple[int, ...]] = {"embd": (B, T, C), "drop": (B, T, C)}
    for h in ("h.0", "h.1"):
        for ln in (f"{h}.ln_1", f"{h}.ln_2"):
            shapes |= {ln: (B, T, C), f"{ln}.mean": (B, T), f"{ln}.rstd": (B, T)}
        shapes |= {f"{h}.attn.c_attn": (B, T, 3 * C), f"{h}.attn.lse": (B, NH, T), f"{h}.attn.heads": (B, T, C)}
        shapes |= {f"{h}.attn.c_proj": (B, T, C), f"{h}.attn.resid_dropout": (B, T, C), f"{h}.resid_mid": (B, T, C)}
        shapes |= {f"{h}.mlp.c_fc": (B, T, inner), f"{h}.mlp.act": (B, T, inner), f"{h}.mlp.c_proj": (B, T, C)}
        shapes |= {f"{h}.mlp.dropout": (B, T, C), f"{h}.resid_post": (B, T, C)}
    shapes |= {"ln_f": (B, T, C), "ln_f.mean": (B, T), "ln_f.rstd": (B, T), "losses": (B, T)}
    assert {name: value.shape for name, value in model.activations.items()} == shapes
    with_gradient = {name: s for name, s in shapes.items() if name.rsplit(".", 1)[-1] not in ("mean", "rstd", "lse")}
    assert {name: value.shape for name, value in model.activation_gradients.items()} == with_gradient

    plain = model_of(TINY)
    plain.forward(batch(TINY, B, T)[0])
    optional = {name for name in shapes if "drop" in name} | {"losses"}
    assert plain.activations.keys() == shapes.keys() - optional


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_future_does_not_change_one_bit_of_the_past(dtype: Any) -> None:
    model = model_of(ODD, dtype)
    tokens, _ = batch(ODD, 2, 11)
    model.forward(tokens)
    before = model.logits(0, 22).reshape(2, 11, -1)
    for t in range(1, 11):
        changed = tokens.copy()
        changed[:, t:] = (changed[:, t:] + 1) % ODD.vocab_size
        model.forward(changed)
        after = model.logits(0, 22).reshape(2, 11, -1)
        assert np.array_equal(after[:, :t], before[:, :t])
        assert not np.any(np.all(after[:, t:] == before[:, t:], axis=-1))


def test_unused_rows_of_the_embeddings_get_exactly_nothing() -> None:
    model = model_of(ODD)
    tokens, targets = batch(ODD, 2, 7)
    model.forward_backward(tokens, targets)
    assert np.all(model.gradients["wpe.weight"][7:] == 0)
    assert np.all(model.gradients["wpe.weight"][:7] != 0)
    assert np.all(np.any(model.gradients["wte.weight"] != 0, axis=1))  # every row takes part in the tied head


def test_key_bias_has_no_gradient() -> None:
    model = model_of(ODD)
    model.forward_backward(*batch(ODD, 2, 7))
    for layer in range(2):
        q, k, v = np.split(model.gradients[f"h.{layer}.attn.c_attn.bias"], 3)
        assert np.linalg.norm(k) <= 1e-13 * np.linalg.norm(q)
        assert np.linalg.norm(k) <= 1e-13 * np.linalg.norm(v)


def test_gradient_of_the_tied_matrix_has_two_parts() -> None:
    """A token that is not in the batch gets only the head's part, which is linear in ln_f's output."""
    model = model_of(ODD)
    tokens, targets = batch(ODD, 2, 7)
    model.forward_backward(tokens, targets)
    logits = model.logits(0, 14)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    flat = targets.reshape(-1)
    dlogits = (p - np.eye(37)[flat]) * (flat >= 0)[:, None] / (flat >= 0).sum()
    head = dlogits.T @ model.activations["ln_f"].reshape(14, -1)
    absent = np.setdiff1d(np.arange(37), tokens)
    assert relative_l2(model.gradients["wte.weight"][absent], head[absent]) <= 1e-13
    rest = model.gradients["wte.weight"] - head
    for token in np.unique(tokens):
        expected = model.activation_gradients["embd"][tokens == token].sum(0)
        assert relative_l2(rest[token], expected) <= 1e-12


@pytest.mark.parametrize("V", [2, 65, 5000])
def test_fresh_model_knows_nothing(V: int) -> None:
    config = GPT2Config(vocab_size=V, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    model = ReferenceGPT2(config)
    model.init_weights(0)
    tokens, targets = batch(config, 4, 32)
    assert model.forward(tokens, targets) == pytest.approx(np.log(V), rel=0.05)


def test_backward_scales_and_accumulates() -> None:
    model = model_of(TINY)
    tokens, targets = batch(TINY, 2, 3)
    model.forward_backward(tokens, targets)
    once = {name: gradient.copy() for name, gradient in model.gradients.items()}
    model.backward(scale=0.5)
    for name, gradient in model.gradients.items():
        assert relative_l2(gradient, 1.5 * once[name]) <= 1e-14, name
    model.zero_grad()
    assert not any(gradient.any() for gradient in model.gradients.values())


def test_both_passes_in_one_call_give_the_same_bits() -> None:
    one, two = model_of(TINY_DROPOUT), model_of(TINY_DROPOUT)
    tokens, targets = batch(TINY_DROPOUT, 2, 3)
    drop = Dropout(0.0, seed=4, step=1)
    loss = two.forward(tokens, targets, drop)
    two.backward(0.5)
    assert one.forward_backward(tokens, targets, 0.5, drop) == loss
    for kind in ("gradients", "activations", "activation_gradients"):
        values, expected = getattr(one, kind), getattr(two, kind)
        assert values.keys() == expected.keys()
        assert all(np.array_equal(values[name], expected[name]) for name in expected), kind


def test_loss_is_the_mean_over_the_targets_that_count() -> None:
    model = model_of(TINY)
    tokens, targets = batch(TINY, 2, 3)
    loss = model.forward(tokens, targets)
    losses = model.activations["losses"]
    assert loss == pytest.approx(losses.sum() / 5, rel=1e-15)
    assert losses[0, 0] == 0
    nothing = np.full_like(targets, -1)
    assert model.forward(tokens, nothing) == 0
    model.backward()
    assert model.forward_backward(tokens, nothing) == 0
    assert not any(gradient.any() for gradient in model.gradients.values())


def test_logits_and_attention_probabilities() -> None:
    model = model_of(ODD)
    tokens, _ = batch(ODD, 2, 7)
    assert model.forward(tokens) is None
    whole = model.logits(0, 14)
    assert whole.shape == (14, 37)
    assert relative_l2(model.logits(3, 2), whole[3:5]) <= 1e-15
    assert model.attention_probabilities(1).shape == (2, 3, 7, 7)


def test_dropout_only_when_asked_for_and_the_same_for_the_same_step() -> None:
    model = model_of(TINY_DROPOUT)
    tokens, targets = batch(TINY_DROPOUT, 2, 4)
    plain = model_of(GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=2, n_head=2)).forward(tokens, targets)
    assert model.forward(tokens, targets) == plain
    drawn = [model.forward(tokens, targets, Dropout(0.0, seed=1, step=step)) for step in (0, 1, 0)]
    assert drawn[0] == drawn[2]
    assert len({plain, drawn[0], drawn[1]}) == 3
    assert model.forward(tokens, targets, Dropout(0.0, seed=2, step=0)) not in drawn


def test_parameter_table() -> None:
    names = [parameter.name for parameter in parameter_table(TINY)]
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    layers = ["wte", "wpe"] + [f"h.{layer}.{part}" for layer in range(2) for part in block] + ["ln_f"]
    expected = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert names == [name for name in expected if name not in ("wte.bias", "wpe.bias")]
    table = {parameter.name: parameter for parameter in parameter_table(TINY)}
    assert table["h.1.attn.c_attn.weight"].shape == (4, 12)
    assert table["h.1.mlp.c_proj.weight"].shape == (6, 4)
    assert {name for name in names if not table[name].weight_decay} == {
        name for name in names if name.endswith("bias") or "ln_" in name
    }
    # the sizes of GPT-2 124M, and its number of parameters
    assert sum(np.prod(parameter.shape) for parameter in parameter_table(GPT2Config())) == 124_439_808


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.forward(np.zeros((1, 5), int)), "sequence length is 5, expected at most n_positions = 4"),
        (lambda m: m.forward(np.array([[0, 5]])), "token 5 is outside the vocabulary, expected 0 to 4"),
        (lambda m: m.forward(np.array([[-1, 4]])), "token -1 is outside the vocabulary, expected 0 to 4"),
        (lambda m: m.forward(np.zeros(3, int)), r"tokens has shape \(3,\), expected \(B, T\)"),
        (lambda m: m.forward(np.zeros((1, 2), int), np.array([[5, 0]])), "target 5 is outside the vocabulary"),
        (lambda m: m.forward(np.zeros((1, 2), int), np.zeros((1, 3), int)), r"targets has shape \(1, 3\)"),
        (lambda m: m.backward(), "needs a forward pass with targets"),
        (lambda m: m.logits(0, 1), "needs a forward pass"),
        (lambda m: (m.forward(np.zeros((1, 2), int)), m.logits(1, 2)), "logits of rows 1 to 2"),
        (lambda m: m.attention_probabilities(2), "layer is 2, expected 0 to 1"),
    ],
)
def test_wrong_input_is_answered_in_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(ReferenceGPT2(TINY))
