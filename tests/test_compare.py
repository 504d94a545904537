"""A check must be able to fail: faults planted in the C sources, each caught and laid at the right layer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiling import digest_source

import pygpt
from pygpt.backends.devices import DEVICES, native
from pygpt.backends.library import INSTRUCTION_SETS, cpu_library, cpu_library_path, ffi, library_name
from pygpt.backends.numpy_model import ReferenceGPT2
from pygpt.comparing.compare import as_json, compare, first_out_of_bounds, perturb, table, verdict
from pygpt.comparing.layer_call import LayerCall, judged
from pygpt.comparing.metrics import FREE_RUNNING, ORTHOGONALIZED, TEACHER_FORCED, Bound, Difference, difference
from pygpt.comparing.model_calls import Pass, backward_calls, forward_calls, update_calls
from pygpt.files.json_file import json_text
from pygpt.reference.dropout import Dropout

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc"
COMPILER = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
FLAGS = ["-std=c11", "-O0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]

CONFIG = pygpt.GPT2Config(vocab_size=97, n_positions=17, n_embd=48, n_layer=2, n_head=4)
DROPOUT = replace(CONFIG, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3)


@dataclass(frozen=True)
class Fault:
    """One place of a source file, changed, and the row of the table where it must be found first."""

    name: str
    file: str
    old: str
    new: str
    row: str
    way: str = "teacher-forced"  # free-running, where the layer is right and the model uses it wrongly
    config: pygpt.GPT2Config = CONFIG
    dtype: str = "float32"


FAULTS = [
    Fault(
        "erf GELU for tanh GELU, forward",
        "layers/gelu.c",
        "y[i] = 0.5f * x[i] * (1.0f + t);",
        "y[i] = 0.5f * x[i] * (1.0f + erff(0.70710678f * x[i]) + 0.0f * t);",
        "h.0.mlp.act (gelu), forward, y",
    ),
    Fault(
        "erf GELU for tanh GELU, backward",
        "layers/gelu.c",
        "dx[i] = dy[i] * (0.5f * (1.0f + t) + 0.5f * x[i] * (1.0f - t * t) * slope);",
        "dx[i] = dy[i] * (0.5f * (1.0f + erff(0.70710678f * x[i])) + 0.39894228f * x[i] * expf(-0.5f * x[i] * x[i])"
        " + 0.0f * t * slope);",
        "h.1.mlp.act (gelu), backward, dx",
    ),
    Fault(
        "erf GELU for tanh GELU, in bfloat16",
        "layers/gelu.c",
        "y[i] = 0.5f * x[i] * (1.0f + t);",
        "y[i] = 0.5f * x[i] * (1.0f + erff(0.70710678f * x[i]) + 0.0f * t);",
        "h.0.mlp.act (gelu), forward, y",
        dtype="bfloat16",
    ),
    Fault(
        "dropped mean of u in LayerNorm's backward",
        "layers/layernorm.c",
        "rstd[n] * (u - u_mean - x_hat * ux_mean)",
        "rstd[n] * (u - 0.0f * u_mean - x_hat * ux_mean)",
        "ln_f (layernorm), backward, dx",
    ),
    Fault(
        "dropped mean of u x_hat in LayerNorm's backward",
        "layers/layernorm.c",
        "rstd[n] * (u - u_mean - x_hat * ux_mean)",
        "rstd[n] * (u - u_mean - 0.0f * x_hat * ux_mean)",
        "ln_f (layernorm), backward, dx",
    ),
    Fault(
        "no 1/sqrt(HS), forward",
        "layers/attention.c",
        "row[u] = scale * dot(q,",
        "row[u] = dot(q,",
        "h.0.attn.heads (attention), forward, y",
    ),
    Fault(
        "no 1/sqrt(HS), backward",
        "layers/attention.c",
        "add_scaled(dq, scale * ds, k, HS);",
        "add_scaled(dq, ds, k, HS);",
        "h.1.attn.heads (attention), backward, dqkv",
    ),
    Fault(
        "the head's part of the tied gradient missing",
        "layers/classifier.c",
        "k->matmul(dwte, logits, x + n * C, V, C, count, 1, 0, 1);",
        "(void)dwte;",
        "losses (classifier), backward, dwte",
    ),
    Fault(
        "the head's part of the tied gradient lost in the model",
        "gpt2.c",
        "    m->kernels->layernorm_backward(dx, dw.ln_f_w,",
        "    m->kernels->scale(dhead, 0.0f, m->config.vocab_size * C);\n"
        "    m->kernels->layernorm_backward(dx, dw.ln_f_w,",
        "losses (classifier), backward, dwte",
        way="free-running",
    ),
    Fault(
        "the embedding's part of the tied gradient missing",
        "layers/embedding.c",
        "token[c] += dx[n * C + c];",
        "token[c] += 0.0f * dx[n * C + c];",
        "embd (embedding), backward, dwte",
    ),
    Fault(
        "one gradient times 1.01",
        "layers/linear.c",
        "db[first + o] += (float)sums[o];",
        "db[first + o] += 1.01f * (float)sums[o];",
        "h.1.mlp.c_proj (linear), backward, dbias",
    ),
    Fault(
        "one gradient times 1.01, in bfloat16",
        "layers/linear.c",
        "db[first + o] += (float)sums[o];",
        "db[first + o] += 1.01f * (float)sums[o];",
        "h.1.mlp.c_proj (linear), backward, dbias",
        dtype="bfloat16",
    ),
    Fault(
        "one gradient times 1.01 in the model",
        "gpt2.c",
        "    m->activation.backward(d.fc, d.act, a.fc, N * F);",
        "    m->activation.backward(d.fc, d.act, a.fc, N * F);\n    if (layer == 0) k->scale(d.fc, 1.01f, N * F);",
        "h.0.mlp.act (gelu), backward, dx",
        way="free-running",
    ),
    Fault(
        "= for += in LayerNorm's dx",
        "layers/layernorm.c",
        "dx[n * C + c] += rstd[n]",
        "dx[n * C + c] = rstd[n]",
        "ln_f (layernorm), backward, dx",
    ),
    Fault(
        "= for += in LayerNorm's dw",
        "layers/layernorm.c",
        "dw[first + c] += (float)dw_sum[c];",
        "dw[first + c] = (float)dw_sum[c];",
        "ln_f (layernorm), backward, dweight",
    ),
    Fault(
        "= for += in the embedding, where a token is repeated",
        "layers/embedding.c",
        "token[c] += dx[n * C + c];",
        "token[c] = dx[n * C + c];",
        "embd (embedding), backward, dwte",
    ),
    Fault(
        "= for += in the linear layer's dW",
        "layers/linear.c",
        "if (dw) product(dw, x, dy, IC, OC, N, 1, 0, 1);",
        "if (dw) product(dw, x, dy, IC, OC, N, 1, 0, 0);",
        "h.1.mlp.c_proj (linear), backward, dweight",
    ),
    Fault(
        "= for += between two backward passes",
        "gpt2.c",
        "    k->linear_backward(d.ln_2, dw.c_fc_w,",
        "    k->scale(dw.c_fc_w, 0.0f, C * F);\n    k->linear_backward(d.ln_2, dw.c_fc_w,",
        "h.1.mlp.c_fc (linear), backward, dweight",
        way="free-running",
    ),
    Fault(
        "one token seen from the future",
        "layers/attention.c",
        "factor_of(bh * T + t, u, T, dropout), v + u * 3 * C, HS);",
        "factor_of(bh * T + t, u, T, dropout), v + (t + 1 < T ? u + 1 : u) * 3 * C, HS);",
        "h.0.attn.heads (attention), forward, y",
    ),
    Fault(
        "one token seen from the future in the backward pass",
        "layers/attention.c",
        "float D = dot(dyt, yt, HS);\n            for (int64_t u = 0; u < keys_end(t, T, causal); u++) {",
        "float D = dot(dyt, yt, HS);\n            for (int64_t u = 0; u <= t + 1 && u < T; u++) {",
        "h.1.attn.heads (attention), backward, dqkv",
    ),
    Fault(
        "the residual stream of the block's input, not of its middle",
        "gpt2.c",
        "k->residual_forward(a.resid_post, a.resid_mid,",
        "k->residual_forward(a.resid_post, x,",
        "h.0.resid_post (residual), forward, y",
        way="free-running",
    ),
    Fault(
        "the residual connection missing in the backward pass",
        "gpt2.c",
        "    k->layernorm_backward(dx, dw.ln_1_w,",
        "    k->scale(dx, 0.0f, N * C);\n    k->layernorm_backward(dx, dw.ln_1_w,",
        "h.1.ln_1 (layernorm), backward, dx",
        way="free-running",
    ),
    Fault(
        "what goes past the branch missing in the backward pass after LayerNorm",
        "post_norm.c",
        "k->residual_forward(d.ln_1, d.ln_1, d.resid_post, N * C);",
        "",
        "h.1.mlp.c_fc (linear), backward, dx",
        way="free-running",
        config=replace(CONFIG, norm_position="post"),
    ),
    Fault(
        "targets that are left out counted in the mean",
        "gpt2.c",
        "return m->counted ? (float)(sum / (double)m->counted) : 0.0f;",
        "return m->counted ? (float)(sum / (double)(m->B * m->T)) : 0.0f;",
        "loss (mean), forward, loss",
        way="free-running",
    ),
    Fault(
        "another dropout mask in the model",
        "gpt2.c",
        "k->dropout_forward(a.attn_drop, a.attn_proj, N * C, &drop.attention_branch);",
        "k->dropout_forward(a.attn_drop, a.attn_proj, N * C, &drop.feed_forward_branch);",
        "h.0.attn.resid_dropout (dropout), forward, y",
        way="free-running",
        config=DROPOUT,
    ),
    Fault(
        "dropout not scaled",
        "layers/dropout.c",
        "y[i] = dropout_factor((uint64_t)i, dropout) * x[i];",
        "y[i] = dropout_factor((uint64_t)i, dropout) > 0.0f ? x[i] : 0.0f;",
        "drop (dropout), forward, y",
        config=DROPOUT,
    ),
    Fault(
        "not a number",
        "layers/residual.c",
        "y[i] = x1[i] + x2[i];",
        "y[i] = x1[i] + x2[i] + (i == 5 ? 0.0f / 0.0f : 0.0f);",
        "h.0.resid_mid (residual), forward, y",
    ),
    Fault(
        "bfloat16 with a bit less",
        "bf16.h",
        "bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;",
        "bits = (bits + 0xFFFF + ((bits >> 17) & 1)) & 0xFFFE0000u;",
        "h.0.attn.c_attn (linear), forward, y",
        dtype="bfloat16",
    ),
    Fault(
        "bfloat16 in float32's place",
        "layers/matmul.c",
        "multiply_blocks(c, a, b, M, N, K, transpose_a, transpose_b, accumulate, 0);",
        "multiply_blocks(c, a, b, M, N, K, transpose_a, transpose_b, accumulate, 1);",
        "h.0.attn.c_attn (linear), forward, y",
    ),
]

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


def run_compiler(*arguments: str | Path) -> None:
    assert COMPILER
    done = subprocess.run([COMPILER, *FLAGS, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def sources() -> list[str]:
    files = [*SOURCES.glob("*.c"), *SOURCES.glob("layers/*.c"), *SOURCES.glob("fast/*.c")]
    return [file.relative_to(SOURCES).as_posix() for file in sorted(files) if file.name != "main.c"]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Fault | None, Path], Path]:
    """A function that makes a library with a fault, or with none; only what the fault touches is compiled anew."""
    folder = tmp_path_factory.mktemp("objects")
    objects = {source: folder / (source.replace("/", "_") + ".o") for source in sources()}
    for source, made in objects.items():
        run_compiler("-c", SOURCES / source, "-o", made)
    objects["digest.c"] = folder / "digest.o"
    run_compiler("-c", digest_source(folder), "-o", objects["digest.c"])  # a fault must be judged, not refused

    def build(fault: Fault | None, folder: Path) -> Path:
        used = dict(objects)
        if fault:
            patched = folder / "csrc"
            shutil.copytree(SOURCES, patched)
            text = (patched / fault.file).read_text()
            assert text.count(fault.old) == 1, f"{fault.file} has changed: {fault.old!r} is not in it just once"
            (patched / fault.file).write_text(text.replace(fault.old, fault.new))
            header = f'{fault.file}"'  # of those that include it, if it is one
            for source in sources():
                if source == fault.file or header in (patched / source).read_text():
                    used[source] = folder / f"{source.replace('/', '_')}.o"
                    run_compiler("-c", patched / source, "-o", used[source])
        library = folder / f"libpygpt_cpu_baseline.{'dylib' if sys.platform == 'darwin' else 'so'}"
        run_compiler("-shared", *used.values(), "-o", library, "-lm")
        return library

    return build


def batch() -> tuple[Array, Array]:
    """Tokens are repeated, others are not there, and a target is left out."""
    tokens, targets = np.random.default_rng(0).integers(0, 97, (2, 2, 13))
    tokens[1, :4] = tokens[0, 3]
    targets[0, 2] = -1
    return tokens, targets


def compared(library: Any, config: pygpt.GPT2Config, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(DEVICES, "cpu", native(lambda: library, cpu_library_path))
    model = pygpt.GPT2(config, dtype=dtype, kernels="plain")
    perturb(model, seed=0)
    return compare(model, pygpt.layers(dtype=dtype, kernels="plain"), *batch())


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_laid_at_its_layer(
    fault: Fault,
    build: Callable[[Fault | None, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = ffi().dlopen(str(build(fault, tmp_path)))
    rows = compared(library, fault.config, fault.dtype, monkeypatch)
    first = first_out_of_bounds(rows)
    assert first is not None, "it was not found"
    assert str(first) == fault.row, verdict(rows)
    assert any(text.startswith(fault.way) for text in first.violations)
    if fault.way == "free-running":
        assert not any(text.startswith("teacher-forced") for row in rows for text in row.violations)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [CONFIG, DROPOUT], ids=["no_dropout", "dropout"])
def test_without_a_fault_nothing_is_found(
    config: pygpt.GPT2Config,
    dtype: str,
    build: Callable[[Fault | None, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = ffi().dlopen(str(build(None, tmp_path)))
    rows = compared(library, config, dtype, monkeypatch)
    assert first_out_of_bounds(rows) is None, verdict(rows)


# ---- the table ----


def test_table_has_every_layer_in_the_order_of_computation() -> None:
    model = pygpt.GPT2(DROPOUT)
    rows = compare(model, pygpt.layers(), *batch())
    forward = [row for row in rows if row.direction == "forward"]
    kept = [row.name for row in forward if row.layer != "mean" and row.name != "logits"]
    expected = [name.replace("lse", "heads").removesuffix(".mean").removesuffix(".rstd") for name in model.activations]
    assert list(dict.fromkeys(kept)) == list(dict.fromkeys(expected))
    backward = [row.name for row in rows if row.direction == "backward"]
    assert backward[0] == "losses" and backward[-1] == "embd"
    assert set(backward) == set(expected)
    assert [row.layer for row in rows if row.direction == "update"] == 3 * ["adamw"] + 2 * ["sgd"] + 2 * ["muon"]
    assert len(table(rows, "float32").splitlines()) == len(rows) + 5
    assert verdict(rows) == f"all {len(rows)} outputs are within the bounds"
    assert [row.name for row in forward[-4:]] == ["ln_f", "logits", "losses", "loss"]
    # the gradient of the residual stream is complete in LayerNorm's dx, and the losses are those of the forward pass
    not_seen = {(row.layer, row.output) for row in rows if row.free_running is None}
    updates = {(row.layer, row.output) for row in rows if row.direction == "update"}
    assert not_seen == {("residual", "dx1"), ("classifier", "losses"), *updates}
    every_gradient = {f"{row.name}.{row.output.removeprefix('d')}" for row in rows if row.free_running}
    assert every_gradient >= {name for name in model.parameters if not name.startswith(("wte", "wpe"))}


def test_the_head_s_part_is_not_seen_where_every_token_is_in_the_batch() -> None:
    tokens = np.array([[0, 1, 0], [1, 1, 0]])
    rows = compare(pygpt.GPT2(replace(CONFIG, vocab_size=2)), pygpt.layers(), tokens, 1 - tokens)
    seen = {(row.layer, row.output): row.free_running is not None for row in rows if row.direction == "backward"}
    assert not seen["classifier", "dwte"] and seen["embedding", "dwte"]


def test_inputs_of_each_call_are_rounded_to_float32() -> None:
    reference, (tokens, targets), drop = ReferenceGPT2(DROPOUT), batch(), Dropout(0.0)
    reference.init_weights(0)
    p = {name: value.astype(np.float32) for name, value in reference.parameters.items()}
    loss = reference.forward_backward(tokens, targets, dropout=drop)
    held = Pass(
        loss,
        reference.logits(0, tokens.size),
        reference.activations,
        reference.activation_gradients,
        reference.gradients,
    )
    for calls in (forward_calls, backward_calls):
        for made in calls(DROPOUT, p, held, tokens, targets, drop):
            arrays = {name: value for name, value in made.call.inputs.items() if isinstance(value, np.ndarray)}
            assert all(value.dtype.name in ("float32", "int64") for value in arrays.values()), made.name


def rounded(x: Array, bits: int) -> Array:
    """With so many binary digits: 24 are float32, 11 TF32, 8 bfloat16."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 2.0**bits), exponent - bits)


