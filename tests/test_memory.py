"""What models take of the memory: what they say before, how their buffers grow, and what is absurdly large."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from backends import PRESENT, Backend

from pygpt import GPT2, GPT2Config, UserError, memory, memory_needed
from pygpt.backends import control_group
from pygpt.backends.devices import DEVICES
from pygpt.backends.interface import RECOMPUTE

ROOT = Path(__file__).parents[1]
ON_CPU = [backend for backend in PRESENT if backend.device == "cpu" and backend.dtype == "float32"]
EMULATED = [backend for backend in PRESENT if backend.device == "cuda-emulated"]
CUBLAS_WORKSPACE = 128 << 20  # which the emulation does not need

# A fresh process, so that nothing is taken from what an earlier model gave back; a small model first, for the pages of
# code and of the interpreter.
HELD = """
import numpy as np, pygpt
from pygpt import GPT2, GPT2Config

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def run(config, B, T):
    model, tokens = GPT2(config, kernels={kernels!r}, recompute={recompute!r}), np.zeros((B, T), np.int32)
    if not {training}:
        model.forward(tokens, tokens)
        return model
    model.forward_backward(tokens, tokens)
    model.clip_grad_norm(1.0)
    {update}
    return model

run(GPT2Config(vocab_size=65, n_positions=8, n_embd=8, n_layer=1, n_head=1), 1, 2)
before = resident()
model = run(GPT2Config(vocab_size=1000, n_positions=128, n_embd=256, n_layer=4, n_head=4), 16, 128)
print(resident() - before)
"""


def free_memory(backend: Backend) -> int:
    memory_of = DEVICES[backend.device].memory
    assert memory_of
    return memory_of()[0]


# ---- what is said before ----


UPDATES = {
    "adamw": "model.adamw_step(1e-3)",
    "sgd": "model.sgd_step(1e-3)",
    "momentum": "model.sgd_step(1e-3, 0.9)",
    "muon": "model.muon_step(1e-3)",
}
"""The update of each optimizer, in Python."""

kinds_of_models = pytest.mark.parametrize(
    ("training", "recompute", "optimizer"),
    [(training, recompute, "adamw") for training in (False, True) for recompute in RECOMPUTE]
    + [(True, "block", optimizer) for optimizer in UPDATES if optimizer != "adamw"],
)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@kinds_of_models
@pytest.mark.parametrize("backend", ON_CPU, ids=str)
def test_model_holds_what_it_was_said_to_need(backend: Backend, training: bool, recompute: str, optimizer: str) -> None:
    kind = {"kernels": backend.kernels, "recompute": recompute, "training": training}
    code = HELD.format(**kind, update=UPDATES[optimizer])
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    held = int(ended.stdout)
    config = GPT2Config(vocab_size=1000, n_positions=128, n_embd=256, n_layer=4, n_head=4)
    said = memory_needed(config, batch_size=16, seq_len=128, **kind, optimizer=optimizer)
    assert held <= said + (1 << 19)  # which the interpreter's own objects and the tables of tensors take
    assert said <= 1.3 * held


@kinds_of_models
@pytest.mark.parametrize("backend", EMULATED, ids=str)
def test_device_holds_what_it_was_said_to_need(
    backend: Backend, training: bool, recompute: str, optimizer: str
) -> None:
    config = GPT2Config(vocab_size=500, n_positions=8, n_embd=64, n_layer=4, n_head=2)
    before = free_memory(backend)
    model, tokens = backend.model(config, recompute=recompute), np.zeros((4, 8), np.int32)
    if training:
        model.forward_backward(tokens, tokens)
        model.clip_grad_norm(1.0)
        exec(UPDATES[optimizer], {"model": model})
    else:
        model.forward(tokens, tokens)
    held = before - free_memory(backend)
    settings = {"batch_size": 4, "seq_len": 8, "training": training, "recompute": recompute, "optimizer": optimizer}
    said = memory_needed(config, **settings, **backend.settings) - CUBLAS_WORKSPACE
    assert held <= said <= 1.3 * held


@pytest.mark.parametrize("backend", EMULATED, ids=str)
def test_device_holds_what_a_wide_feed_forward_layer_was_said_to_need(backend: Backend) -> None:
    """Summing the gradient of its bias takes more scratch memory than anything else does."""
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1, n_inner=2048)
    before = free_memory(backend)
    model, tokens = backend.model(config), np.zeros((1, 8), np.int32)
    model.forward_backward(tokens, tokens)
    model.adamw_step(lr=1e-3)
    held = before - free_memory(backend)
    said = memory_needed(config, batch_size=1, seq_len=8, training=True, **backend.settings) - CUBLAS_WORKSPACE
    assert held == said


@pytest.mark.parametrize("device", sorted({backend.device for backend in PRESENT}))
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_every_layer_beyond_the_second_takes_the_same(device: str, recompute: str) -> None:
    def needed(layers: int, training: bool) -> int:
        config = GPT2Config(vocab_size=500, n_positions=8, n_embd=64, n_layer=layers, n_head=2, resid_pdrop=0.1)
        settings = {"device": device, "recompute": recompute if device != "numpy" else "none", "kernels": "plain"}
        return memory_needed(config, batch_size=4, seq_len=8, training=training, **settings)

    for training in (False, True):
        sizes = [needed(layers, training) for layers in (1, 2, 3, 4, 9)]
        assert sizes == sorted(set(sizes))
        assert sizes[4] - sizes[3] == 5 * (sizes[3] - sizes[2])


@pytest.mark.parametrize("device", sorted({backend.device for backend in PRESENT if backend.device != "numpy"}))
def test_chunks_of_logits_are_of_equal_size(device: str) -> None:
    """Where one is not enough, there are two of half the size, and not a nearly empty one."""
    config = GPT2Config(vocab_size=50257, n_positions=64, n_embd=8, n_layer=1, n_head=1)
    one = 20 if device == "cpu" else 83  # sequences

    def needed(sequences: int) -> int:
        return memory_needed(config, batch_size=sequences, seq_len=64, training=False, device=device)

    assert needed(one) - needed(one + 1) > 0.4 * one * 64 * config.vocab_size * 4


@pytest.mark.parametrize("device", sorted({backend.device for backend in PRESENT}))
def test_what_is_absurdly_large_is_known_at_once(device: str) -> None:
    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=65536, n_layer=1_000_000, n_head=64)
    started = time.perf_counter()
    for batch_size in (1, 10, 100):
        needed = memory_needed(config, batch_size=batch_size, seq_len=64, training=True, device=device)
        assert 16 * 12 * config.n_embd**2 * config.n_layer < needed < 2**63
    with pytest.raises(UserError, match="overflows 64 bits"):
        memory_needed(config, batch_size=10**9, seq_len=10**6, training=True, device=device)
    assert time.perf_counter() - started < 1


def test_model_that_is_absurdly_large_is_refused_at_once() -> None:
    started = time.perf_counter()
    with pytest.raises(MemoryError, match="no memory for the parameters"):
        GPT2(GPT2Config(vocab_size=256, n_positions=64, n_embd=65536, n_layer=1_000_000, n_head=64))
    assert time.perf_counter() - started < 1


# ---- buffers that grow ----


@pytest.mark.parametrize("backend", ON_CPU, ids=str)
def test_growing_batches_seldom_need_new_buffers(backend: Backend) -> None:
    config = GPT2Config(vocab_size=37, n_positions=256, n_embd=8, n_layer=2, n_head=1)
    model, views = backend.model(config), []
    for T in range(1, 257):  # as texts grow
        model.forward(np.zeros((1, T), np.int32))
        views.append(model.activations["embd"])  # the first tensor; a buffer that somebody sees is never taken again
    assert len({view.ctypes.data for view in views}) <= 9  # 2, 4, 8, ... 256


@pytest.mark.parametrize("backend", EMULATED, ids=str)
def test_growing_batches_seldom_need_new_buffers_on_a_device(backend: Backend) -> None:
    config = GPT2Config(vocab_size=5, n_positions=32, n_embd=8, n_layer=1, n_head=1)
    before = free_memory(backend)
    model, free = backend.model(config), []
    for T in range(1, 33):
        model.forward(np.zeros((1, T), np.int32))
        free.append(free_memory(backend))
    if (backend.dtype, backend.kernels) != ("bfloat16", "plain"):  # each of whose products takes scratch memory
        assert len(set(free)) <= 12
    settings = {"batch_size": 1, "seq_len": 32, "training": False}
    assert before - free[-1] <= memory_needed(config, **settings, **backend.settings) - CUBLAS_WORKSPACE


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of the address space")
def test_buffers_that_grow_are_freed_before_and_may_fail() -> None:
    """There is room for the larger ones, but not beside the smaller; where there is none, a smaller pass works."""
    program = """
