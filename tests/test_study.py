"""Instruments to look inside a model, each with an answer that is known without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import backends
import numpy as np
import pytest
from numpy.typing import NDArray

import pygpt
from pygpt import study
from pygpt.command import study as command
from pygpt.comparing.compare import perturb
from pygpt.comparing.metrics import relative_l2
from pygpt.errors import UserError
from pygpt.study.changes import Change
from pygpt.study.opening import Reading, Subject
from pygpt.study.result import Curves, Map
from pygpt.study.trace import summary
from pygpt.text.masking import VALIDATION, masked
from pygpt.text.tokenizer import ByteTokenizer, CharTokenizer

Array = NDArray[Any]

CONFIG = pygpt.GPT2Config(vocab_size=256, n_positions=16, n_embd=24, n_layer=2, n_head=3, n_inner=40)
TEXT = "abcabd abc"


def make_model(
    device: str = "numpy", dtype: str = "float64", config: pygpt.GPT2Config = CONFIG, kernels: str = "fast"
) -> pygpt.GPT2:
    """With attention that is not uniform and biases that are not 0."""
    model = pygpt.GPT2(config, device=device, dtype=dtype, kernels=kernels, seed=1)
    perturb(model, seed=2)
    return model


def tokens_of(text: str = TEXT) -> Array:
    return ByteTokenizer().encode(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    ByteTokenizer().save(path)
    return path


# ---- trace ----


def test_a_trace_is_what_the_model_holds() -> None:
    model, tokens = make_model(), tokens_of()
    found = study.trace(model, tokens)
    loss = model.forward_backward(tokens[None, :], np.array([[*tokens[1:], -1]]))
    assert found.loss == pytest.approx(loss, rel=1e-12)
    for mine, theirs in (
        (found.activations, model.activations),
        (found.activation_gradients, model.activation_gradients),
        (found.gradients, model.gradients),
    ):
        for name, value in theirs.items():
            assert np.allclose(mine[name], value, rtol=1e-12, atol=1e-14), name
    assert np.array_equal(found.activations["logits"], model.logits)
    for layer in range(CONFIG.n_layer):
        p = found.activations[f"h.{layer}.attn.probabilities"]
        assert np.array_equal(p, model.attention_probabilities(layer))


def test_rows_of_a_trace_sum_to_what_they_must() -> None:
    found = study.trace(make_model(), tokens_of())
    for layer in range(CONFIG.n_layer):
        h = f"h.{layer}.attn"
        s, p = (found.activations[f"{h}.{name}"] for name in ("scores", "probabilities"))
        ds, dp = (found.activation_gradients[f"{h}.{name}"] for name in ("scores", "probabilities"))
        assert np.allclose(p.sum(-1), 1) and abs(ds.sum(-1)).max() < 1e-15 < abs(ds).max()
        assert np.allclose(np.exp(s - found.activations[f"{h}.lse"][..., None]), p)
        assert np.allclose(p * (dp - (p * dp).sum(-1, keepdims=True)), ds)
    assert abs(found.activation_gradients["logits"].sum(-1)).max() < 1e-15


def test_gradients_of_scores_are_those_of_the_loss() -> None:
    """A score of the last layer changed by hand, with the rest of the pass computed after it."""
    model, tokens = make_model(), tokens_of()
    found = study.trace(model, tokens)
    h, head, query, key, step = "h.1.attn", 2, 7, 3, 1e-5
    size = CONFIG.head_size
    p, v = found.activations[f"{h}.probabilities"][0, head, query], found.activations[f"{h}.c_attn"][0]
    v = v[:, 2 * CONFIG.n_embd + head * size :][:, :size]
    losses = []
    for sign in (1, -1):
        changed = p * np.exp(sign * step * (np.arange(len(p)) == key))
        y = changed / changed.sum() @ v
        part = (0, query, slice(head * size, (head + 1) * size))
        losses.append(study.trace(model, tokens, changes=[Change(f"{h}.heads", y, part)]).loss)
    slope = (losses[0] - losses[1]) / (2 * step)
    assert slope == pytest.approx(found.activation_gradients[f"{h}.scores"][0, head, query, key], rel=1e-6)


@pytest.mark.parametrize("backend", backends.PRESENT, ids=str)
def test_traces_of_any_backend_agree(backend: backends.Backend) -> None:
    exact = study.trace(make_model(), tokens_of())
    found = study.trace(make_model(backend.device, backend.dtype, kernels=backend.kernels), tokens_of())
    bound = 2e-2 if backend.dtype == "bfloat16" else 1e-5
    assert found.loss == pytest.approx(exact.loss, rel=bound)
    for name in ("logits", "h.1.attn.probabilities", "h.0.resid_mid"):
        assert relative_l2(found.activations[name], exact.activations[name]) < bound, name
    for name in ("embd", "h.0.attn.probabilities", "h.0.attn.scores"):
        gradients = (of.activation_gradients[name] for of in (found, exact))
        assert relative_l2(*gradients) < 10 * bound, name


@pytest.mark.parametrize("backend", backends.PRESENT, ids=str)
def test_scores_of_a_trace_are_those_of_its_probabilities(backend: backends.Backend) -> None:
    """In bfloat16 too, where some kernels round q and k, and others do not."""
    model = make_model(backend.device, backend.dtype, kernels=backend.kernels)
    for layer in range(CONFIG.n_layer):
        name = f"h.{layer}.attn.c_attn.weight"
        model.set_parameter(name, 8 * model.parameters[name])
    found = study.trace(model, tokens_of())
    for layer in range(CONFIG.n_layer):
        s, lse, p = (found.activations[f"h.{layer}.attn.{name}"] for name in ("scores", "lse", "probabilities"))
        assert abs(s[np.isfinite(s)]).max() > 1
        assert np.allclose(np.exp(s - lse[..., None]), p, rtol=1e-4, atol=1e-6)


def test_a_trace_leaves_the_model_as_it_is(folder: Path) -> None:
    model = make_model()
    model.forward_backward(tokens_of("xyz")[None], tokens_of("yzx")[None])
    before = {name: value.copy() for name, value in model.gradients.items()}
    found = study.trace(model, tokens_of())
    found.parameters["wte.weight"][...] = 0
    assert all(np.array_equal(model.gradients[name], value) for name, value in before.items())
    assert model.activations["embd"].shape == (1, 3, 24) and model.parameters["wte.weight"].any()
    assert study.trace(folder, tokens_of()).loss == pytest.approx(found.loss, rel=1e-6)


def test_dropout_is_off() -> None:
    config = pygpt.GPT2Config(**{**vars(CONFIG), "embd_pdrop": 0.5, "attn_pdrop": 0.5, "resid_pdrop": 0.5})
    assert study.trace(make_model(config=config), tokens_of()).loss == study.trace(make_model(), tokens_of()).loss


@pytest.mark.parametrize(
    ("tokens", "targets", "sentence"),
    [
        ([1, 256], None, "token 256 is outside the vocabulary, expected 0 to 255"),
        (list(range(17)), None, "sequence length is 17, expected at most n_positions = 16"),
        ([0.5, 1], None, r"tokens has shape \(2,\) and dtype float64, expected integers"),
        ([[1, 2], [3, 4]], [1, 2], r"targets has shape \(1, 2\), expected \(2, 2\) as tokens"),
        ([1, 2], [1, 256], "target 256 is outside the vocabulary"),
    ],
)
def test_batches_that_cannot_be_traced(tokens: Any, targets: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        study.trace(make_model(), tokens, targets)


def test_summary_names_every_tensor() -> None:
    found = study.trace(make_model(), tokens_of())
    result = summary(found)
    row = next(row for row in result.rows if row[0] == "h.1.mlp.act")
    x, dx = found.activations["h.1.mlp.act"], found.activation_gradients["h.1.mlp.act"]
    assert row[1:] == (
        "1 x 10 x 40",
        *(f(y) for y in (x, dx) for f in (lambda y: np.sqrt((y**2).mean()), lambda y: abs(y).max())),
    )
    assert set(result.arrays) > {"loss", "logits", "d logits", "d h.0.attn.scores", "d wte.weight"}


def test_the_picture_of_a_trace_has_the_stream_and_every_head() -> None:
    found = study.trace(make_model(), tokens_of())
    stream, *maps = summary(found).panels
    assert isinstance(stream, Curves)
    for line, of in (("x", found.activations), ("dx", found.activation_gradients)):
        assert np.allclose(stream.lines[line], [np.sqrt((of[name] ** 2).mean()) for name in found.stream], rtol=1e-12)
    heads = [(layer, head) for layer in range(CONFIG.n_layer) for head in range(CONFIG.n_head)]
    titles = [f"{what}, layer {layer}, head {head}" for what in ("P", "dS") for layer, head in heads]
    assert [panel.title for panel in maps] == titles
    for panel, (layer, head) in zip(maps, 2 * heads, strict=True):
        assert isinstance(panel, Map) and panel.signed == panel.title.startswith("dS")
        name = f"h.{layer}.attn"
        values = (
            found.activation_gradients[f"{name}.scores"] if panel.signed else found.activations[f"{name}.probabilities"]
        )
        assert np.array_equal(panel.values, values[0, head])


# ---- changes ----


CHANGES = {
    "zero": Change("h.0.mlp.act", 0.0),
    "a head, replaced": Change("h.1.attn.heads", 0.5, (..., slice(8, 16))),
    "half of a head at a position": Change("h.0.attn.heads", 0.3, (0, 4, slice(2, 5))),
    "a direction, added": Change("h.0.attn.heads", np.linspace(-1, 1, 24), (0, 5), add=True),
    "the stream": Change("h.0.resid_post", np.linspace(-1, 1, 24), (0, slice(2, 4))),
    "queries, keys and values": Change("h.1.attn.c_attn", 0.1, (0, 3), add=True),
    "a LayerNorm": Change("h.1.ln_2", 1.0, (0, 3)),
    "the embedding": Change("embd", np.linspace(-1, 1, 24), (0, 0), add=True),
    "the last LayerNorm": Change("ln_f", 0.2, (0, 6, slice(3))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_gradients_with_a_change_are_those_of_the_loss_with_it(change: Change) -> None:
    """Along a random direction of all parameters, by central differences."""
    model, tokens = make_model(), tokens_of()
    plain, found = study.trace(model, tokens), study.trace(model, tokens, changes=[change])
    x, y = plain.activations[change.name], found.activations[change.name]
    assert np.array_equal(
        y[change.part], np.broadcast_to(x[change.part] * change.add + change.value, y[change.part].shape)
    )
    assert abs(found.loss - plain.loss) > 1e-6
    rng, step, losses = np.random.default_rng(0), 1e-5, []
    direction = {name: rng.normal(size=value.shape) for name, value in plain.parameters.items()}
    for sign in (1, -1):
        moved = make_model()
        for name, value in plain.parameters.items():
            moved.set_parameter(name, value + sign * step * direction[name])
        losses.append(study.trace(moved, tokens, changes=[change]).loss)
    slope = sum((found.gradients[name] * value).sum() for name, value in direction.items())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_changes_come_one_after_another() -> None:
    changes = [Change("h.0.ln_1", 1.0), Change("h.0.ln_1", 2.0, (0, 3), add=True)]
    found = study.trace(make_model(), tokens_of(), changes=changes).activations["h.0.ln_1"]
    assert (found[0, 3] == 3).all() and (found[0, 4] == 1).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (Change("h.0.mlp.acts"), "there is no activation h.0.mlp.acts, expected embd, .*did you mean h.0.mlp.act"),
        (Change("h.2.ln_1"), "there is no activation h.2.ln_1"),
        (Change("losses"), "there is no activation losses"),
        (Change("embd", np.zeros(23)), r"the change of embd, which has shape \(1, 10, 24\), does not fit"),
        (Change("embd", 0.0, (0, 10)), r"the change of embd, .* does not fit"),
    ],
)
def test_changes_that_do_not_fit(change: Change, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        study.trace(make_model(), tokens_of(), changes=[change])


# ---- the command ----


NEEDED = {"patch": ["--name", "h.0.mlp.act"], "memory": ["--other", "xyz"], "answers": ["--task", "addition"]}
"""What some instruments cannot do without."""


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    command.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_every_instrument_prints_draws_and_gives_its_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # page writes page.html
    for name, verb in command.VERBS.items():
        arguments = [name, folder, *([TEXT] if verb.text else []), *NEEDED.get(name, [])]
        picture, numbers = tmp_path / f"{name}.png", tmp_path / f"{name}.json"
        text = call(capsys, *arguments, "--plot", picture, "--json", numbers)
        assert len(text.splitlines()) > 2 and picture.read_bytes().startswith(b"\x89PNG"), name
        found = json.loads(numbers.read_text())
        assert found["verb"] == name and found["arrays"], name
        assert json.loads(call(capsys, *arguments, "--json", "-")) == found, name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trac", "M", "abc"], "'trac' is no instrument, expected trace.*; did you mean trace?"),
        (["trace", "M"], "the text is missing: trace needs one after the folder"),
        (["spectrum", "M", "abc"], "spectrum takes no text, and 'abc' is given"),
        (["trace", "M", "abc", "--head", "1"], "--head is for patch and thermo, and trace is asked for"),
        (["heads", "M", "--length", "9"], "9 random tokens are to come twice, expected 2 to 8: half of the positions"),
        (["spectrum", "M", "--tensor", "wpe.weights"], "there is no matrix wpe.weights, .*did you mean wpe.weight"),
        (["patch", "M", "abc"], "--name is missing: patch needs the name of an activation"),
        (["patch", "M", "abc", "--name", "h.0.attn.head"], "there is no activation h.0.attn.head, .*h.0.attn.heads"),
        (["patch", "M", "abc", "--name", "embd", "--other", "abcd"], "--other has 4 tokens, expected 3"),
        (["patch", "M", "abc", "--name", "embd", "--toward", "xy"], "--toward is 'xy', which has 2 tokens"),
        (["patch", "M", "abc", "--name", "embd", "--scale", "2"], "--scale is the length of what --toward adds"),
        (["patch", "M", "abc", "--name", "embd", "--head", "0"], "embd is not split into heads"),
        (["patch", "M", "abc", "--name", "h.0.attn.heads", "--head", "3"], "head is 3, expected 0 to 2"),
        (["patch", "M", "abc", "--name", "embd", "--position", "3"], "the change of embd.* does not fit"),
        (["patch", "M", "abc", "--name", "h.0.mlp.act", "--toward", "x"], "the change of h.0.mlp.act.* does not fit"),
        (["memory", "M", "abc"], "--other is missing"),
        (["attribution", "M", "abc", "--position", "3"], "position is 3, expected 0 to 2"),
        (["landscape", "M", "abc", "--points", "4"], "points is 4, expected an odd number"),
        (["landscape", "M", "abc", "--extent", "0"], "extent is 0, expected a positive number"),
        (["step", "M", "abc", "--learning-rate", "nan"], "--learning-rate is nan, expected a positive number"),
        (["memory", "M", "abc", "--other", "ab", "--learning-rate", "0"], "--learning-rate is 0, expected a positive"),
        (
            ["patch", "M", "abc", "--name", "embd", "--toward", "x", "--scale", "inf"],
            "--scale is inf, expected a finite",
        ),
        (["budget", "M", "abc", "--device", "cpu"], "--device is given, but budget computes in numpy in float64"),
        (["budget", "M", "abc", "--threads", "9999"], "threads is 9999, expected at most"),
        (["answers", "M"], "--task is missing: answers needs one, sorting or addition"),
        (["answers", "M", "--task", "sort"], "'sort' is no task, expected sorting, addition; did you mean sorting?"),
        (["answers", "M", "--task", "sorting"], "the model has 16 positions, expected at least 19 for sorting"),
        (["make", "induction"], "the file is missing"),
        (["make", "sort", "no.txt"], "'sort' is no task, expected induction, sorting, addition; did you mean sorting?"),
        (["make", "sorting", "M/config.json"], "config.json: is there already, expected a new file"),
        (["trace", "M", "a" * 17], "the text has a length of 17 tokens, expected 2 to 16, the positions of"),
        (["trace", "M", "a"], "the text has a length of 1 tokens, expected 2 to 16"),
        (["trace", "M", ""], "the text has a length of 0 tokens, expected 2 to 16"),
        (["trace", "M", "abc", "--plot", "/no/such/folder/a.png"], "/no/such/folder/a.png: cannot be saved: No such"),
        (["trace", "M", "abc", "--json", "M"], ": cannot be saved: Is a directory"),
        (["page", "M", "abc", "-o", "/no/such/folder/a.html"], "/no/such/folder/a.html: cannot be saved: No such"),
        (["page", "M", "abc", "-o", "/proc/a.html"], "/proc/a.html: cannot be saved"),
        (["page", "M", "abc", "--serve", "--port", "65536"], "--port is 65536, expected 0 to 65535"),
        (["trace", "no-such-model", "abc"], "no-such-model"),
    ],
)
def test_wrong_calls(arguments: list[str], sentence: str, folder: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        command.main([re.sub("^M", str(folder), word) for word in arguments])


def test_patches_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokens, part = make_model("numpy", "float32"), tokens_of(), (slice(None), 4, slice(8, 16))
    other = study.trace(folder, tokens_of(TEXT[::-1])).activations["h.1.attn.heads"][part]
    wte = model.parameters["wte.weight"][ord("x")]
    for flags, change in (
        (["--name", "h.1.attn.heads", "--head", 1, "--position", 4], Change("h.1.attn.heads", 0.0, part)),
        (
            ["--name", "h.1.attn.heads", "--head", 1, "--position", 4, "--other", TEXT[::-1]],
            Change("h.1.attn.heads", other, part),
        ),
        (
            ["--name", "h.0.resid_mid", "--toward", "x", "--scale", "2"],
            Change("h.0.resid_mid", 2 * wte / np.linalg.norm(wte), add=True),
        ),
    ):
        found = json.loads(call(capsys, "patch", folder, TEXT, *flags, "--json", "-"))["arrays"]
        expected = study.trace(folder, tokens, changes=[change]).activations["losses"][0]
        assert np.allclose(found["losses"][1], expected, rtol=1e-6) and found["losses"][0] != found["losses"][1]


@pytest.mark.parametrize("verb", command.VERBS)
def test_a_folder_without_a_tokenizer(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained(tmp_path)
    arguments = [verb, tmp_path, *(["abc"] if command.VERBS[verb].text else []), *NEEDED.get(verb, [])]
    if verb in ("heads", "spectrum"):  # which need no text
        assert call(capsys, *arguments)
        return
    with pytest.raises(UserError, match="holds no GPT-2 vocabulary"):
        command.main([str(argument) for argument in arguments])


def test_places_are_checked_before_the_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is written; a port is taken before it, too (test_study_page.py)."""
    monkeypatch.setattr(Subject, "model", property(lambda self: pytest.fail("the model is opened")))
    for flags in (["trace", "--plot"], ["trace", "--json"], ["page", "-o"]):
        with pytest.raises(UserError, match="cannot be saved"):
            command.main([flags[0], str(folder), "abc", flags[1], str(tmp_path / "none" / "file")])
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "pygpt_tokenizer.json"])
@pytest.mark.parametrize("verb", ["trace", "page", "step", "landscape"])
def test_a_damaged_folder(verb: str, damaged: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.name == damaged else data)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / damaged))):
        command.main([verb, str(tmp_path), "abc"])


