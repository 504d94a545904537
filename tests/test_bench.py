"""The benchmark runs, and what it compares is equal; how fast anything is, no test asks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import required

import pygpt
from benchmarks import layers, products
from benchmarks.generation import CTranslate2Text, Text, write_likeliest
from benchmarks.layers import LayerSteps
from benchmarks.plot import plot
from benchmarks.products import FORMS, NumpyProducts, Product, PygptProducts, TorchProducts
from benchmarks.run import SECTIONS, chosen
from benchmarks.session import TINY, Session
from benchmarks.steps import PygptSteps, Step, TorchSteps
from benchmarks.work import flops_per_token
from benchmarks.worker import Turns, UnavailableError, Worker, take_turns
from pygpt.backends.interface import DTYPES
from pygpt.backends.library import available_cores, cpu_library, last_error
from pygpt.errors import UserError

ROOT = Path(__file__).parents[1]


def run_script(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


# ---- the command ----


def test_quick_run_has_every_section_and_finite_numbers(tmp_path: Path) -> None:
    files = tmp_path / "found.json", tmp_path / "found.png"
    shorter = ("--torch", "none", "--repeats", "1", "--threads", "1")
    found = run_script("--quick", *shorter, "--json", files[0], "--plot", files[1])
    assert found.returncode == 0, found.stderr
    written = json.loads(files[0].read_text(), parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))
    assert set(SECTIONS) <= set(written)
    for head in (
        "peaks, median of 1, fewer than the 5 that a claim needs",
        "matrix products, float32",
        "matrix products, bfloat16",
        "layers of a training step, float32, 2 x 8",
        "layers of a training step, bfloat16, 2 x 8",
        "training step, ",
        "training iteration, preset bytes",
        "peak resident memory of a training process, float32",
        "cost of a token as work grows, bfloat16",
    ):
        assert f"\n{head}" in found.stdout
    fractions = [value for name, value in entries(written) if name in ("of_peak", "of_bound", "share")]
    assert len(fractions) > 100
    assert all(math.isfinite(value) and value > 0 for value in fractions)
    assert {row["alternative"] for row in written["steps"]} == {"pygpt"}
    assert files[1].read_bytes().startswith(b"\x89PNG")


def entries(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Every name in nested JSON with its value."""
    if isinstance(value, dict):
        return [found for key, entry in value.items() for found in entries(entry, key)]
    if isinstance(value, list):
        return [found for entry in value for found in entries(entry)]
    return [(name, value)]


def test_columns_say_that_torch_is_absent(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')\n")
    arguments = ("--quick", "--repeats", "1", "--threads", "1", "--dtype", "float32", "--torch", "eager")
    found = run_script(*arguments, "--only", "products,steps,memory", PYTHONPATH=str(tmp_path))
    assert found.returncode == 0, found.stderr
    table, steps, memory = found.stdout.split("\n\n")[1:]
    assert table.splitlines()[3].split()[-2:] == ["absent", "absent"]
    assert table.endswith("torch: torch is not installed")
    assert steps.splitlines()[4].split()[-4:] == ["absent"] * 4
    assert steps.splitlines()[-1] == "  torch eager, float32: torch is not installed"
    assert memory.splitlines()[-1] == "  torch eager: torch is not installed"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--only", "layer"], "'layer' is not a section: peaks, products, layers,"),
        (["--only", "layer"], "did you mean layers?"),
        (["--only", ""], "'' is not a section"),
        (["--repeats", "0"], "--repeats: expected an integer of at least 1, got '0'"),
        (["--threads", "1000"], f"threads is 1000, expected 1 to {available_cores()}, the cores"),
        (["--torch", "some"], "--torch: invalid choice: 'some'"),
        (["--only", "peaks", "--plot", "x.png"], "--plot shows products, layers, steps, scaling, and none of them"),
        (["--json", "no/such/folder/x.json"], "no/such/folder/x.json: cannot be saved: No such file or directory"),
        (["--quick", "--what"], "--what is not a flag"),
    ],
)
def test_command_answers_bad_input_with_a_sentence(arguments: list[str], sentence: str) -> None:
    found = run_script(*arguments)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ") and sentence in found.stderr
    assert found.stderr.count("\n") == 1


