"""Training runs: what they leave behind, how they end, and how they go on."""

import fcntl
import inspect
import itertools
import json
import os
import pty
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import required
from matplotlib.figure import Figure
from test_tokenizer import write_vocabulary

from pygpt import memory
from pygpt.backends.interface import LINEAR
from pygpt.backends.library import cpu_library
from pygpt.command import train
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.files import checkpoint
from pygpt.files.atomic import write_files
from pygpt.files.checkpoint import save_parameters
from pygpt.files.tensor_file import read_tensors
from pygpt.model import GPT2, memory_needed
from pygpt.reference.dropout import Dropout
from pygpt.text.batches import TokenDataset
from pygpt.text.tokenizer import ByteTokenizer, CharTokenizer, load_tokenizer
from pygpt.training import events, progress
from pygpt.training import setup as run_setup
from pygpt.training import train as training
from pygpt.training.interruption import Interruption
from pygpt.training.run_folder import RunFolder
from pygpt.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
TINY = {
    "data": "text.txt",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "seq_len": 16,
    "batch_size": 4,
    "max_iters": 12,
    "eval_interval": 5,
    "eval_iters": 2,
    "checkpoint_interval": 4,
    "sample_tokens": 8,
    "threads": 1,
    "device": "numpy",
    "dtype": "float32",
}


def flags(**changes):
    """A command line: the tiny run's settings, changed; None leaves one out."""
    values = {name: str(value) for name, value in {**TINY, **changes}.items() if value is not None}
    return [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), value)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a text of 6000 letters, whose tokens are bytes unless others are asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_setup, "DEFAULT", "byte")
    words = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n"]
    draw = random.Random(0)
    Path("text.txt").write_text("".join(draw.choices(words, k=2000))[:6000])
    return tmp_path


def refused(argv):
    with pytest.raises(UserError) as caught:
        train.main(argv)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def models(folder):
    """The contents of a run's checkpoint and best model."""
    return {path.as_posix(): path.read_bytes() for path in sorted(Path(folder).glob("*/*"))}


def outcome(folder):
    """What two runs that are the same have in common: their models, and their logs without speeds."""
    return {path.split("/", 1)[1]: data for path, data in models(folder).items()}, log(folder)


def log(folder):
    records = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "tokens_per_second"} for record in records]


def interrupt_after(monkeypatch, steps):
    """Make each run end as by Ctrl-C after so many steps."""
    step = training._Loop._step

    def counted(loop):
        step(loop)
        loop.interrupted_after = getattr(loop, "interrupted_after", 0) + 1
        if loop.interrupted_after == steps:
            loop.interruption.signal = signal.SIGINT

    monkeypatch.setattr(training._Loop, "_step", counted)


# ---- a whole run ----


def test_a_run_leaves_everything_in_its_folder(capsys):
    assert train.main(flags(max_iters=60, learning_rate=1e-2, out_dir="out/a")) == 0
    out = capsys.readouterr().out
    folder = Path("out/a")
    records = log(folder)

    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 61))
    assert steps[0].keys() == {"step", "loss", "loss_per_byte", "lr", "grad_norm"}
    assert steps[0]["loss"] == pytest.approx(np.log(256), rel=0.05)
    assert steps[-1]["loss"] < 2.5
    assert steps[2]["lr"] == pytest.approx(1e-2 * 3 / 4)  # in the warm-up
    assert steps[-1]["lr"] == pytest.approx(1e-3, rel=0.1)

    validations = {record["step"]: record["val_loss"] for record in records if "val_loss" in record}
    assert list(validations) == list(range(0, 61, 5))
    best = min(validations, key=validations.__getitem__)
    state = json.loads((folder / "last" / "training_state.json").read_text())
    assert (state["step"], state["best_step"], state["best_val_loss"]) == (60, best, validations[best])

    for name in ("last", "best"):
        model = GPT2.from_pretrained(folder / name, device="numpy")
        batches = TokenDataset("data/text-byte", "val").validation_batches(4, 16, 2)
        loss = np.mean([model.forward(*batch) for batch in batches])
        assert loss == pytest.approx(validations[60 if name == "last" else best], rel=1e-6)
        assert load_tokenizer(folder / name).name == "byte"

    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    sample = (folder / "sample.txt").read_text()
    assert 1 <= len(sample) <= 8
    assert sample.rstrip() in out
    means = [np.mean([record["loss"] for record in steps[first : first + 5]]) for first in range(0, 60, 5)]
    said = re.findall(
        r"^step (\d+): validation loss [\d.]+(?:, the best so far)?(?:, training loss ([\d.]+))?$",
        out,
        re.M,
    )
    assert said == [("0", ""), *((str(5 * n), f"{mean:.4f}") for n, mean in enumerate(means, start=1))]
    assert "60 steps in " in out
    assert f"{model.num_parameters:,} parameters" in out
    assert "GB needed" in out
    assert f"validation loss {validations[best]:.4f} at best" in out  # a byte is a token: once


@pytest.fixture
def pictures(monkeypatch):
    """The figures of the loss curves that are saved."""
    figures = []

    def save(figure, file, format):
        figure.canvas.draw()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", save)
    return figures


