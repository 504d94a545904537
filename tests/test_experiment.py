"""Experiments: which runs a file asks for, how they are made and resumed, and what is made of them."""

from __future__ import annotations

import io
import json
import random
import re
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest

from pygpt.command import experiment
from pygpt.errors import UserError
from pygpt.experiment import run as runs
from pygpt.experiment.plan import Plan, Run, read_plan
from pygpt.experiment.report import Row, summaries, table
from pygpt.experiment.run import Result
from pygpt.training import train as training
from pygpt.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
FILE = """
seeds = [0, 1]
[base]
data = "text.txt"
n_layer = 1
n_head = 2
n_embd = 16
seq_len = 16
batch_size = 4
max_iters = 6
eval_interval = 3
eval_iters = 1
sample_tokens = 0
device = "numpy"
[tasks.bytes]
[tasks.characters]
tokenizer = "char"
target_loss = 2.1
[variants.adamw]
learning-rate = 1e-2
[variants.sgd]
optimizer = "sgd"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a text and an experiment on it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(random.Random(0).choices(["the ", "cat ", "sat.\n"], k=1000)))
    Path("e.toml").write_text(FILE)
    return tmp_path


def refused(text: str) -> str:
    Path("e.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        experiment.main(["e.toml"])
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert not Path("out").exists()
    return sentence


def models() -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in Path("out").glob("**/*.safetensors")}


# ---- the file ----


def test_later_tables_win_and_every_run_has_a_folder_of_its_own() -> None:
    Path("e.toml").write_text(FILE.replace("[tasks.bytes]", "[tasks.bytes]\nmax_iters = 7\nlearning_rate = 3.0"))
    plan = read_plan(Path("e.toml"))
    assert plan.out_dir == Path("out/e")
    names = [(run.task, run.variant, run.seed) for run in plan.runs]
    assert names == [(t, v, s) for t in ("bytes", "characters") for v in ("adamw", "sgd") for s in (0, 1)]
    assert plan.runs[1].folder == Path("out/e/bytes/adamw/seed-1")
    assert [run.settings.max_iters for run in plan.runs] == [7, 7, 7, 7, 6, 6, 6, 6]
    assert [run.settings.learning_rate for run in plan.runs[::2]] == [1e-2, 3.0, 1e-2, 0.3]  # that of sgd last
    assert [run.settings.seed for run in plan.runs[:2]] == [0, 1]
    assert plan.targets == {"characters": 2.1}
    assert read_plan(Path("e.toml"), Path("there")).runs[0].folder == Path("there/bytes/adamw/seed-0")


def test_what_may_be_left_out() -> None:
    Path("e.toml").write_text("[variants.only]\n")
    (run,) = read_plan(Path("e.toml")).runs
    assert (str(run), run.folder) == ("runs, only, seed 0", Path("out/e/runs/only/seed-0"))
    assert run.settings == TrainSettings(out_dir=str(run.folder))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seeds = [0", "e.toml: is not TOML"),
        ("[variants.a]\n[variants.a]", "e.toml: is not TOML"),
        (
            "[variant.a]",
            "e.toml: variant is not known, expected out_dir, seeds, base, tasks, variants; did you mean va",
        ),
        ("", "e.toml: holds no variants, expected a table [variants.NAME] for each"),
        ("variants = 3", "e.toml: variants is 3, expected a table"),
        ("[variants]\na = 3", "e.toml: variants.a is 3, expected a table"),
        ("[tasks]\n[variants.a]", "e.toml: holds no tasks"),
        ('[variants."a/b"]', "e.toml: [variants.a/b]: expected a name of letters, digits, dots and dashes"),
        ("[variants.a]\n[variants.A]", "e.toml: [variants.A]: differs from [variants.a] by upper case only"),
        ("[variants.a]\nlr = 1", "e.toml: [variants.a]: lr is not a setting; did you mean learning_rate?"),
        ("[base]\nn_layer = 0\n[variants.a]", "e.toml: [base]: n_layer is 0, expected an integer from 1"),
        (
            "[base]\nseed = 1\n[variants.a]",
            "e.toml: [base]: seed is not of one run: it stands above the tables, as seeds",
        ),
        ("[tasks.t]\nout_dir = 'x'\n[variants.a]", "e.toml: [tasks.t]: out_dir is not of one run"),
        ("[tasks.t]\ntarget_loss = 0\n[variants.a]", "e.toml: [tasks.t]: target_loss is 0, expected a number above 0"),
        ("seeds = 3\n[variants.a]", "e.toml: seeds is 3, expected a list of integers from 0 on, such as [0, 1, 2]"),
        ("seeds = [true]\n[variants.a]", "e.toml: seeds is [True], expected a list of integers"),
        ("seeds = [1, 1]\n[variants.a]", "e.toml: seeds is [1, 1], expected each only once"),
        ("out_dir = 3\n[variants.a]", "e.toml: out_dir is 3, expected the name of a folder"),
        ("[variants.a]\nmuon_lr = 1.0", "e.toml: [variants.a] with [tasks.runs]: muon_lr belongs to optimizer muon"),
    ],
)
def test_wrong_files_get_a_sentence(text: str, expected: str) -> None:
    assert refused(text).startswith(expected)


@pytest.mark.parametrize("name", ["variations", "fewest_steps"])
def test_the_experiments_of_the_documents_are_understood(name: str) -> None:
    plan = read_plan(ROOT / "docs" / f"{name}.toml")
    assert {run.seed for run in plan.runs} == {0, 1, 2}
    assert {(run.settings.n_layer, run.settings.dtype) for run in plan.runs} == {(4, "float32")}  # nanoGPT's model


# ---- the runs ----


def test_runs_that_have_ended_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.main(["e.toml"]) == 0
    first = capsys.readouterr().out
    folder = Path("out/e")
    assert {path.name for path in folder.iterdir()} >= {"results.md", "results.json", "bytes.png", "characters.png"}
    assert (folder / "results.md").read_text() in first
    log = [json.loads(line) for line in (folder / "characters/sgd/seed-1/log.jsonl").read_text().splitlines()]
    results = json.loads((folder / "results.json").read_text())
    losses = results["tasks"][1]["rows"][1]["losses"]
    assert losses[1] == [record["val_loss"] for record in log if "val_loss" in record][-1]
    assert "step 6: validation loss" in (folder / "characters/sgd/seed-1.txt").read_text()
    assert len(re.findall("validation loss", first)) == 8 + 2  # a line each, and the heads of two tables

    monkeypatch.setattr(runs, "train", lambda *arguments: pytest.fail("a run was repeated"))
    assert experiment.main(["e.toml"]) == 0
    assert capsys.readouterr().out in first


def test_an_interrupted_experiment_goes_on_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.main(["e.toml"]) == 0
    whole = models()
    Path("out").rename("whole")
    step = training._Loop._step

    def interrupted(loop: Any) -> None:
        step(loop)
        if loop.state.step == 4 and "sgd/seed-1" in str(loop.folder.path):
            loop.interruption.signal = signal.SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, "_step", interrupted)
        assert experiment.main(["e.toml"]) == 130
    out = capsys.readouterr().out
    assert out.endswith("the runs that are done stay; go on with: python scripts/experiment.py e.toml\n")
    assert not Path("out/e/results.md").exists()
    assert experiment.main(["e.toml"]) == 0
    assert models() == whole


def test_a_run_that_diverges_is_a_result() -> None:
    wild = '[variants.wild]\noptimizer = "sgd"\nlearning_rate = 1e30\ngrad_clip = 0\n'
    Path("e.toml").write_text(FILE + wild)
    with pytest.warns(RuntimeWarning):
        assert experiment.main(["e.toml"]) == 0
    assert "| wild | diverged (2 of 2) |  |" in Path("out/e/results.md").read_text()
    results = json.loads(Path("out/e/results.json").read_text())
    assert results["tasks"][0]["rows"][2]["losses"] == [None, None]
    assert "the loss is " in Path("out/e/bytes/wild/seed-0.txt").read_text()


def test_runs_of_other_settings_are_not_taken_for_those_that_are_asked_for() -> None:
    assert experiment.main(["e.toml"]) == 0
    before = models()
    Path("e.toml").write_text(FILE.replace("1e-2", "2e-2"))
    with pytest.raises(UserError) as caught:
        experiment.main(["e.toml"])
    assert str(caught.value) == (
        "out/e/bytes/adamw/seed-0: began with learning_rate = 0.01, and now 0.02 is asked for: "
        "name another folder (--out-dir), or remove this one"
    )
    assert models() == before
    Path("out/e/bytes/adamw/seed-0.json").write_text("{}")
    with pytest.raises(UserError, match=r"^out/e/bytes/adamw/seed-0\.json: is not the record of a run$"):
        experiment.main(["e.toml"])


def test_a_run_that_cannot_begin_is_named() -> None:
    Path("text.txt").write_text("too short")
    with pytest.raises(UserError, match=r"^bytes, adamw, seed 0: data/text-bpe: has \d+ train tokens"):
        experiment.main(["e.toml"])


def test_one_bar_counts_the_steps_of_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    assert experiment.main(["e.toml"]) == 0
    shown = terminal.getvalue()
    assert "100% " in shown and "48/48 steps" in shown
    assert "characters, sgd, seed 1" in shown


# ---- what they show ----


def result(variant: str, seed: int, *losses: float, diverged: bool = False) -> Result:
    run = Run("t", variant, seed, Path(variant), {}, TrainSettings())
    steps = tuple((100 * number, loss) for number, loss in enumerate(losses))
    return Result(run, steps, 0.05, 1234, diverged)


def rows_of(*results: Result, target: float | None = None) -> tuple[Row, ...]:
    plan = Plan(Path(), tuple(each.run for each in results), {} if target is None else {"t": target})
    (task,) = summaries(plan, results)
    return task.rows


def test_differences_are_taken_seed_by_seed() -> None:
    """The seeds differ by 1, and the variants of a seed by about 0.1: far outside the noise of the difference."""
    a, b = (1.0, 2.0, 3.0), (1.11, 2.09, 3.10)
    first, second = rows_of(*(result(name, i, x) for name, xs in (("a", a), ("b", b)) for i, x in enumerate(xs)))
    assert (first.difference, first.interval) == (None, None)
    assert second.difference == pytest.approx(0.1)
    assert second.interval == pytest.approx(4.30 * statistics.stdev([0.11, 0.09, 0.10]) / 3**0.5)
    assert not second.within_noise
    _, noisy = rows_of(
        *(result(name, i, x) for name, xs in (("a", a), ("b", (1.5, 1.6, 3.2))) for i, x in enumerate(xs))
    )
    assert noisy.difference == pytest.approx(0.1)
    assert noisy.within_noise


def test_one_seed_has_no_interval() -> None:
    _, second = rows_of(result("a", 0, 1.0), result("b", 0, 1.5))
    assert (second.difference, second.interval, second.within_noise) == (0.5, None, False)


def test_the_steps_to_a_target_are_those_of_the_first_validation_below_it() -> None:
    results = [result("a", 0, 4, 3, 2, 1.5), result("a", 1, 4, 2, 2.5, 1.5), result("b", 0, 4, 3), result("b", 1, 4, 2)]
    a, b = rows_of(*results, target=2.0)
    assert a.steps_to_target == (200, 100)
    assert b.steps_to_target == (None, 100)
    plan = Plan(Path(), tuple(each.run for each in results), {"t": 2.0})
    lines = table(summaries(plan, results)).splitlines()
    assert (
        lines[2] == "| variant | validation loss | difference | ms per step | parameters | steps to 2 | seconds to 2 |"
    )
    assert lines[4] == "| a | 1.5000 ± 0.0000 |  | 50.0 | 1,234 | 150 | 8 |"
    assert lines[5].endswith(" | – | – |")