def test_wrong_instruction_set_is_a_sentence() -> None:
    found = run_script("--quick", "--only", "peaks", PYGPT_ISA="x87")
    assert (found.returncode, found.stderr.splitlines()[-1][:22]) == (2, "error: PYGPT_ISA is 'x")


def test_sections_are_measured_in_their_order() -> None:
    assert chosen("scaling, peaks") == ("peaks", "scaling")
    assert chosen(None) == tuple(SECTIONS)


def test_session_refuses_values_out_of_range() -> None:
    with pytest.raises(UserError, match="repeats is 0"):
        Session(threads=1, repeats=0)
    with pytest.raises(UserError, match="threads is 0"):
        Session(threads=0, repeats=1)


# ---- the peaks ----


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def best_rates_agree(
    first: Callable[[], float], second: Callable[[], float], agree: Callable[[float, float], bool]
) -> bool:
    """Whether the best of each, measured in turns, agree at last: on a busy machine, later."""
    best = (0.0, 0.0)
    for turn in range(400):
        best = (max(best[0], first()), max(best[1], second()))
        if turn >= 20 and agree(*best):
            return True
    return False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_of_multiply_adds_is_above_a_product_but_not_far(dtype: str) -> None:
    """Fast products come to 80 % of it; were one of its operations counted as two or two as one, it could not be."""
    pygpt.set_threads(1)
    side, case = PygptProducts(1, dtype, "fast"), Product(384, 384, 384, "y", False)
    run = side.prepare(case)
    assert best_rates_agree(
        lambda: float(cpu_library().pygpt_peak_flops(DTYPES.index(dtype), 0.001)),
        lambda: case.flops / seconds_of(run),
        lambda peak, found: 0.5 * peak < found < 1.05 * peak,
    )


@pytest.mark.parametrize("loop", [0, 1, 2], ids=["copy", "triad", "read"])
def test_peak_of_memory_is_that_of_numpy_s_copy_or_a_few_times_as_much(loop: int) -> None:
    """numpy's may first read what it overwrites. Floats counted for bytes, or an array too many, would be outside."""
    pygpt.set_threads(1)
    x, y = np.ones(2**23, np.float32), np.ones(2**23, np.float32)
    assert best_rates_agree(
        lambda: float(cpu_library().pygpt_peak_bandwidth(loop, x.nbytes + y.nbytes, 0.001)),
        lambda: (x.nbytes + y.nbytes) / seconds_of(lambda: np.copyto(y, x)),
        lambda peak, found: 0.3 * peak < found < 1.3 * peak,
    )


@pytest.mark.parametrize("size", [-1, 0, 8, 2**62])
def test_memory_that_is_too_small_or_too_large_to_measure_with(size: int) -> None:
    assert cpu_library().pygpt_peak_bandwidth(1, size, 0.001) == 0
    assert str(size) in last_error(cpu_library())


# ---- equal work on every side ----


PRODUCTS = [Product(7, 5, 11, form, tied) for form in FORMS for tied in (False, True)]


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.formula)
def test_products_are_those_of_a_linear_layer(case: Product) -> None:
    M, N, K = case.sizes
    assert M * N * K == 7 * 5 * 11 and case.flops == 2 * M * N * K
    made = {"y": (7, 11), "dx": (7, 5), "dw": (11, 5) if case.tied else (5, 11)}[case.form]
    assert made == (M, N)
    weight_lies = (11, 5) if case.tied else (5, 11)
    b = case.operands()[1]
    assert case.form == "dw" or b.shape == weight_lies  # it is never turned in memory


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.formula)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_side_computes_the_same_product(case: Product, dtype: str) -> None:
    a, b = (x.T if turned else x for x, turned in zip(case.operands(), case.transposed, strict=True))
    expected = a.astype(np.float64) @ b
    for side in (PygptProducts(1, dtype, "fast"), NumpyProducts(1), TorchProducts(1, dtype)):
        try:
            run = side.prepare(case)
        except ModuleNotFoundError:
            continue
        reused = [np.full_like(x, np.nan) for x in case.operands()]  # its memory, if the side has let go of operands
        found = run()
        del reused
        found = np.asarray(found.float() if side.name == "torch" else found)
        bound = 1e-6 if dtype == "float32" or side.name == "numpy" else 1e-2
        assert np.linalg.norm(found - expected) <= bound * np.linalg.norm(expected)


