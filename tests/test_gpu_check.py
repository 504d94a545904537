"""scripts/gpu_check.sh without a GPU: that it runs, on the CPU and with tiny sizes, and counts as it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import required

from benchmarks import gpu, gpu_agree, gpu_report, gpu_sides
from benchmarks.gpu_kernels import GROUPS, PRODUCTS, Work, group_of, kernel_times, shares, work_of_step
from benchmarks.session import TINY, TINY_TILES
from benchmarks.work import flops_per_token
from pygpt import GPT2, GPT2Config
from pygpt.backends.interface import WEIGHTS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"


def run_script(out: Path, *stages: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"OUT": str(out), "PYTHON": sys.executable, "DEVICE": "cpu", "QUICK": "1", **environment}
    return subprocess.run([SCRIPT, *stages], capture_output=True, text=True, timeout=60, env={**os.environ, **own})


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages find the libraries that this process has found."""
    from pygpt.backends.library import _folder

    monkeypatch.setenv("PYGPT_LIB_DIR", str(_folder()))


# ---- the script ----


def test_syntax() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.mark.usefixtures("libraries")
def test_stages_leave_a_table_and_json(tmp_path: Path) -> None:
    found = run_script(tmp_path, "compare", "train")
    assert found.returncode == 0, found.stdout + found.stderr
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    results = {stage["name"]: stage["result"] for stage in written["stages"]}  # they run side by side
    assert results == {"compare": "ok", "train": "ok"}
    assert "validation loss" in next(stage["sentence"] for stage in written["stages"] if stage["name"] == "train")
    assert re.search(r"all \d+ outputs are within the bounds", (tmp_path / "compare.log").read_text())
    assert (tmp_path / "gpu_check.txt").read_text() in found.stdout
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["compare.log", "gpu_check.json", "gpu_check.txt", "train.log"]


def test_stage_that_fails_does_not_hide_the_next(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = run_script(tmp_path / "out", "compare", "train", PYGPT_LIB_DIR=str(tmp_path / "empty"))
    assert found.returncode == 1
    stages = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["stages"]
    assert {stage["name"]: stage["result"] for stage in stages} == {"compare": "failed", "train": "failed"}
    assert all("not found in" in stage["sentence"] for stage in stages)


def test_stage_that_hangs_is_ended_and_the_next_one_runs(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *compare.py*) sleep 1000;; *) exec {sys.executable} "$@";; esac\n')
    python.chmod(0o755)
    found = run_script(tmp_path / "out", "compare", "time", PYTHON=str(python), LIMIT="11")
    assert found.returncode == 1
    stages = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["stages"]
    assert [(stage["name"], stage["result"]) for stage in stages] == [
        ("compare", "out of time"),
        ("time", "out of time"),
    ]


