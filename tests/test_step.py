"""pygpt-step computes what pygpt's numpy model computes, and answers what is wrong with one sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from variations import VARIED

import pygpt
from pygpt.backends.sources import is_current
from pygpt.files.llmc import VERSIONS, write_model
from pygpt.text.token_file import write_tokens

ROOT = Path(__file__).parents[1]
CONFIG = pygpt.GPT2Config(
    vocab_size=65, n_positions=20, n_embd=24, n_layer=2, n_head=3, n_inner=40, layer_norm_epsilon=1e-3, resid_pdrop=0.3
)
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
    """A folder with a model in two precisions, as file and as folder, and a token file."""
    folder = tmp_path_factory.mktemp("step")
    save_noisy(folder, CONFIG)
    write_tokens(folder / "tokens.bin", tokens)
    return folder


def save_noisy(folder: Path, config: pygpt.GPT2Config) -> None:
    """A model in two precisions, as file and as folder."""
    model = pygpt.GPT2(config, device="numpy", dtype="float32", seed=1)
    noise = np.random.default_rng(1)
    for name, value in model.parameters.items():
        model.set_parameter(name, value + noise.normal(0, 0.1, value.shape))
    for dtype in VERSIONS:
        model.save_pretrained(folder / dtype, dtype)
        write_model(folder / f"{dtype}.bin", config, model.parameters, dtype)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def run(program: Path, folder: Path, *flags: str, dtype: str = "float32") -> subprocess.CompletedProcess[str]:
    command = [
        program,
        "--model",
        folder / f"{dtype}.bin",
        "--tokens",
        folder / "tokens.bin",
        "--batch-size",
        B,
        "--seq-len",
        T,
    ]
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


def truth(folder: Path, dropout: float = 0.0, seed: int = 0, **settings: Any) -> pygpt.GPT2:
    """The numpy model in float64, with this dropout in place of its configuration's."""
    config = replace(CONFIG, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout, **settings)
    return pygpt.GPT2.from_pretrained(folder, config=config, device="numpy", dtype="float64", seed=seed)


def agree(found: NDArray[np.float64], expected: NDArray[np.float64], loss: float, norm: float) -> None:
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=loss)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=norm)


@pytest.mark.parametrize("dtype", VERSIONS)
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


@pytest.mark.parametrize("settings", VARIED.values(), ids=VARIED)
def test_variations_agree(program: Path, folder: Path, tokens: NDArray[np.uint16], settings: dict[str, Any]) -> None:
    save_noisy(folder, replace(CONFIG, **settings))
    expected = train(truth(folder / "float32", **settings), tokens)
    agree(losses_and_norms(run(program, folder)), expected, 1e-5, 1e-4)


def test_a_folder_tells_the_command(program: Path, folder: Path) -> None:
    done = subprocess.run(
        [program, "--model", "float32", "--tokens", "tokens.bin"], capture_output=True, text=True, cwd=folder
    )
    refused(done, "float32: is a folder, expected a file: ")
    words = done.stderr.split(": ")[-1].removesuffix(" makes one\n").split()
    assert words[0] == "python"
    subprocess.run([sys.executable, ROOT / words[1], *words[2:]], check=True, cwd=folder, capture_output=True)
    assert (folder / "model.bin").read_bytes() == (folder / "float32.bin").read_bytes()


def test_help_lists_the_flags(program: Path) -> None:
    done = subprocess.run([program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert {"--model", "--tokens", "--same-batch", "--weight-decay"} <= set(re.findall(r"--[a-z0-9-]+", done.stdout))


# ---- bad input ----


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
        ("--model \033[31mred\n", "?[31mred?: cannot be read: No such file"),
    ],
)
def test_flags_are_refused(program: Path, pristine: Path, flags: str, sentence: str) -> None:
    refused(run(program, pristine, "--seq-len", "20", *flags.split(" ")), sentence)


