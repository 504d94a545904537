"""Instruments that read a trace or weights, each with an answer that is known without it."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import backends
import numpy as np
import pytest
from numpy.typing import NDArray
from test_study import CONFIG, TEXT, make_model, tokens_of

import pygpt
from pygpt import study
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.command import study as command
from pygpt.errors import UserError
from pygpt.study.backends import Backend
from pygpt.study.heads import repeated, scores
from pygpt.study.lens import lens_logits
from pygpt.study.make import JUMPS, QUESTIONS, RING, TASKS, WALK, question, walk
from pygpt.study.plot import plot
from pygpt.study.result import Curves, Map
from pygpt.study.rounding import Rounded
from pygpt.study.spectrum import distance
from pygpt.study.thermo import ensemble
from pygpt.text.tokenizer import ByteTokenizer
from pygpt.training.optimizer import Gathered, ModelMoments
from pygpt.training.run_folder import LAST, RunFolder, TrainingState
from pygpt.training.settings import TrainSettings

Array = NDArray[Any]


VARIED = {
    "GPT-2": CONFIG,
    "rotary, its own head": replace(CONFIG, position_embedding="rotary", tie_word_embeddings=False),
    "sinusoidal, no biases": replace(CONFIG, position_embedding="sinusoidal", bias=False),
    "scores otherwise scaled": replace(CONFIG, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    "no positions, both sides": replace(CONFIG, position_embedding="none", causal=False, activation_function="relu"),
}


def cell(result: study.Result, name: str, column: str) -> Any:
    """What stands in the row that begins with the name."""
    return next(row for row in result.rows if row[0] == name)[result.columns.index(column)]


# ---- lens ----


@pytest.mark.parametrize(("norm_position", "last"), [("pre", "h.1.resid_post"), ("post", "h.1.ln_2")])
def test_the_last_row_of_the_lens_is_the_model(norm_position: str, last: str) -> None:
    found = study.trace(make_model(config=replace(CONFIG, norm_position=norm_position)), tokens_of())
    result = study.lens(found)
    assert np.allclose(lens_logits(found, last), found.activations["logits"], rtol=1e-12, atol=1e-12)
    assert np.allclose(result.arrays["losses"][-1], found.activations["losses"], rtol=1e-12)
    assert np.array_equal(result.arrays["top"][-1], found.activations["logits"].argmax(-1))
    assert cell(result, last, "loss") == pytest.approx(found.loss, rel=1e-12)
    assert abs(result.arrays["divergence"][-1]).max() < 1e-12 < result.arrays["divergence"][0].min()


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_the_lens_before_a_block_is_a_model_without_it(norm_position: str) -> None:
    config = replace(CONFIG, norm_position=norm_position)
    model = make_model(config=config)
    shallow = pygpt.GPT2(replace(config, n_layer=1), device="numpy", dtype="float64")
    for name in shallow.parameters:
        shallow.set_parameter(name, model.parameters[name])
    result, expected = study.lens(study.trace(model, tokens_of())), study.trace(shallow, tokens_of())
    assert np.allclose(result.arrays["losses"][1], expected.activations["losses"], rtol=1e-12)
    p = np.exp(expected.activations["logits"][0])
    p /= p.sum(-1, keepdims=True)
    assert np.allclose(result.arrays["entropy"][1, 0], -(p * np.log(p)).sum(-1))


# ---- norms ----


def test_norms_obey_the_law_of_cosines() -> None:
    found = study.trace(make_model(), tokens_of())
    arrays = study.norms(found).arrays
    for before, branch, after in (
        ("embd", "h.0.attn.c_proj", "h.0.resid_mid"),
        ("h.0.resid_mid", "h.0.mlp.c_proj", "h.0.resid_post"),
        ("h.0.resid_post", "h.1.attn.c_proj", "h.1.resid_mid"),
        ("h.1.resid_mid", "h.1.mlp.c_proj", "h.1.resid_post"),
    ):
        x, y, cosine = arrays[before], arrays[branch], arrays[f"cosine {branch}"]
        assert np.allclose(arrays[after] ** 2, x**2 + y**2 + 2 * x * y * cosine)
    dx = found.activation_gradients["h.1.resid_mid"][0, 3]
    assert arrays["d h.1.resid_mid"][0, 3] == pytest.approx(np.sqrt((dx**2).sum()))


# ---- heads ----


@pytest.mark.parametrize("score", ["previous", "first", "duplicate", "induction"])
def test_a_head_that_looks_at_one_place_has_one_score(score: str) -> None:
    n = 4
    place = {"previous": lambda t: t - 1, "first": lambda t: 0, "duplicate": lambda t: t - n}
    place["induction"] = lambda t: t - n + 1
    p = np.zeros((1, 1, 2, 2 * n, 2 * n))
    p[:, :, 1] = np.tri(2 * n) / np.arange(1, 2 * n + 1)[:, None]
    for t in range(n, 2 * n):
        p[0, 0, 0, t, place[score](t)] = 1
    for name, found in scores(p, n).items():
        overlap = 0.25 if {name, score} == {"first", "duplicate"} else 0.0  # at the first repeated token
        assert found[0, 0] == (1 if name == score else overlap), name
        assert found[0, 1] == pytest.approx((1 / np.arange(n + 1, 2 * n + 1)).mean())


def test_a_previous_token_head_made_by_hand() -> None:
    """Positions are one-hot vectors; queries ask for the position before."""
    T = C = 16
    config = pygpt.GPT2Config(vocab_size=7, n_positions=T, n_embd=C, n_layer=1, n_head=1)
    model = pygpt.GPT2(config, device="numpy", dtype="float64")
    qkv = np.zeros((C, 3 * C))
    qkv[:, :C] = 30 * np.eye(C, k=-1)  # the query of t is the key of t - 1
    qkv[:, C : 2 * C] = np.eye(C)
    for name, value in (("wpe.weight", np.eye(T)), ("wte.weight", np.zeros((7, C))), ("h.0.attn.c_attn.weight", qkv)):
        model.set_parameter(name, value)
    result = study.heads(model, batch_size=2)
    assert result.arrays["previous"][0, 0] > 0.999
    assert result.arrays["induction"][0, 0] < 1e-3 and result.arrays["duplicate"][0, 0] < 1e-3


def test_random_tokens_come_twice() -> None:
    rows = repeated(np.arange(10, 20), 10, 3, seed=1)
    assert np.array_equal(rows[:, :10], rows[:, 10:])
    assert all(set(row) == set(range(10, 20)) for row in rows) and not np.array_equal(rows[0], rows[1])
    assert repeated(np.arange(2), 10, 1, seed=1).shape == (1, 20)


# ---- sink ----


def test_uniform_attention_has_no_sink() -> None:
    model = make_model()
    for layer in range(2):
        for part in ("weight", "bias"):
            value = model.parameters[f"h.{layer}.attn.c_attn.{part}"].copy()
            value[..., :24] = 0
            model.set_parameter(f"h.{layer}.attn.c_attn.{part}", value)
    result = study.sink(study.trace(model, tokens_of()))
    assert np.allclose(result.arrays["mass"], (1 / np.arange(2, 11)).mean())
    assert np.allclose(result.arrays["entropy"], 1)


def test_a_sink_is_seen() -> None:
    """The key of the first token is what every query looks for, and its value is 0."""
    config = pygpt.GPT2Config(vocab_size=3, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    model = pygpt.GPT2(config, device="numpy", dtype="float64")
    values = {"wte.weight": np.array([[1, -1, 0, 0], [0, 0, 1, -1], [0, 0, 2, 1.0]]), "wpe.weight": np.zeros((8, 4))}
    qkv, bias = np.zeros((4, 12)), np.zeros(12)
    bias[:4] = 100
    qkv[0, 4:8] = 1  # keys: the first token's alone is positive
    qkv[2, 8] = 1  # values: the first token has none
    model.set_parameter("h.0.attn.c_attn.weight", qkv)
    model.set_parameter("h.0.attn.c_attn.bias", bias)
    for name, value in values.items():
        model.set_parameter(name, value)
    result = study.sink(study.trace(model, [0, 1, 2, 1, 2]))
    assert result.arrays["mass"][0, 0] > 0.999 and result.arrays["entropy"][0, 0] < 1e-3
    assert result.arrays["values"][0, 0] == 0 and result.arrays["keys"][0, 0] > 1


# ---- thermo ----


def test_softmax_is_a_boltzmann_distribution() -> None:
    found = study.trace(make_model(), tokens_of())
    for head in (None, 1):
        result = study.thermo(found, None if head is None else 1, head)
        arrays = result.arrays
        beta = arrays["beta"][:, None]
        assert abs(arrays["log_z"] - beta * arrays["score"] - arrays["entropy"]).max() < 1e-12
        states = np.arange(1, 11) if head is not None else np.full(10, 256)
        assert np.allclose(arrays["entropy"][0], np.log(states))  # β = 0: uniform
        assert np.allclose(arrays["heat_capacity"], beta**2 * arrays["variance"])
    at_one = list(study.thermo(found).arrays["beta"]).index(1)
    z = found.activations["logits"][0]
    assert np.allclose(study.thermo(found).arrays["log_z"][at_one], np.log(np.exp(z).sum(-1)))


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_mean_score_responds_as_it_fluctuates(beta: float) -> None:
    s = np.random.default_rng(0).normal(size=(4, 9))
    s[1, 3:] = -np.inf
    step = 1e-30
    slope = ensemble(s, beta + 1j * step)["score"].imag / step
    assert np.allclose(slope, ensemble(s, beta)["variance"], rtol=1e-12, atol=1e-14)


def test_heads_that_are_not_there() -> None:
    found = study.trace(make_model(), tokens_of())
    for arguments, sentence in (
        ((0, None), "give both, or neither"),
        ((2, 0), "layer is 2, expected 0 to 1"),
        ((0, 3), "head is 3, expected 0 to 2"),
    ):
        with pytest.raises(UserError, match=sentence):
            study.thermo(found, *arguments)


# ---- spectrum ----


def test_a_fresh_model_fits_the_law_and_a_spike_does_not() -> None:
    config = pygpt.GPT2Config(vocab_size=300, n_positions=100, n_embd=96, n_layer=1, n_head=2)
    model = pygpt.GPT2(config, device="numpy", dtype="float64", seed=5)
    for name, *_, edge, above, away, _ in (row for row in study.spectrum(model).rows if row[3]):
        assert away < 0.03 and above <= 1, name
        assert study.spectrum(model, name).arrays[name][0] == pytest.approx(edge, rel=0.1)
    wte, rng = model.parameters["wte.weight"], np.random.default_rng(0)
    u, v = rng.normal(size=300), rng.normal(size=96)
    model.set_parameter("wte.weight", wte + 2 * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v)))
    assert cell(study.spectrum(model, "wte.weight"), "wte.weight", "above it") == 1
    model.set_parameter("wte.weight", np.outer(u, v))
    result = study.spectrum(model, "wte.weight")
    assert cell(result, "wte.weight", "effective rank") == pytest.approx(1)
    assert cell(result, "wte.weight", "distance from the law") > 0.9


def test_the_law_is_that_of_random_matrices() -> None:
    rng = np.random.default_rng(1)
    for N, M, sigma in ((400, 400, 0.5), (800, 200, 3.0), (500, 20, 1.0)):
        s = np.linalg.svd(rng.normal(0, sigma, (N, M)), compute_uv=False)
        assert distance(s, N, M, sigma) < 4 / M
        assert distance(s, N, M, 1.1 * sigma) > 5 / M


def test_products_of_a_head() -> None:
    model, size = make_model(), CONFIG.head_size
    result = study.spectrum(model)
    q, k, v = np.split(model.parameters["h.1.attn.c_attn.weight"], 3, axis=1)
    o, part = model.parameters["h.1.attn.c_proj.weight"], slice(2 * size, 3 * size)
    for name, product in (("qk", q[:, part] @ k[:, part].T), ("ov", v[:, part] @ o[part])):
        right = np.linalg.svd(product, compute_uv=False)
        assert np.allclose(result.arrays[f"h.1.head.2.{name}"], right[:size]) and right[size] < 1e-12
    with pytest.raises(UserError, match=r"there is no matrix wte.weights, .*did you mean wte.weight"):
        study.spectrum(model, "wte.weights")


# ---- neighbours ----


def test_neighbours_made_by_hand() -> None:
    model = make_model()
    wte = model.parameters["wte.weight"].copy()
    wte[7], wte[9] = 3 * wte[65], -wte[65]
    model.set_parameter("wte.weight", wte)
    result = study.neighbours(model, np.array([65, 66, 65]), count=2)
    assert result.arrays["tokens"].tolist() == [65, 66]
    assert result.arrays["nearest"][0, 0] == 7 and result.arrays["cosines"][0, 0] == pytest.approx(1)
    assert result.rows[0][:2] == ("65", "7 1.000")
    among = study.neighbours(model, np.array([65]), 5, known=np.array([9, 65])).arrays
    assert among["nearest"].tolist() == [[9]] and among["cosines"][0, 0] == pytest.approx(-1)


# ---- attribution ----


@pytest.mark.parametrize(("position", "a", "b"), [(None, None, None), (4, 65, 99), (0, 3, 200)])
@pytest.mark.parametrize("config", VARIED.values(), ids=VARIED)
def test_parts_add_up_to_the_difference(
    position: int | None, a: int | None, b: int | None, config: pygpt.GPT2Config
) -> None:
    found = study.trace(make_model(config=config), tokens_of())
    arrays = study.attribution(found, position, a, b).arrays
    logits = found.activations["logits"][0, -1 if position is None else position]
    ordered = np.argsort(-logits)
    expected = logits[ordered[0] if a is None else a] - logits[ordered[1] if b is None else b]
    assert float(arrays["difference"]) == expected
    parts = sum(value.sum() for name, value in arrays.items() if name != "difference")
    assert parts == pytest.approx(expected, rel=1e-12)


def test_a_head_is_credited_with_what_it_wrote() -> None:
    """Without the last LayerNorm's scale, which depends on everything: r is held by a stream that is huge elsewhere."""
    model = make_model()
    bias = np.zeros(24)
    bias[:2] = 1e6, -1e6
    model.set_parameter("h.1.mlp.c_proj.bias", bias)
    tokens, part = tokens_of(), (slice(None), slice(None), slice(8, 16))
    found = study.trace(model, tokens)
    without = study.trace(model, tokens, changes=[study.Change("h.1.attn.heads", 0.0, part)])
    a, b = 10, 20
    arrays = study.attribution(found, a=a, b=b).arrays
    direct = study.attribution(without, a=a, b=b).arrays
    assert direct["heads"][1, 1] == 0 != arrays["heads"][1, 1]
    assert np.allclose(direct["heads"][1, [0, 2]], arrays["heads"][1, [0, 2]], rtol=1e-5)


