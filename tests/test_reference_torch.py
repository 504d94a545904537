"""The numpy reference against values recorded from PyTorch and transformers in float64 (fixtures/record_torch.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pygpt.backends.interface import AdamW
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.config import GPT2Config
from pygpt.reference.dropout import Dropout

Array = np.ndarray[Any, Any]
Record = dict[str, Array]
FIXTURES = Path(__file__).parent / "fixtures"
ops = ReferenceLayers()


def relative_l2(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def load(name: str) -> Record:
    with np.load(FIXTURES / f"torch_{name}.npz") as file:
        return dict(file)


def part(record: Record, folder: str) -> Record:
    """The entries of record below folder/, without it."""
    return {name.removeprefix(f"{folder}/"): value for name, value in record.items() if name.startswith(f"{folder}/")}


@pytest.fixture(scope="module", params=["odd", "least", "dropout"])
def record(request: pytest.FixtureRequest) -> Record:
    return load(f"gpt2_{request.param}")


@pytest.fixture
def model(record: Record) -> ReferenceGPT2:
    model = ReferenceGPT2(GPT2Config(**{name: value.item() for name, value in part(record, "config").items()}))
    recorded = part(record, "parameters")
    assert model.parameters.keys() == recorded.keys()
    for name, value in model.parameters.items():
        assert value.shape == recorded[name].shape, name
        value[...] = recorded[name]
    return model


def dropout_of(record: Record) -> Dropout:
    return Dropout(0.0, seed=int(record["dropout_seed"]), step=int(record["dropout_step"]))


def test_forward(record: Record, model: ReferenceGPT2) -> None:
    loss = model.forward(record["tokens"], record["targets"], dropout_of(record))
    assert loss == pytest.approx(record["loss"].item(), rel=1e-13)
    logits = record["logits"]
    assert relative_l2(model.logits(0, record["tokens"].size), logits.reshape(-1, logits.shape[-1])) <= 1e-13
    for layer, probabilities in part(record, "attentions").items():
        assert relative_l2(model.attention_probabilities(int(layer)), probabilities) <= 1e-13
    hidden = [f"h.{layer}.resid_post" for layer in range(model.config.n_layer - 1)] + ["ln_f"]
    hidden.insert(0, "drop" if model.config.embd_pdrop else "embd")
    for i, expected in part(record, "hidden_states").items():
        assert relative_l2(model.activations[hidden[int(i)]], expected) <= 1e-13, i


def test_gradients(record: Record, model: ReferenceGPT2) -> None:
    model.forward_backward(record["tokens"], record["targets"], dropout=dropout_of(record))
    for name, expected in part(record, "gradients").items():
        if np.linalg.norm(expected) <= 1e-14 * np.linalg.norm(record["gradients/wte.weight"]):
            # T = 1: nothing reaches ln_1 but rounding
            assert np.linalg.norm(model.gradients[name]) <= 1e-14 * np.linalg.norm(model.gradients["wte.weight"])
        else:
            assert relative_l2(model.gradients[name], expected) <= 1e-12, name


def test_clipped_adamw_steps(record: Record, model: ReferenceGPT2) -> None:
    adamw = AdamW(**{name: value.item() for name, value in part(record, "adamw").items()})
    for step, (loss, norm) in enumerate(zip(record["losses"], record["norms"], strict=True), start=1):
        model.zero_grad()
        found = model.forward_backward(record["tokens"], record["targets"], dropout=dropout_of(record))
        assert found == pytest.approx(loss, rel=1e-11)
        assert model.clip_grad_norm(record["max_norm"].item()) == pytest.approx(norm, rel=1e-10)
        model.adamw_step(adamw, step)
    moved = {name: relative_l2(model.parameters[name], value) for name, value in part(record, "parameters").items()
             if value.any()}  # fmt: skip
    assert min(moved.values()) > 1e-6
    for name, expected in part(record, "updated").items():
        assert relative_l2(model.parameters[name], expected) <= 1e-9, name


@pytest.fixture(scope="module")
def layers() -> Record:
    return load("layers")


def test_gelu(layers: Record) -> None:
    r = part(layers, "gelu")
    assert relative_l2(ops.gelu_forward(r["x"]), r["y"]) <= 1e-15
    assert relative_l2(ops.gelu_backward(r["dy"], r["x"]), r["dx"]) <= 1e-15


def test_layernorm(layers: Record) -> None:
    r = part(layers, "layernorm")
    y, mean, rstd = ops.layernorm_forward(r["x"], r["w"], r["b"])
    dx, dw, db = ops.layernorm_backward(r["dy"], r["x"], r["w"], mean, rstd)
    for found, name in ((y, "y"), (dx, "dx"), (dw, "dw"), (db, "db")):
        assert relative_l2(found, r[name]) <= 1e-12, name  # x has mean 3000 and deviation 1


def test_attention(layers: Record) -> None:
    r = part(layers, "attention")

    def side_by_side(*x: Array) -> Array:
        """(B,NH,T,HS) each into (B,T,C) each, and one array of them all."""
        return np.concatenate([a.transpose(0, 2, 1, 3).reshape(2, 7, 20) for a in x], axis=-1)

    qkv = side_by_side(r["q"], r["k"], r["v"])
    y, lse = ops.attention_forward(qkv, 2)
    assert relative_l2(y, side_by_side(r["y"])) <= 1e-14
    dqkv = ops.attention_backward(side_by_side(r["dy"]), y, lse, qkv, 2)
    assert relative_l2(dqkv, side_by_side(r["dq"], r["dk"], r["dv"])) <= 1e-13


def test_cross_entropy(layers: Record) -> None:
    r = part(layers, "cross_entropy")
    assert relative_l2(ops.cross_entropy_forward(r["z"], r["targets"]), r["y"]) <= 1e-14
    assert relative_l2(ops.cross_entropy_backward(r["dy"], r["z"], r["targets"]), r["dz"]) <= 1e-14
