"""What is special to CUDA, on the emulated device and on a GPU where there is one.

What all backends share is in test_layers.py and test_model.py."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import ABSENT, PRESENT, Backend

import pygpt
from pygpt import GPT2, GPT2Config, UserError
from pygpt.comparing.compare import perturb
from pygpt.comparing.metrics import relative_l2
from pygpt.errors import DeviceError
from pygpt.reference.bfloat16 import round_bfloat16

Array = np.ndarray[Any, Any]

EMULATED = "cuda-emulated"

SMALL = GPT2Config(vocab_size=37, n_positions=16, n_embd=32, n_layer=2, n_head=2, n_inner=40)
DROPOUT = replace(SMALL, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)

every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
in_bfloat16 = pytest.mark.parametrize("dtype", ["bfloat16"])
every_kernels = pytest.mark.parametrize("kernels", ["plain", "fast"])


@pytest.fixture(params=[name for name in (EMULATED, "cuda") if Backend(name, "float32", "fast") in PRESENT])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that can be used, in turn; test_layers.py says why others cannot."""
    dtype = request.node.callspec.params.get("dtype", "float32")
    if absence := ABSENT.get(Backend(request.param, dtype, "fast")):
        pytest.skip(absence)
    return str(request.param)


@pytest.fixture
def emulated() -> str:
    """The emulated device, for what only it can be told: another memory, another order of threads."""
    if absence := ABSENT.get(Backend(EMULATED, "float32", "fast")):
        pytest.skip(f"no GPU can be told to be another one: {absence}")
    return EMULATED