def test_losses_are_shown_per_byte_too(monkeypatch, capsys, pictures):
    """In the log, as they come, at the end and in the picture; for each split by its own text."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_READINGS", 0.0)
    Path("text.txt").write_text("aéb" * 1800 + "日本é" * 100, encoding="utf-8")
    train.main(flags(out_dir="a", tokenizer="char", learning_rate=1e-2))
    ratio, val_ratio = 3 / 4, 3 / 8
    out, records = capsys.readouterr().out, log("a")
    for record in records:
        if "loss" in record:
            assert record["loss_per_byte"] == pytest.approx(record["loss"] * ratio, rel=1e-12)
            shown = f"loss {record['loss']:.4f} ({record['loss_per_byte']:.4f} per byte), "
            assert f"step {record['step']}/12: {shown}" in out
        else:
            assert record["val_loss_per_byte"] == pytest.approx(record["val_loss"] * val_ratio, rel=1e-12)
            shown = f"{record['val_loss']:.4f} ({record['val_loss_per_byte']:.4f} per byte)"
            assert f"step {record['step']}: validation loss {shown}" in out
    mean = np.mean([record["loss"] for record in records if record["step"] in range(1, 6) and "loss" in record])
    assert f"training loss {mean:.4f} ({mean * ratio:.4f} per byte)\n" in out
    best = min((record for record in records if "val_loss" in record), key=lambda record: record["val_loss"])
    shown = f"{best['val_loss']:.4f} ({best['val_loss_per_byte']:.4f} per byte) at "
    assert f"validation loss {shown}best, at step" in out
    (axes,) = pictures[0].axes
    assert f"best {shown}step {best['step']}" in axes.get_legend().get_texts()[1].get_text()
    (right,) = axes.child_axes
    assert "per byte" in right.get_ylabel()
    np.testing.assert_allclose(right.get_ylim(), np.multiply(axes.get_ylim(), val_ratio))


def test_token_files_that_do_not_know_their_bytes(capsys, pictures):
    """Those of an earlier version: nothing is shown per byte."""
    train.main(flags(out_dir="a"))
    path = Path("data/text-byte/meta.json")
    values = json.loads(path.read_text())
    for split in ("train", "val"):
        del values[split]["bytes"]
    path.write_text(json.dumps(values))
    assert "compare uniform 5.55, unigram " in capsys.readouterr().out
    train.main(flags(out_dir="b"))
    assert "per byte" not in capsys.readouterr().out + Path("b/log.jsonl").read_text()
    assert [record for record in log("b") if "loss" in record] == [
        {name: value for name, value in record.items() if name != "loss_per_byte"}
        for record in log("a")
        if "loss" in record
    ]
    (axes,) = pictures[1].axes
    assert not axes.child_axes and "per byte" not in axes.get_legend().get_texts()[1].get_text()
    assert train.main(["--resume", "a", "--max-iters", "13"]) == 0  # the tokens are the same


def test_the_files_are_there_before_the_sample_is_printed(monkeypatch):
    """So that they are not lost when it cannot be printed."""

    def refuse(text, **_):
        if "a sample" in text:
            raise BrokenPipeError

    monkeypatch.setattr(training, "print", refuse, raising=False)
    with pytest.raises(BrokenPipeError):
        train.main(flags(out_dir="a"))
    assert Path("a/sample.txt").exists() and Path("a/loss.png").exists()


def test_a_run_ends_well_where_standard_output_cannot_show_its_sample():
    Path("text.txt").write_text("日本é " * 1500, encoding="utf-8")
    c_locale = {**environment(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags(out_dir="a", tokenizer="char", sample_tokens=50)]
    done = subprocess.run(argv, env=c_locale, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout.split(b"---- a sample")[1] and b"more text" in done.stdout
    sample = Path("a/sample.txt").read_text(encoding="utf-8")
    assert len(sample) == 50 and set(sample) <= set("日本é ")


def test_the_sample_has_only_tokens_of_the_tokenizer():
    config = GPT2Config(vocab_size=1000, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    save_parameters("padded", config, GPT2(config, device="numpy").parameters, extra=ByteTokenizer().save)
    shape = dict.fromkeys(("n_layer", "n_head", "n_embd"))
    assert train.main(flags(init_from="padded", out_dir="a", max_iters=1, sample_tokens=100, **shape)) == 0
    assert Path("a/sample.txt").stat().st_size >= 100


def test_the_best_model_is_kept(monkeypatch, capsys):
    losses = iter([5.0, 5.0, 3.0, 3.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0])  # of two batches each
    monkeypatch.setattr(GPT2, "forward", lambda *_: next(losses))
    saved = []
    save_best = RunFolder.save_best

    def save(folder, config, parameters, tokenizer):
        saved.append(config)
        save_best(folder, config, parameters, tokenizer)

    monkeypatch.setattr(RunFolder, "save_best", save)
    train.main(flags(out_dir="a", max_iters=20, sample_tokens=0))
    kept = re.findall(r"^step (\d+): .*, the best so far", capsys.readouterr().out, re.MULTILINE)
    assert [int(step) for step in kept] == [0, 5, 15] and len(saved) == 3
    state = json.loads(Path("a/last/training_state.json").read_text())
    assert (state["best_step"], state["best_val_loss"]) == (15, 2.0)
    assert models("a")["a/best/model.safetensors"] != models("a")["a/last/model.safetensors"]


def validations(monkeypatch, losses):
    """Make these the losses of the validations, which have two batches each."""
    both = iter([loss for loss in losses for _ in range(2)])
    monkeypatch.setattr(GPT2, "forward", lambda *_: next(both))


def test_a_run_stops_when_its_loss_gets_no_better(monkeypatch, capsys):
    validations(monkeypatch, [5.0, 3.0, 4.0, 2.0, 2.0, 2.5, 9.0])
    assert train.main(flags(out_dir="a", max_iters=50, patience=3, sample_tokens=0)) == 0
    assert [record["val_loss"] for record in log("a") if "val_loss" in record] == [5.0, 3.0, 4.0, 2.0, 2.0, 2.5, 9.0]
    sentence = "stopped early, at step 30: 3 validations in a row without a better loss"
    assert sentence in capsys.readouterr().out
    saved = outcome("a")
    assert train.main(["--resume", "a"]) == 0
    assert outcome("a") == saved and sentence in capsys.readouterr().out
    validations(monkeypatch, [2.0, 1.0, 7.0, 7.0])
    assert train.main(["--resume", "a", "--patience", "5"]) == 0
    assert log("a")[-1]["step"] == 50 and "stopped early" not in capsys.readouterr().out
    assert json.loads(Path("a/last/training_state.json").read_text())["since_best"] == 2


def test_a_resumed_run_has_the_patience_of_one_that_was_not_interrupted(monkeypatch):
    argv = flags(max_iters=50, patience=3, sample_tokens=0)
    losses = [5.0, 6.0, 6.0, 6.0]
    validations(monkeypatch, losses)
    train.main([*argv, "--out-dir", "whole"])
    validations(monkeypatch, losses)
    interrupt_after(monkeypatch, 7)
    assert train.main([*argv, "--out-dir", "parts"]) == 130
    while train.main(["--resume", "parts"]) == 130:
        pass
    assert outcome("whole") == outcome("parts") and log("parts")[-1]["step"] == 15


def read_events(folder):
    """Of each file: the step from which on what was written before is void, and names, steps and values."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(Path(folder, "tensorboard").iterdir()):
        data, start, values = path.read_bytes(), None, []
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            start = event.step if event.HasField("session_log") else start
            values += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        found.append((start, values))
    return found