import resource, numpy as np, pygpt
from pygpt import GPT2, GPT2Config

def tokens(B): return np.arange(B * 128, dtype=np.int32).reshape(B, 128) % 64

pygpt.set_threads(1)
model = GPT2(GPT2Config(vocab_size=64, n_positions=128, n_embd=64, n_layer=4, n_head=2))
expected = model.forward(tokens(1), tokens(1))
model.forward(tokens(60))
with open("/proc/self/statm") as file:
    space = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (space + (80 << 20),) * 2)
model.forward(tokens(80))
print("grown")
for _ in range(2):
    try:
        model.forward(tokens(400))
    except MemoryError as error:
        print(error)
    assert model.forward(tokens(1), tokens(1)) == expected
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    grown, *refused = ended.stdout.splitlines()
    assert grown == "grown"
    assert len(refused) == 2 and all(line.startswith("no memory for the activations: 0.") for line in refused)


# ---- what there is ----


@pytest.mark.parametrize(
    "membership, files, expected",
    [
        ("0::/\n", {}, []),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""}, []),
        ("0::/\n", {"memory.max": "900\n", "memory.current": "500\n", "memory.stat": "inactive_file 70\n"}, [470]),
        (
            "0::/a/b\n",
            {"a/memory.max": "900\n", "a/memory.current": "500\n", "a/memory.stat": "anon 1\n"}
            | {"a/b/memory.max": "800\n", "a/b/memory.current": "90\n", "a/b/memory.stat": "anon 1\n"},
            [400, 710],
        ),
        (
            "3:memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "900\n", "memory/a/memory.usage_in_bytes": "500\n"}
            | {"memory/a/memory.stat": "inactive_file 70\n"},
            [470],
        ),
    ],
)
def test_limits_of_control_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, membership: str, files: dict[str, str], expected: list[int]
) -> None:
    for name, text in {**files, "membership": membership}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(control_group, "_ROOT", tmp_path)
    monkeypatch.setattr(control_group, "_MEMBERSHIP", tmp_path / "membership")
    assert memory._control_groups() == expected
    assert memory.available_memory() <= min(expected, default=2**63)