def test_all_shapes_of_the_goals_are_there() -> None:
    cases = products.cases(quick=False)
    assert len(cases) == 48
    assert {case.form for case in cases if case.rows == 4096 and case.outputs == 50257} == {"y", "dx", "dw"}
    assert [case.sizes for case in cases if case.rows == 768] == [(768, 384, 128), (768, 128, 384), (128, 384, 768)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_has_an_equal_model(dtype: str) -> None:
    required.module("torch")
    step = Step(2, 9)
    own = PygptSteps(TINY, 1, dtype, "plain").prepare(step)
    other = TorchSteps(TINY, 1, dtype).prepare(step)
    losses = np.array([(own(), other()) for _ in range(20)])
    # in 20 steps the loss falls by much more than this, so gradients, clipping and AdamW are equal, too
    bound = 1e-4 if dtype == "float32" else 1e-2
    assert np.abs(losses[:, 0] - losses[:, 1]).max() < bound * losses[0, 0]
    assert losses[0, 0] - losses[-1, 0] > 0.02 * losses[0, 0]


def test_ctranslate2_has_an_equal_model() -> None:
    required.module("ctranslate2", "ctranslate2")
    config = pygpt.GPT2Config(vocab_size=300, n_positions=32, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3)
    side, prompt = CTranslate2Text(config, 1, "float32"), Text(prompt=6, new=8).tokens(config.vocab_size)
    written = write_likeliest(side.model, [side.words[token] for token in prompt], 8)
    assert written == list(pygpt.GPT2(config).generate(prompt, 9, temperature=0))


# ---- layers ----


def test_calls_of_the_layers_are_those_of_a_step() -> None:
    """Made one by one, they leave the bits that the model's own passes leave."""
    step = Step(2, 9)
    side = LayerSteps(TINY, 1, "float32", "plain")
    tokens, targets = step.random_batch(TINY.vocab_size)
    model, other = side.model, pygpt.GPT2(TINY, kernels="plain")
    run = side.prepare(("layers", step))
    reused = [np.zeros_like(tokens) for _ in range(4)]  # the batch's memory, if it has been let go of
    costs = run()
    del reused
    other.forward_backward(tokens, targets)
    other.clip_grad_norm(1.0)
    other.adamw_step(1e-4, (0.9, 0.95), weight_decay=0.1)
    for name, value in other.gradients.items():
        assert np.array_equal(model.gradients[name], value), name
    for name, value in other.parameters.items():
        assert np.array_equal(model.parameters[name], value), name
    for name, value in other.activation_gradients.items():
        if name != "losses":
            assert np.array_equal(model.activation_gradients[name], value), name
    assert costs["attn.c_attn", "backward"].calls == TINY.n_layer


def test_flops_of_the_layers_are_those_of_the_formula() -> None:
    """Products, but for the scores that attention computes twice, and for what the formula counts in addition."""
    B, T, config = 2, 16, TINY
    costs = LayerSteps(config, 1, "float32", "plain").prepare(("layers", Step(B, T)))()
    found = sum(cost.flops for cost in costs.values())
    C, L = config.n_embd, config.n_layer
    scores = B * T * (T + 1) * C * L
    not_multiplied = config.n_positions * C + L * (9 * C + 4 * C) + 2 * C  # wpe, biases, LayerNorms
    diagonal = 6 * B * T * C * L  # T + 1 for T
    assert found - scores - diagonal == B * T * (flops_per_token(config, T) - 6 * not_multiplied)


def test_flops_of_gpt2() -> None:
    assert flops_per_token(pygpt.GPT2Config(), 1024) == pytest.approx(803.3e6, rel=1e-4)


def test_bytes_of_a_layer() -> None:
    costs = LayerSteps(TINY, 1, "float32", "plain").prepare(("layers", Step(2, 16)))()
    N, C = 32, TINY.n_embd
    forward, backward = costs["mlp.c_fc", "forward"], costs["mlp.c_fc", "backward"]
    assert forward.bytes == 4 * TINY.n_layer * (N * C + C * 4 * C + N * 4 * C)
    assert backward.bytes == 4 * TINY.n_layer * (N * 4 * C + 2 * N * C + 3 * C * 4 * C)
    assert backward.flops == 2 * forward.flops
    assert layers.Cost(1, 2.0, 3.0, 4.0).and_call(layers.Call("", "", int, 1.0, 1.0), 0.5) == layers.Cost(
        2, 2.5, 4.0, 8.0
    )


# ---- workers ----


@dataclass(frozen=True)
class Sums:
    """A side that returns its case, or fails."""

    name: str = "sums"
    threads: int = 1

    def prepare(self, case: Any) -> Callable[[], Any]:
        if case == "fail":
            raise RuntimeError("what went wrong\nand where")
        if case == "die":
            return lambda: os._exit(3)
        if case == "threads":
            return lambda: int(os.environ["OMP_NUM_THREADS"])
        if case == "core type":
            return lambda: int("OPENBLAS_CORETYPE" in os.environ)
        if case == "slow":
            return lambda: time.sleep(60.0)
        if case == "spin":
            return spin
        if case == "at work":
            return lambda: threading.active_count() - 1
        return lambda: case


def spin() -> None:
    """Leaves a thread that works on, as those of a library that wait for its next call."""

    def work() -> None:
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass

    threading.Thread(target=work).start()


@pytest.fixture(scope="module")
def worker() -> Any:
    with Worker(Sums()) as made:
        yield made


def test_workers_take_turns(worker: Worker) -> None:
    found = take_turns([(worker, 3), (worker, "fail"), (worker, 4)], Turns(repeats=5, seconds=1e-5))
    assert [timing.results for timing in found] == [(3,) * 5, (), (4,) * 5]
    assert found[0].median is not None and found[0].median > 0 and len(found[0].seconds) == 5
    assert (found[1].median, found[1].absent) == (None, "RuntimeError: what went wrong")


def test_worker_has_its_threads_and_its_memory(worker: Worker) -> None:
    assert worker.prepare("threads")[0] == 1
    assert 2**22 < worker.peak_memory() < 2**32


def test_worker_lets_openblas_choose_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    with Worker(Sums()) as made:
        assert made.prepare("core type")[0] == 0
    assert os.environ["OPENBLAS_CORETYPE"] == "Prescott"


def test_worker_that_dies() -> None:
    with Worker(Sums()) as doomed, pytest.raises(UnavailableError, match="its process ended with status 3"):
        doomed.prepare("die")


def test_alternative_that_is_too_slow_is_given_up_and_the_next_case_measured() -> None:
    with Worker(Sums()) as slow:
        found = take_turns([(slow, "slow")], Turns(repeats=1, seconds=1e-5, patience=1.0))
        assert found[0].absent == "two calls took longer than 1 s"
        assert take_turns([(slow, 3)], Turns(repeats=1, seconds=1e-5))[0].results == (3,)


def test_slow_alternative_has_fewer_samples(worker: Worker) -> None:
    found = take_turns([(worker, 3)], Turns(repeats=9, seconds=1.0, patience=2.0))
    assert len(found[0].results) == 2


def test_a_turn_ends_when_its_threads_sleep(worker: Worker) -> None:
    worker.prepare("spin")
    worker.sample("spin", 1)
    assert worker.prepare("at work")[0] == 0


def test_pygpt_that_fails_is_an_error() -> None:
    with (
        Worker(Sums(name="pygpt")) as failing,
        pytest.raises(UserError, match="pygpt cannot be measured: RuntimeError"),
    ):
        failing.prepare("fail")


def test_plot_of_a_product_without_torch(tmp_path: Path) -> None:
    row = {
        "M": 2,
        "N": 3,
        "K": 4,
        "of_peak": 0.5,
        "peak_gflops": 9.0,
        "gflops": {"torch": None},
        "ratio": {"torch": None},
    }
    found = {"machine": {"processor": "P", "threads": 1, "instruction_set": "I"}}
    plot(tmp_path / "x.png", {**found, "products": {"float32": {"products": [row]}}})
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
