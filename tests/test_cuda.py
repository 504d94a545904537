"""What is special to CUDA, on the emulated device; what all backends share is in test_layers.py and test_model.py."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import ABSENT, Backend

import pygpt
from pygpt import GPT2, GPT2Config, UserError
from pygpt.backends import library
from pygpt.compare import perturb
from pygpt.metrics import relative_l2
from pygpt.reference.bfloat16 import round_bfloat16

Array = np.ndarray[Any, Any]

DEVICE = "cuda-emulated"
ABSENCE = ABSENT.get(Backend(DEVICE, "float32", "fast"))
pytestmark = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))

SMALL = GPT2Config(vocab_size=37, n_positions=16, n_embd=32, n_layer=2, n_head=2, n_inner=40)
DROPOUT = replace(SMALL, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)

every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
every_kernels = pytest.mark.parametrize("kernels", ["plain", "fast"])


def batch(config: GPT2Config, B: int, T: int, seed: int = 0) -> tuple[Array, Array]:
    """The target is a function of the token, which can be learnt."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (B, T))
    return tokens, (5 * tokens + 1) % config.vocab_size


def model_of(config: GPT2Config = SMALL, **settings: Any) -> GPT2:
    """A model in which no gradient is accidentally small."""
    model = GPT2(config, device=DEVICE, **settings)
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


def cpu_library_path() -> Path:
    """The file of a library for the CPU, without which a folder is not one of libraries."""
    return next(library._folder().glob("libpygpt_cpu_baseline.*"))


def run_python(code: str, **environment: str) -> str:
    """The output of a new process, for what a library asks the device only once."""
    paths = {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]), str(Path(__file__).parent)))}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **paths, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# ---- training ----


def test_loss_curves_of_numpy_c_and_cuda_lie_on_each_other() -> None:
    curves = {device: np.array(train(GPT2(DROPOUT, device=device, seed=5), 100)) for device in ("numpy", "cpu", DEVICE)}
    assert curves["numpy"][-1] < curves["numpy"][0] - 0.3
    for device in ("cpu", DEVICE):
        assert np.all(abs(curves[device] / curves["numpy"] - 1) <= 1e-4), device


def test_bfloat16_learns_as_float32_does() -> None:
    curves = [np.array(train(GPT2(DROPOUT, device=DEVICE, dtype=dtype), 60)) for dtype in ("float32", "bfloat16")]
    assert curves[0][-10:].mean() < curves[0][:10].mean() - 0.1
    assert np.all(abs(curves[1] / curves[0] - 1) <= 5e-3)


def test_master_weights_keep_what_bfloat16_would_lose() -> None:
    model = model_of(dtype="bfloat16")
    before = copies(model.parameters)
    train(model, 4, lr=1e-6)  # far below the distance of neighbouring bfloat16 numbers
    for name, value in model.parameters.items():
        moved = value.astype(np.float64) - before[name]
        used = before[name] != 0
        assert np.all(abs(moved[used]) <= 5e-6), name
        if not name.startswith(("wte", "wpe")):  # some of their rows are not used
            assert (moved != 0).mean() >= 0.9, name


def test_layers_read_the_nearest_bfloat16_of_the_weights() -> None:
    model, rounded = model_of(dtype="bfloat16"), GPT2(SMALL, device=DEVICE, dtype="bfloat16")
    for name, value in model.parameters.items():
        rounded.set_parameter(name, round_bfloat16(np.array(value)))
    tokens, targets = batch(SMALL, 2, 9)
    assert model.forward(tokens, targets) == rounded.forward(tokens, targets)
    assert_same_bits(copies(model.activations), copies(rounded.activations))


def test_gradients_add_up_in_float32_over_micro_steps() -> None:
    model, batches = model_of(dtype="bfloat16"), [batch(SMALL, 2, 9, seed) for seed in range(3)]
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