def test_the_log_for_tensorboard(monkeypatch):
    required.module("tensorboardX")
    interrupt_after(monkeypatch, 7)
    assert train.main([*flags(out_dir="a"), "--tensorboard"]) == 130
    time.sleep(1)  # a file's name says the second
    assert train.main(["--resume", "a"]) == 0
    (first, before), (second, after) = read_events("a")
    assert (first, second) == (1, 8)
    lines = [json.loads(line) for line in Path("a/log.jsonl").read_text().splitlines()]
    logged = [(name, line["step"], value) for line in lines for name, value in line.items() if name != "step"]
    assert before + after == [(name, step, pytest.approx(value, rel=1e-6)) for name, step, value in logged]
    train.main([*flags(out_dir="a", max_iters=1), "--overwrite"])
    assert not Path("a/tensorboard").exists()


def test_tensorboard_without_its_library(monkeypatch):
    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    sentence = "--tensorboard needs tensorboardX, which is not there: pip install 'pygpt[tensorboard]'"
    assert refused([*flags(out_dir="a"), "--tensorboard"]) == sentence
    assert not Path("a").exists()


def test_the_log_is_on_the_disk_before_a_checkpoint_is(monkeypatch):
    write_model = checkpoint.write_model
    seen = []

    def write(folder, config, parameters, dtype="float32"):
        if folder.parent.name == "last":
            seen.append([record["step"] for record in log("a") if "val_loss" in record][-1])
        write_model(folder, config, parameters, dtype)

    monkeypatch.setattr(checkpoint, "write_model", write)
    train.main(flags(out_dir="a", eval_interval=2, checkpoint_interval=2))
    assert seen == list(range(0, 13, 2))


def test_a_run_keeps_the_dtype_that_it_began_with(monkeypatch):
    """auto stands for what the machine is good at, and a resumed run may be on another one."""
    monkeypatch.setattr(training, "resolve_dtype", lambda dtype, device: "bfloat16" if dtype == "auto" else dtype)
    train.main(flags(out_dir="a", dtype=None, max_iters=2))
    assert 'dtype = "bfloat16"\n' in Path("a/settings.toml").read_text()
    monkeypatch.setattr(training, "resolve_dtype", lambda dtype, device: "float32" if dtype == "auto" else dtype)
    train.main(["--resume", "a", "--max-iters", "3"])
    assert 'dtype = "bfloat16"\n' in Path("a/settings.toml").read_text()


def test_the_saved_settings_repeat_the_run():
    train.main(flags(out_dir="a", dropout=0.1, seed=3))
    train.main(["--config", "a/settings.toml", "--out-dir", "b"])
    assert outcome("a") == outcome("b")
    train.main(["--config", "a/settings.toml", "--out-dir", "c", "--seed", "4"])
    assert log("a")[1] != log("c")[1]


def test_end_of_text_in_a_text_reaches_its_preparation():
    Path("docs.txt").write_text("one\n<|endoftext|>\n" * 100)
    write_vocabulary(Path("vocabulary"))
    settings = TrainSettings(data="docs.txt", tokenizer="gpt2", vocab="vocabulary", seq_len=4, batch_size=1)
    with pytest.warns(UserWarning, match="100 times"):
        assert not run_setup.open_data(settings, None).train.meta.eot_in_text
    assert run_setup.open_data(replace(settings, eot_in_text=True), None).train.meta.eot_in_text


def test_gradients_of_several_batches_make_one_step():
    train.main(flags(out_dir="whole", batch_size=8, max_iters=4))
    train.main(flags(out_dir="parts", batch_size=4, grad_accum=2, max_iters=4))
    for whole, parts in zip(log("whole"), log("parts"), strict=True):
        if "loss" in whole:  # validation looks at other windows when batches are smaller
            assert parts == pytest.approx(whole, rel=1e-4)


def test_each_batch_of_a_step_has_dropout_masks_of_its_own(monkeypatch):
    masks = []
    accumulate = GPT2.accumulate

    def recorded(model, *arguments, **settings):
        accumulate(model, *arguments, **settings)
        masks.append(model.activations["drop"] != 0)

    monkeypatch.setattr(GPT2, "accumulate", recorded)
    train.main(flags(out_dir="a", dropout=0.5, grad_accum=2, max_iters=2, seed=3))
    expected = [Dropout(0.5, seed=3, site=0, step=number).keep((4, 16, 16)) for number in range(4)]
    np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize("schedule", ["linear", "constant", "wsd"])
