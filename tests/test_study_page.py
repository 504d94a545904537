"""The study page: what stands in it, and what a browser without a network makes of it."""

from __future__ import annotations

import http.client
import json
import math
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import numpy as np
import pytest
from browser import Watched
from numpy.typing import NDArray
from variations import VARIED

import pygpt
from pygpt import study
from pygpt.backends.interface import LINEAR
from pygpt.backends.sources import CHECKOUT
from pygpt.command import study as command
from pygpt.command import study_page
from pygpt.comparing.compare import perturb
from pygpt.errors import UserError
from pygpt.reference import positions
from pygpt.study.opening import Subject
from pygpt.study.page import build, sources
from pygpt.study.page.errors import Errors, measure
from pygpt.study.page.window import choose
from pygpt.study.step import Step, next_step
from pygpt.study.step import step as take_step
from pygpt.text.masking import VALIDATION, masked
from pygpt.text.tokenizer import ByteTokenizer

Array = NDArray[Any]

CONFIG = pygpt.GPT2Config(vocab_size=256, n_positions=64, n_embd=24, n_layer=2, n_head=3, n_inner=40)
TURNED = replace(
    CONFIG,
    activation_function="relu",
    position_embedding="rotary",
    bias=False,
    tie_word_embeddings=False,
    scale_attn_by_inverse_layer_idx=True,
    norm_position="post",
)
BOTH_SIDES = replace(
    CONFIG,
    vocab_size=257,
    activation_function="gelu",
    position_embedding="sinusoidal",
    causal=False,
    scale_attn_weights=False,
)
TEXT = 'the <b>cat</b> & "sat"'
T = len(TEXT) - 1
ROOT = Path(__file__).parents[1]


def make_model(config: pygpt.GPT2Config = CONFIG) -> pygpt.GPT2:
    model = pygpt.GPT2(config, device="numpy", dtype="float64", seed=1)
    perturb(model, seed=2)
    return model