@pytest.mark.parametrize("dtype, bits, too_few", [("float32", 24, 11), ("bfloat16", 8, 6)])
def test_bounds_tell_a_precision_from_a_coarser_one(dtype: str, bits: int, too_few: int) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 256, 256))

    def found(bits: int) -> Difference:
        return difference(rounded(a, bits) @ rounded(b, bits), a @ b, emulated)

    emulated = rounded(a, 8) @ rounded(b, 8) if dtype == "bfloat16" else None
    for bound in (TEACHER_FORCED[dtype], FREE_RUNNING[dtype]["forward"], FREE_RUNNING[dtype]["backward"]):
        assert not bound.violations(found(bits))
        assert bound.violations(found(too_few))


def test_bounds_are_the_documented_ones() -> None:
    text = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    for dtype, alone in TEACHER_FORCED.items():
        (row,) = re.findall(rf"^\| {dtype} \|.*", text, re.MULTILINE)
        limits = set()
        for bound in (alone, *FREE_RUNNING[dtype].values()):
            limits |= {bound.relative_l2, bound.one_minus_cosine, bound.rho} - {None}
        assert limits == {float(limit) for limit in re.findall(r"≤ ([\de.-]+)", row)}


# ---- metrics ----


def test_metrics() -> None:
    b = np.array([3.0, 4.0, 0.0, 0.0])
    found = difference(np.array([3.0, 4.0, 0.5, 0.0]), b, emulated=np.array([3.25, 4.0, 0.0, 0.0]))
    assert found.relative_l2 == pytest.approx(0.1)
    assert found.largest == pytest.approx(0.5 / 2.5)
    assert found.one_minus_cosine == pytest.approx(1 - 25 / (5 * 25.25**0.5))
    assert found.rho == pytest.approx(2)
    assert difference(b, b) == Difference(0.0, 0.0, 0.0)
    assert difference(1.01 * b, b).one_minus_cosine == pytest.approx(0, abs=1e-15)
    assert difference(-b, b).one_minus_cosine == pytest.approx(2)
    with pytest.raises(ValueError, match="shapes"):
        difference(b, b[:1])