def test_the_schedule_reaches_the_optimizer(schedule):
    train.main(flags(out_dir="a", lr_schedule=schedule, max_iters=20, learning_rate=1e-2, warmup_iters=0))
    rates = [record["lr"] for record in log("a") if "lr" in record]
    assert rates[0] == 1e-2
    assert rates[15] == {"linear": pytest.approx(1e-2 - 9e-3 * 15 / 20), "constant": 1e-2, "wsd": 1e-2}[schedule]
    assert (rates[-1] < 1e-2) == (schedule != "constant")


def test_the_settings_of_adamw_reach_the_optimizer(monkeypatch):
    defaults = inspect.signature(GPT2.adamw_step).parameters
    seen = []
    monkeypatch.setattr(GPT2, "adamw_step", lambda model, lr, betas, **others: seen.append({"betas": betas, **others}))
    train.main(flags(out_dir="a", max_iters=1, beta1=0.5, beta2=0.75, adam_eps=1e-3, weight_decay=0.25))
    assert seen.pop() == {"betas": (0.5, 0.75), "eps": 1e-3, "weight_decay": 0.25}
    train.main(flags(out_dir="b", max_iters=1))
    assert seen.pop() == {name: defaults[name].default for name in ("betas", "eps", "weight_decay")}


def test_the_settings_of_other_optimizers_reach_them(monkeypatch):
    seen = []
    for name in ("sgd_step", "muon_step"):
        monkeypatch.setattr(GPT2, name, lambda model, *rates, **others: seen.append((rates, others)))
    common = {"max_iters": 2, "warmup_iters": 0, "weight_decay": 0.25, "learning_rate": 0.5, "min_lr": 0.25}
    train.main(flags(out_dir="a", optimizer="sgd", **common))
    train.main(flags(out_dir="b", optimizer="momentum", momentum=0.75, **common))
    assert seen == [((lr, momentum, 0.25), {}) for momentum in (0.0, 0.75) for lr in (0.5, 0.375)]
    seen.clear()
    train.main(flags(out_dir="c", optimizer="muon", muon_lr=0.1, beta1=0.5, beta2=0.75, adam_eps=1e-3, **common))
    others = {"eps": 1e-3, "weight_decay": 0.25}
    assert seen == [((lr, pytest.approx(0.2 * lr), 0.95, (0.5, 0.75)), others) for lr in (0.5, 0.375)]


def test_on_a_terminal_there_is_a_progress_bar():
    terminal, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags(out_dir="a")]
    with subprocess.Popen(command, stdout=child, stderr=child, env=environment()) as process:
        os.close(child)
        output = b""
        try:
            while piece := os.read(terminal, 1000):
                output += piece
        except OSError:  # how a terminal ends
            pass
    assert process.returncode == 0
    assert b"tokens/s" in output
    assert b" left" in output
    assert b"\r" in output.replace(b"\r\n", b"\n")
    assert b"step 5: validation loss" in output


# ---- interrupted and resumed ----


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(monkeypatch, device, capsys):
    if device == "cpu":
        try:
            cpu_library()
        except UserError as error:
            pytest.skip(str(error))
    settings = flags(device=device, dropout=0.1, grad_accum=2)
    assert train.main([*settings, "--out-dir", "whole"]) == 0
    interrupt_after(monkeypatch, 5)
    assert train.main([*settings, "--out-dir", "parts"]) == 130
    assert "go on with: python scripts/train.py --resume parts" in capsys.readouterr().out
    assert train.main(["--resume", "parts"]) == 130
    assert train.main([*settings, "--out-dir", "parts", "--resume"]) == 0
    assert outcome("whole") == outcome("parts")


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "muon"])
def test_the_moments_of_another_optimizer_are_saved_and_resumed(monkeypatch, optimizer):
    settings = flags(device="numpy", optimizer=optimizer)
    assert train.main([*settings, "--out-dir", "whole"]) == 0
    interrupt_after(monkeypatch, 5)
    assert train.main([*settings, "--out-dir", "parts"]) == 130
    matrices = [f"h.0.{name}.weight" for name in LINEAR]
    file = Path("parts/last/optimizer.safetensors")
    if optimizer == "sgd":
        assert not file.exists()
    else:
        parameters = read_tensors(Path("parts/last/model.safetensors"))
        seconds = set() if optimizer == "momentum" else set(parameters) - set(matrices)
        names = {f"first_moments.{name}" for name in parameters} | {f"second_moments.{name}" for name in seconds}
        assert set(read_tensors(file)) == names
    other = f"optimizer of the run in parts is '{optimizer}', and 'adamw' was asked for"
    assert refused(["--resume", "parts", "--optimizer", "adamw"]).startswith(other)
    assert train.main(["--resume", "parts"]) == 130
    assert train.main(["--resume", "parts"]) == 0
    assert outcome("whole") == outcome("parts")


def test_masked_tokens_are_learned_from_both_sides(capsys):
    """The word after the next is seen too, so the loss is below that of the same model on next tokens."""
    tiny = {"max_iters": 60, "learning_rate": 1e-2, "n_embd": 32}
    assert train.main(flags(**tiny, objective="mlm", out_dir="masked")) == 0
    out = capsys.readouterr().out
    assert "generate" not in out and "sample" not in out and "/byte" not in out
    config = checkpoint.read_config("masked/best")
    assert (config.causal, config.vocab_size) == (False, 257)
    losses = [record["loss"] for record in log("masked") if "loss" in record]
    assert losses[0] == pytest.approx(np.log(257), rel=0.05)
    assert np.mean(losses[-5:]) < 2.7
    assert train.main(flags(out_dir="next", init_from="masked/best", max_iters=1, objective="mlm", n_embd=None)) == 0
    for objective, model in (("clm", "masked/best"), ("mlm", "causal/best")):
        if objective == "mlm":
            assert train.main(flags(out_dir="causal", max_iters=1)) == 0
        sentence = refused(flags(out_dir="x", init_from=model, objective=objective, n_embd=None))
        assert f"objective is {objective}, but the model in {model} has causal: " in sentence