@pytest.mark.parametrize("instrument", [study.attribution, study.norms])
def test_a_stream_that_is_normalised_is_no_sum(instrument: Any) -> None:
    found = study.trace(make_model(config=replace(CONFIG, norm_position="post")), tokens_of())
    sentence = f"norm_position is 'post', expected 'pre': {instrument.__name__} has no formulas for it"
    with pytest.raises(UserError, match=sentence):
        instrument(found)


def test_attribution_of_what_is_not_there() -> None:
    found = study.trace(make_model(), tokens_of())
    for arguments, sentence in (((10,), "position is 10, expected 0 to 9"), ((1, 256), "token 256 is outside")):
        with pytest.raises(UserError, match=sentence):
            study.attribution(found, *arguments)


# ---- step ----


@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_is_that_of_the_model(steps: int) -> None:
    model, tokens = make_model(), tokens_of()
    batch = tokens[None], np.array([[*tokens[1:], -1]])
    for _ in range(steps):
        model.zero_grad()
        model.forward_backward(*batch)
        model.adamw_step(lr=1e-3)
    before = {name: value.copy() for name, value in model.parameters.items()}
    taken = study.step(model, tokens, lr=1e-3, max_norm=0.5)
    assert all(np.array_equal(model.parameters[name], value) for name, value in before.items())
    model.zero_grad()
    model.forward_backward(*batch)
    assert taken.norm == pytest.approx(model.clip_grad_norm(0.5)) and taken.norm > 0.5
    for name, value in model.gradients.items():
        assert np.allclose(taken.clipped[name], value, rtol=1e-12, atol=1e-15)
    model.adamw_step(lr=1e-3)
    for name, value in model.parameters.items():
        assert np.allclose(taken.after.parameters[name], value, rtol=1e-12, atol=1e-14), name
        assert np.allclose(taken.updates[name], value - before[name], atol=1e-14), name
        assert np.allclose(taken.moments.first[name], model.first_moments[name], atol=1e-14)
        assert np.allclose(taken.moments.second[name], model.second_moments[name], atol=1e-14)
    assert taken.after.loss == pytest.approx(model.forward(*batch), rel=1e-12)