@pytest.mark.parametrize("verb", command.VERBS)
def test_weights_that_are_not_finite(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(config=replace(CONFIG, n_positions=32))
    model.set_parameter("h.1.ln_2.weight", np.where(np.arange(24) < 2, np.nan, 1.0))
    model.save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    arguments = [verb, tmp_path, *(["abc"] if command.VERBS[verb].text else []), *NEEDED.get(verb, [])]
    with pytest.raises(
        UserError, match=r"2 of the 24 numbers of h.1.ln_2.weight are not finite: .* earlier checkpoint"
    ):
        call(capsys, *arguments)


def test_bytes_that_are_no_utf_8_are_tokens_where_the_tokenizer_has_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = os.fsdecode(b"ab\xff\xfec")
    found = json.loads(call(capsys, "neighbours", folder, text, "--json", "-"))
    assert found["arrays"]["tokens"] == [97, 98, 255, 254, 99] and found["text"] == text
    page = tmp_path / "page.html"
    call(capsys, "page", folder, text, "-o", page)
    assert '"text":["a","b","\\\\xff","\\\\xfe"]' in page.read_text(encoding="utf-8")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    CharTokenizer("abc").save(tmp_path)
    with pytest.raises(UserError, match=r"character '\\udcff'"):
        command.main(["trace", str(tmp_path), text])


VARIED = replace(CONFIG, position_embedding="rotary", bias=False, tie_word_embeddings=False)


@pytest.mark.parametrize("causal", [True, False])
def test_trace_and_lens_of_a_varied_model(causal: bool) -> None:
    """P is that of the turned queries and keys that each query sees, and the lens has the head's own matrix."""
    found = study.trace(make_model(config=replace(VARIED, causal=causal)), tokens_of())
    s, lse = (found.activations[f"h.1.attn.{name}"] for name in ("scores", "lse"))
    assert np.allclose(np.exp(s - lse[..., None]), found.activations["h.1.attn.probabilities"])
    assert np.allclose(np.exp(s - lse[..., None]).sum(-1), 1)
    assert np.allclose(found.activation_gradients["h.1.attn.scores"].sum(-1), 0)
    assert np.allclose(study.lens(found).arrays["losses"][-1], found.activations["losses"], rtol=1e-12)


def save_varied(folder: Path, **fields: Any) -> None:
    make_model(config=replace(VARIED, **fields)).save_pretrained(folder)
    ByteTokenizer().save(folder)


@pytest.mark.parametrize("verb", [verb for verb in command.VERBS if verb != "page"])
def test_instruments_read_a_varied_model(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_varied(tmp_path)
    text = [TEXT] if command.VERBS[verb].text else []
    found = call(capsys, verb, tmp_path, *text, *NEEDED.get(verb, []), "--json", "-")
    assert "NaN" not in found and json.loads(found)["arrays"]


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("norms", "norm_position is 'post', expected 'pre': norms has no formulas for it"),
        ("heads", "the model has causal: false, and only one with causal: true has attention that only looks back"),
        ("sink", "the model has causal: false, and only one with causal: true has attention that only looks back"),
    ],
)
def test_variations_that_an_instrument_lacks(verb: str, sentence: str, tmp_path: Path) -> None:
    save_varied(tmp_path, vocab_size=257, causal=False, norm_position="post")
    with pytest.raises(UserError, match=sentence):
        command.main([verb, str(tmp_path), *([TEXT] if command.VERBS[verb].text else [])])