def test_small_and_missing_gradients_do_not_pass() -> None:
    b = 1e-12 * np.ones(5)
    assert difference(np.zeros(5), b).relative_l2 == 1
    assert difference(np.zeros(5), b).one_minus_cosine == 1
    zero = np.zeros(5)
    assert difference(zero, zero) == Difference(0.0, 0.0, 0.0)
    assert difference(b, zero).relative_l2 == np.inf


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mean_near_zero_is_judged_on_the_scale_of_what_it_is_the_mean_of(dtype: str) -> None:
    """Behind a fresh LayerNorm: that of a model with norm_position post, which has never been trained."""
    config = replace(CONFIG, norm_position="post")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 17))
    rows = compare(pygpt.GPT2(config, dtype=dtype), pygpt.layers("cpu", dtype), tokens[:, :-1], tokens[:, 1:])
    assert first_out_of_bounds(rows) is None, verdict(rows)
    x = np.random.default_rng(1).normal(size=(5, 48)).astype(np.float32)
    x -= x.mean(1, keepdims=True)
    call = LayerCall("layernorm_forward", {"x": x, "weight": x[0], "bias": x[1]}, ("y", "mean", "rstd"))
    mean, rstd = call.exact["mean"], call.exact["rstd"]
    assert abs(mean * rstd).max() < 1e-7
    wrong = difference(*(judged("mean", value, call.exact) for value in (mean + 4e-6 / rstd, mean)))
    assert TEACHER_FORCED["float32"].violations(wrong)


