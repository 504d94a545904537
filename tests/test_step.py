"""pygpt-step computes what pygpt's numpy model computes, and answers what is wrong with one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pygpt
from pygpt.backends.sources import is_current
from pygpt.text.token_file import write_tokens

ROOT = Path(__file__).parents[1]
CONFIG = pygpt.GPT2Config(vocab_size=65, n_positions=20, n_embd=24, n_layer=2, n_head=3, n_inner=40, resid_pdrop=0.3)
B, T, STEPS = 3, 7, 10
COUNT = 4 * B * T + 3  # four whole batches, of which the last has too few tokens after it for a fifth
BETAS, EPS, WEIGHT_DECAY, LEARNING_RATE = (0.9, 0.999), 1e-8, 0.01, 1e-3  # a larger step than the default, to be seen
STEP_LINE = re.compile(r"step +(\d+)   loss (\S+)   gradient norm (\S+)   \S+ ms")


@pytest.fixture(scope="session")
def program() -> Path:
    """The newest pygpt-step of those beside the libraries that Python may open."""
    named = os.environ.get("PYGPT_LIB_DIR")
    folders = [Path(named)] if named else [Path(sysconfig.get_path("scripts")), ROOT / "build", *ROOT.glob("build/*/")]
    found = [folder / "pygpt-step" for folder in folders if (folder / "pygpt-step").is_file()]
    if not found:
        pytest.skip(f"pygpt-step is not in {', '.join(map(str, folders))}")
    program = max(found, key=lambda path: (is_current(path), path.stat().st_mtime))
    assert is_current(program), f"{program} was not built from the sources in {ROOT}"
    return program


@pytest.fixture(scope="session")
def tokens() -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, COUNT).astype(np.uint16)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, tokens: NDArray[np.uint16]) -> Path:
    """A folder with a model in three precisions, and a token file."""
    folder = tmp_path_factory.mktemp("step")
    model = pygpt.GPT2(CONFIG, device="numpy", dtype="float32", seed=1)
    noise = np.random.default_rng(1)
    for name, value in model.parameters.items():
        model.set_parameter(name, value + noise.normal(0, 0.1, value.shape))
    for dtype in ("float32", "float16", "bfloat16"):
        model.save_pretrained(folder / dtype, dtype)
    write_tokens(folder / "tokens.bin", tokens)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def run(program: Path, folder: Path, *flags: str, dtype: str = "float32") -> subprocess.CompletedProcess[str]:
    command = [program, "--model", folder / dtype, "--tokens", folder / "tokens.bin", "--batch-size", B, "--seq-len", T]
    return subprocess.run(
        [*map(str, command), "--learning-rate", str(LEARNING_RATE), "--threads", "2", *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )


def losses_and_norms(done: subprocess.CompletedProcess[str]) -> NDArray[np.float64]:
    """The printed losses and norms: (STEPS, 2)."""
    assert done.returncode == 0, done.stderr
    lines = [STEP_LINE.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(lines) and [int(line[1]) for line in lines if line] == list(range(1, STEPS + 1)), done.stdout
    return np.array([[float(line[2]), float(line[3])] for line in lines if line])


def batches(tokens: NDArray[np.uint16]) -> Iterator[NDArray[np.int64]]:
    """llm.c's: consecutive, and from the start again after the last one that is whole, with the token after each."""
    while True:
        for start in range(0, len(tokens) - B * T, B * T):
            yield tokens[start : start + B * T + 1].astype(np.int64)


def train(model: pygpt.GPT2, tokens: NDArray[np.uint16], dropout: bool = False) -> NDArray[np.float64]:
    """The same steps by pygpt's model: losses and norms, (STEPS, 2)."""
    found = []
    for step, batch in zip(range(STEPS), batches(tokens), strict=False):
        model.zero_grad()
        loss = model.forward_backward(
            batch[:-1].reshape(B, T), batch[1:].reshape(B, T), dropout_step=step if dropout else None
        )
        found.append((loss, model.clip_grad_norm(0.0)))
        model.adamw_step(LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY)
    return np.array(found)