def test_missing_flags_are_named(program: Path, pristine: Path) -> None:
    for flags, sentence in (([], "--model FILE is missing"), (["--model", "x"], "--tokens FILE is missing")):
        refused(subprocess.run([program, *flags], capture_output=True, text=True), sentence)


def cut(name: str, size: int) -> Callable[[Path], None]:
    """The file shortened to a size, or by a negative one."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return edit


def header_field(place: int, value: int, name: str = "float32.bin") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        contents = bytearray((folder / name).read_bytes())
        contents[4 * place : 4 * place + 4] = value.to_bytes(4, "little", signed=True)
        (folder / name).write_bytes(contents)

    return edit


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


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "float32.bin").unlink(), "float32.bin: cannot be read: No such file"),
        *((pipe(name), f"{name}: is not a file") for name in ("float32.bin", "tokens.bin")),
        (cut("float32.bin", 0), "float32.bin: has 0 bytes, expected a header of 1024"),
        (cut("float32.bin", 1023), "has 1023 bytes, expected a header of 1024"),
        (cut("float32.bin", -1), "but a model of the sizes in its header takes"),
        (header_field(0, 20240520), "begins with 20240520, expected 20240326: it is not a model file of llm.c"),
        (header_field(1, 1), "is a model file of version 1, expected 3 or 5"),
        (header_field(1, 5), "but a model of the sizes in its header takes"),
        (header_field(2, 0), "n_positions is 0, expected at least 1"),
        (header_field(3, 129), "the padded vocab_size is 128, expected at least 129, the vocab_size"),
        (header_field(4, 2**31 - 1), "but a model of the sizes in its header takes"),
        (header_field(5, 5), "n_embd is 24, expected a multiple of n_head"),
        (header_field(6, 2**31 - 1), "but a model of the sizes in its header takes"),
        (header_field(7, 0), "the padded vocab_size is 0, expected at least 65"),
        (header_field(8, -1), "n_inner is -1, expected at least 1"),
        (header_field(9, 0x7FC00000), "layer_norm_epsilon is nan, expected a number above 0"),
        (header_field(9, 0x7F800000), "layer_norm_epsilon is inf, expected a number above 0"),
        (header_field(9, -(2**31)), "layer_norm_epsilon is -0, expected a number above 0"),
        (header_field(15, 7), "float32.bin: activation_function is 7, expected 0 ... 2"),
        (header_field(16, 7), "float32.bin: position_embedding is 7, expected 0 ... 3"),
        (header_field(17, 1), "but a model of the sizes in its header takes"),
        (header_field(18, 1), "but a model of the sizes in its header takes"),
        (header_field(19, 7), "float32.bin: causal is 7, expected 0 ... 1"),
        (header_field(20, 7), "float32.bin: scale_attn_weights is 7, expected 0 ... 1"),
        (header_field(23, 7), "field 23 of the header is 7, expected 0"),
        (header_field(255, -1), "field 255 of the header is -1, expected 0"),
        (lambda folder: (folder / "tokens.bin").unlink(), "tokens.bin: cannot be read: No such file"),
        (cut("tokens.bin", 0), "tokens.bin: has 0 bytes, expected a header of 1024"),
        (cut("tokens.bin", -2), "the header says 87 tokens of 2 bytes, but 172 bytes follow it"),
        (header_field(0, 20240521, "tokens.bin"), "begins with 20240521, expected 20240520: it is not a token file"),
        (header_field(1, 7, "tokens.bin"), "is a token file of version 7, expected 1"),
        (header_field(2, -1, "tokens.bin"), "the header says -1 tokens"),
        (header_field(2, 2**31 - 1, "tokens.bin"), "the header says 2147483647 tokens"),
        (odd_token, "tokens.bin: token 5 is 65, expected 0 ... 64"),
    ],
)  # fmt: skip
def test_files_are_refused(program: Path, folder: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(folder)
    refused(run(program, folder), sentence)