def test_updates_are_judged_whatever_the_size_of_the_gradient() -> None:
    """With a small one, all that is left of the weights would be their rounding error."""
    name, rng = "h.0.attn.c_attn.weight", np.random.default_rng(0)
    p = {name: rng.normal(size=(16, 48)).astype(np.float32)}
    for scale in (1.0, 1e-9, 0.0):
        held = Pass(0.0, np.zeros(0), {}, {}, {name: scale * rng.normal(size=(16, 48))})
        for call in update_calls(p, held):
            found = call.call.differences(pygpt.layers("cpu"))
            bound = ORTHOGONALIZED if call.layer == "muon" else TEACHER_FORCED["float32"]
            assert not [text for output in found.values() for text in bound.violations(output)], (call.layer, scale)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_out_of_bounds(value: float) -> None:
    found = difference(np.array([1.0, value]), np.ones(2), emulated=np.array([1.0, 1.1]))
    for bound in (Bound(relative_l2=1e9), Bound(one_minus_cosine=2.0), TEACHER_FORCED["bfloat16"]):
        assert bound.violations(found)


def test_rho_is_asked_only_above_the_error_of_float32() -> None:
    bound = TEACHER_FORCED["bfloat16"]
    assert not bound.violations(Difference(1e-6, 1e-6, 0.0, rho=50.0))
    assert bound.violations(Difference(1e-4, 1e-4, 0.0, rho=50.0)) == ["rho 5.0e+01, bound 2e+00"]
    assert not bound.violations(Difference(4e-3, 4e-3, 0.0, rho=1.9))
    assert bound.violations(Difference(6e-3, 6e-3, 0.0, rho=1.9)) == ["relative L2 6.0e-03, bound 5e-03"]