def test_what_was_timed_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "stages.tsv").write_text("build\tok\t1\tdone\n")
    command = ["measure", "--quick", "--device", "cpu", "--json", str(tmp_path / "times.json"), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", *command, "--seconds", "60"], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "gpu_check.txt").exists():
            assert time.monotonic() < deadline and process.poll() in (None, 0)
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert json.loads((tmp_path / "gpu_check.json").read_text())["stages"][0]["name"] == "build"


def test_stage_without_time_is_said(tmp_path: Path) -> None:
    found = run_script(tmp_path, "compare", LIMIT="1")
    assert found.returncode == 1
    assert "compare\tout of time\t0\tno time was left" in found.stdout


@pytest.mark.parametrize(
    "call, stages", [("first", "test agree step"), ("second", "cuda compare train sanitizer time"), ("build", "build")]
)
def test_stages_of_a_call_with_a_library_that_is_there(tmp_path: Path, call: str, stages: str) -> None:
    found = run_script(tmp_path, call, LIMIT="1", PYGPT_LIB_DIR="/a/library")
    assert sorted(line.split("\t")[0] for line in found.stdout.splitlines() if "\t" in line) == sorted(stages.split())


@pytest.mark.parametrize(
    "stages, environment, sentence",
    [
        (["tests"], {}, "error: tests is not a stage: first, second, or build test agree step cuda compare train"),
        ([], {"LIMIT": "soon"}, "error: LIMIT is 'soon', expected a number of seconds"),
        ([], {"PYTHON": "no-such-python"}, "error: no-such-python: not found"),
        (["compare"], {"WHEELS": "/no/wheels"}, "error: WHEELS is /no/wheels, and there are no wheels in it"),
        (["build"], {"DEVICE": "cuda", "CUDACXX": "no-such-nvcc"}, "error: no-such-nvcc was not found"),
        (["first"], {"DEVICE": "cuda", "CUDACXX": "no-such-nvcc", "PYGPT_LIB_DIR": ""}, "error: no-such-nvcc was not"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path: Path, stages: list[str], environment: dict[str, str], sentence: str) -> None:
    found = run_script(tmp_path, *stages, **environment)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(sentence) and found.stderr.count("\n") == 1


def test_missing_package_is_named_and_a_wheel_brings_it(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.py"
    hidden.write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tqdm' and not any('site' == p.rsplit('/', 1)[-1] for p in sys.path):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "sys.argv = sys.argv[1:]\n"
        "exec(sys.stdin.read() if sys.argv[:1] == ['-'] else 'import runpy; runpy.run_module(sys.argv[1])')\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {hidden} "$@"\n')
    python.chmod(0o755)
    found = run_script(tmp_path, "compare", PYTHON=str(python), LIMIT="1")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"error: {python} lacks tqdm: install it, or put its wheel into a folder")
    with zipfile.ZipFile(tmp_path / "tqdm-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tqdm.py", "")
    with_wheel = run_script(tmp_path, "compare", PYTHON=str(python), LIMIT="1", WHEELS=str(tmp_path))
    assert "lacks" not in with_wheel.stderr and "no time was left" in with_wheel.stdout


# ---- what is measured ----


@pytest.mark.usefixtures("libraries")
def test_parts_run_in_processes_of_their_own(tmp_path: Path) -> None:
    plan = [gpu.Task("pygpt", 60, "tiny", (1, 2)), gpu.Task("llm.c", 60, "gpt2", (2,))]
    *_, found = gpu.measure(plan, 60.0, device="cpu", quick=True, llmc=tmp_path)
    own, other = found["steps"][:2], found["steps"][2]
    assert [(row["side"], row["B"], row["T"]) for row in own] == [("pygpt", 1, 16), ("pygpt", 2, 16)]
    assert all(len(row["samples"]) == gpu_sides.SAMPLES and row["tokens_per_second"] > 0 for row in own)
    assert other["failed"].endswith("train_gpt2cu: no such file")
    assert found["notes"] == []
    json.dumps(found, allow_nan=False)


@pytest.mark.usefixtures("libraries")
def test_generation_is_timed_in_every_format() -> None:
    *_, found = gpu.measure([gpu.Task("generation", 60, "tiny", (1, 2))], 60.0, device="cpu", quick=True, llmc=None)
    rows = found["generation"]
    assert found["notes"] == [] and [(row["weights"], row["B"]) for row in rows] == list(product(WEIGHTS, (1, 2)))
    assert all(row["tokens_per_second"] > 0 and row["prompt_seconds"] > 0 for row in rows)
    C, cached = TINY.n_embd, 4 * 2 * TINY.n_layer * TINY.n_embd * TINY.n_positions // 2
    numbers = 12 * TINY.n_layer * C * C + TINY.vocab_size * C
    assert [row["bytes"] for row in rows[:2]] == [4 * numbers + cached, 4 * numbers + 2 * cached]
    table = gpu_report.generation_table([{**rows[0], "bytes": 1e6, "seconds": 1e-6}], {"copy_bytes": 4e12})
    assert "25 %" in table.splitlines()[2]


def test_part_that_takes_too_long_leaves_a_note() -> None:
    *_, found = gpu.measure([gpu.Task("pygpt", 1e-3, "tiny", (1,))], 10.0, device="cpu", quick=True, llmc=None)
    assert found["steps"] == [] and found["notes"] == ["pygpt, tiny: ended after 0 s"]


def test_batch_that_fails_does_not_hide_the_next() -> None:
    rows = list(gpu_sides.measure_side("pygpt", "tiny", [0, 1], 16, "cpu", False, 1e-3))
    assert "failed" in rows[0] and rows[1]["tokens_per_second"] > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_torch_takes_the_same_steps(compiled: bool) -> None:
    required.module("torch")
    step, finish = gpu_sides.torch_steps(TINY, "cpu", compiled)(2, 16)
    losses = [float(step()) for _ in range(30)]
    finish()
    assert abs(losses[0] - np.log(TINY.vocab_size)) < 0.5
    assert losses[-1] < 0.98 * losses[0]


def test_rates_of_a_device_by_torch() -> None:
    required.module("torch")
    rates = gpu_sides.device_rates("cpu", size=64, copied=2**12, seconds=0.01)
    assert set(rates) == {"product_flops", "copy_bytes"} and min(rates.values()) > 0


def test_llmc_output_and_tokens(tmp_path: Path) -> None:
    program = tmp_path / "train_gpt2cu"
    program.write_text(
        "#!/bin/sh\n"
        'test "$(head -c 4 "$2" | od -An -tu4 | tr -d " ")" = 20240520 || exit 3\n'
        "echo 'step    1/30 | loss 10.9 | 60.00 ms | 40.1% bf16 MFU | 100000 tok/s'\n"
        "echo 'step    2/30 | loss 10.8 | 50.00 ms | 45.1% bf16 MFU | 200000 tok/s'\n"
    )
    program.chmod(0o755)
    row = gpu_sides.measure_llmc(tmp_path, "gpt2", 2, 8, 10.0)
    assert row["tokens_per_second"] == 200000 and row["seconds"] == 16 / 200000
    program.write_text("#!/bin/sh\necho cannot do that >&2\nexit 1\n")
    assert gpu_sides.measure_llmc(tmp_path, "gpt2", 2, 8, 10.0)["failed"] == "status 1: cannot do that"


def test_model_beside_torch() -> None:
    required.module("torch")
    for row in gpu_agree.beside_torch(TINY_TILES, 2, 17, "cpu"):
        assert not row["violations"], row["verdict"]
        assert 0 < row["gradient"]["relative_l2"] < (1e-5 if row["dtype"] == "float32" else 1e-1)
        json.dumps(row, allow_nan=False)


def test_model_beside_torch_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is too large by 1 %, in one tensor."""
    required.module("torch")
    read = GPT2.gradients.fget
    assert read
    name = "h.1.mlp.c_fc.bias"
    wrong = property(lambda model: {**read(model), name: 1.01 * read(model)[name]})
    monkeypatch.setattr(GPT2, "gradients", wrong)
    row = next(gpu_agree.beside_torch(TINY_TILES, 2, 17, "cpu"))
    assert [words.split(":")[0] for words in row["violations"]] == ["gradient", name]


def test_plans_are_tried_in_a_tiny_size() -> None:
    for name, plan in gpu.PLANS.items():
        tried = gpu.quick_plan(plan)
        assert {task.side for task in tried} == {task.side for task in plan} - {"llm.c"}, name
        assert all(task.model == "tiny" for task in tried)


# ---- what is counted ----


def test_formulas() -> None:
    config = GPT2Config()
    full, causal = gpu_report.full_flops_per_token(config, 1024), flops_per_token(config, 1024)
    assert full == pytest.approx(859.9e6, rel=1e-4)
    assert full - causal == 6 * 12 * 768 * 1024
    row = {"model": "gpt2", "B": 1, "T": 1024, "tokens_per_second": 5e5}
    found = gpu_report.with_fractions(row, 800e12)
    assert (found["of_rate_full"], found["of_rate_causal"]) == (5e5 * full / 800e12, 5e5 * causal / 800e12)
    assert gpu_report.with_fractions(row, None)["of_rate_full"] is None


def test_work_of_a_step_is_that_of_the_formula() -> None:
    """Products and attention, but for the scores that attention computes twice."""
    B, T, config = 3, 64, GPT2Config()
    work = work_of_step(config, B, T)
    found = sum(group.flops for group in work.values())
    L, C = config.n_layer, config.n_embd
    not_multiplied = config.n_positions * C + L * (9 * C + 4 * C) + 2 * C  # wpe, biases, LayerNorms
    scores, diagonal = B * T * (T + 1) * C * L, 6 * B * T * C * L
    assert found - scores - diagonal == B * T * (flops_per_token(config, T) - 6 * not_multiplied)
    assert set(work) <= {*GROUPS, PRODUCTS}


def own_kernels() -> list[str]:
    """The names of all kernels in cuda/, but for those of generation, which no training step has."""
    pattern = r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\s*\("
    sources = [*(ROOT / "cuda").glob("*.cu*"), *(ROOT / "cuda" / "layers").glob("*.cu*")]
    sources = [path for path in sources if '#include "generation.cuh"' not in path.read_text()]
    return sorted({name for path in sources for name in re.findall(pattern, path.read_text())})


def test_every_kernel_has_a_group() -> None:
    setting_up = {"attention_matrix", "find_difference", "round_elements"}  # not in a step
    names = own_kernels()
    assert {"adamw", "attention_flash_forward_kernel", "begin_pass", "layernorm_rows_backward"} <= set(names)
    assert {name for name in names if group_of(name) == PRODUCTS} <= setting_up
    assert group_of("void layernorm_rows<__nv_bfloat16, 8>(Forward<__nv_bfloat16>)") == "LayerNorm, forward"
    assert group_of("void layernorm_rows_backward<float, 4>(Backward<float>)") == "LayerNorm, backward"
    assert group_of("attention_flash_backward_keys") == "attention, backward"
    assert group_of("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT") == PRODUCTS


def test_shares_of_kernels() -> None:
    event = {"cat": "kernel", "name": "adamw", "dur": 4000.0}
    trace: dict[str, Any] = {
        "traceEvents": [event, *2 * [{**event, "name": "sm90_gemm", "dur": 3000.0}], {**event, "cat": "cpu_op"}, {}]
    }
    times = kernel_times(trace, steps=2)
    assert times == [("sm90_gemm", 1.0, 0.003), ("adamw", 0.5, 0.002)]
    work = {"AdamW": Work(bytes=1e9), PRODUCTS: Work(flops=3e9, bytes=1e6)}
    rows = shares(times, work, {"product_flops": 2e12, "copy_bytes": 1e12})
    assert [(row["group"], row["share"], row["bound"]) for row in rows] == [
        (PRODUCTS, 0.6, pytest.approx(1.5e-3)),
        ("AdamW", 0.4, pytest.approx(1e-3)),
    ]
    assert rows[0]["of_bound"] == pytest.approx(0.5)
    assert "60 %" in gpu_report.kernels_table(rows, "kernels")
    assert [row["bound"] for row in shares(times, work, None)] == [None, None]  # the times are there all the same
    assert gpu_report.largest_table([time._asdict() for time in times]).splitlines()[2].split() == [
        "sm90_gemm",
        "3.000",
        "1",
        "3,000.0",
    ]


def test_table_compares_each_at_its_best() -> None:
    def row(side: str, B: int, tokens: float | None, **more: Any) -> dict[str, Any]:
        rates = {"tokens_per_second": tokens} if tokens else {}
        return gpu_report.with_fractions({"side": side, "model": "gpt2", "B": B, "T": 1024, **rates, **more}, 8e14)

    rows = [row("torch.compile", 32, 4e5), row("pygpt", 64, 6e5, memory=2**33), row("pygpt", 32, 5e5)]
    rows.append(row("torch.compile", 64, None, failed="OutOfMemoryError: no memory"))
    assert gpu_report.comparison(rows) == ["gpt2: pygpt at B 64 is 1.50 times torch.compile at B 32, each at its best"]
    table = gpu_report.steps_table(rows, {"product_flops": 8e14, "copy_bytes": 4.3e12})
    lines = table.splitlines()
    assert lines[2].split()[:5] == ["gpt2", "pygpt", "32", "1024", "500,000"]
    assert lines[4].split()[4:8] == ["600,000", "64", "%", "60"] and "8.0" in lines[4]
    assert "absent" in lines[5] and lines[5].endswith("OutOfMemoryError: no memory")
    assert "measured: product 800 TFLOP/s, copy 4.30 TB/s" in table
