"""Exercises: the project's own code solves each, and a planted mistake in it is found where it is."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import exercise_solutions
import pytest
import required
from documents import blocks

from pygpt.command.exercise import main
from pygpt.errors import UserError
from pygpt.exercises import functions, mathematics
from pygpt.exercises.catalogue import EXERCISES
from pygpt.exercises.check import check, grade
from pygpt.exercises.exercise import Exercise
from pygpt.exercises.functions import compiled

ROOT = Path(__file__).parents[1]
CUDA = [name for name, exercise in EXERCISES.items() if exercise.stub.suffix == ".cu"]
OTHERS = [name for name in EXERCISES if name not in CUDA]


@pytest.fixture(autouse=True)
def separate_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grading in this process adds the folder of a file to the path."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def source(exercise: Exercise) -> Path:
    """The file that solves an exercise."""
    if exercise.stub.suffix != ".py":
        return ROOT / exercise.solution
    return Path((exercise_solutions if exercise.reference is mathematics else exercise.reference).__file__)


def solved(exercise: Exercise, folder: Path, old: str = "", new: str = "") -> Path:
    """A copy of that file which works in another folder, with something exchanged."""
    text = source(exercise).read_text(encoding="utf-8")
    assert old in text
    text = text.replace(old, new) if old else text
    text = text.replace("from .", "from pygpt.reference.").replace("pygpt.reference. import", "pygpt.reference import")
    text = re.sub(r'#include "(\.\./)?', lambda m: f'#include "{source(exercise).parent}/{m[1] or ""}', text)
    file = folder / exercise.stub.name
    file.write_text(text, encoding="utf-8")
    return file


def graded(exercise: Exercise, file: Path, folder: Path) -> bool:
    path = compiled(file, folder)
    assert path is not None
    return grade(exercise, file, path)


@pytest.mark.parametrize("name", OTHERS)
def test_the_projects_code_solves(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = graded(EXERCISES[name], solved(EXERCISES[name], tmp_path), tmp_path)
    printed = capsys.readouterr().out
    assert good, printed
    assert re.search(r"^solved: all \d+ results are right", printed, re.MULTILINE)


def needs_emulation() -> None:
    if not shutil.which("c++"):
        required.skip("cuda-emulated", "needs c++")


@pytest.mark.parametrize("name", CUDA)
def test_the_projects_cuda_solves(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    needs_emulation()
    # in a process of its own: the emulation's thread-local memory does not fit into one twice
    assert check(EXERCISES[name], source(EXERCISES[name]), 60), capfd.readouterr().out


@pytest.mark.parametrize("name", OTHERS)
def test_a_stub_solves_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exercise = EXERCISES[name]
    assert not graded(exercise, exercise.stub, tmp_path)
    if exercise.stub.suffix == ".py":
        assert re.search(rf"{name}.py, line \d+: this is still to be written$", capsys.readouterr().out, re.MULTILINE)


# ---- planted mistakes: what stands in the file, what in its place, and which sentence says so ----

MISTAKES: list[tuple[str, str, str, str]] = [
    (
        "value",
        "source.grad += ",
        "source.grad = ",
        r"gradients, derivatives: relative L2 .*; first at \[0\]: 1, expected 2",
    ),
    ("value", "1 - t**2", "1 - t", r"gradients, derivatives: relative L2"),
    ("bigram", "counts[a, b]", "counts[b, a]", r"count, counts: relative L2 .*; first at \[\d, \d\]"),
    ("bigram", "p = (counts + 1)", "p = (counts + 2)", r"loss, loss: relative L2 .* bound 1e-12; -?\d.*, expected \d"),
    ("softmax", "largest = x.real.max(-1, keepdims=True)", "largest = 0", r"log_sum_exp, lse: relative L2 (inf|nan)"),
    ("cross_entropy", "np.where(targets < 0", "np.where(targets < -1", r"forward, losses: relative L2"),
    ("cross_entropy", " - 1, -1)", ", -1)", r"backward, dlogits: relative L2"),
    ("embedding", "np.add.at(dwte, tokens, dx)", "dwte[tokens] += dx", r"backward, dwte: relative L2"),
    ("linear", "rows(dy).sum(0)", "rows(dy).mean(0)", r"backward, db: relative L2"),
    ("linear", "rows(dy).sum(0)", "rows(dy).sum(1)", r"backward, db has shape \(1,\), expected \(2,\)"),
    ("gelu", "0.044715", "0.0447", r"forward, y: relative L2 \d.*e-0\d, bound 1e-12; first at \[0\]"),
    ("mlp_backward", "ops.gelu_backward(da, h)", "da", r"mlp_backward, dx: relative L2"),
    (
        "initialisation",
        "parameter.std * philox",
        "0.02 * philox",
        r"init_weights, parameters\['h.0.attn.c_proj.weight'\]",
    ),
    ("batchnorm", "x.var(0)\n", "x.var(0, ddof=1)\n", r"batchnorm, y: relative L2"),
    ("batchnorm", "running_var += ", "running_var = ", r"batchnorm, running_var: relative L2"),
    ("batchnorm", "r * (u - u.mean(0)", "r * (u - u.mean()", r"batchnorm_backward, dx: relative L2"),
    ("layernorm", " - x_hat * (u * x_hat).mean(-1, keepdims=True)", "", r"backward, dx: relative L2"),
    ("layernorm", "((x - mean) ** 2).mean(-1, keepdims=True)", "x.var(-1, ddof=1, keepdims=True)", r"forward, y: "),
    ("residual_scaling", "(2 * n_layer)", "n_layer", r"factor, g: relative L2 4.1e-01"),
    ("residual_scaling", "g * normalised(found[-1])", "g * (found[-1],)", r"stream, y: relative L2"),
    ("residual_scaling", "dx = dx + ops", "dx = ops", r"stream_backward, dx: relative L2"),
    ("attention_scores", "np.tri(s.shape[-1]", "np.tri(s.shape[-1], k=1", r"scores, s: relative L2 (inf|nan)"),
    ("attention_scores", " / math.sqrt(q.shape[-1])", "", r"scores, s: relative L2"),
    ("attention_scores", "s.dtype.type(-np.inf)", "0.0", r"scores, s: relative L2 inf.*; first at \[0, 0, 0, 1\]: 0, "),
    ("attention_head", "y = dropout_layer.forward(p, dropout) @ v", "y = p.swapaxes(-1, -2) @ v", r"forward, y: "),
    (
        "attention_heads",
        "reshape(*x.shape[:2], n_head, -1).swapaxes(1, 2)",
        "reshape(x.shape[0], n_head, x.shape[1], -1)",
        r"split, q",
    ),
    ("attention", "math.sqrt(q.shape[-1])", "math.sqrt(q.shape[-1] * q.shape[1])", r"forward, y: relative L2"),
    ("attention_backward", "p * (dp - (dy * y)", "p * (dp + (dy * y)", r"backward, dqkv: relative L2"),
    ("block", 'a["mid"] = x + ', 'a["mid"] = ', r"block, y: relative L2"),
    ("block_backward", "return past + found[0]", "return found[0]", r"block_backward, dx: relative L2"),
    ("gpt_forward", 'norm(f"{h}.ln_2", x)', "y", r"forward, a\['h.0.ln_2'\] is missing"),
    (
        "gpt_forward",
        'y = affine(f"{h}.c_fc", x)',
        'y = 2 * affine(f"{h}.c_fc", x)',
        r"forward, a\['h.0.mlp.act'\]: relative L2",
    ),
    (
        "gpt_backward",
        "residual_backward(da[name])",
        "residual_backward(2 * da[name])",
        r"backward, da\['h.0.mlp.c_proj'\]: relative L2 1.0e\+00",
    ),
    (
        "bpe_train",
        "-count[pair], numbers[pair[0]]",
        "-count[pair], -numbers[pair[0]]",
        r"train, merges\[\d+\] is \(b'.*'\), expected",
    ),
    (
        "bpe_encode",
        "key=made.__getitem__",
        "key=lambda i: -len(tokens[i])",
        r"merge, tokens\[1\] is b'e', expected b'est'",
    ),
    ("bpe_encode", 'b"".join([token_of', 'b" ".join([token_of', r"decode, text\[\d\] is 32, expected"),
    ("adamw", "v / (1 - beta2**step)", "v", r"update, w: relative L2"),
    ("adamw", "m[...] = ", "m = ", r"update, m: relative L2"),
    (
        "clipping",
        "global_norm(gradients)\n    if 0",
        "global_norm(gradients[:1])\n    if 0",
        r"clip, norm: relative L2",
    ),
    ("clipping", "g *= max_norm / norm", "g = g * max_norm / norm", r"clip, gradients\[0\]: relative L2"),
    ("schedule", "(step + 1) / (warmup_iters + 1)", "step / warmup_iters", r"learning_rate, lr: relative L2 1.0e\+00"),
    ("schedule", ", 1.0)", ", 2.0)", r"learning_rate, lr: relative L2"),
    ("philox", "range(10)", "range(7)", r"philox4x32, words: \d+ of \d+ elements differ; first at \[0, 0\]"),
    ("dropout", "x * dropout.scale", "x", r"forward, y: relative L2"),
    ("dropout", "return forward(dy, dropout)", "return dy", r"backward, dx: relative L2"),
    ("sampling", "sampling.top_p)) + 1", "sampling.top_p))", r"candidates, tokens has shape"),
    ("sampling", "logits.max()) / temperature", "logits.max())", r"candidates, p: relative L2"),
    ("kv_cache", "np.tri(n, before + n, before)", "np.tri(n, before + n)", r"attend, y: relative L2"),
    ("quantise", "np.float32(-8)", "np.float32(8)", r"int4, w4: relative L2"),
    ("c_gelu", "i < n", "i < n - 1", r"gelu_forward, y: .*\bnan\b"),
    ("c_gelu", "(1.0f - t * t)", "(1.0f - t)", r"gelu_backward, dx: relative L2 .* bound 2e-06"),
    ("c_layernorm", "dx[n * C + c] += ", "dx[n * C + c] = ", r"layernorm_backward, dx: relative L2"),
    ("c_matmul", "transpose_a ? M : 1", "transpose_a ? K : 1", r"matmul, c: relative L2"),
    (
        "c_cross_entropy",
        "v < Vp; v++) dz[v] = 0.0f",
        "v < V; v++) dz[v] = 0.0f",
        r"cross_entropy_backward, dlogits: relative L2",
    ),
    ("c_attention", "float p = row[u] / sum", "float p = row[u]", r"attention_forward, y: relative L2"),
]


@pytest.mark.parametrize(("name", "old", "new", "sentence"), MISTAKES, ids=lambda text: text[:30])
def test_mistakes_are_found(
    name: str, old: str, new: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not graded(EXERCISES[name], solved(EXERCISES[name], tmp_path, old, new), tmp_path)
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(rf"^\d+ of \d+ results are off, the first: {sentence}", last), last


def test_every_exercise_but_those_in_cuda_has_a_mistake() -> None:
    assert {name for name, *_ in MISTAKES} == set(OTHERS)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("if (i < n) y", "if (i >= n) return;\n    __syncthreads();\n    y", "is not reached by all 256 threads"),
        (
            "void residual_forward(",
            "void residual_forwards(",
            "status 127, in the last call above; is a function missing?",
        ),
        ("if (i < n)", "if (i < )", "does not compile"),
        (
            "if (i < n)",
            "if (i <= n)",
            "something is written after the last of the 4 bytes (1 floats) of a buffer: is a loop too long?",
        ),
    ],
)
def test_mistakes_in_cuda(old: str, new: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    needs_emulation()
    exercise = EXERCISES["cuda_residual"]
    body = "    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;\n"
    body += "    if (i < n) y[i] = x1[i] + x2[i];\n"
    text = exercise.stub.read_text(encoding="utf-8").replace("    // to be written\n", body)
    assert old in text
    file = tmp_path / "cuda_residual.cu"
    file.write_text(text.replace(old, new), encoding="utf-8")
    assert not check(exercise, file, 60)
    printed = capfd.readouterr().out
    assert sentence in printed, printed


# ---- what goes wrong beside the numbers ----

GELU = "import numpy as np\n\ndef forward(x):\n    {}\n\ndef backward(dy, x):\n    return dy\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            GELU.format("while True: pass"),
            "gelu.py: stopped after 3 seconds, in the last call above; is there an endless loop?",
        ),
        (GELU.format("import os; os.kill(os.getpid(), 11)"), "gelu.py: stopped by SIGSEGV, in the last call above"),
        (GELU.format("import os; os._exit(0)"), "gelu.py: ended with status 0, in the last call above"),
        (GELU.format("raise SystemExit"), "gelu.py, line 4: SystemExit"),
        (GELU.format("return x.reshape(7)"), "gelu.py, line 4: ValueError: cannot reshape array of size 1 into shape"),
        (GELU.format("return x[:0]"), "forward, y has shape (0,), expected (1,)"),
        (GELU.format("return x + 0j"), "forward, y has dtype complex128, expected real numbers of shape (1,)"),
        (GELU.format("return [[1], [1, 2]]"), "forward, y has rows of different lengths, expected shape (1,)"),
        (GELU.format("return 'y'"), "forward, y has dtype <U1, expected real numbers"),
        (GELU.format("return x * np.nan"), "forward, y: relative L2 nan, bound 1e-12; first at [0]: nan, expected"),
        (GELU.format("pass"), "gelu.py: forward returned nothing, expected it to return y"),
        (GELU.format("return x, x"), "gelu.py: forward returned 2 values, expected it to return y"),
        (
            GELU.replace("(x)", "()").format("return 1"),
            "gelu.py: TypeError: forward() got an unexpected keyword argument",
        ),
        (GELU.replace("backward", "backwards").format("return x"), "gelu.py: there is no function backward, which"),
        (GELU.format("return ("), "gelu.py, line 4: SyntaxError: '(' was never closed"),
        ("import no_such_module", "gelu.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
    ids=lambda text: text[:40] if text.startswith(("gelu", "forward", "the")) else "",
)
def test_what_goes_wrong(text: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gelu.py"
    file.write_text(text)
    assert not check(EXERCISES["gelu"], file, 3 if "while" in text else 60)
    assert sentence in capfd.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("linear", "def backward(dy, x, w):\n    return dy", "returned one ndarray, expected it to return dx, dw, db"),
        ("linear", "def backward(dy, x, w):\n    return dy, x", "returned 2 values, expected it to return dx, dw, db"),
        (
            "adamw",
            "def update(w, m, v, **rest):\n    return w",
            "returned one ndarray, expected it to change w, m, v in place",
        ),
        ("gpt_forward", "def forward(**inputs):\n    return []", "a is of type list, expected a dictionary"),
        (
            "bpe_train",
            "def train(texts, vocab_size):\n    return ()",
            "returned 0 values, expected it to return merges",
        ),
        ("bpe_train", "def train(texts, vocab_size):\n    return []", "merges has length 0, expected 12"),
        (
            "clipping",
            "def clip(gradients, max_norm):\n    gradients.clear()\n    return 0.0",
            "gradients is [], expected a list of 3 arrays",
        ),
        ("sampling", "def sample(**inputs):\n    return -1", "token is -1, expected"),
    ],
)
def test_wrong_results(name: str, text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exercise = EXERCISES[name]
    module = exercise.reference.__name__
    file = tmp_path / exercise.stub.name
    file.write_text(f"from {module} import *\n{text}\n")
    assert not graded(exercise, file, tmp_path)
    assert sentence in capsys.readouterr().out


def test_a_missing_function_of_c_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c_gelu.c"
    file.write_text('#include "pygpt.h"\nvoid gelu_forward(float *y, const float *x, int64_t n) {\n}\n')
    assert not graded(EXERCISES["c_gelu"], file, tmp_path)
    assert capsys.readouterr().out == f"{file}: there is no function gelu_backward, which the stub has\n"


@pytest.mark.parametrize(
    ("name", "old", "new", "where"),
    [
        ("c_gelu", "i < n", "i <= n", "after the last"),
        ("c_gelu", "i = 0", "i = -1", "before the first"),
        ("c_layernorm", "dw[first + c] +=", "dw[first + c + 1] +=", "after the last"),  # an array that is added to
    ],
)
def test_what_c_writes_beside_its_arrays(
    name: str, old: str, new: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = solved(EXERCISES[name], tmp_path, old, new)
    assert not graded(EXERCISES[name], file, tmp_path)
    assert f"{file}: something is written {where} of the " in capsys.readouterr().out


def test_a_solution_may_use_another(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "softmax.py").write_text("from pygpt.reference.arrays import log_sum_exp\n")
    text = (
        source(EXERCISES["cross_entropy"])
        .read_text()
        .replace("from .arrays import Array, log_sum_exp", "Array = object")
    )
    file = tmp_path / "cross_entropy.py"
    file.write_text(text.replace("import numpy", "from softmax import log_sum_exp\nimport numpy"))
    assert check(EXERCISES["cross_entropy"], file, 60), capfd.readouterr().out


def test_without_a_compiler_or_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(
        UserError, match="compiler 'no-such-compiler' was not found: install it, or name another one in CC"
    ):
        compiled(EXERCISES["c_gelu"].stub, tmp_path)
    monkeypatch.setattr(functions, "CHECKOUT", tmp_path)
    with pytest.raises(UserError, match=r"exercises in CUDA need cuda/ of a checkout, which is not in "):
        compiled(EXERCISES["cuda_gelu"].stub, tmp_path)


# ---- the command ----


def test_start_check_and_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["start", "softmax"]) == 0
    file = Path("exercises", "softmax.py")
    assert file.read_bytes() == EXERCISES["softmax"].stub.read_bytes()
    assert "exercise.py check softmax" in capfd.readouterr().out
    assert main(["check", "softmax"]) == 1
    assert main(["hint", "softmax"]) == 0
    assert EXERCISES["softmax"].hint in capfd.readouterr().out
    file.write_text("from pygpt.reference.arrays import log_sum_exp\n")
    with pytest.raises(UserError, match=r"softmax\.py exists already, and is left as it is"):
        main(["start", "softmax"])
    assert main(["check", "softmax"]) == 0
    assert capfd.readouterr().out.endswith(
        "solved: all 5 results are right; the project's own: pygpt/reference/arrays.py\n"
    )
    file.rename("mine.py")
    assert main(["check", "softmax", "--file", "mine.py"]) == 0


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXERCISES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check"], "check needs the name of an exercise: `.* list` shows them"),
        (["list", "value"], "list is of all exercises, and value was named"),
        (["start", "layernrom"], "'layernrom' is no exercise of those that `.* list` shows; did you mean layernorm?"),
        (["check", "value"], r"exercises/value\.py: there is no such file; `.* start value` begins one"),
        (["check", "c_gelu", "--file", __file__], r"exercise c_gelu is a \.c file"),
        (["hint", "value", "--file", "a.py"], "--file is for check, and hint is asked for"),
    ],
)
def test_wrong_arguments(arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        main(arguments)


# ---- the documents ----

PAGE = ROOT / "docs" / "exercises" / "README.md"


def test_the_page_lists_all_exercises() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((.*?)\) \| (.*?) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, *_ in rows] == list(EXERCISES)
    for name, stub, title, links in rows:
        assert (PAGE.parent / stub).resolve() == EXERCISES[name].stub
        assert title == EXERCISES[name].title
        assert re.findall(r"\]\(\.\./(.*?)\)", links) == pages(EXERCISES[name])


def pages(exercise: Exercise) -> list[str]:
    """In docs/, that a statement names after "Read:"."""
    return re.findall(r"\bdocs/([\w/]+\.md)", statement(exercise).split("Read: ")[1])


def statement(exercise: Exercise) -> str:
    text = exercise.stub.read_text(encoding="utf-8")
    return text[: text.index('"""', 3) if exercise.stub.suffix == ".py" else text.index("*/")]


@pytest.mark.parametrize("name", EXERCISES)
def test_statements_are_short_and_name_what_to_read(name: str) -> None:
    exercise = EXERCISES[name]
    assert statement(exercise).count("\n") <= 30
    assert all((ROOT / "docs" / page).is_file() for page in pages(exercise))
    assert exercise.solution is None or (ROOT / exercise.solution).is_file()


def test_the_page_shows_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistake = "((x - mean) ** 2).mean(-1, keepdims=True)", "x.var(-1, ddof=1, keepdims=True)"
    graded(EXERCISES["layernorm"], solved(EXERCISES["layernorm"], tmp_path, *mistake), tmp_path)
    shown = next(block.text for block in blocks(PAGE) if block.language == "text")
    assert capsys.readouterr().out.startswith(shown)