# ---- the command ----


def run_script(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name != "PYGPT_ISA"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**kept, **environment})


@needs_compiler
def test_command_exits_with_1_and_names_the_layer(build: Callable[[Fault | None, Path], Path], tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if fault.name == "= for += in LayerNorm's dw")
    library = build(fault, tmp_path)
    shutil.copy(SOURCES / "pygpt.h", library.parent)
    found = run_script("--json", tmp_path / "found.json", PYGPT_LIB_DIR=str(library.parent))
    assert (found.returncode, found.stderr) == (1, "")
    assert str(library) in found.stdout.splitlines()[1]
    plain, fast = found.stdout.splitlines()[-1].split("; fast kernels: ")
    assert plain.startswith("plain kernels: ") and f"the first: {fault.row}: teacher-forced relative L2" in plain
    assert fast.endswith("outputs are within the bounds")  # the fault is in layers/
    written = json.loads((tmp_path / "found.json").read_text())["kernels"]
    assert [judged["first_out_of_bounds"] for judged in written.values()] == [fault.row, None]
    rows = [row for row in written["plain"]["rows"] if row["violations"]]
    assert rows[0]["name"] == "ln_f" and rows[0]["teacher_forced"]["relative_l2"] > 0.1
    found = run_script("--kernels", "fast", PYGPT_LIB_DIR=str(library.parent))
    assert found.returncode == 0 and "plain" not in found.stdout