# ---- masked tokens ----


@pytest.fixture(scope="module")
def both_sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that looks at both sides, with a token for the mask."""
    path = tmp_path_factory.mktemp("both_sides")
    make_model(config=replace(CONFIG, vocab_size=257, causal=False)).save_pretrained(path)
    ByteTokenizer().save(path)
    return path


def losses_of(folder: Path, inputs: Array, targets: Array) -> Array:
    model = pygpt.GPT2.from_pretrained(folder, device="numpy", dtype="float64")
    model.forward(inputs[None], targets[None])
    return model.activations["losses"][0]


@pytest.mark.parametrize("verb", ["trace", "lens", "step", "memory", "patch", "landscape"])
@pytest.mark.parametrize("chosen", [None, [2, 5, 6]])
def test_the_loss_of_an_instrument_is_that_of_masked_tokens(
    verb: str, chosen: list[int] | None, both_sides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of those that a validation masks, or of those that are asked for."""
    tokens = tokens_of()
    inputs, targets = (rows[0] for rows in masked((tokens[None], tokens[None]), 0, 0, VALIDATION, 256, 256))
    if chosen:
        inputs, targets = tokens.copy(), np.full_like(tokens, -1)
        inputs[chosen], targets[chosen] = 256, tokens[chosen]
    expected = losses_of(both_sides, inputs, targets)
    assert (expected[targets < 0] == 0).all()
    flags = [*NEEDED.get(verb, []), *(["--masked", "2,5-6"] if chosen else [])]
    found = json.loads(call(capsys, verb, both_sides, TEXT, *flags, "--json", "-"))["arrays"]
    by_token = {"lens": lambda: found["losses"][-1][0], "memory": lambda: found["text"][0]}
    by_token["patch"] = lambda: found["losses"][0]
    mean = {"trace": lambda: found["loss"], "step": lambda: found["loss"][0], "landscape": lambda: found["losses"][10]}
    if verb in by_token:
        assert np.allclose(by_token[verb](), expected, rtol=1e-12)
    else:
        assert mean[verb]() == pytest.approx(expected.sum() / (targets >= 0).sum(), rel=1e-12)