def batch(config: GPT2Config, B: int, T: int, seed: int = 0) -> tuple[Array, Array]:
    """The target is a function of the token, which can be learnt."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (B, T))
    return tokens, (5 * tokens + 1) % config.vocab_size


def model_of(device: str, config: GPT2Config = SMALL, **settings: Any) -> GPT2:
    """A model in which no gradient is accidentally small."""
    model = GPT2(config, device=device, **settings)
    perturb(model, seed=1)
    return model


def train(model: GPT2, steps: int, B: int = 2, T: int = 11, lr: float = 3e-3) -> list[float]:
    """The loss of each step."""
    losses = []
    for step in range(steps):
        model.zero_grad()
        losses.append(model.forward_backward(*batch(model.config, B, T, seed=step), dropout_step=step))
        model.clip_grad_norm(1.0)
        model.adamw_step(lr)
    return losses


def copies(tensors: Any) -> dict[str, Array]:
    return {name: np.array(value) for name, value in tensors.items()}


def assert_same_bits(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert np.array_equal(value, expected[name]), name


def start_python(code: str, **environment: str) -> subprocess.Popen[str]:
    """A new process, for what a library asks the device only once."""
    folders = [*map(str, (Path(__file__).parents[1], Path(__file__).parent)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def output_of(process: subprocess.Popen[str]) -> str:
    out, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    return out.strip()


# ---- training ----


def test_loss_curves_of_numpy_c_and_cuda_lie_on_each_other(device: str) -> None:
    curves = {name: np.array(train(GPT2(DROPOUT, device=name, seed=5), 100)) for name in ("numpy", "cpu", device)}
    assert curves["numpy"][-1] < curves["numpy"][0] - 0.3
    for name in ("cpu", device):
        assert np.all(abs(curves[name] / curves["numpy"] - 1) <= 1e-4), name


@in_bfloat16
def test_bfloat16_learns_as_float32_does(dtype: str, device: str) -> None:
    curves = [np.array(train(GPT2(DROPOUT, device=device, dtype=used), 60)) for used in ("float32", dtype)]
    assert curves[0][-10:].mean() < curves[0][:10].mean() - 0.1
    assert np.all(abs(curves[1] / curves[0] - 1) <= 5e-3)


@in_bfloat16
def test_master_weights_keep_what_bfloat16_would_lose(dtype: str, device: str) -> None:
    model = model_of(device, dtype=dtype)
    before = copies(model.parameters)
    train(model, 4, lr=1e-6)  # far below the distance of neighbouring bfloat16 numbers
    for name, value in model.parameters.items():
        moved = value.astype(np.float64) - before[name]
        used = before[name] != 0
        assert np.all(abs(moved[used]) <= 5e-6), name
        if not name.startswith(("wte", "wpe")):  # some of their rows are not used
            assert (moved != 0).mean() >= 0.9, name


@in_bfloat16
def test_layers_read_the_nearest_bfloat16_of_the_weights(dtype: str, device: str) -> None:
    model, rounded = model_of(device, dtype=dtype), GPT2(SMALL, device=device, dtype=dtype)
    for name, value in model.parameters.items():
        rounded.set_parameter(name, round_bfloat16(np.array(value)))
    tokens, targets = batch(SMALL, 2, 9)
    assert model.forward(tokens, targets) == rounded.forward(tokens, targets)
    assert_same_bits(copies(model.activations), copies(rounded.activations))


@in_bfloat16
def test_gradients_add_up_in_float32_over_micro_steps(dtype: str, device: str) -> None:
    model, batches = model_of(device, dtype=dtype), [batch(SMALL, 2, 9, seed) for seed in range(3)]
    alone = []
    for tokens, targets in batches:
        model.zero_grad()
        model.forward_backward(tokens, targets)
        alone.append(copies(model.gradients))
    model.zero_grad()
    for tokens, targets in batches:
        model.forward_backward(tokens, targets)
    for name, value in model.gradients.items():
        assert relative_l2(value, np.sum([gradients[name] for gradients in alone], 0, np.float64)) <= 1e-6, name


# ---- stochastic rounding ----


def embedding_of_one_number(device: str, number: float, count: int = 4096, seed: int = 0) -> Array:
    """What the layers read where so many weights have this value."""
    config = GPT2Config(vocab_size=count // 64, n_positions=count // 64, n_embd=64, n_layer=1, n_head=1)
    model = GPT2(config, device=device, dtype="bfloat16", seed=seed)
    model.set_parameter("wte.weight", np.full((count // 64, 64), number))
    model.set_parameter("wpe.weight", np.zeros((count // 64, 64)))
    model.forward(np.arange(count // 64)[None])
    return np.array(model.activations["embd"])


@in_bfloat16
def test_stochastic_rounding_keeps_the_mean(dtype: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number, upper = 1 + 2**-9, 1 + 2**-7  # a quarter of the way from 1 to the next bfloat16
    assert np.all(embedding_of_one_number(device, number) == 1)
    monkeypatch.setenv("PYGPT_ROUNDING", "stochastic")
    found = embedding_of_one_number(device, number)
    assert np.all((found == 1) | (found == upper))
    share = (found == upper).mean()
    assert abs(share - 0.25) <= 4 * (0.25 * 0.75 / found.size) ** 0.5
    assert np.all(embedding_of_one_number(device, upper) == upper)
    assert not np.array_equal(embedding_of_one_number(device, number, seed=1), found)


@in_bfloat16
def test_stochastic_rounding_is_the_same_after_resuming(
    dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYGPT_ROUNDING", "stochastic")
    model = GPT2(DROPOUT, device=device, dtype=dtype, seed=3)
    train(model, 3)
    resumed = GPT2(DROPOUT, device=device, dtype=dtype, seed=3)
    for name, value in model.parameters.items():
        resumed.set_parameter(name, value)
    tokens, targets = batch(SMALL, 2, 9)
    assert model.forward(tokens, targets) == resumed.forward(tokens, targets)
    assert_same_bits(copies(model.activations), copies(resumed.activations))
    monkeypatch.setenv("PYGPT_ROUNDING", "nearest")
    nearest = GPT2(DROPOUT, device=device, dtype=dtype, seed=3)
    for name, value in model.parameters.items():
        nearest.set_parameter(name, value)
    assert model.forward(tokens, targets) != nearest.forward(tokens, targets)


def test_unknown_rounding_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGPT_ROUNDING", "up")
    with pytest.raises(UserError, match='PYGPT_ROUNDING is "up", expected nearest or stochastic'):
        GPT2(SMALL, device=device)


# ---- kernels ----


def test_fused_kernels_give_what_the_simple_ones_give(device: str) -> None:
    found = []
    for kernels in ("plain", "fast"):
        model = model_of(device, DROPOUT, kernels=kernels)
        model.forward_backward(*batch(DROPOUT, 2, 13), dropout_step=1)
        everything = model.activations, model.activation_gradients, model.gradients
        found.append([copies(tensors) for tensors in everything])
    for plain, fast in zip(*found, strict=True):
        assert plain.keys() == fast.keys()
        rms = np.mean([np.mean(value**2.0) ** 0.5 for value in plain.values()])
        for name, value in fast.items():
            # the gradient of the key bias is 0 but for rounding, so it has no size of its own
            error = np.linalg.norm(value.astype(np.float64) - plain[name]) / value.size**0.5
            assert error <= 2e-6 * max(rms, np.mean(plain[name] ** 2.0) ** 0.5), name


@pytest.mark.parametrize("V", [5, 300, 70000])  # one, two and three passes of the sort
def test_embedding_gradient_where_one_token_stands_in_most_places(V: int, device: str) -> None:
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((3, 111)) < 0.7, V - 1, rng.integers(0, V, (3, 111))).astype(np.int32)
    wte, wpe = np.zeros((V, 5), np.float32), np.zeros((111, 5), np.float32)
    dx = rng.normal(size=(3, 111, 5)).astype(np.float32)
    exact = pygpt.layers("numpy").embedding_backward(dx.astype(np.float64), tokens, wte, wpe)
    for found, expected in zip(pygpt.layers(device).embedding_backward(dx, tokens, wte, wpe), exact, strict=True):
        assert relative_l2(found, expected) <= 2e-6


@every_dtype
@pytest.mark.parametrize("order", ["reverse", "random:1"])
def test_same_bits_in_any_order_of_threads_and_blocks(
    order: str, dtype: str, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for environment in ("forward", order):
        monkeypatch.setenv("PYGPT_EMULATION_ORDER", environment)
        model = model_of(emulated, DROPOUT, dtype=dtype)
        losses = train(model, 2)
        found.append({**copies(model.parameters), **copies(model.activations), "losses of steps": np.array(losses)})
    assert_same_bits(*found)


@in_bfloat16
def test_gradient_of_gelu_s_output_is_computed_when_it_is_read(dtype: str, device: str) -> None:
    model = model_of(device, dtype=dtype)
    model.forward_backward(*batch(SMALL, 2, 9))
    p, d = model.parameters, model.activation_gradients
    for layer in range(SMALL.n_layer):
        weight = round_bfloat16(np.array(p[f"h.{layer}.mlp.c_proj.weight"]))
        expected = d[f"h.{layer}.mlp.c_proj"].astype(np.float64) @ weight.T
        assert relative_l2(d[f"h.{layer}.mlp.act"], expected) <= 3e-3
    model.adamw_step(1e-3)
    with pytest.raises(UserError, match=r"the gradient of h\.0\.mlp\.act .* the weights have changed"):
        model.activation_gradients["h.0.mlp.act"]


@every_dtype
def test_cross_entropy_has_the_same_bits_whether_a_row_is_kept_or_read_again(
    dtype: str, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    N, V, Vp = (2, 50257, 50304) if dtype == "bfloat16" else (2, 20011, 20032)  # two rows fit into 228 KiB, not 100
    targets, dlosses = np.array([V - 1, -1], np.int32), np.ones(N, np.float32)
    logits = np.random.default_rng(0).normal(size=(N, Vp)).astype(np.float32)
    found = []
    for capability in ("8.6", "9.0"):
        monkeypatch.setenv("PYGPT_EMULATION_COMPUTE_CAPABILITY", capability)
        losses, dlogits = pygpt.layers(emulated, dtype=dtype).cross_entropy_in_place(dlosses, logits, targets, V)
        found.append({"losses": losses, "dlogits": dlogits})
    assert_same_bits(*found)
    assert found[0]["dlogits"][0].any() and not found[0]["dlogits"][1].any()


# ---- graphs ----


@every_dtype
def test_captured_passes_give_the_same_bits(dtype: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("PYGPT_CUDA_GRAPH", graphs)
        model = model_of(device, DROPOUT, dtype=dtype)
        losses = train(model, 4)
        losses += [model.forward(*batch(SMALL, 2, 11, seed)) for seed in range(3)]
        losses += train(model, 3, B=3, T=13)  # the buffers move
        losses += train(model, 3)
        found.append({**copies(model.parameters), **copies(model.gradients), "losses of steps": np.array(losses)})
        launched, refused = model._backend.graphs
        assert refused == 0
        assert 7 <= launched <= 11 if graphs == "1" else launched == 0
    assert_same_bits(*found)


@every_dtype
def test_pass_that_cannot_be_captured_is_counted_or_an_error(
    dtype: str, emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = model_of(emulated, DROPOUT, dtype=dtype)
    expected = train(usual, 4)
    monkeypatch.setenv("PYGPT_EMULATION_NO_CAPTURE", "1")
    model = model_of(emulated, DROPOUT, dtype=dtype)
    assert train(model, 4) == expected
    assert_same_bits(copies(model.parameters), copies(usual.parameters))
    assert model._backend.graphs == (0, 1)  # it does not try again
    monkeypatch.setenv("PYGPT_CUDA_GRAPH", "1")
    model = model_of(emulated, DROPOUT, dtype=dtype)
    with pytest.raises(DeviceError, match="in the capture of a pass, on which PYGPT_CUDA_GRAPH=1 insists: the capture"):
        train(model, 4)
    assert model._backend.graphs == (0, 1)


def test_unknown_use_of_graphs_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGPT_CUDA_GRAPH", "no")
    with pytest.raises(UserError, match='PYGPT_CUDA_GRAPH is "no", expected 0 or 1'):
        GPT2(SMALL, device=device)


# ---- answers ----


@every_kernels
def test_wrong_tokens_leave_the_gradients_alone(kernels: str, device: str) -> None:
    model = model_of(device, kernels=kernels)
    tokens, targets = batch(SMALL, 2, 9)
    model.forward_backward(tokens, targets)
    before = copies(model.gradients)
    wrong = tokens.copy()
    wrong[1, 3], wrong[1, 5] = 37, -4
    with pytest.raises(UserError, match=r"token 37 at row 1, position 3, expected 0 \.\.\. 36"):
        model.forward_backward(wrong, targets)
    assert_same_bits(copies(model.gradients), before)
    wrong = targets.copy()
    wrong[0, 2] = 40
    with pytest.raises(UserError, match="target 40 at row 0, position 2, expected at most 36"):
        model.forward_backward(tokens, wrong)
    assert_same_bits(copies(model.gradients), before)
    with pytest.raises(UserError, match="before a forward pass"):
        model.activations["embd"]
    loss = model.forward_backward(tokens, targets)
    assert loss == model.forward(tokens, targets)


# ---- one device for several ----


TRAIN = """
from test_cuda import GPT2, SMALL, train
model = GPT2(SMALL, device={device!r}, dtype={dtype!r}, kernels={kernels!r})
try:
    print(*train(model, 3, B={B}, T=16))
