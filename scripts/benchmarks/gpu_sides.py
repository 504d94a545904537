"""What is measured on a GPU: training steps of this library, of torch and of llm.c, and the device itself."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generation import CACHE, LONG, PROMPT, bytes_per_token
from benchmarks.gpu_kernels import KernelTime, kernel_times
from benchmarks.machine import version
from benchmarks.session import TINY
from benchmarks.steps import BETAS, LARGEST_NORM, LEARNING_RATE, WEIGHT_DECAY, Step
from pygpt.backends.interface import WEIGHTS, Generator
from pygpt.config import MODEL_SIZES, GPT2Config
from pygpt.model import GPT2

MODELS = {**MODEL_SIZES, "tiny": TINY}
WARM_UP = 3  # the first step plans and compiles, the second captures
SAMPLES = 5
MIB = 2**20

Steps = tuple[Callable[[], Any], Callable[[], Any]]  # a step, and what waits until all steps are done


def torch_device(device: str) -> str:
    """Where torch works beside a device of this library."""
    return "cuda" if device == "cuda" else "cpu"


def pygpt_steps(config: GPT2Config, device: str) -> Callable[[int, int], Steps]:
    """(B, T) -> steps of one model in bfloat16, whose buffers grow."""
    model = GPT2(config, device=device, dtype="bfloat16")

    def prepare(B: int, T: int) -> Steps:
        batch = Step(B, T).random_batch(config.vocab_size)

        def step() -> float:
            model.zero_grad()
            loss = model.forward_backward(*batch)
            model.clip_grad_norm(LARGEST_NORM)
            model.adamw_step(LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
            return loss

        return step, lambda: np.array(model.parameters["ln_f.bias"])

    return prepare


def torch_steps(config: GPT2Config, device: str, compiled: bool) -> Callable[[int, int], Steps]:
    """The same in torch under autocast; the loss is not read, and the vocabulary is padded to a multiple of 64."""
    torch: Any = importlib.import_module("torch")
    padded = replace(config, vocab_size=-(-config.vocab_size // 64) * 64)
    model = importlib.import_module("benchmarks.torch_gpt2").TorchGPT2(padded).to(device)
    parameters = list(model.parameters())
    if compiled:
        compile_parts(torch, model)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.dim() >= 2:
                parameter.normal_(0.0, config.initializer_range)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)

    def prepare(B: int, T: int) -> Steps:
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        batch = [torch.from_numpy(part).long().to(device) for part in Step(B, T).random_batch(config.vocab_size)]

        def step() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = model(*batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            optimizer.step()
            return loss.detach()

        return step, torch.cuda.synchronize if device == "cuda" else lambda: None

    return prepare


def compile_parts(torch: Any, model: Any) -> None:
    """Each block, which is compiled once for all, and both ends, in which the cross-entropy becomes one with the head.

    The whole model at once takes minutes instead of seconds.
    """
    for block in model.h:
        block.compile(dynamic=False)
    model.embed = torch.compile(model.embed, dynamic=False)
    model.head = torch.compile(model.head, dynamic=False)


def time_steps(step: Callable[[], Any], finish: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Median of SAMPLES samples, in `seconds` together; a sample is many steps and one wait for the device."""
    first_loss = float(step())
    for _ in range(WARM_UP - 1):
        step()
    finish()

    def sample(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        finish()
        return (time.perf_counter() - start) / steps

    steps = max(1, round(seconds / SAMPLES / max(sample(1), 1e-6)))
    samples = [sample(steps) for _ in range(SAMPLES)]
    return {"seconds": statistics.median(samples), "samples": samples, "steps": steps, "first_loss": first_loss}


def measure_side(
    side: str, model: str, batches: list[int], T: int, device: str, compiled: bool, seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for each batch size, as soon as it is known; where one fails, "failed" says why, and the next is tried."""
    config = MODELS[model]
    name = "torch.compile" if side == "torch" and compiled else side
    before = device_memory() if device == "cuda" else None
    prepare = pygpt_steps(config, device) if side == "pygpt" else torch_steps(config, torch_device(device), compiled)
    for B in batches:
        row: dict[str, Any] = {"side": name, "model": model, "B": B, "T": T}
        step = finish = None  # what the batch before holds, torch frees
        try:
            step, finish = prepare(B, T)
            row |= time_steps(step, finish, seconds)
            row["tokens_per_second"] = B * T / row["seconds"]
            after = device_memory() if device == "cuda" else None
            row["memory"] = None if before is None or after is None else after - before
        except Exception as error:  # most often no memory for this batch
            row["failed"] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
        yield row


def measure_generation(model: str, batches: list[int], device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each format of the weights and number of sequences: a token for each of them, and a long prompt.

    "bytes" are those that the tokens read at least, keys and values among them.
    """
    config = MODELS[model]
    gpt2 = GPT2(config, device=device)
    length, prompt = min(PROMPT, config.n_positions // 2), min(LONG, config.n_positions)
    for weights in WEIGHTS:
        alone = bytes_per_token(config, weights, 0)
        for B in batches:
            generator = gpt2.generator(weights, CACHE[weights], batch_size=B)
            row: dict[str, Any] = {"model": model, "weights": weights, "B": B, "prompt": prompt}
            row["seconds"] = _time_feeds(generator, length, 1, seconds)
            row["tokens_per_second"] = B / row["seconds"]
            row["bytes"] = alone + B * (bytes_per_token(config, weights, length) - alone)
            row["prompt_seconds"] = _time_feeds(generator, 0, prompt, seconds)
            yield row


def _time_feeds(generator: Generator, length: int, count: int, seconds: float) -> float:
    """Seconds for `count` tokens after `length` others, in each sequence."""
    B = len(generator.lengths)
    texts = np.random.default_rng(0).integers(0, generator.config.vocab_size, (B, length + count))
    generator.rewind([0] * B)
    generator.feed(list(texts[:, :length]))
    new = list(texts[:, length:])

    def feed() -> float:
        generator.rewind([length] * B)
        return float(generator.feed(new)[0, 0])

    return float(time_steps(feed, lambda: None, seconds)["seconds"])


def device_memory() -> int | None:
    """Bytes in use on the device by everybody; None where nvidia-smi does not tell."""
    try:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(found.splitlines()[0]) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def device_rates(device: str, size: int = 8192, copied: int = 2**32, seconds: float = 2.0) -> dict[str, float]:
    """FLOP/s of a large product of random bfloat16 matrices, and bytes/s of a copy, both ways counted; by torch.

    Each over so many seconds: a short burst runs at clocks that no training step can hold.
    """
    torch: Any = importlib.import_module("torch")
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(copied // 4, device=device).normal_()
    target = torch.empty_like(source)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds_of(function: Callable[[], Any]) -> float:
        def step() -> float:
            function()
            return 0.0

        return float(time_steps(step, finish, seconds)["seconds"])

    return {
        "product_flops": 2.0 * size**3 / seconds_of(lambda: torch.matmul(a, b)),
        "copy_bytes": 2.0 * copied / seconds_of(lambda: target.copy_(source)),
    }


def kernels_of_step(model: str, B: int, T: int, device: str, steps: int = 3) -> list[KernelTime]:
    """A step's kernels.  CUPTI, under torch's profiler, sees those of the whole process.

    Set PYGPT_CUDA_GRAPH=0 before, so that each launch is seen by itself.
    """
    torch: Any = importlib.import_module("torch")
    step, finish = pygpt_steps(MODELS[model], device)(B, T)
    if device == "cuda":
        torch.zeros(1, device=device)  # the profiler looks at devices that torch has opened
    for _ in range(WARM_UP):
        step()
    finish()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        finish()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return kernel_times(json.loads(path.read_text(encoding="utf-8")), steps)


# ---- llm.c ----

LLMC_DEPTHS = {"gpt2": "d12", "gpt2-medium": "d24", "gpt2-large": "d36"}
_LLMC_MAGIC, _LLMC_VERSION = 20240520, 1


def measure_llmc(folder: Path, model: str, B: int, T: int, seconds: float, steps: int = 30) -> dict[str, Any]:
    """A row of llm.c's own tokens/s, the last that train_gpt2cu prints, on random tokens and fresh weights."""
    row: dict[str, Any] = {"side": "llm.c", "model": model, "B": B, "T": T}
    program = folder / "train_gpt2cu"
    if not program.is_file():
        return {**row, "failed": f"{program}: no such file"}
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch) / "tokens.bin"
        _write_llmc_tokens(tokens, MODELS[model].vocab_size, 4 * B * T + 1)
        data = ["-i", str(tokens), "-j", str(tokens), "-e", LLMC_DEPTHS[model]]
        sizes = ["-b", str(B), "-t", str(T), "-d", str(B * T), "-x", str(steps)]
        # neither validation nor samples nor checkpoints in between; activations kept, as here
        quiet = ["-v", "100000", "-m", "1", "-s", "0", "-h", "0", "-n", "0", "-r", "0", "-l", "1e-4"]
        command = [str(program.resolve()), *data, *sizes, *quiet]
        with suppress(subprocess.TimeoutExpired):
            found = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=folder)
            rate = llmc_tokens_per_second(found.stdout)
            if rate is not None:
                return {**row, "tokens_per_second": rate, "seconds": B * T / rate}
            words = (found.stderr.strip() or found.stdout.strip()).splitlines()
            return {**row, "failed": f"status {found.returncode}: {words[-1][:200] if words else 'no output'}"}
    return {**row, "failed": f"not done in {seconds:.0f} s"}


def llmc_tokens_per_second(output: str) -> float | None:
    """The last figure in llm.c's output, which is a moving average over the steps."""
    found = re.findall(r"([\d.]+) tok/s", output)
    return float(found[-1]) if found else None


def _write_llmc_tokens(path: Path, vocab_size: int, count: int) -> None:
    """Random tokens in llm.c's format: 256 int32 of header, then uint16."""
    header = np.zeros(256, np.int32)
    header[:3] = _LLMC_MAGIC, _LLMC_VERSION, count
    tokens = np.random.default_rng(0).integers(0, min(vocab_size, 2**16), count).astype(np.uint16)
    path.write_bytes(header.tobytes() + tokens.tobytes())


def describe_device() -> dict[str, Any]:
    """Names and versions; None for what is absent."""
    found: dict[str, Any] = {"device": None, "driver": None, "nvcc": None, "torch": None}
    with suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        line = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
        found["device"], found["driver"] = (part.strip() for part in line.split(",", 1))
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc:
        with suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
            release = re.search(r"V(\d[\d.]*)", text)
            found["nvcc"] = release[1] if release else None
    found["torch"] = version("torch")  # its import takes long
    return found