def test_the_loss_falls_as_expected_if_the_step_is_small() -> None:
    ratios = []
    for lr in (1e-4, 1e-5):
        taken = study.step(make_model(), tokens_of(), lr=lr)
        ratios.append((taken.before.loss - taken.after.loss) / sum(taken.expected_fall.values()))
    assert ratios[1] == pytest.approx(1, abs=1e-3)
    assert abs(ratios[0] - 1) == pytest.approx(10 * abs(ratios[1] - 1), rel=0.1)  # what is left is of second order


# ---- memory ----


def test_what_a_text_does_not_touch_stays() -> None:
    model, tokens = make_model(), tokens_of("abcab")
    found = study.memory(model, tokens, tokens_of("xyzxy"), lr=1e-3).arrays
    assert (found["wpe"][4:] == 0).all() and (found["wpe"][:4] > 1e-3).all()  # the last token predicts nothing
    assert found["wte"].min() > 1e-3  # the head pushes every token's row, and AdamW makes each push as large
    taken = study.step(model, tokens, weight_decay=0.0)
    assert np.allclose(found["text"], [taken.before.activations["losses"][0], taken.after.activations["losses"][0]])
    after = study.step(model, tokens, weight_decay=0.0).after.parameters
    for name, value in after.items():
        model.set_parameter(name, value)
    assert np.allclose(found["other"][1], study.trace(model, tokens_of("xyzxy")).activations["losses"][0])
    decayed = study.memory(make_model(), tokens, tokens, lr=1e-3, weight_decay=0.5).arrays["wpe"][5:]
    assert np.allclose(decayed, 1e-3 * 0.5 * np.linalg.norm(make_model().parameters["wpe.weight"][5:], axis=1))


