"""The registry of devices: what it says of each is so, and a backend that is entered there is one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from backends import PRESENT, Backend
from numpy.typing import ArrayLike, NDArray

import pygpt
from pygpt import GPT2, GPT2Config, UserError, generator_memory_needed, memory, memory_needed
from pygpt.backends import devices
from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.backends.interface import Device, Generator, Layers, Model
from pygpt.backends.library import cpu_library, ffi
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.command import compare, generate
from pygpt.files.checkpoint import save_parameters
from pygpt.parallel.ranks import ALONE
from pygpt.reference.bfloat16 import round_bfloat16
from pygpt.text.tokenizer import CharTokenizer
from pygpt.training.settings import TrainSettings
from pygpt.training.setup import create_model

CONFIG = GPT2Config(vocab_size=19, n_positions=8, n_embd=8, n_layer=2, n_head=2)
TOKENS = np.arange(10).reshape(2, 5)
PRESENT_DEVICES = sorted({backend.device for backend in PRESENT})


class Copies(Mapping[str, NDArray[Any]]):
    """Tensors as of a device with a memory of its own: one sees copies, and changes them with write()."""

    def __init__(self, tensors: dict[str, NDArray[Any]]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._tensors[name].copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def write(self, name: str, values: ArrayLike) -> None:
        self._tensors[name][...] = values


class FakeModel:
    """numpy's model behind such tensors."""

    def __init__(self, config: GPT2Config, *settings: str) -> None:
        self.settings = settings
        self._model = ReferenceGPT2(config, np.float32)
        self.parameters = Copies(self._model.parameters)
        self.first_moments = Copies(self._model.first_moments)
        self.second_moments = Copies(self._model.second_moments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


FAKE = Device(
    layers=lambda dtype, kernels: ReferenceLayers(),
    model=FakeModel,
    memory_needed=lambda config, *settings: 1000,
    generator_memory=lambda config, *settings: 100,
    memory=lambda: (500, 2000),
    in_host_memory=False,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(DEVICES, "fake", FAKE)
    return "fake"


def test_a_backend_that_is_entered_is_one(fake: str) -> None:
    model, twin = GPT2(CONFIG, fake, "bfloat16", 1, kernels="plain", recompute="block"), GPT2(CONFIG, "numpy", seed=1)
    assert model._backend.settings == ("bfloat16", "plain", "block")  # type: ignore[attr-defined]
    for each in (model, twin):
        each.set_parameter("wte.weight", each.parameters["wte.weight"] * 2)
        each.accumulate(TOKENS, TOKENS)
        each.adamw_step(1e-3)
    assert model.forward(TOKENS, TOKENS) == twin.forward(TOKENS, TOKENS)
    assert isinstance(pygpt.layers(fake), ReferenceLayers)
    assert memory_needed(CONFIG, batch_size=1, seq_len=1, training=True, device=fake) == 1000
    assert generator_memory_needed(CONFIG, device=fake) == 100
    with pytest.raises(UserError, match="device is 'tpu', expected auto, cpu, cuda, cuda-emulated, numpy, fake"):
        GPT2(CONFIG, "tpu")


def test_auto_takes_a_preferred_device_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "cuda", replace(FAKE, preferred=True))
    assert resolve_device("auto") == "cuda"
    assert memory_needed(CONFIG, batch_size=1, seq_len=1, training=True, device="auto") == 1000

    def check() -> None:
        raise UserError("device 'cuda' cannot be used: it is a fake")

    monkeypatch.setitem(DEVICES, "cuda", replace(FAKE, preferred=True, check=check))
    assert resolve_device("auto") == "cpu"
    for use in (resolve_device, pygpt.layers, lambda device: GPT2(CONFIG, device)):
        with pytest.raises(UserError, match="it is a fake"):
            use("cuda")


def test_memory_is_asked_where_the_tensors_are(monkeypatch: pytest.MonkeyPatch, fake: str) -> None:
    monkeypatch.setattr(memory, "_machine", lambda: 400)
    monkeypatch.setattr(memory, "_control_groups", lambda: [450])
    assert memory.available_memory(fake) == 500
    monkeypatch.setitem(DEVICES, fake, replace(FAKE, in_host_memory=True))
    assert memory.available_memory(fake) == memory.available_memory("numpy") == 400
    with pytest.raises(UserError, match="GB are available: buy more"):
        memory.check_memory(1000, "buy more", fake)
    monkeypatch.setitem(DEVICES, fake, FAKE)
    for needed, sentence in (
        (1000, "are free, because other processes use it: buy more"),
        (3000, "are free: buy more"),
    ):
        with pytest.raises(UserError, match=sentence):
            memory.check_memory(needed, "buy more", fake)
    memory.check_memory(500, "buy more", fake)


@pytest.mark.parametrize("device", PRESENT_DEVICES)
@pytest.mark.parametrize("interface", [Layers, Model, Generator])
def test_every_backend_has_the_methods_of_the_interface(interface: type, device: str) -> None:
    """With the same names and defaults of arguments; mypy compares the types."""
    backend: object = GPT2(CONFIG, device)._backend
    if interface is Layers:
        backend = pygpt.layers(device)
    if interface is Generator:
        backend = GPT2(CONFIG, device).generator()
    for name, declared in vars(interface).items():
        if name.startswith("_"):
            continue
        if isinstance(declared, property):
            assert hasattr(backend, name)
            continue
        assert getattr(type(backend), name) is not declared, name
        arguments = [
            [(one.name, one.default) for one in inspect.signature(method).parameters.values()]
            for method in (declared, getattr(type(backend), name))
        ]
        assert arguments[0] == arguments[1], name


@pytest.mark.parametrize("backend", [one for one in PRESENT if one.dtype == "bfloat16"], ids=str)
def test_tensors_are_stored_in_bfloat16_where_that_is_said(backend: Backend) -> None:
    model = backend.model(CONFIG)
    model.forward(TOKENS)
    for name in ("embd", "h.1.ln_1", "h.0.attn.c_attn"):
        stored = np.array_equal(model.activations[name], round_bfloat16(np.asarray(model.activations[name])))
        assert stored == backend.stores_bfloat16


@pytest.mark.parametrize("device", PRESENT_DEVICES)
def test_recomputing_takes_less_memory_where_that_is_said(device: str) -> None:
    none, block = (
        memory_needed(CONFIG, batch_size=4, seq_len=8, training=True, device=device, recompute=recompute)
        for recompute in ("none", "block")
    )
    assert (block < none) == DEVICES[device].recomputes


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model folder."""
    letters = "abcdefghijklmnopqrs"
    save_parameters(tmp_path / "model", CONFIG, GPT2(CONFIG, "numpy").parameters, extra=CharTokenizer(letters).save)
    return str(tmp_path / "model")


def run_compare(folder: str, device: str) -> None:
    flags = "--model", folder, "--device", device, "--threads", "1", "--batch-size", "1", "--seq-len", "2"
    assert compare.main(flags) == 0


def run_generate(folder: str, device: str) -> None:
    generate.main(["--model", folder, "--device", device, "--threads", "1", "--max-new-tokens", "1"])


def run_train(folder: str, device: str) -> None:
    create_model(CONFIG, TrainSettings(device=device, dtype="float32", threads=1), Path(folder), ALONE)


@pytest.mark.parametrize("device", PRESENT_DEVICES)
@pytest.mark.parametrize("run", [run_compare, run_generate, run_train])
def test_programs_set_the_threads_of_the_cpu_only(run: Callable[[str, str], None], device: str, folder: str) -> None:
    pygpt.set_threads(2, beyond_cores=True)
    try:
        run(folder, device)
        assert cpu_library().pygpt_threads() == (1 if device == "cpu" else 2)
    finally:
        pygpt.set_threads(None)


@pytest.mark.parametrize("device", PRESENT_DEVICES)
def test_numpy_has_one_set_of_kernels(device: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_compare(folder, device)
    headings = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" kernels")]
    assert headings == ["plain kernels", "fast kernels"][: 1 if device == "numpy" else 2]


def test_numpy_opens_no_library() -> None:
    program = """
import pygpt, pygpt.backends.library as library
model = pygpt.GPT2(pygpt.GPT2Config(2, 2, 8, 1, 1), device="numpy")
model.forward_backward([[0, 1]], [[1, 0]])
pygpt.layers("numpy").gelu_forward(model.logits)
print(library._open_libraries)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(("level", "dtype"), [("x86-64-v4", "float32"), ("x86-64-v4-bf16", "bfloat16")])
def test_the_dtype_of_a_processor_follows_its_products(monkeypatch: pytest.MonkeyPatch, level: str, dtype: str) -> None:
    monkeypatch.setattr(devices, "library_name", lambda library: level)
    assert devices.resolve_dtype("auto", "cpu") == dtype
    assert devices.resolve_dtype("auto", "numpy") == devices.resolve_dtype("auto", "cuda-emulated") == "float32"
    assert devices.resolve_dtype("float64", "cpu") == "float64"


@pytest.mark.parametrize(("name", "dtype"), [("7.5", "float32"), ("8.0", "bfloat16"), ("12.0", "bfloat16")])
def test_the_dtype_of_a_gpu_follows_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    text = ffi().new("char[]", f"NVIDIA X 3.1, compute capability {name}".encode())
    library = SimpleNamespace(pygpt_processor=lambda: text)
    monkeypatch.setitem(DEVICES, "cuda", replace(DEVICES["cuda"], check=lambda: library))
    assert devices.resolve_dtype("auto", "cuda") == dtype