def truth(folder: Path, dropout: float = 0.0, seed: int = 0) -> pygpt.GPT2:
    """The numpy model in float64, with this dropout in place of its configuration's."""
    config = replace(CONFIG, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout)
    return pygpt.GPT2.from_pretrained(folder, config=config, device="numpy", dtype="float64", seed=seed)


def agree(found: NDArray[np.float64], expected: NDArray[np.float64], loss: float, norm: float) -> None:
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=loss)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=norm)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_ten_steps_agree_with_numpy(program: Path, pristine: Path, tokens: NDArray[np.uint16], dtype: str) -> None:
    expected = train(truth(pristine / dtype), tokens)
    assert np.abs(np.diff(expected[:, 0])).max() > 0.01  # the updates are seen
    agree(losses_and_norms(run(program, pristine, dtype=dtype)), expected, 1e-5, 1e-4)


@pytest.mark.parametrize("flags", ["--kernels fast", "--recompute cheap", "--recompute block", "--threads 1"])
def test_other_ways_agree(program: Path, pristine: Path, tokens: NDArray[np.uint16], flags: str) -> None:
    agree(
        losses_and_norms(run(program, pristine, *flags.split())), train(truth(pristine / "float32"), tokens), 1e-5, 1e-4
    )


def test_same_batch_is_learnt(program: Path, pristine: Path, tokens: NDArray[np.uint16]) -> None:
    found = losses_and_norms(run(program, pristine, "--same-batch"))
    agree(found, train(truth(pristine / "float32"), tokens[: B * T + 1]), 1e-5, 1e-4)
    assert found[-1, 0] < 0.98 * found[0, 0]


def test_bfloat16(program: Path, pristine: Path, tokens: NDArray[np.uint16]) -> None:
    found = losses_and_norms(run(program, pristine, "--dtype", "bfloat16"))
    expected = train(truth(pristine / "float32"), tokens)
    agree(found, expected, 5e-3, 5e-2)
    assert np.abs(found / expected - 1).max() > 1e-5  # it is another precision


def test_dropout_draws_the_same_masks(program: Path, pristine: Path, tokens: NDArray[np.uint16]) -> None:
    expected = train(truth(pristine / "float32", dropout=0.25, seed=9), tokens, dropout=True)
    agree(losses_and_norms(run(program, pristine, "--dropout", "0.25", "--seed=9")), expected, 1e-5, 1e-4)


def test_prefix_head_and_mask_buffers_are_read(program: Path, folder: Path) -> None:
    expected = losses_and_norms(run(program, folder))
    weights = folder / "float32" / "model.safetensors"
    header, data = read(weights)
    tensors = {f"transformer.{name}": entry for name, entry in header.items() if name != "__metadata__"}
    begin, end = header["wte.weight"]["data_offsets"]
    head = data[begin:end]
    tensors["lm_head.weight"] = {**header["wte.weight"], "data_offsets": [len(data), len(data) + len(head)]}
    mask = {"dtype": "U8", "shape": [1, 1, 2, 2], "data_offsets": [len(data) + len(head), len(data) + len(head) + 4]}
    write(weights, {**tensors, "transformer.h.1.attn.bias": mask}, data + head + b"\1\0\1\1")
    assert np.array_equal(losses_and_norms(run(program, folder)), expected)


def test_help_lists_the_flags(program: Path) -> None:
    done = subprocess.run([program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert {"--model", "--tokens", "--same-batch", "--weight-decay"} <= set(re.findall(r"--[a-z0-9-]+", done.stdout))


# ---- bad input ----


def read(weights: Path) -> tuple[dict[str, Any], bytes]:
    contents = weights.read_bytes()
    size = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + size]), contents[8 + size :]


def write(weights: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data)


def refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--steps 0", "--steps is 0, expected an integer from 1 to"),
        ("--steps 1.5", "--steps is 1.5, expected an integer"),
        ("--batch-size -1", "--batch-size is -1"),
        ("--batch-size 99999999999999999999", "--batch-size is 99999999999999999999"),
        ("--batch-size 5", "holds 87 tokens, too few for one batch of 5 x 20"),
        ("--seq-len 21", "--seq-len is 21, expected at most 20, the n_positions of"),
        ("--learning-rate -1", "--learning-rate is -1, expected a number from 0"),
        ("--learning-rate nan", "--learning-rate is nan"),
        ("--beta1 1", "--beta1 is 1, expected a number from 0 to below 1"),
        ("--beta2 0.99999999999", "--beta2 is 0.99999999999"),
        ("--dropout 1", "--dropout is 1"),
        ("--kernels best", "--kernels is best, expected one of plain|fast"),
        ("--dtype float", "--dtype is float, expected one of float32|bfloat16"),
        ("--threads 0", "--threads is 0"),
        ("--same-batch=1", "--same-batch takes no value"),
        ("--model", "--model expects a value"),
        ("--modal x", "--modal is not a flag of pygpt-step"),
        ("--batch-size 2000000000", "GiB for batches of 2000000000 x 20"),
    ],
)
def test_flags_are_refused(program: Path, pristine: Path, flags: str, sentence: str) -> None:
    refused(run(program, pristine, "--seq-len", "20", *flags.split()), sentence)


def test_missing_flags_are_named(program: Path, pristine: Path) -> None:
    for flags, sentence in (([], "--model FOLDER is missing"), (["--model", "x"], "--tokens FILE is missing")):
        refused(subprocess.run([program, *flags], capture_output=True, text=True), sentence)