# ---- landscape ----


@pytest.mark.parametrize("direction", ["random", "gradient"])
def test_the_slope_is_the_gradient_along_the_direction(direction: str) -> None:
    model, extent = make_model(), 1e-5
    found = study.landscape(model, tokens_of(), direction, extent=extent, points=3)
    left, middle, right = found.arrays["losses"]
    trace = study.trace(model, tokens_of())
    assert middle == trace.loss
    assert (right - left) / (2 * extent) == pytest.approx(found.arrays["slopes"][0], rel=1e-4)
    if direction == "gradient":
        lengths = [np.sqrt(sum((x**2).sum() for x in of.values())) for of in (trace.gradients, trace.parameters)]
        assert found.arrays["slopes"][0] == pytest.approx(-lengths[0] * lengths[1])


def test_a_plane_holds_its_lines() -> None:
    model = make_model()
    line = study.landscape(model, tokens_of(), points=5)
    plane = study.landscape(model, tokens_of(), points=5, plane=True)
    assert np.allclose(plane.arrays["losses"][:, 2], line.arrays["losses"])
    assert plane.arrays["losses"].shape == (5, 5) and len(plane.rows) == 2
    for settings, sentence in (({"direction": "up"}, "direction is 'up'"), ({"points": 4}, "points is 4, .* odd")):
        with pytest.raises(UserError, match=sentence):
            study.landscape(model, tokens_of(), **settings)