def make_step(config: pygpt.GPT2Config = CONFIG, text: str = TEXT) -> Step:
    tokens = ByteTokenizer().encode(text)
    batch = tokens[None, :-1], tokens[None, 1:]
    return take_step(make_model(config), *(batch if config.causal else masked(batch, 0, 0, VALIDATION, 256, 256)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    ByteTokenizer().save(path)
    return path


def label(token: int) -> str:
    return build.MASK_LABEL if token == 256 else build.token_label(bytes([token]))


def write_page(path: Path, step: Step, channels: int | None = None, words: Callable[[int], str] = label) -> str:
    window = build.fitting_window(step, channels, None)
    about = build.About("a model", "Made by a test.", TEXT, build.link_root(path), measure(step))
    path.write_bytes(build.build_page(step, window, words, about))
    return path.as_uri()


# ---- the numbers ----


def test_a_step_is_what_the_model_takes() -> None:
    model, tokens = make_model(), ByteTokenizer().encode(TEXT)
    step = next_step(make_model(), make_step())
    for _ in range(2):
        model.zero_grad()
        model.forward_backward(tokens[None, :-1], tokens[None, 1:])
        norm = model.clip_grad_norm(1.0)
        model.adamw_step(lr=1e-3)
    assert step.number == 2 and step.norm == pytest.approx(norm, rel=1e-12)
    for name, value in model.parameters.items():
        assert np.allclose(step.after.parameters[name], value, rtol=1e-12, atol=1e-14), name
        assert np.allclose(step.moments.first[name], model.first_moments[name], rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("name", sources.LINES)
def test_each_line_stands_where_the_page_says(name: str) -> None:
    for path, code in sources.LINES[name]:
        found = sources.find(path, code)
        assert len(found) == 1, (
            f"{path} has {len(found)} lines {code!r}, expected one: edit pygpt/study/page/sources.py"
        )
        assert (CHECKOUT / path).read_text(encoding="utf-8").splitlines()[found[0] - 1].strip() == code.split("\n")[0]
    assert len(sources.where()[name]) == len(sources.TONGUES)


def test_a_line_that_was_edited_is_found_nowhere() -> None:
    path, code = sources.LINES["gelu"][0]
    assert sources.find(path, code) and not sources.find(path, code + " ") and not sources.find("absent.c", code)


def test_the_window_keeps_the_channels_of_the_largest_gradients() -> None:
    step = make_step()
    window = choose(step.before, 5, [0, 1])
    squares = np.square(step.before.activation_gradients["h.1.mlp.c_fc"][0]).sum(0)
    inner = window.inner[1]
    assert inner is not None and set(inner) == set(np.argsort(-squares)[:5])
    heads, qkv = window.heads[0], window.qkv[0]
    assert heads is not None and qkv is not None and {h // CONFIG.head_size for h in heads} == set(range(CONFIG.n_head))
    assert np.array_equal(qkv.reshape(3, -1) - CONFIG.n_embd * np.arange(3)[:, None], np.tile(heads, (3, 1)))


def test_a_page_that_would_be_too_large_offers_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step()

    def limit(channels: int | None) -> None:
        """To a byte less than these channels take."""
        monkeypatch.setattr(build, "LARGEST", build.page_size(step, choose(step.before, channels, [0, 1])) - 1)

    limit(None)
    window = build.fitting_window(step, None, None)
    assert window.inner[0] is not None and len(window.inner[0]) == 32
    limit(24)
    with pytest.raises(UserError, match=r"with 24 channels the page would have .* MB.*: --channels 16 fits"):
        build.fitting_window(step, 24, None)
    limit(8)
    with pytest.raises(UserError, match=r"even with 8 channels .*: --layers 0 --channels 8 fits"):
        build.fitting_window(step, None, None)
    monkeypatch.setattr(build, "LARGEST", 1)
    with pytest.raises(UserError, match="take a shorter text"):
        build.fitting_window(step, None, None)


@pytest.mark.parametrize(
    ("token", "label"),
    [(b" the", "␣the"), (b"\n", "⏎"), (b"\xe2\x82", "\\xe2\\x82"), (b"\x00", "\\x00"), ("é".encode(), "é")],
)
def test_tokens_can_be_told_apart(token: bytes, label: str) -> None:
    assert build.token_label(token) == label


# ---- the command ----


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([TEXT, "--layers", "2"], "--layers is '2', expected blocks from 0 to 1, such as 0,3-5"),
        ([TEXT, "--layers", "1-0"], "--layers is '1-0', expected blocks"),
        ([TEXT, "--port", "1"], "--port is given without --serve"),
        ([TEXT, "--serve", "-o", "x.html"], "--serve and --output are given"),
        ([TEXT, "--learning-rate", "nan"], "--learning-rate is nan, expected a positive number"),
        ([TEXT, "--dtype", "float32"], "--dtype is given, but page computes in numpy in float64"),
        (["x" * 65], "the text has a length of 65 tokens, expected 2 to 64"),
    ],
)
def test_bad_flags(folder: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        command.main(["page", str(folder), *arguments])


def test_flags_of_a_page_are_refused_elsewhere(folder: Path) -> None:
    with pytest.raises(UserError, match="--layers is for page, and trace is asked for"):
        command.main(["trace", str(folder), TEXT, "--layers", "0"])


def test_the_command_writes_a_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    command.main(["page", str(folder), TEXT, "-o", str(path)])
    assert capsys.readouterr().out.startswith(f"{path}: ") and path.read_text(encoding="utf-8").endswith("</html>\n")


def test_errors_of_layers_stand_in_one_order_whatever_is_missing() -> None:
    """As of a layer whose exact output is 0, which has no relative error."""
    errors = [Errors("A", 1e-7, 1e-6, {"embd": 1.0, "ln_f": 3.0}), Errors("B", 1e-7, 1e-6, {"embd": 4.0, "h": 5.0})]
    for error in errors:
        error.backward = error.step = error.forward
    arrays = study_page._result("a page", make_step(), errors).arrays
    assert np.array_equal(arrays["forward error, A"], [1.0, 3.0, np.nan], equal_nan=True)
    assert np.array_equal(arrays["forward error, B"], [4.0, np.nan, 5.0], equal_nan=True)


def test_the_page_of_a_varied_model_says_so(tmp_path: Path) -> None:
    make_model(TURNED).save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    command.main(["page", str(tmp_path), TEXT, "-o", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"{tmp_path.name}: activation_function relu, position_embedding rotary, bias false, " in page
    assert "norm_position post, 2 layers" in page


# ---- in a browser ----


@pytest.fixture(scope="module")
def step() -> Step:
    return make_step()


@pytest.fixture(scope="module", params=["whole", "window"])
def address(request: pytest.FixtureRequest, step: Step, tmp_path_factory: pytest.TempPathFactory) -> str:
    channels = 8 if request.param == "window" else None
    return write_page(tmp_path_factory.mktemp("page") / f"{request.param}.html", step, channels)


@pytest.fixture(scope="module")
def whole(step: Step, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("whole") / "page.html", step)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("turned") / "page.html", make_step(TURNED))


@pytest.fixture(scope="module")
def both_sides(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("both_sides") / "page.html", make_step(BOTH_SIDES))


def exact_values(step: Step) -> dict[str, Array]:
    """Every tensor by the page's name, from the trace alone."""
    trace, after = step.before, step.after
    seen = np.tri(T, dtype=bool) if trace.config.causal else np.ones((T, T), bool)
    found: dict[str, Array] = {}
    for name in trace.activation_gradients:
        if name.endswith((".scores", ".probabilities")):
            kind = "S" if name.endswith("scores") else "P"
            for head in range(CONFIG.n_head):
                own = f"{name.rpartition('.')[0]}.{kind}.{head}"
                x, dx, x_after = (
                    np.where(seen, of[name][0, head], 0)
                    for of in (trace.activations, trace.activation_gradients, after.activations)
                )
                found |= {own: x, f"d:{own}": dx, f"D:{own}": x_after - x}
        else:
            x, dx, x_after = (
                of[name].reshape(T, -1) for of in (trace.activations, trace.activation_gradients, after.activations)
            )
            found |= {name: x, f"d:{name}": dx, f"D:{name}": x_after - x}
    for name, w in trace.parameters.items():
        values = {name: w, f"d:{name}": trace.gradients[name], f"D:{name}": after.parameters[name] - w}
        found |= {key: np.atleast_2d(value) for key, value in values.items()}
    return found


def compare_numbers(page: Any, step: Step) -> None:
    """A sample of every tensor, forward, backward and of the step, with the trace; and each with its own sum."""
    exact, rng = exact_values(step), np.random.default_rng(0)
    for name, values in exact.items():
        held = page.evaluate("n => { const m = pageOfNumbers.tensor(n); return m && [m.rows, m.cols]; }", name)
        assert held is not None, name
        lower = step.before.config.causal and re.search(r"\.[SP]\.\d+$", name)
        cells = [(int(rng.choice(held[0])), int(rng.choice(held[1]))) for _ in range(6)]
        cells = [(max(i, j), min(i, j)) if lower else (i, j) for i, j in cells]
        shown = page.evaluate(
            "([n, cells]) => cells.map(c => pageOfNumbers.explain(n, ...c)).map(e => [e.value, e.calc])",
            [name, cells],
        )
        scale = max(1e-12, float(np.abs(values).max()))
        for (i, j), (value, sum_of_terms) in zip(cells, shown, strict=True):
            assert value == pytest.approx(values[i, j], rel=1e-5, abs=3e-7 * scale), (name, i, j)
            assert sum_of_terms == pytest.approx(values[i, j], rel=1e-4, abs=1e-5 * scale), (name, i, j)
    assert len(exact) > 130
    checked = page.evaluate("pageOfNumbers.selfCheck()")
    assert checked["cells"] > 1000 and checked["worst"] < 1e-6, checked


def test_numbers_are_those_of_the_trace(chromium: Any, address: str, step: Step) -> None:
    with Watched(chromium, address) as page:
        compare_numbers(page, step)


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("channels", [None, 8])
def test_numbers_of_a_varied_model_are_those_of_its_trace(
    chromium: Any, name: str, channels: int | None, tmp_path: Path
) -> None:
    varied = VARIED[name]
    step = make_step(replace(CONFIG, **varied, vocab_size=256 if varied["causal"] else 257))
    path = tmp_path / "page.html"
    window = build.fitting_window(step, channels, None)
    path.write_bytes(build.build_page(step, window, label, build.About("a model", "Made by a test.", TEXT)))
    with Watched(chromium, path.as_uri()) as page:
        compare_numbers(page, step)


def explained(page: Any, name: str, i: int, j: int) -> Any:
    return page.evaluate("c => pageOfNumbers.explain(...c)", [name, i, j])


def test_formulas_are_those_of_the_model(chromium: Any, turned: str, both_sides: str) -> None:
    with Watched(chromium, turned) as page:
        for name, formula in {
            "embd": "x_{tc} = wte_{token(t),c}",
            "h.0.ln_1": "y_c = w_c x̂_c",
            "h.0.attn.c_attn": "y_{to} = Σ_i x_{ti} W_{io}",
            "h.1.attn.S.0": "S_{tu} = q_t · k_u / √HS / (l + 1)",
            "h.0.attn.rotary": "y_i = x_i cos θ − x_j sin θ      j = i + HS/2      θ = t / 10000^{2i/HS}",
            "d:h.0.attn.c_attn": "dx_i = dy_i cos θ + dy_j sin θ      j = i + HS/2      θ = t / 10000^{2i/HS}",
            "h.0.mlp.act": "y = max(x, 0)",
            "d:h.0.ln_1": "dx_{ti} = dx_{ti}^{stream} + Σ_o dy_{to} W_{io}",
            "d:h.0.resid_mid": "dx_c = r (u_c − ⟨u⟩ − x̂_c ⟨u x̂⟩)      u = w ⊙ dy",
            "d:h.1.ln_2": "dx_{tc} = Σ_v dz_{tv} head_{vc}",
            "d:lm_head.weight": "dhead_{vc} = Σ_t dz_{tv} x_{tc}",
            "d:wte.weight": "dwte_{vc} = Σ_{t: token = v} dx_{tc}^{embd}",
        }.items():
            found = explained(page, name, 3, 2)["sym"]
            assert found.endswith(formula), (name, found)
        terms = explained(page, "d:wte.weight", 116, 2)["terms"]
        assert [term["k"] for term in terms] == [f"input, t {t}" for t in range(T) if TEXT[t] == "t"]
    with Watched(chromium, both_sides) as page:
        assert explained(page, "h.0.attn.S.0", 3, 2)["sym"] == "S_{tu} = q_t · k_u"
        assert explained(page, "h.0.mlp.act", 3, 2)["sym"].startswith("y = x Φ(x)")
        assert explained(page, "h.0.attn.P.0", 3, 9)["sym"] == "P_{tu} = e^{S_{tu}} / Z_t      Z_t = Σ_u e^{S_{tu}}"
        assert len(explained(page, "h.0.attn.heads", 3, 2)["terms"]) == T
        table = positions.sinusoidal(T, CONFIG.n_embd)
        for t, c in ((0, 0), (7, 4), (T - 1, 23)):
            assert explained(page, "positions", t, c)["calc"] == pytest.approx(table[t, c], rel=1e-12)


def test_the_normal_distribution_of_the_page(chromium: Any, both_sides: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 97), [-3.0 - 1e-9, 1e-9, 0.0]])
    with Watched(chromium, both_sides) as page:
        shown = page.evaluate("x => x.map(distribution)", x.tolist())
    assert np.allclose(shown, [0.5 * math.erfc(-value / math.sqrt(2)) for value in x], rtol=1e-12, atol=0)


def test_the_stream_passes_by_the_branches_of_any_block(chromium: Any, whole: str, turned: str) -> None:
    ends = ["logits", "losses"]
    for address, own in (
        (whole, ["ln_1", "attn.c_attn", "attn.heads", "attn.c_proj", "resid_mid*", "ln_2"]),
        (turned, ["attn.c_attn", "attn.rotary", "attn.heads", "attn.c_proj", "resid_mid*", "ln_1*"]),
    ):
        own = [*own, "mlp.c_fc", "mlp.act", "mlp.c_proj", "resid_post*", *(["ln_2*"] if address == turned else [])]
        blocks = [f"h.{layer}.{name}" for layer in range(CONFIG.n_layer) for name in own]
        last = ["ln_f*"] if address == whole else []
        with Watched(chromium, address) as page:
            shown = page.evaluate("layers.map(n => n.id + (n.stream ? '*' : ''))")
            assert shown == ["embd*", *blocks, *last, *ends]
            branches = page.locator("#stream path[fill=none][stroke-width='1.3']").count()
            assert branches == 2 * CONFIG.n_layer


def test_the_lens_ends_at_the_prediction(chromium: Any, whole: str, turned: str) -> None:
    for address, last in ((whole, "h.1.resid_post"), (turned, "h.1.ln_2")):
        with Watched(chromium, f"{address}#layer={last}") as page:
            shown = page.evaluate(f"study.lens['{last}'].map(row => row.target)")
            losses = page.evaluate("Array.from(pageOfNumbers.tensor('losses').d)")
            assert np.allclose(shown, np.exp(-np.array(losses)), rtol=1e-4)
            assert page.locator("table.lens tbody tr").count() == T


def test_the_page_of_masked_tokens_has_them_as_targets(chromium: Any, tmp_path: Path) -> None:
    make_model(BOTH_SIDES).save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    model = pygpt.GPT2.from_pretrained(tmp_path, device="numpy", dtype="float64")
    tokens = ByteTokenizer().encode(TEXT)
    inputs, targets = masked((tokens[None], tokens[None]), 0, 0, VALIDATION, 256, 256)
    loss = model.forward(inputs, targets)
    assert loss is not None
    predicted, losses = targets[0] >= 0, model.activations["losses"][0]
    command.main(["page", str(tmp_path), TEXT, "-o", str(tmp_path / "page.html")])
    with Watched(chromium, (tmp_path / "page.html").as_uri()) as page:
        assert page.locator("#tokens .w").all_inner_texts() == [label(token) for token in inputs[0]]
        arrows = [f"→ {label(token)}" if hidden else "" for token, hidden in zip(tokens, predicted, strict=True)]
        assert page.locator("#tokens .t").all_inner_texts() == arrows
        paid = [f"{of:.3f}" if hidden else "–" for of, hidden in zip(losses, predicted, strict=True)]
        assert page.locator("#tokens .bar + .n").all_inner_texts() == paid
        assert page.inner_text("#summary").startswith(f"Mean loss {loss:.3f} nats")
        assert f"; {predicted.sum()} of {len(TEXT)} tokens are to be predicted" in page.inner_text("#facts")
        assert page.evaluate("study.step.loss") == pytest.approx(loss, rel=1e-12)
        masked_at, other = np.flatnonzero(predicted)[0], np.flatnonzero(~predicted)[0]
        assert page.evaluate("ui.t") == masked_at
        for t, formula in ((masked_at, "dz_{tv} = (p_{tv} − [v = target]) / n"), (other, "dz_{tv} = 0")):
            assert explained(page, "d:logits", int(t), int(tokens[t]))["sym"] == formula
        assert explained(page, "losses", int(masked_at), 0)["say"].endswith(f"“{label(tokens[masked_at])}” stood here.")
        assert "no target here" in explained(page, "losses", int(other), 0)["say"]
    with Watched(chromium, (tmp_path / "page.html").as_uri(), 360) as page:
        assert page.locator("#tokens .t").nth(int(masked_at)).is_visible()


def test_gradients_on_the_page_are_slopes_of_the_loss(chromium: Any, whole: str, step: Step) -> None:
    """A sample of what it shows, against central differences of the loss with that number moved."""
    exact, rng, model, size = exact_values(step), np.random.default_rng(1), make_model(), 1e-5
    batch = step.before.tokens, step.before.targets

    def loss(name: str, place: tuple[int, int], move: float) -> float:
        if name not in step.before.parameters:
            return study.trace(model, *batch, changes=[study.Change(name, move, (0, *place), add=True)]).loss
        moved, w = make_model(), step.before.parameters[name].copy()
        np.atleast_2d(w)[place] += move
        moved.set_parameter(name, w)
        return study.trace(moved, *batch).loss

    names = ["embd", "ln_f", *(f"h.1.{name}" for name in (*LINEAR, "ln_2", "attn.heads", "resid_mid"))]
    names += ["wte.weight", "wpe.weight", "h.0.ln_1.bias", *(f"h.0.{name}.weight" for name in (*LINEAR, "ln_2"))]
    with Watched(chromium, whole) as page:
        for name in names:
            gradient = exact[f"d:{name}"]
            for columns in np.array_split(np.arange(gradient.shape[1]), 3):  # of queries, keys and values, for one
                large = np.argsort(-abs(gradient[:, columns]), axis=None)[: gradient.size // 12 or 1]
                row, column = divmod(int(rng.choice(large)), len(columns))
                place = row, int(columns[column])
                shown = page.evaluate("c => pageOfNumbers.explain(...c).calc", [f"d:{name}", *place])
                slope = (loss(name, place, size) - loss(name, place, -size)) / (2 * size)
                assert shown == pytest.approx(slope, rel=1e-4, abs=1e-8), (name, place)


def number(text: str) -> float:
    """What the page shows, as a number."""
    superscripts = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−", "0123456789--")
    return float(text.replace("·10", "e").translate(superscripts))


def test_what_is_shown_is_the_number(chromium: Any, address: str, step: Step) -> None:
    exact = exact_values(step)
    with Watched(chromium, address) as page:
        for name, i, j in (("h.1.attn.P.2", 9, 4), ("d:h.0.attn.S.1", 7, 2), ("losses", 3, 0), ("D:losses", 5, 0)):
            page.evaluate("c => show(c)", {"n": name, "i": i, "j": j})
            assert number(page.inner_text("#explain .value")) == pytest.approx(exact[name][i, j], rel=1e-4)
            assert "NaN" not in page.inner_text("#explain") and "undefined" not in page.inner_text("#explain")


@pytest.mark.parametrize("direction", ["forward", "backward", "step"])
def test_errors_of_backends_are_shown_in_each_direction(chromium: Any, whole: str, step: Step, direction: str) -> None:
    found = measure(step)
    assert {e.name for e in found} >= {"numpy", "C, plain", "C, fast"}
    for error in found:
        assert 0 < max(getattr(error, direction).values()) < error.bound, (error.name, direction)
    assert set(found[0].step) == {"embd", "ln_f"} | {name.rpartition(".")[0] for name in step.updates if "h." in name}
    with Watched(chromium, f"{whole}#mode={direction}") as page:
        place = "column(layers.findIndex(n => n.id === 'h.1.mlp.c_fc'))"
        shown = page.evaluate(f"views.find(v => v.name === 'error').value(1, {place})")
        assert shown == pytest.approx(getattr(found[1], direction)["h.1.mlp.c_fc"] / found[1].unit)


def test_rows_sum_to_what_they_must(chromium: Any, address: str) -> None:
    with Watched(chromium, address) as page:
        for layer in range(CONFIG.n_layer):
            for head in range(CONFIG.n_head):
                for t in range(T):
                    ask = "([n, t]) => pageOfNumbers.row(n, t).reduce((a, b) => a + b)"
                    assert page.evaluate(ask, [f"h.{layer}.attn.P.{head}", t]) == pytest.approx(1, abs=1e-12)
                    assert page.evaluate(ask, [f"d:h.{layer}.attn.S.{head}", t]) == pytest.approx(0, abs=1e-9)


def test_beta_of_0_is_uniform_attention(chromium: Any, whole: str) -> None:
    with Watched(chromium, f"{whole}#cell=h.1.attn.P.0,9,3&layer=h.1.attn.heads") as page:
        slider = page.locator("#beta")
        slider.focus()
        for _ in range(25):
            slider.press("ArrowLeft")
        assert page.locator("#beta").input_value() == "0" and page.evaluate("document.activeElement.id") == "beta"
        assert number(page.inner_text("#explain .value")) == pytest.approx(0.1)
        assert page.is_visible("#betanote")
        page.click("#beta1")
        assert number(page.inner_text("#explain .value")) != pytest.approx(0.1) and not page.is_visible("#betanote")


WIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
    const r = e.getBoundingClientRect();
    return r.width && r.right > innerWidth + 1 && !e.closest('.scroller, .where dd, svg, .sr, .skip, .rail, .explain');
}).map(e => e.outerHTML.slice(0, 80))"""
SMALL = """() => {
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let n; (n = walk.nextNode());) {
        const e = n.parentElement;
        if (!n.data.trim() || e.closest('script, style') || !e.getClientRects().length) continue;
        if (parseFloat(getComputedStyle(e).fontSize) < 13) found.push(n.data.slice(0, 40));
    }
    return found;
}"""


@pytest.mark.parametrize(
    ("kind", "width"),
    [("whole", 1440), ("whole", 1100), ("whole", 360), ("turned", 1440), ("turned", 360), ("both_sides", 1440)],
)
def test_every_map_can_be_chosen_from(chromium: Any, kind: str, width: int, request: pytest.FixtureRequest) -> None:
    with Watched(chromium, request.getfixturevalue(kind), width) as page:
        ids = page.evaluate("pageOfNumbers.layers().map(n => n.id)")
        assert len(ids) == {"whole": 24, "turned": 25, "both_sides": 24}[kind]
        for mode in ("forward", "backward", "step"):
            page.click(f"[data-mode={mode}][role]")
            for layer in ids:
                page.evaluate("l => { ui.layer = l; render(); }", layer)
                clicked = page.evaluate(
                    """() => views.filter(v => v.canvas?.isConnected && !v.keep).map(v => {
                        const a = v.rows >> 1, b = v.square ? 0 : v.n >> 1;
                        choose(v, a, b, true);
                        return [v.name, v.is[a], v.js[b], document.querySelector('#explain h2').textContent,
                                document.querySelector('#explain').textContent];
                    })"""
                )
                assert clicked, layer
                for name, i, j, title, text in clicked:
                    assert title.endswith(f"[{i}, {j}]"), (mode, layer, name, title)
                    assert not re.search("NaN|undefined", text), (mode, layer, name, text)
                page.evaluate("l => { ui.layer = l; render(); }", layer)
                assert page.evaluate(WIDE) == [], (mode, layer)
            assert page.evaluate(SMALL) == []


def test_a_few_large_numbers_do_not_make_a_map_pale(chromium: Any, whole: str) -> None:
    with Watched(chromium, whole) as page:
        drawn = """xs => {
            const html = map({ title: '', rows: 1, n: xs.length, value: (a, b) => xs[b] });
            const legend = new DOMParser().parseFromString(html, 'text/html').querySelector('.legend');
            return [views.at(-1).most, legend.innerText];
        }"""
        even = list(np.linspace(-1, 1, 200))
        for numbers, most, legend in (
            ([*even, 2.0], 2.0, "−2 2"),
            ([*even, -100.0], 0.99, "≤ −0.99 ≥ 0.99"),
            ([0.0] * 200 + [3.0], 3.0, "−3 3"),
        ):
            found, shown = page.evaluate(drawn, numbers)
            assert found == pytest.approx(most, abs=1e-4) and shown.split() == legend.split()


def test_a_click_on_the_picture_is_a_click_on_the_cell(chromium: Any, whole: str) -> None:
    with Watched(chromium, f"{whole}#mode=forward&layer=embd") as page:
        at = page.evaluate(
            "(() => { const v = views.find(v => v.name === 'embd'); return [v.id, ...corner(v, 2, 5), v.w, v.h]; })()"
        )
        canvas = page.locator(f"canvas[data-map='{at[0]}']")
        canvas.click(position={"x": at[1] + at[3] / 2, "y": at[2] + at[4] / 2})
        assert page.inner_text("#explain h2") == "embd [2, 5]"
        page.locator("#explain .num").first.click()
        assert page.inner_text("#explain h2").startswith("wte.weight")
        page.keyboard.press("Backspace")
        assert page.inner_text("#explain h2") == "embd [2, 5]"


def test_a_link_lands_on_its_cell(chromium: Any, whole: str) -> None:
    link = f"{whole}#mode=backward&layer=h.0.attn.heads&head=2&cell=d:h.0.attn.S.2,8,3&theme=dark"
    with Watched(chromium, link) as page:
        assert page.inner_text("#explain h2") == "d h.0.attn S, head 2 [8, 3]"
        assert page.get_attribute("html", "data-theme") == "dark"
        page.wait_for_timeout(400)
        assert "cell=d%3Ah.0.attn.S.2%2C8%2C3" in page.url


def test_the_keyboard_suffices(chromium: Any, whole: str) -> None:
    with Watched(chromium, f"{whole}#mode=forward&layer=h.0.ln_1") as page:
        page.evaluate("views.find(v => v.name === 'h.0.ln_1').canvas.focus()")
        for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        assert page.inner_text("#explain h2") == "h.0.ln_1 [1, 1]"
        assert page.inner_text("#live").startswith("h.0.ln_1, t 1 h, channel 1: ")
        page.keyboard.press("b")
        assert page.inner_text("#explain h2") == "d h.0.ln_1 [1, 1]"
        page.keyboard.press("s")
        assert page.inner_text("#explain h2") == "Δ h.0.ln_1 [1, 1]"
        page.keyboard.press("]")
        assert page.inner_text("#open h2").startswith("h.0.attn.c_attn")
        page.keyboard.press("?")
        assert page.is_visible("#dialog")


def test_controls_have_names(chromium: Any, whole: str) -> None:
    with Watched(chromium, whole) as page:
        nameless = """() => [...document.querySelectorAll('button, input, select, canvas[tabindex]')].filter(e =>
            e.getClientRects().length && !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
            .map(e => e.outerHTML)"""
        assert page.evaluate(nameless) == []


def test_the_lines_on_the_page_are_those_of_the_files(chromium: Any, whole: str) -> None:
    with Watched(chromium, f"{whole}#cell=h.1.attn.P.0,9,3&layer=h.1.attn.heads") as page:
        links, texts = page.locator("#explain .where a").all(), page.locator("#explain .where code").all_inner_texts()
        assert len(links) == 4 and len(texts) == 3
        for link, text in zip(links[:3], texts, strict=True):
            path, line = link.inner_text().split(":")
            assert (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip() == text
            target = page.evaluate("e => e.href", link.element_handle())
            assert Path(url2pathname(target.removeprefix("file://").partition("#")[0])).resolve() == ROOT / path


def test_markup_in_the_text_is_text(chromium: Any, step: Step, tmp_path: Path) -> None:
    address = write_page(tmp_path / "page.html", step, words=lambda token: f"</script><em>{label(token)}</em>&amp;")
    with Watched(chromium, address) as page:
        shown = [f"</script><em>{label(token)}</em>&amp;" for token in step.before.tokens[0].tolist()]
        assert page.locator("#tokens .w").all_inner_texts() == shown
        cells = [("h.1.attn.P.0", 9, 3), ("probs", 3, 5), ("d:h.0.attn.c_attn", 4, 30), ("d:wte.weight", 116, 2)]
        for name, i, j in cells:
            page.evaluate("c => show(c)", {"n": name, "i": i, "j": j})
            assert "<em>" in page.inner_text("#explain")
        for layer in page.evaluate("pageOfNumbers.layers().map(n => n.id)"):
            page.evaluate("l => { setMode('forward', true); ui.layer = l; render(); }", layer)
            assert page.locator("em").count() == 0, layer


# ---- a page as large as they come ----


LARGE = replace(CONFIG, n_embd=96, n_layer=12, n_head=12, n_inner=384)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 layers of 12 heads and 64 tokens, in a window that fills the page as one of 768 channels does."""
    path = tmp_path_factory.mktemp("large") / "page.html"
    tokens = np.random.default_rng(0).integers(0, 256, 65)
    step = take_step(make_model(LARGE), tokens[:-1], tokens[1:])
    about = build.About("a large model", "Made by a test.", "")
    path.write_bytes(build.build_page(step, build.fitting_window(step, None, None), label, about))
    return path


def test_a_large_page_is_small_enough_and_soon_there(chromium: Any, large: Path) -> None:
    size = large.stat().st_size
    assert 0.6 * build.LARGEST < size <= build.LARGEST
    with Watched(chromium, large.as_uri()) as page:
        ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        assert ready < 10_000  # ms; on a machine that does nothing else it is a fifth of the 2 s that it may be
        for key in "bsf":
            before = page.evaluate("performance.now()")
            page.keyboard.press(key)
            assert page.evaluate("performance.now()") - before < 2_000
        assert page.evaluate("pageOfNumbers.layers().length") == 4 + 10 * 12
        assert page.evaluate("pageOfNumbers.selfCheck().worst") < 1e-5


# ---- served ----


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[str, Any]]:
    command_line = [sys.executable, "scripts/study.py", "page", str(folder), TEXT, "--serve", "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a job in the background ignores
    process = subprocess.Popen(command_line, cwd=ROOT, preexec_fn=heed_interrupts, **pipes)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[0], process
    finally:
        process.kill()
        process.communicate()


def ask(address: str, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    host = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host)
    connection.request(method, path, None if body is None else json.dumps(body), {"Host": host, **headers})
    response = connection.getresponse()
    return response.status, response.read()


def test_a_served_page_answers_only_what_it_must(served: tuple[str, Any]) -> None:
    address, process = served
    assert ask(address, "GET", "/")[1].endswith(b"</html>\n")
    assert ask(address, "GET", "/", Host="example.org")[0] == 403
    assert ask(address, "GET", "/csrc/layers/gelu.c")[1] == (ROOT / "csrc/layers/gelu.c").read_bytes()
    assert ask(address, "GET", "/pyproject.toml")[0] == ask(address, "GET", "/docs/../pyproject.toml")[0] == 404
    assert ask(address, "POST", "/step", {"text": TEXT, "number": 1})[0] == 400  # as a form of another page would send
    kind = {"Content-Type": "application/json"}
    assert ask(address, "POST", "/step", {"text": TEXT}, **kind)[0] == 400
    second = json.loads(ask(address, "POST", "/step", {"text": TEXT, "number": 2}, **kind)[1])
    step = next_step(make_model(), make_step())
    assert second["study"]["step"]["n"] == 2
    assert second["study"]["step"]["loss_after"] == pytest.approx(step.after.loss, rel=1e-4)
    assert (
        "expected 2 to 64"
        in json.loads(ask(address, "POST", "/step", {"text": "x" * 65, "number": 1}, **kind)[1])["error"]
    )
    assert "number is 0" in json.loads(ask(address, "POST", "/step", {"text": TEXT, "number": 0}, **kind)[1])["error"]
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "served" in output and errors == ""


def test_a_port_in_use_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "model", property(lambda self: pytest.fail("the model is opened before")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use: --port takes another"):
            command.main(["page", str(folder), TEXT, "--serve", "--port", str(port)])


def wait_for(page: Any, condition: str) -> None:
    """Playwright's own wait_for_function evaluates strings, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"{condition} did not come true")


def test_typing_and_training_in_a_served_page(chromium: Any, served: tuple[str, Any]) -> None:
    address, _ = served
    with Watched(chromium, address, allowed=address) as page:
        page.click("[data-step='1']")
        wait_for(page, "study.step.n === 2")
        page.click("[data-mode=step][role]")
        page.evaluate("show({ n: 'D:h.0.mlp.c_fc.weight', i: 3, j: 4 })")
        assert "m̂ / (√v̂ + ε)" in page.inner_text("#explain")
        assert page.evaluate("pageOfNumbers.selfCheck().worst") < 1e-5
        page.click("[data-step='-1']")
        wait_for(page, "study.step.n === 1")
        page.fill("#typed", "another text")
        wait_for(page, "study.typed === 'another text'")
        assert page.locator("#tokens .w").count() == len("another text") - 1
        page.fill("#typed", "x")
        wait_for(page, "document.querySelector('#trouble').textContent.includes('expected 2 to 64')")
        assert page.locator("#tokens .w").count() == len("another text") - 1