def config_edit(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "float32" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def tensor_edit(name: str, **fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "float32" / "model.safetensors"
        header, data = read(path)
        header[name].update(fields)
        write(path, header, data)

    return edit


def cut(name: str, size: int) -> Callable[[Path], None]:
    """The file shortened to a size, or by a negative one."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return edit


def header_field(place: int, value: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "tokens.bin"
        contents = np.frombuffer(path.read_bytes()[:1024], "<i4").copy()
        contents[place] = value
        path.write_bytes(contents.tobytes() + path.read_bytes()[1024:])

    return edit


def extra_tensor(folder: Path) -> None:
    path = folder / "float32" / "model.safetensors"
    header, data = read(path)
    header["h.2.ln_1.bias"] = {"dtype": "F32", "shape": [24], "data_offsets": [len(data), len(data) + 96]}
    write(path, header, data + bytes(96))


def unequal_head(folder: Path) -> None:
    path = folder / "float32" / "model.safetensors"
    header, data = read(path)
    head = bytearray(data[slice(*header["wte.weight"]["data_offsets"])])
    head[-1] ^= 1
    header["lm_head.weight"] = {**header["wte.weight"], "data_offsets": [len(data), len(data) + len(head)]}
    write(path, header, data + head)


def shards(folder: Path) -> None:
    (folder / "float32" / "model.safetensors").rename(folder / "float32" / "model.safetensors.index.json")


def interrupted_save(folder: Path) -> None:
    (folder / "float32" / ".saved").mkdir()
    (folder / "float32" / "model.safetensors").rename(folder / "float32" / ".saved" / "model.safetensors")


def pipe(name: str) -> Callable[[Path], None]:
    """A pipe in place of a file: whoever opens it would wait for a writer."""

    def edit(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return edit


def odd_token(folder: Path) -> None:
    contents = bytearray((folder / "tokens.bin").read_bytes())
    contents[1024 + 2 * 5] = 65
    (folder / "tokens.bin").write_bytes(contents)


def not_json(folder: Path) -> None:
    (folder / "float32" / "config.json").write_text('{"n_embd": 24,}')


def control_characters(folder: Path) -> None:
    path = folder / "float32" / "model.safetensors"
    header, data = read(path)
    header["\033[31mred\nmore"] = header.pop("ln_f.bias")
    write(path, header, data)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder / "float32"), "float32: is not a folder, expected one with config.json"),
        (lambda folder: (folder / "float32/config.json").unlink(), "config.json: cannot be read: No such file"),
        (lambda folder: (folder / "float32/model.safetensors").unlink(), "model.safetensors: cannot be read: No such"),
        (shards, "holds its weights in several files"),
        (interrupted_save, "saving into it was interrupted"),
        (not_json, "config.json: is not JSON: expected a string at byte 14"),
        (config_edit(n_embd=25), "config.json"),
        (config_edit(n_head=5), "n_embd is 24, expected a multiple of n_head"),
        (config_edit(n_inner=0), "config.json: n_inner is 0, expected an integer from 1 to 2147483647"),
        (config_edit(n_layer=2**31 - 1), "holds 28 tensors, too few for the 2147483647 layers"),
        (config_edit(n_layer=1), "tensor h.1.attn.c_attn.bias is not a parameter of the GPT-2 in config.json"),
        (config_edit(n_positions=2**30), "numbers, too few for the"),
        (config_edit(vocab_size=64), "tensor wte.weight has shape (65, 24), expected (64, 24)"),
        (config_edit(tie_word_embeddings=False), "tie_word_embeddings is false, expected true"),
        (config_edit(activation_function="relu"), 'activation_function is "relu", expected "gelu_new" or'),
        (config_edit(resid_pdrop=1), "resid_pdrop is 1, expected a number below 1"),
        (config_edit(layer_norm_epsilon=None), "layer_norm_epsilon is null, expected a number"),
        (tensor_edit("wpe.weight", dtype="F16"), "tensor wpe.weight has 480 values of 2 bytes, but 1920 bytes"),
        (tensor_edit("wpe.weight", dtype="U8", shape=[1920]), "tensor wpe.weight has shape (1920), expected (20, 24)"),
        (tensor_edit("wpe.weight", dtype="I64"), 'dtype "I64", expected F32, F16 or BF16'),
        (tensor_edit("wpe.weight", shape=[24, 20]), "tensor wpe.weight has shape (24, 20), expected (20, 24)"),
        (tensor_edit("wpe.weight", shape=[2**62, 4]), "the shape of tensor wpe.weight is not one of sizes"),
        (tensor_edit("wpe.weight", data_offsets=[0, 1920]), "begins at byte 0 of the data, expected 1920"),
        (tensor_edit("wpe.weight", data_offsets=[2**40, 2**40 + 1920]), "expected a place within"),
        (cut("float32/model.safetensors", 4), "is truncated: 4 bytes"),
        (cut("float32/model.safetensors", 1000), "is truncated: 1000 bytes, expected a header of"),
        (cut("float32/model.safetensors", -1), "expected a place within"),
        (cut("float32/config.json", 0), "config.json: is not JSON"),
        *(
            (pipe(name), f"{name}: is not a file")
            for name in ("float32/config.json", "float32/model.safetensors", "tokens.bin")
        ),
        (extra_tensor, "tensor h.2.ln_1.bias is not a parameter"),
        (unequal_head, "tensor lm_head.weight differs from wte.weight"),
        (control_characters, "tensor ln_f.bias is missing"),
        (lambda folder: (folder / "tokens.bin").unlink(), "tokens.bin: cannot be read: No such file"),
        (cut("tokens.bin", 0), "tokens.bin: has 0 bytes, expected a header of 1024"),
        (cut("tokens.bin", -2), "the header says 87 tokens of 2 bytes, but 172 bytes follow it"),
        (header_field(0, 20240521), "begins with 20240521, expected 20240520: it is not a token file"),
        (header_field(1, 7), "is a token file of version 7, expected 1"),
        (header_field(2, -1), "the header says -1 tokens"),
        (header_field(2, 2**31 - 1), "the header says 2147483647 tokens"),
        (odd_token, "tokens.bin: token 5 is 65, expected 0 ... 64"),
    ],
)  # fmt: skip
def test_files_are_refused(program: Path, folder: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(folder)
    refused(run(program, folder), sentence)