# ---- patch ----


def test_a_patch_from_the_same_text_changes_nothing_and_from_another_all() -> None:
    model, tokens, others = make_model(), tokens_of(), tokens_of(TEXT[::-1])
    other = study.trace(model, others).activations["h.1.resid_post"]
    same = study.trace(model, tokens).activations["h.1.resid_post"]
    nothing = study.patch(model, tokens, [study.Change("h.1.resid_post", same)]).arrays
    assert np.array_equal(nothing["logits"][0], nothing["logits"][1]) and (nothing["divergence"] == 0).all()
    everything = study.patch(model, tokens, [study.Change("h.1.resid_post", other)]).arrays
    assert np.allclose(everything["logits"][1], study.trace(model, others).activations["logits"][0])
    assert (everything["gradients"][1, :2] == 0).all() and (everything["gradients"][0] > 0).any()


def test_a_step_from_a_checkpoint_has_its_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokens = make_model("cpu", "float32"), tokens_of()
    model.forward_backward(tokens[None], np.array([[*tokens[1:], -1]]))
    model.adamw_step(lr=1e-3)
    path = tmp_path / "run"
    with RunFolder(path, resume=False) as run:
        run.save_settings(TrainSettings())
        run.open_log(TrainingState())
        gathered = Gathered(model.parameters, ModelMoments(model, "adamw"))
        run.save_last(model.config, gathered, ByteTokenizer(), TrainingState(step=1))
    command.main(["step", str(path / LAST), TEXT])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("wte.weight"))
    expected = study.step(model, tokens)
    assert float(row.split()[4]) == pytest.approx(np.linalg.norm(expected.moments.first["wte.weight"]), rel=1e-3)
    command.main(["memory", str(path / LAST), TEXT[:5], "--other", TEXT, "--json", "-"])
    found = json.loads(capsys.readouterr().out)["arrays"]
    remembered = study.memory(model, tokens[:5], tokens).arrays["wpe"]
    assert np.allclose(found["wpe"], remembered, rtol=1e-4) and remembered[5] > 0  # the first step's gradient goes on
    (path / "settings.toml").write_text('optimizer = "muon"\n')
    with pytest.raises(UserError, match=r"was trained with muon, and this is a step of AdamW: take .*best"):
        command.main(["step", str(path / LAST), TEXT])
    (path / LAST / "optimizer.safetensors").unlink()
    command.main(["step", str(path / LAST), TEXT])
    assert f"\n{row}\n" not in capsys.readouterr().out


# ---- gradcheck ----


@pytest.mark.parametrize("backend", backends.PRESENT, ids=str)
def test_gradients_of_every_backend_are_right(backend: backends.Backend) -> None:
    model = make_model(backend.device, backend.dtype, kernels=backend.kernels)
    result = study.gradcheck(model, tokens_of())
    assert not result.failed, result.table()
    exact = study.gradcheck(make_model(), tokens_of())
    assert not exact.failed and len(exact.rows) == len(result.rows) == 2 + 2 * (2 * 3 + 4 * 3 + 1 + 1 + 2 * 2) + 3 + 2


@pytest.mark.parametrize("config", [*list(VARIED.values())[1:], replace(CONFIG, norm_position="post")])
def test_gradients_of_a_varied_model_are_right(config: pygpt.GPT2Config) -> None:
    result = study.gradcheck(make_model(config=config), tokens_of())
    names = {(row[1], row[2]) for row in result.rows}
    assert not result.failed
    assert (("embedding", "dwpe") in names) == (config.position_embedding == "learned")
    assert (("linear", "dbias") in names) == config.bias
    assert (("rotary", "dx") in names) == (config.position_embedding == "rotary")