except MemoryError as error:
    print(error)
"""


def test_two_processes_share_a_device(device: str) -> None:
    code = TRAIN.format(device=device, dtype="float32", kernels="fast", B=3)
    expected = " ".join(map(str, train(GPT2(SMALL, device=device), 3, B=3, T=16)))
    processes = [start_python(code) for _ in range(2)]
    assert [output_of(process) for process in processes] == [expected] * 2


# ---- memory ----


@every_dtype
@every_kernels
def test_training_fits_into_what_it_is_said_to_need(dtype: str, kernels: str, emulated: str) -> None:
    settings = {"device": emulated, "dtype": dtype, "kernels": kernels}
    needed = pygpt.memory_needed(SMALL, batch_size=3, seq_len=16, training=True, **settings)
    code = TRAIN.format(B=3, **settings)
    losses = output_of(start_python(code, PYGPT_EMULATION_MEMORY=str(needed)))
    assert len([float(loss) for loss in losses.split()]) == 3
    # The first batch is judged without AdamW's moments, which its update makes.
    judged = pygpt.memory_needed(SMALL, batch_size=3, seq_len=16, training=True, optimizer="sgd", **settings)
    refusal = output_of(start_python(code, PYGPT_EMULATION_MEMORY=str(judged - 1)))
    assert refusal.startswith("training with batches of 3 x 16 tokens needs 0.13 GiB, and the device has 0.13: 2 x 16")
    used = {"PYGPT_EMULATION_MEMORY": str(2 * judged), "PYGPT_EMULATION_MEMORY_USED": str(judged + 1)}
    refusal = output_of(start_python(code, **used))
    assert "the device has 0.13, because other processes and models use the rest: 2 x 16 would fit" in refusal


def test_model_that_does_not_fit_is_refused_with_one_that_would(emulated: str) -> None:
    model = f"try: GPT2(replace(SMALL, n_layer=9999), device={emulated!r})\nexcept MemoryError as error: print(error)"
    code = f"from test_cuda import *\n{model}"
    refusal = output_of(start_python(code, PYGPT_EMULATION_MEMORY=str(200 << 20)))
    assert "a model with n_layer = 9999 and n_embd = 32 needs 0.43 GiB, and the device has 0.20" in refusal
    layers = int(refusal.split("n_layer = ")[-1].split(" ")[0])
    config = replace(SMALL, n_layer=layers)
    needed = pygpt.memory_needed(config, batch_size=1, seq_len=1, training=False, device=emulated)
    assert needed <= 200 << 20 < needed * (layers + 1) / layers