def runnable_levels() -> list[str]:
    """The instruction sets of this processor."""
    best = ffi().string(cpu_library().pygpt_processor()).decode()
    return list(INSTRUCTION_SETS[INSTRUCTION_SETS.index(best) :]) if best in INSTRUCTION_SETS else []


def compiler_knows(level: str) -> bool:
    """Whether it takes the flag that the libraries for less demanding levels are built without."""
    flag = {"x86-64-v3": "-mavx2", "x86-64-v4": "-mavx512f", "x86-64-v4-bf16": "-mavx512bf16"}[level]
    return COMPILER is not None and subprocess.run([COMPILER, flag, "-E", "-xc", os.devnull]).returncode == 0


@pytest.mark.parametrize("level", INSTRUCTION_SETS)
def test_every_instruction_set_is_within_the_bounds(level: str) -> None:
    if level not in runnable_levels():
        pytest.skip(f"this processor does not run {level}")
    found = run_script("--dtype", "bfloat16" if "bf16" in level else "float32", PYGPT_ISA=level)
    if f"PYGPT_ISA is {level!r}, but only" in found.stderr and not compiler_knows(level):
        pytest.skip(f"the compiler makes no library for {level}")
    assert (found.returncode, found.stderr) == (0, ""), found.stdout + found.stderr