@pytest.mark.parametrize("operation", ["linear_backward", "gelu_backward", "layernorm_backward", "attention_backward"])
def test_a_wrong_gradient_is_found_where_it_is(operation: str) -> None:
    class Wrong(ReferenceLayers):
        pass

    def wrong(self: Any, *inputs: Any, **named: Any) -> Any:
        found = getattr(ReferenceLayers, operation)(self, *inputs, **named)
        return (1.01 * found[0], *found[1:]) if isinstance(found, tuple) else 1.01 * found

    setattr(Wrong, operation, wrong)
    result = study.gradcheck(make_model(), tokens_of(), Wrong())
    bad = {(row[1], row[2]) for row in result.rows if row[4]}
    output = "dqkv" if operation == "attention_backward" else "dx"
    assert result.failed and bad == {(operation.removesuffix("_backward"), output)}


# ---- budget ----


@pytest.mark.parametrize("config", [*VARIED.values(), replace(CONFIG, norm_position="post")])
def test_rounding_explains_the_errors_of_every_backend(config: pygpt.GPT2Config) -> None:
    result = study.budget(study.trace(make_model(config=config), tokens_of()))
    assert not result.failed, result.table()
    assert {row[0] for row in result.rows} >= {"numpy", "C, plain", "C, fast", "C, fast, bf16"}
    ratios = [row[8] for row in result.rows if row[2] in ("linear", "attention", "layernorm")]
    assert np.median(ratios) > 0.05  # the bounds are near what is measured


def test_rounding_explains_errors_where_scores_and_logits_are_large() -> None:
    model = make_model()
    for name, value in model.parameters.items():
        model.set_parameter(name, 8 * value)
    assert not study.budget(study.trace(model, tokens_of())).failed


@pytest.mark.parametrize("operation", ["layernorm_forward", "linear_forward", "attention_backward", "residual_forward"])
def test_an_error_of_100_ulp_is_a_finding(operation: str) -> None:
    class Wrong(ReferenceLayers):
        pass

    def wrong(self: Any, **inputs: Any) -> Any:
        found = getattr(ReferenceLayers, operation)(self, **inputs)
        y, *others = found if isinstance(found, tuple) else (found,)
        y = y * np.float32(1 + 100 * 2.0**-23)
        return (y, *others) if others else y

    setattr(Wrong, operation, wrong)
    found, backend = study.trace(make_model(), tokens_of()), Backend("numpy", "float32", "fast")
    assert not study.budget(found, [(backend, ReferenceLayers())]).failed
    result = study.budget(found, [(backend, Wrong())])
    findings = {(row[2], row[1]) for row in result.rows if row[-1]}
    assert result.failed and findings == {tuple(operation.split("_"))}


def test_sums_know_their_worst_case_and_their_usual_one() -> None:
    """Of random float32 numbers, added one after another: γ_n Σ|p|, and √n in the mean square."""
    rng, n = np.random.default_rng(0), 1000
    p = rng.normal(size=(400, n)).astype(np.float32)
    added = np.add.accumulate(p, axis=1)[:, -1]
    found = Rounded(p).sum(1)
    error = abs(added - found.value)
    assert np.allclose(found.worst, n * 2.0**-24 * abs(p).sum(1, dtype=np.float64), rtol=1e-3)
    assert (error < found.worst).all()
    assert 0.2 < np.sqrt((error**2).mean() / found.square.mean()) < 1
    squares = np.square(p, dtype=np.float64).sum(1)
    assert np.allclose(found.square, 2.0**-48 * n * (found.value**2 / 3 + squares / 6))


def test_operations_pass_errors_on() -> None:
    """To first order: of a slope times the error of what goes in, and of one more rounding."""
    x, y = Rounded(np.array(2.0), 1e-5, 1e-12), Rounded(np.array(-3.0), 2e-5, 4e-12)
    u = 2.0**-24
    for found, worst, square in (
        (x + y, 3e-5 + u, 5e-12 + u**2),
        (x * y, 7e-5 + 6 * u, 2.5e-11 + 36 * u**2),
        (x / y, (1e-5 + 2e-5 * 2 / 3) / 3 + u * 2 / 3, (1e-12 + 4e-12 * 4 / 9) / 9 + (u * 2 / 3) ** 2),
        (np.exp(x), np.exp(2) * (1e-5 + 4 * u), np.exp(4) * (1e-12 + 16 * u**2)),
        (np.log(x), 0.5e-5 + 4 * u * np.log(2), 0.25e-12 + (4 * u * np.log(2)) ** 2),
    ):
        assert found.worst == pytest.approx(worst, rel=1e-9) and found.square == pytest.approx(square, rel=1e-9)