def embedding_of_one_number(number: float, count: int = 4096, seed: int = 0) -> Array:
    """What the layers read where so many weights have this value."""
    config = GPT2Config(vocab_size=count // 64, n_positions=count // 64, n_embd=64, n_layer=1, n_head=1)
    model = GPT2(config, device=DEVICE, dtype="bfloat16", seed=seed)
    model.set_parameter("wte.weight", np.full((count // 64, 64), number))
    model.set_parameter("wpe.weight", np.zeros((count // 64, 64)))
    model.forward(np.arange(count // 64)[None])
    return np.array(model.activations["embd"])


def test_stochastic_rounding_keeps_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    number, upper = 1 + 2**-9, 1 + 2**-7  # a quarter of the way from 1 to the next bfloat16
    assert np.all(embedding_of_one_number(number) == 1)
    monkeypatch.setenv("PYGPT_ROUNDING", "stochastic")
    found = embedding_of_one_number(number)
    assert np.all((found == 1) | (found == upper))
    share = (found == upper).mean()
    assert abs(share - 0.25) <= 4 * (0.25 * 0.75 / found.size) ** 0.5
    assert np.all(embedding_of_one_number(upper) == upper)
    assert not np.array_equal(embedding_of_one_number(number, seed=1), found)


def test_stochastic_rounding_is_the_same_after_resuming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGPT_ROUNDING", "stochastic")
    model = GPT2(DROPOUT, device=DEVICE, dtype="bfloat16", seed=3)
    train(model, 3)
    resumed = GPT2(DROPOUT, device=DEVICE, dtype="bfloat16", seed=3)
    for name, value in model.parameters.items():
        resumed.set_parameter(name, value)
    tokens, targets = batch(SMALL, 2, 9)
    assert model.forward(tokens, targets) == resumed.forward(tokens, targets)
    assert_same_bits(copies(model.activations), copies(resumed.activations))
    monkeypatch.setenv("PYGPT_ROUNDING", "nearest")
    nearest = GPT2(DROPOUT, device=DEVICE, dtype="bfloat16", seed=3)
    for name, value in model.parameters.items():
        nearest.set_parameter(name, value)
    assert model.forward(tokens, targets) != nearest.forward(tokens, targets)


def test_unknown_rounding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYGPT_ROUNDING", "up")
    with pytest.raises(UserError, match='PYGPT_ROUNDING is "up", expected nearest or stochastic'):
        GPT2(SMALL, device=DEVICE)


# ---- kernels ----


def test_fused_kernels_give_what_the_simple_ones_give() -> None:
    found = []
    for kernels in ("plain", "fast"):
        model = model_of(DROPOUT, kernels=kernels)
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
def test_embedding_gradient_where_one_token_stands_in_most_places(V: int) -> None:
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((3, 111)) < 0.7, V - 1, rng.integers(0, V, (3, 111))).astype(np.int32)
    wte, wpe = np.zeros((V, 5), np.float32), np.zeros((111, 5), np.float32)
    dx = rng.normal(size=(3, 111, 5)).astype(np.float32)
    exact = pygpt.layers("numpy").embedding_backward(dx.astype(np.float64), tokens, wte, wpe)
    for found, expected in zip(pygpt.layers(DEVICE).embedding_backward(dx, tokens, wte, wpe), exact, strict=True):
        assert relative_l2(found, expected) <= 2e-6


@every_dtype
@pytest.mark.parametrize("order", ["reverse", "random:1"])
def test_same_bits_in_any_order_of_threads_and_blocks(order: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for environment in ("forward", order):
        monkeypatch.setenv("PYGPT_EMULATION_ORDER", environment)
        model = model_of(DROPOUT, dtype=dtype)
        losses = train(model, 2)
        found.append({**copies(model.parameters), **copies(model.activations), "losses of steps": np.array(losses)})
    assert_same_bits(*found)


def test_gradient_of_gelu_s_output_is_computed_when_it_is_read() -> None:
    model = model_of(dtype="bfloat16")
    model.forward_backward(*batch(SMALL, 2, 9))
    p, d = model.parameters, model.activation_gradients
    for layer in range(SMALL.n_layer):
        weight = round_bfloat16(np.array(p[f"h.{layer}.mlp.c_proj.weight"]))
        expected = d[f"h.{layer}.mlp.c_proj"].astype(np.float64) @ weight.T
        assert relative_l2(d[f"h.{layer}.mlp.act"], expected) <= 3e-3
    model.adamw_step(1e-3)
    with pytest.raises(UserError, match=r"the gradient of h\.0\.mlp\.act .* the weights have changed"):
        model.activation_gradients["h.0.mlp.act"]


# ---- graphs ----


@every_dtype
def test_captured_passes_give_the_same_bits(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("PYGPT_CUDA_GRAPH", graphs)
        model = model_of(DROPOUT, dtype=dtype)
        losses = train(model, 4)
        losses += [model.forward(*batch(SMALL, 2, 11, seed)) for seed in range(3)]
        losses += train(model, 3, B=3, T=13)  # the buffers move
        losses += train(model, 3)
        found.append({**copies(model.parameters), **copies(model.gradients), "losses of steps": np.array(losses)})
    assert_same_bits(*found)


# ---- answers ----


@every_kernels
def test_wrong_tokens_leave_the_gradients_alone(kernels: str) -> None:
    model = model_of(kernels=kernels)
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


TRAIN = """
from test_cuda import DEVICE, SMALL, GPT2, train
model = GPT2(SMALL, device=DEVICE, dtype={dtype!r}, kernels={kernels!r})
try:
    train(model, 3, B={B}, T=16)
    print("trained")
except MemoryError as error:
    print(error)
"""


@every_dtype
@every_kernels
def test_training_fits_into_what_it_is_said_to_need(dtype: str, kernels: str) -> None:
    settings = {"dtype": dtype, "kernels": kernels}
    needed = pygpt.memory_needed(SMALL, batch_size=3, seq_len=16, training=True, device=DEVICE, **settings)
    code = TRAIN.format(B=3, **settings)
    assert run_python(code, PYGPT_EMULATION_MEMORY=str(needed)) == "trained"
    refusal = run_python(code, PYGPT_EMULATION_MEMORY=str(needed - 1))
    assert refusal.startswith("training with batches of 3 x 16 tokens needs 0.03 GiB, and the device has 0.03: 2 x 16")


def test_model_that_does_not_fit_is_refused_with_one_that_would() -> None:
    model = "try: GPT2(replace(SMALL, n_layer=9999), device=DEVICE)\nexcept MemoryError as error: print(error)"
    refusal = run_python(f"from test_cuda import *\n{model}", PYGPT_EMULATION_MEMORY=str(100 << 20))
    assert "a model with n_layer = 9999 and n_embd = 32 needs 0.33 GiB, and the device has 0.10" in refusal
    layers = int(refusal.split("n_layer = ")[-1].split(" ")[0])
    config = replace(SMALL, n_layer=layers)
    needed = pygpt.memory_needed(config, batch_size=1, seq_len=1, training=False, device=DEVICE)
    assert needed <= 100 << 20 < needed * (layers + 1) / layers


def test_device_that_cannot_be_used_is_refused_and_not_chosen() -> None:
    """With the emulated device in the place of a GPU."""
    code = """
import pygpt, pygpt.model
find = pygpt.model.usable_cuda_library
pygpt.model.usable_cuda_library = lambda device: find("cuda-emulated")
print(pygpt.model.resolve_device("auto"))
try:
    pygpt.layers("cuda")
except pygpt.UserError as error:
    print(error)
"""
    assert run_python(code) == "cuda"
    chosen, sentence = run_python(code, PYGPT_EMULATION_COMPUTE_CAPABILITY="7.0").splitlines()
    assert chosen == "cpu"
    assert sentence.startswith("device 'cuda-emulated' cannot be used: ")
    assert sentence.endswith("compute capability 7.0, expected compute capability 7.5 or more")


@pytest.mark.parametrize(
    "device, how",
    [("cuda", "with nvcc and cuBLAS installed, `pip install . -C"), ("cuda-emulated", "with a C++ compiler installed")],
)
def test_library_that_was_not_built(device: str, how: str, tmp_path: Path) -> None:
    path = cpu_library_path()
    (tmp_path / path.name).symlink_to(path)
    code = f"""
import pygpt
try:
    pygpt.GPT2(pygpt.GPT2Config(2, 1, 8, 1, 1), device={device!r})
except pygpt.UserError as error:
    print(error)
"""
    sentence = run_python(code, PYGPT_LIB_DIR=str(tmp_path))
    assert sentence.startswith(f"device {device!r} needs libpygpt_{device.replace('-', '_')}.")
    assert f"which is not in {tmp_path}: {how}" in sentence


def test_bfloat16_needs_compute_capability_8() -> None:
    code = """
import pygpt
pygpt.layers("cuda-emulated", "float32")
try:
    pygpt.layers("cuda-emulated", "bfloat16")
except pygpt.UserError as error:
    print(error)
"""
    sentence = run_python(code, PYGPT_EMULATION_COMPUTE_CAPABILITY="7.5")
    assert sentence.startswith('dtype "bfloat16" needs compute capability 8.0 or more, and the device is ')
    assert 'capability 7.5: "float32" works on it' in sentence