@pytest.mark.parametrize("verb", [verb for verb, about in command.VERBS.items() if about.predicts])
def test_instruments_say_which_tokens_are_masked(
    verb: str, both_sides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*NEEDED.get(verb, []), "--plot", "plot.png"]
    said = call(capsys, verb, both_sides, TEXT, *flags).splitlines()[-1]
    how = "2 of 10 tokens are to be predicted, chosen as in the first window of a validation, whose seed is 0"
    assert re.fullmatch(rf"{how}: '.' as \S+ at \d, '.' as \S+ at \d", said)
    said = call(capsys, verb, both_sides, TEXT, *flags, "--masked", "4-5").splitlines()[-1]
    assert said == "2 of 10 tokens are to be predicted, chosen by --masked: 'b' as [MASK] at 4, 'd' as [MASK] at 5"


def test_a_masked_token_may_be_shown_as_another_or_as_it_is(both_sides: Path) -> None:
    subject = Subject(str(both_sides))
    reading = Reading(np.array([97, 256, 120, 100]), np.array([-1, 98, 99, 100]))
    assert subject.words(reading) == ["'a'", "'b' as [MASK]", "'c' as 'x'", "'d' as it is"]
    many = Reading(np.full(12, 256), np.arange(97, 109))
    assert subject.masked_words(many).endswith("'h' as [MASK] at 7, and 4 more")


@pytest.mark.parametrize(
    ("kind", "flags", "sentence"),
    [
        ("folder", ["--masked", "1"], "--masked is for a model with causal: false, and .* predicts next tokens"),
        ("both_sides", ["--masked", "10"], "--masked is '10', expected positions from 0 to 9, such as 0,3-5"),
        ("both_sides", ["--masked", "a"], "--masked is 'a', expected positions from 0 to 9"),
        ("unmasked", [], "causal is false, .* only the tokenizer's 256 tokens, expected one more for the mask"),
    ],
)
def test_tokens_that_cannot_be_masked(
    kind: str, flags: list[str], sentence: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "unmasked":
        save_varied(tmp_path, causal=False)
    path = tmp_path if kind == "unmasked" else request.getfixturevalue(kind)
    with pytest.raises(UserError, match=sentence):
        command.main(["trace", str(path), TEXT, *flags])


def test_the_package_does_not_import_the_instruments() -> None:
    code = "import sys, pygpt; assert not any(name.startswith('pygpt.study') for name in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