def test_command_with_a_model_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pygpt.GPT2Config(vocab_size=256, n_positions=9, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.1)
    pygpt.GPT2(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "pygpt_tokenizer.json").write_text('{"name": "byte", "vocab_size": 256}')
    text = tmp_path / "text.txt"
    text.write_text("What is compared is computed twice.\n" * 20)
    monkeypatch.chdir(tmp_path)  # tokens are prepared in data/
    found = run_script("--model", "model", "--data", text, "--batch-size", "3", "--dtype", "bfloat16")
    level = library_name(cpu_library())
    sentence = f"{level} has no bfloat16 products: operands are rounded to bfloat16 and multiplied in float32"
    assert (found.returncode, found.stderr) == (0, "" if level.endswith("bf16") else f"warning: {sentence}\n")
    assert "1 blocks, 2 heads, 16 channels, 256 tokens; batch 3 x 9" in found.stdout
    assert "h.0.mlp.dropout" in found.stdout
    found = run_script("--data", text, "--device", "numpy", "--threads", "1")
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--dtype", "float64"], "--dtype: invalid choice: 'float64'"),
        (["--batch-size", "0"], "--batch-size: expected an integer of at least 1, got '0'"),
        (["--batch-size", str(10**9)], "of memory are needed"),
        (["--model", "nothing/here/at/all"], "nothing/here/at/all"),
        (["--data", "no-such-text"], "no-such-text: there is no such file or folder"),
        (["--sequence", "3"], "--sequence is not a flag"),
        (["--seed", "-1"], "seed is -1"),
        (["--dropout", "1"], "embd_pdrop is 1"),
        (["--json", "no/x.json"], "no/x.json: cannot be saved"),
    ],
)
def test_command_answers_bad_input_with_a_sentence(arguments: list[str], sentence: str) -> None:
    found = run_script(*arguments)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ") and sentence in found.stderr
    assert found.stderr.count("\n") == 1


def test_dtype_without_bounds() -> None:
    model = pygpt.GPT2(CONFIG, device="numpy", dtype="float64")
    with pytest.raises(pygpt.UserError, match="dtype is 'float64', expected float32 or bfloat16"):
        compare(model, pygpt.layers("numpy"), *batch())


def test_numbers_that_are_not_finite_in_json() -> None:
    rows = compare(pygpt.GPT2(CONFIG), pygpt.layers(), *batch())
    rows[0] = replace(rows[0], teacher_forced=Difference(float("nan"), float("inf"), 0.0))
    written = json.loads(json_text({"rows": as_json(rows)}))["rows"]
    assert written[0]["teacher_forced"] == {
        "relative_l2": "nan",
        "largest": "inf",
        "one_minus_cosine": 0.0,
        "rho": None,
    }