def test_training_windows_have_masks_of_their_own_and_validations_always_the_same():
    settings = TrainSettings(**{**TINY, "objective": "mlm"})
    data = run_setup.open_data(settings, None)
    first, second = (data.training_batch(number, settings)[1] for number in (0, 4))
    assert np.all(np.any((first >= 0) != (second >= 0), axis=1))
    validations = [[targets for _, targets in data.validation_batches(replace(settings, seed=seed))] for seed in (0, 1)]
    assert np.array_equal(*map(np.concatenate, validations))
    assert not np.array_equal(validations[0][0] >= 0, validations[0][1] >= 0)


@pytest.mark.parametrize("steps", [3, 7])
def test_a_resumed_run_masks_as_one_that_was_not_interrupted(monkeypatch, steps):
    assert train.main(flags(objective="mlm", out_dir="whole", grad_accum=2)) == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        assert train.main(flags(objective="mlm", out_dir="parts", grad_accum=2)) == 130
    assert train.main(["--resume", "parts"]) == 0
    assert outcome("parts") == outcome("whole")


def test_an_interrupted_validation_is_done_after_resuming(monkeypatch):
    train.main(flags(out_dir="whole"))
    validate = training._Loop._validate

    def interrupted(loop):
        if loop.state.step == 10:
            loop.interruption.signal = signal.SIGTERM
        validate(loop)

    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, "_validate", interrupted)
        assert train.main(flags(out_dir="parts")) == 143
    assert log("parts")[-1]["step"] == 10
    assert "val_loss" not in log("parts")[-1]
    assert train.main(["--resume", "parts"]) == 0
    assert outcome("whole") == outcome("parts")


def test_a_resumed_run_may_become_longer_and_change_its_learning_rate():
    train.main(flags(out_dir="a"))
    assert train.main(["--resume", "a", "--max-iters", "15", "--learning-rate", "1e-4"]) == 0
    steps = [record for record in log("a") if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 16))
    assert steps[-1]["lr"] < 1e-4
    assert train.main(["--resume", "a"]) == 0  # nothing is left to do
    assert len(log("a")) == len(steps) + 5


def test_a_resumed_run_with_other_batches_goes_on_in_its_data(monkeypatch):
    numbers = []
    batch = TokenDataset.batch

    def draw(data, first, batch_size, *others):
        numbers.extend(range(first, first + batch_size))
        return batch(data, first, batch_size, *others)

    monkeypatch.setattr(training, "check_windows", lambda *_: None)  # it draws one too
    monkeypatch.setattr(TokenDataset, "batch", draw)
    train.main(flags(out_dir="a", batch_size=8, max_iters=4))
    train.main(["--resume", "a", "--batch-size", "2", "--grad-accum", "3", "--max-iters", "6"])
    train.main(["--resume", "a", "--batch-size", "5", "--grad-accum", "1", "--max-iters", "7"])
    assert numbers == list(range(8 * 4 + 6 * 2 + 5))


def test_a_checkpoint_that_did_not_count_windows(monkeypatch):
    train.main(flags(out_dir="whole", grad_accum=2))
    interrupt_after(monkeypatch, 8)
    train.main(flags(out_dir="a", grad_accum=2))
    path = Path("a/last/training_state.json")
    state = json.loads(path.read_text())
    assert state.pop("windows") == 8 * 2 * 4
    path.write_text(json.dumps(state))
    assert train.main(["--resume", "a"]) == 0
    assert outcome("a") == outcome("whole")
    path.write_text(json.dumps({**state, "windows": -1}))
    assert refused(["--resume", "a"]) == "a/last/training_state.json: is not the state of a training run"


def test_a_checkpoint_that_knows_no_patience(monkeypatch):
    train.main(flags(out_dir="whole"))
    interrupt_after(monkeypatch, 8)
    train.main(flags(out_dir="a"))
    path = Path("a/last/training_state.json")
    state = json.loads(path.read_text())
    del state["since_best"]
    path.write_text(json.dumps(state))
    assert train.main(["--resume", "a"]) == 0
    assert outcome("a") == outcome("whole")