# ---- pictures ----


def drawn(panel: Map | Curves, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The axes of a picture of this panel."""
    figures: list[Any] = []
    monkeypatch.setattr(import_module("pygpt.study.plot"), "save_figure", lambda path, figure: figures.append(figure))
    plot("x.png", study.Result("a title", ("a",), [("b",)], {}, [panel]))
    return figures[0].axes[0]


def test_many_lines_are_shaded_and_few_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, names in ((3, ["line 0", "line 1", "line 2"]), (12, ["line 0", "line 11"])):
        lines = {f"line {k}": np.arange(4.0) + k for k in range(count)}
        axes = drawn(Curves("curves", np.arange(4), lines, "x", "y"), monkeypatch)
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
        assert len(axes.get_lines()) == len({line.get_color() for line in axes.get_lines()}) == count
        assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_value_between_gaps_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.full(100, np.nan)
    values[7] = 1.0
    lines = drawn(
        Curves("losses", np.arange(100), {"of one": values, "of all": np.ones(100)}, "t", "nats"), monkeypatch
    )
    assert [line.get_marker() for line in lines.get_lines()] == [".", ""]


def test_the_cells_of_a_map_are_where_its_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = drawn(Map("loss", np.arange(25.0).reshape(5, 5), "x", "y", reach=0.5), monkeypatch)
    left, right, bottom, top = plane.get_images()[0].get_extent()
    assert (left + 0.125, right - 0.125, bottom - 0.125, top + 0.125) == (-0.5, 0.5, 0.5, -0.5)
    named = drawn(Map("cosines", np.eye(2), "x", "y", names=["'a'", "'b'"]), monkeypatch)
    assert [label.get_text() for label in named.get_xticklabels()] == ["'a'", "'b'"]


# ---- a trained model ----


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> pygpt.GPT2:
    """Two layers of two heads that have learned to walk round rings of letters, in half a minute."""
    path = tmp_path_factory.mktemp("text") / "induction.txt"
    study.make("induction", path)
    letters, T, steps = np.frombuffer(path.read_bytes(), np.uint8) - ord("a"), 48, 1600
    model = pygpt.GPT2(pygpt.GPT2Config(vocab_size=RING, n_positions=T, n_embd=32, n_layer=2, n_head=2))
    rng = np.random.default_rng(0)
    for step in range(steps):
        rows = letters[rng.integers(0, len(letters) - T, 32)[:, None] + np.arange(T + 1)]
        model.zero_grad()
        model.forward_backward(rows[:, :-1], rows[:, 1:])
        model.clip_grad_norm(1.0)
        model.adamw_step(lr=3e-3 * min(1, step / 50, 3 * (steps - step) / steps), weight_decay=0.01)
    return model


def part_of_head(model: pygpt.GPT2, head: int) -> tuple[Any, ...]:
    """Of attn.heads."""
    size = model.config.head_size
    return (..., slice(head * size, (head + 1) * size))


def test_an_induction_head_is_two_heads_one_after_the_other(copier: pygpt.GPT2) -> None:
    """A head of layer 0 that looks one back, and those of layer 1 that need it to find what followed the last time."""
    found = study.heads(copier, length=RING).arrays
    one_back, other = np.argsort(-found["previous"][0])
    assert found["previous"][0, one_back] > 0.4 > 0.2 > found["previous"][0, other]
    assert found["induction"][1].min() > 0.6 > 0.1 > found["induction"][0].max()

    def induction_without(head: int) -> Array:
        change = study.Change("h.0.attn.heads", part=part_of_head(copier, head))
        tokens = repeated(np.arange(RING), RING, 32, seed=1)
        return scores(study.trace(copier, tokens, changes=[change]).attention("probabilities"), RING)["induction"][1]

    assert induction_without(one_back).max() < 0.3 < 0.6 < induction_without(other).min()


def test_without_its_induction_heads_a_model_cannot_copy(copier: pygpt.GPT2) -> None:
    """The loss goes back to about that of letters seen for the first time, for which those heads are of no use."""
    n = RING
    tokens = repeated(np.arange(n), n, 32, seed=1)
    one_back, other = np.argsort(-study.heads(copier, length=n).arrays["previous"][0])

    def losses(*changes: study.Change) -> tuple[float, float]:
        """Means over the first half, and over the second but for its last letter, whose next one is not there."""
        found = study.trace(copier, tokens, changes=changes).activations["losses"]
        return float(found[:, : n - 1].mean()), float(found[:, n:-1].mean())

    first, second = losses()
    induction, before = study.Change("h.1.attn.heads"), study.Change("h.0.attn.heads")
    first_without, second_without = losses(induction)
    assert second < first - 1 and second_without > first_without - 0.3 and abs(first_without - first) < 0.1
    assert losses(replace(induction, part=(slice(None), slice(n))))[1] < second + 0.1  # nor missed before
    assert losses(replace(before, part=part_of_head(copier, one_back)))[1] > second + 0.5  # they need this one,
    assert losses(replace(before, part=part_of_head(copier, other)))[1] < second + 0.15  # and no other


def test_rounding_explains_the_errors_in_a_trained_model(copier: pygpt.GPT2) -> None:
    exact = pygpt.GPT2(copier.config, device="numpy", dtype="float64")
    for name, value in copier.parameters.items():
        exact.set_parameter(name, value)
    result = study.budget(study.trace(exact, repeated(np.arange(RING), RING, 2, seed=1)))
    assert not result.failed, result.table()


# ---- answers ----


@pytest.mark.parametrize("task", QUESTIONS)
def test_answers_are_counted(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is right but for the answers of two characters, where it adds one."""
    model, tokenizer = make_model(config=replace(CONFIG, n_positions=32)), ByteTokenizer()
    solve = {
        "sorting": lambda asked: "".join(sorted(asked[:-1])),
        "addition": lambda asked: str(sum(map(int, asked[:-1].split("+")))),
    }[task]

    def write(generator: Any, prompts: Any, most: int, sampling: Any, ends: Any) -> Any:
        assert sampling.temperature == 0
        for number, prompt in enumerate(prompts):
            asked = tokenizer.decode(prompt)
            assert asked.startswith("\n")
            answer = solve(asked[1:])
            for character in (answer + "x" if len(answer) == 2 else answer) + "\n":
                ends(number, ord(character))
        return iter(())

    monkeypatch.setattr(import_module("pygpt.study.answers"), "generate_samples", write)
    result = study.answers(model, tokenizer, task, count=60)
    assert np.array_equal(result.arrays["right"], result.arrays["length"] != 2)
    row = next(row for row in result.rows if row[0] == 2)
    assert row[2] == 0 and row[3].endswith("x") and all(row[2] == 1 for row in result.rows if row[0] != 2)
    assert {row[0] for row in result.rows} >= {2, 3} and sum(row[1] for row in result.rows) == 60


def test_questions_are_answered_by_the_model() -> None:
    """A model whose head says "0" after everything never ends its line, and is cut off."""
    model = make_model(config=replace(CONFIG, n_positions=32))
    model.set_parameter("ln_f.weight", np.zeros(24))
    bias, wte = np.ones(24), np.zeros((256, 24))
    wte[ord("0")] = 1
    model.set_parameter("ln_f.bias", bias)
    model.set_parameter("wte.weight", wte)
    result = study.answers(model, ByteTokenizer(), "addition", count=20)
    assert not result.arrays["right"].any() and all(row[3].endswith("=0000") for row in result.rows)


# ---- texts ----


def test_texts_of_tasks_are_right(tmp_path: Path) -> None:
    for task in TASKS:
        beginning = study.make(task, tmp_path / task, size=5000, seed=1)
        assert (tmp_path / task).read_text().startswith(beginning)
    for line in (tmp_path / "sorting").read_text().splitlines():
        letters, _, answer = line.partition(">")
        assert sorted(letters) == list(answer) and 2 <= len(letters) <= 8
    for line in (tmp_path / "addition").read_text().splitlines():
        asked, _, answer = line.partition("=")
        assert sum(map(int, asked.split("+"))) == int(answer)


@pytest.mark.parametrize("task", QUESTIONS)
def test_a_tenth_of_the_questions_is_in_no_text(task: str, tmp_path: Path) -> None:
    study.make(task, tmp_path / task, size=20_000)
    rng = np.random.default_rng(0)
    held_out = {question(task, rng, held_out=True)[0] for _ in range(400)}
    lines = (tmp_path / task).read_text().splitlines()
    assert not held_out & {line[: -len(answer)] for line in lines for answer in [re.split("[>=]", line)[1]]}
    drawn = [QUESTIONS[task](rng)[0] for _ in range(2000)]
    assert 0.07 < np.mean([zlib.crc32(asked.encode()) % 10 == 0 for asked in drawn]) < 0.13


def test_a_walk_goes_round_a_ring_but_for_its_jumps() -> None:
    rng = np.random.default_rng(0)
    text = walk(rng, 4000)
    following = {letter: [b for a, b in pairwise(text) if a == letter] for letter in sorted(set(text))}
    assert len(following) == RING
    next_ones = {letter: max(set(after), key=after.count) for letter, after in following.items()}
    assert sorted(next_ones.values()) == sorted(following)
    part = np.mean([next_ones[a] == b for a, b in pairwise(text)])
    assert part == pytest.approx(1 - JUMPS + JUMPS / RING, abs=0.03)
    assert text[:WALK] != walk(rng)[:WALK]