def test_what_a_killed_run_logged_beyond_its_checkpoint_is_dropped():
    train.main(flags(out_dir="whole"))
    train.main(flags(out_dir="a", max_iters=8))
    lines = Path("a/log.jsonl").read_text()
    extra = ['{"step": 9, "loss": 1.0}\n', '{"step": 10, "val_loss": 1.0}\n', '{"step": 11, "lo']
    Path("a/log.jsonl").write_text(lines + "".join(extra))
    state = Path("a/last/training_state.json")  # as if the checkpoint had been saved before the validation
    state.write_text(json.dumps({**json.loads(state.read_text()), "validated": 5}))
    train.main(["--resume", "a", "--max-iters", "12"])
    assert [record["step"] for record in log("a") if "val_loss" in record] == [0, 5, 10, 12]
    assert [record["step"] for record in log("a") if "loss" in record] == list(range(1, 13))
    for line in ("no JSON", "[1]", '{"loss": 1}', '{"step": 1, "val_loss": "low"}'):
        Path("a/log.jsonl").write_text(line + "\n")
        assert refused(["--resume", "a"]) == "a/log.jsonl: line 1 is not a JSON object of numbers with a step"


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start(*argv):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(), text=True)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits():
    settings = flags(tokenizer="byte", max_iters=60, checkpoint_interval=1, sample_tokens=0)
    assert train.main([*settings, "--out-dir", "whole"]) == 0
    draw = random.Random(os.environ.get("PYGPT_TEST_SEED", 0))
    process = start(*settings, "--out-dir", "killed")
    for _ in range(6):
        state = Path("killed/last/training_state.json")
        before = state.read_bytes() if state.is_file() else b""
        while process.poll() is None and (not state.is_file() or state.read_bytes() == before):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        process = start("--resume", "killed")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert outcome("whole") == outcome("killed")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(monkeypatch):
    train.main(flags(out_dir="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, "_validate", lambda loop: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(flags(out_dir="a"))
    with write_files("a/last") as saving:
        (saving / "half").write_text("a checkpoint that is not one")
    assert train.main(["--resume", "a"]) == 0
    Path("a/last/half").unlink()
    assert outcome("whole") == outcome("a")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_says_how_to_go_on(number):
    process = start(*flags(out_dir="a", max_iters=10**6))
    wait_for(Path("a/last/training_state.json"))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "finishing the step" in output
    assert "Traceback" not in output
    step = json.loads(Path("a/last/training_state.json").read_text())["step"]
    assert f"stopped by {number.name} after step {step}" in output
    assert "--resume a" in output
    assert log("a")[-1]["step"] == step


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_signal_stops_at_once_even_in_a_long_call():
    program = """
import sys, time
from pygpt.training.interruption import Interruption
# in one write each, for two threads print
with Interruption(lambda: print("once\\n", end="", flush=True)) as interruption:
    print("ready", flush=True)
    while not interruption: time.sleep(0.01)
    print("seen\\n", end="", flush=True)
    time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment(), text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert {process.stdout.readline(), process.stdout.readline()} == {"once\n", "seen\n"}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_signals_work_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption(lambda: None) as interruption:
        assert not interruption
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# ---- what goes wrong ----


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint():
    train.main(flags(out_dir="a", max_iters=8))
    contents = models("a")
    sentence = refused(["--resume", "a", "--max-iters", "20", "--learning-rate", "1e38", "--weight-decay", "1e3"])
    assert sentence.startswith("the loss is ")
    assert " at step 1" in sentence
    assert "the last good checkpoint is a/last (step 8)" in sentence
    assert sentence.endswith("python scripts/train.py --resume a")
    assert models("a") == contents
    assert train.main(["--resume", "a", "--max-iters", "12", "--learning-rate", "1e-3", "--weight-decay", "0.1"]) == 0
    assert [record["step"] for record in log("a") if "loss" in record] == list(range(1, 13))


def test_weights_that_are_not_finite_stop_the_run_before_the_first_checkpoint():
    config = GPT2Config(vocab_size=256, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2(config, device="numpy")
    model.parameters["ln_f.bias"][0] = np.nan
    save_parameters("broken", config, model.parameters, extra=ByteTokenizer().save)
    sentence = refused(flags(init_from="broken", out_dir="a"))
    assert sentence.startswith("the validation loss is nan at step 0; there is no checkpoint yet")


@pytest.mark.parametrize("full_for", ["log.jsonl", "last"])
def test_a_full_device_stops_the_run_and_spares_the_checkpoint(full_for):
    train.main(flags(out_dir="a"))
    contents = models("a")
    largest = Path("a/log.jsonl").stat().st_size + 100 if full_for == "log.jsonl" else 20_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))  # as if the device were full after so many bytes
    try:
        sentence = refused(["--resume", "a", "--max-iters", "16", "--checkpoint-interval", "2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sentence.startswith(f"a/{full_for}: cannot be ")
    assert models("a") == contents
    assert train.main(["--resume", "a", "--max-iters", "16"]) == 0
    assert [record["step"] for record in log("a") if "loss" in record] == list(range(1, 17))


def test_a_folder_that_holds_another_run_is_refused():
    train.main(flags(out_dir="a"))
    contents = outcome("a")
    sentence = refused(flags(out_dir="a", max_iters=20))
    assert sentence.startswith("a: holds a run already")
    assert "--resume a" in sentence
    assert outcome("a") == contents
    Path("b").mkdir()
    Path("b/log.jsonl").write_text("somebody's own\n")
    assert refused(flags(out_dir="b")).startswith("b: holds a run already")
    assert Path("b/log.jsonl").read_text() == "somebody's own\n"
    Path("c").write_text("a file")
    assert refused(flags(out_dir="c")).startswith("c: cannot be the run's folder")


def test_a_folder_that_nobody_named_is_the_next_that_is_free():
    train.main(flags(max_iters=1))
    train.main(flags(max_iters=2))
    with RunFolder(Path("out/text-3"), resume=False):  # another process
        train.main(flags(max_iters=3))
    assert sorted(path.name for path in Path("out").iterdir()) == ["text", "text-2", "text-4"]
    assert [log(f"out/{name}")[-1]["step"] for name in ("text", "text-2", "text-4")] == [1, 2, 3]
    Path("again.toml").write_text('out_dir = "out/text"')
    assert refused([*flags(), "--config", "again.toml"]).startswith("out/text: holds a run already")
    refused(flags(batch_size=2, data="none.txt"))
    assert len(list(Path("out").iterdir())) == 3


def test_a_run_is_overwritten_when_asked_for_and_nothing_else_is(monkeypatch):
    train.main(flags(out_dir="whole"))
    train.main(flags(out_dir="a", max_iters=20, tokenizer="char", dropout=0.5))
    own = {"a/notes.txt", "a/best/README.md", "a/mine/config.json"}
    for name in own:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("mine")
    Path("a/best/vocab.json").write_text("of another tokenizer")
    contents = outcome("a")
    # what cannot begin replaces nothing
    assert "none.txt" in refused([*flags(out_dir="a", data="none.txt"), "--overwrite"])
    assert outcome("a") == contents
    with monkeypatch.context() as patch:  # killed at once: nothing of the old run is taken for the new one's
        patch.setattr(training._Loop, "_steps", lambda loop: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main([*flags(out_dir="a"), "--overwrite"])
    left = {path.as_posix() for path in Path("a").rglob("*") if path.is_file()}
    assert left == {"a/settings.toml", "a/log.jsonl", *own}
    assert train.main(["--resume", "a"]) == 0
    Path("a/best/README.md").unlink()
    Path("a/mine/config.json").unlink()
    assert outcome("a") == outcome("whole")
    assert train.main([*flags(out_dir="new"), "--overwrite"]) == 0
    Path("b").mkdir()
    Path("b/log.jsonl").write_text("somebody's own\n")
    sentence = "b: holds log.jsonl but no settings.toml, so it is no run to overwrite"
    assert refused([*flags(out_dir="b"), "--overwrite"]) == sentence


def test_a_run_may_begin_from_the_model_that_it_overwrites():
    train.main(flags(out_dir="a"))
    best = GPT2.from_pretrained("a/best", device="numpy")
    assert train.main([*flags(out_dir="a", init_from="a/best", max_iters=1), "--overwrite"]) == 0
    batches = TokenDataset("data/text-byte", "val").validation_batches(4, 16, 2)
    loss = pytest.approx(np.mean([best.forward(*b) for b in batches]))
    assert log("a")[0] == {"step": 0, "val_loss": loss, "val_loss_per_byte": loss}


def test_a_text_that_is_smaller_than_a_batch():
    Path("tiny.txt").write_text("a little text of some eighty letters, seven of them in each window" * 3)
    assert train.main(flags(out_dir="a", data="tiny.txt", batch_size=200)) == 0
    Path("line.txt").write_text("a line of forty letters, nearly so, yes.")
    sentence = refused(flags(out_dir="b", data="line.txt"))
    assert sentence.endswith("take a sequence length of at most 3")
    assert train.main(flags(out_dir="b", data="line.txt", seq_len=3)) == 0


def test_two_processes_do_not_train_in_one_folder():
    train.main(flags(out_dir="a"))
    descriptor = os.open("a", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert refused(["--resume", "a"]) == "a: another process is training in this folder"
    finally:
        os.close(descriptor)
    with RunFolder(Path("a"), resume=True), pytest.raises(UserError):
        train.main(["--resume", "a"])


def test_a_run_that_cannot_begin_leaves_no_folder():
    refused(flags(out_dir="a", data="none.txt"))
    assert not Path("a").exists()


def test_a_resumed_run_refuses_other_sizes_and_other_data():
    train.main(flags(out_dir="a"))
    assert refused(["--resume", "a", "--max-iters", "9"]) == "max_iters is 9, but the run in a has done 12 steps"
    assert refused(["--resume", "a", "--n-embd", "32"]).startswith("n_embd of the run in a is 16, and 32 was asked for")
    with Path("text.txt").open("a") as file:
        file.write("more")
    others = "holds other tokens than when the run in a began"
    assert refused(["--resume", "a"]) == f"{Path('text.txt').resolve()}: {others}"
    Path("other.txt").write_text("other words " * 500)
    assert refused(["--resume", "a", "--data", "other.txt"]) == f"other.txt: {others}"
    assert "there is no such file" in refused(["--resume", "a", "--data", "none.txt"])


def test_a_run_is_resumed_from_another_folder_and_when_its_data_has_moved(monkeypatch):
    train.main(flags(out_dir="whole"))
    train.main(flags(out_dir="a", max_iters=4, warmup_iters=0))
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert train.main(["--resume", "../a", "--max-iters", "8"]) == 0
    Path("../text.txt").rename("moved.txt")
    assert "the data of the run in ../a is not there; --data PATH" in refused(["--resume", "../a", "--max-iters", "12"])
    assert train.main(["--resume", "../a", "--max-iters", "10", "--data", "moved.txt"]) == 0
    monkeypatch.chdir("..")
    assert train.main(["--resume", "a", "--max-iters", "12", "--data", "elsewhere/../elsewhere/moved.txt"]) == 0
    assert train.main(["--resume", "a"]) == 0  # it has been saved where the data is
    losses = [[record["step"] for record in log(folder) if "loss" in record] for folder in ("a", "whole")]
    assert losses[0] == losses[1] == list(range(1, 13))


def test_a_longer_run_does_not_warm_up_again():
    train.main(flags(out_dir="a", max_iters=40, learning_rate=1e-3))
    assert train.main(["--resume", "a", "--max-iters", "60"]) == 0
    assert train.main(["--resume", "a", "--max-iters", "80"]) == 0
    rates = [record["lr"] for record in log("a") if "lr" in record]
    assert rates[0] == pytest.approx(1e-3 / 3)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[2:40]))
    assert rates[40] == pytest.approx(1e-4 + 9e-4 * (1 + np.cos(np.pi * 38 / 58)) / 2)
    assert rates[60] == pytest.approx(1e-4 + 9e-4 * (1 + np.cos(np.pi * 58 / 78)) / 2)


@pytest.mark.parametrize(
    "change", [{"step": -1}, {"since_best": -1}, {"step": "8"}, {"best_val_loss": "low"}, {"more": 1}]
)
def test_a_wrong_state_gets_a_sentence(change):
    train.main(flags(out_dir="a", max_iters=4))
    path = Path("a/last/training_state.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert refused(["--resume", "a"]) == "a/last/training_state.json: is not the state of a training run"


@pytest.mark.parametrize("name", ["training_state.json", "optimizer.safetensors", "model.safetensors", "config.json"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" + data[1:], lambda data: b""]
)
def test_a_damaged_checkpoint_gets_a_sentence(name, damage):
    train.main(flags(out_dir="a", max_iters=4))
    path = Path("a/last", name)
    path.write_bytes(damage(path.read_bytes()))
    assert name in refused(["--resume", "a"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "none.txt"}, "none.txt"),
        ({"seq_len": 5400}, "5400 train tokens, but one window takes 5401"),
        ({"seq_len": 700, "batch_size": 1}, "600 val tokens, but one window takes 701"),
        ({"n_embd": 15}, "n_embd is 15, expected a multiple of n_head, which is 2"),
        ({"tokenizer": "char", "vocab": "x"}, "--vocab is for gpt2 tokens"),
    ],
)
def test_what_does_not_fit_together_gets_a_sentence(changes, sentence):
    assert sentence in refused(flags(out_dir="a", **changes))


def test_more_memory_than_the_machine_has_is_refused_with_a_batch_size_that_fits(monkeypatch):
    config = GPT2Config(vocab_size=256, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    settings = {"seq_len": 16, "training": True, "device": "numpy"}
    enough = memory_needed(config, batch_size=37, **settings)
    for module in (memory, run_setup):
        monkeypatch.setattr(module, "available_memory", lambda *_: enough)
    sentence = refused(flags(out_dir="a", batch_size=200))
    assert sentence.endswith("are available: --batch-size 37 would fit")
    for module in (memory, run_setup):
        monkeypatch.setattr(module, "available_memory", lambda *_: 1000)
    assert "even --batch-size 1 would not fit" in refused(flags(out_dir="a"))


def test_the_memory_that_is_available_is_what_the_machine_says(monkeypatch, tmp_path):
    said = tmp_path / "meminfo"
    said.write_text("MemTotal:        9000 kB\nMemFree:          400 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(memory, "Path", lambda path: said if path == "/proc/meminfo" else Path(path))
    assert memory.available_memory() == 1000 * 1024


# ---- fine-tuning ----


@pytest.fixture
def pretrained():
    """A model folder with more positions than the tiny runs use, and dropout."""
    config = GPT2Config(256, 32, 16, 1, 2, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3)
    model = GPT2(config, device="numpy", seed=7)
    save_parameters("pretrained", config, model.parameters, extra=ByteTokenizer().save)
    return model


def test_fine_tuning_begins_with_the_weights_of_the_folder(pretrained):
    argv = flags(n_layer=None, n_head=None, n_embd=None, init_from="pretrained")
    assert train.main([*argv, "--out-dir", "a"]) == 0
    batches = TokenDataset("data/text-byte", "val").validation_batches(4, 16, 2)
    loss = pytest.approx(np.mean([pretrained.forward(*b) for b in batches]))
    assert log("a")[0] == {"step": 0, "val_loss": loss, "val_loss_per_byte": loss}
    tuned = GPT2.from_pretrained("a/last", device="numpy")
    assert tuned.config == pretrained.config
    assert not np.array_equal(tuned.parameters["wte.weight"], pretrained.parameters["wte.weight"])
    assert train.main([*argv, "--out-dir", "b", "--dropout", "0"]) == 0
    assert GPT2.from_pretrained("b/last", device="numpy").config == replace(
        pretrained.config, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
    )
    assert log("a")[1] != log("b")[1]
    assert train.main(["--config", "a/settings.toml", "--out-dir", "c"]) == 0
    assert outcome("c") == outcome("a")


def test_a_last_validation_batch_with_fewer_rows_counts_less(pretrained):
    train.main(flags(init_from="pretrained", out_dir="a", max_iters=1, eval_iters=100))
    batches = [*TokenDataset("data/text-byte", "val").validation_batches(4, 16)]
    assert [len(tokens) for tokens, _ in batches][-2:] == [4, 1]
    whole = pretrained.forward(*(np.concatenate(rows) for rows in zip(*batches, strict=True)))
    assert log("a")[0]["val_loss"] == pytest.approx(whole, rel=1e-6)


def test_fine_tuning_sees_as_many_tokens_as_the_model_has_positions(pretrained):
    assert train.main(flags(init_from="pretrained", seq_len=None, out_dir="a")) == 0
    assert "seq_len = 32\n" in Path("a/settings.toml").read_text()
    assert "learning_rate = 3e-05\n" in Path("a/settings.toml").read_text()
    rates = [record["lr"] for record in log("a") if "lr" in record]
    assert rates[0] == pytest.approx(3e-5)
    assert min(rates) >= 3e-6
    assert train.main(["--resume", "a", "--max-iters", "14"]) == 0


def test_a_resumed_fine_tuning_has_the_same_bits(pretrained, monkeypatch):
    train.main(flags(init_from="pretrained", out_dir="whole"))
    interrupt_after(monkeypatch, 7)
    assert train.main(flags(init_from="pretrained", out_dir="a")) == 130
    Path("pretrained").rename("moved")  # it is not needed any more
    assert train.main(["--resume", "a"]) == 0
    assert outcome("a") == outcome("whole")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_layer": 2}, "n_layer is 2, but the model in pretrained has 1; leave it out"),
        ({"n_embd": 32}, "n_embd is 32, but the model in pretrained has 16; leave it out"),
        ({"seq_len": 33}, "seq_len is 33, but the model in pretrained has 32 positions"),
        ({"tokenizer": "char"}, "tokenizer is char, but the model in pretrained has byte tokens"),
        ({"init_from": "no/such/folder"}, "no/such/folder: no such folder"),
    ],
)
def test_settings_that_contradict_the_model_are_refused(pretrained, changes, sentence):
    assert sentence in refused(flags(**{"init_from": "pretrained", "out_dir": "a", **changes}))


def test_tokens_of_another_vocabulary_are_refused(pretrained):
    train.main(flags(tokenizer="char", out_dir="a"))
    assert "byte" in refused(flags(init_from="pretrained", data="data/text-char", out_dir="b"))
    ByteTokenizer.save(CharTokenizer("abc"), "pretrained")
    assert "is not among the 3 of the vocabulary" in refused(flags(init_from="pretrained", out_dir="b"))
