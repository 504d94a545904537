"""What the documents say can be done: links lead somewhere, Python runs, command lines are understood."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from decimal import Decimal
from functools import cache
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import required
from documents import DOCUMENTS, ROOT, blocks

import build_site
import pygpt
from pygpt.backends.interface import Layers
from pygpt.backends.native_layers import NativeLayers
from pygpt.backends.numpy_layers import ReferenceLayers
from pygpt.command.flags import Parser
from pygpt.command.main import main
from pygpt.text.tokenizer import ByteTokenizer

CONFIG = pygpt.GPT2Config(vocab_size=256, n_positions=64, n_embd=16, n_layer=1, n_head=2)


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def prose(document: Path) -> str:
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# ---- links ----


@cache
def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.*)", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: Path) -> Iterator[str]:
    text = prose(document)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target
    for path in re.findall(r"`((?:csrc|cuda|docs|pygpt|scripts|tests)/[\w./-]+)`", text):
        if not (ROOT / path).exists():
            yield path


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document)) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("# One, two\n[1](#one-two) [2](#one) [3](b.md) [4](a.md#two) `csrc/gpt2.c` `csrc/gpt3.c`\n")
    assert list(broken_links(document)) == ["#one", "b.md", "a.md#two", "csrc/gpt3.c"]


@pytest.mark.parametrize("layer", sorted((ROOT / "docs" / "layers").glob("*.md")), ids=lambda path: path.stem)
def test_a_layer_names_its_files(layer: Path) -> None:
    text = layer.read_text(encoding="utf-8")
    places = ["pygpt/reference/{}.py", "csrc/layers/{}.c", "csrc/fast/{}.c", "cuda/layers/{}.cu"]
    for path in (place.format(layer.stem) for place in places):
        assert not (ROOT / path).exists() or f"](../../{path})" in text, path


# ---- the way ----


def way() -> list[str]:
    """The pages in the order of docs/README.md."""
    parts = build_site.navigation((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    return [page for part in parts for page in ([part] if isinstance(part, str) else next(iter(part.values())))]


@pytest.mark.parametrize("page", way()[1:])
def test_a_page_says_what_to_read_before(page: str) -> None:
    document = ROOT / "docs" / page
    said = re.match(r"# .*\n\nBefore: (.+?)\.\s", document.read_text(encoding="utf-8"), re.DOTALL)
    assert said, f"{page} does not begin with a sentence `Before: ...`"
    for target in re.findall(r"\]\(([^)#]+)", said[1]):
        before = (document.parent / target).resolve().relative_to(ROOT / "docs").as_posix()
        assert way().index(before) < way().index(page), f"{before} is not before {page} in docs/README.md"


# ---- Python ----


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents take for there: runs, prepared data, a text."""
    folder = tmp_path_factory.mktemp("documents")
    for run in ("stdlib", "run"):
        pygpt.GPT2(CONFIG).save_pretrained(folder / "out" / run / "best")
        ByteTokenizer().save(folder / "out" / run / "best")
    (folder / "out" / "stdlib" / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 5.3}) + "\n")
    (folder / "data" / "stdlib-bpe").mkdir(parents=True)
    ByteTokenizer().save(folder / "data" / "stdlib-bpe")
    return folder


def names() -> dict[str, Any]:
    """What the documents use without making it."""
    other = SimpleNamespace(from_pretrained=lambda folder: SimpleNamespace(save_pretrained=lambda folder: None))
    return {
        "pygpt": pygpt,
        "transformers": SimpleNamespace(GPT2LMHeadModel=other),
        "model": SimpleNamespace(generate=lambda *arguments: [65, 66]),
        "prompt_tokens": [65, 66],
        "folder": "out/run/best",
    }


NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


def agrees(printed: str, shown: str) -> bool:
    """Whether a document shows what was printed: the same words and integers, other numbers within two last digits.

    Sums in float32 round differently on another processor.
    """

    def words(text: str) -> list[str]:
        return re.sub(NUMBER, "#", text).split()

    def unit(number: str) -> float:
        exponent = Decimal(number).as_tuple().exponent
        return 10.0**exponent if isinstance(exponent, int) and exponent < 0 else 0.0

    numbers = zip(re.findall(NUMBER, printed), re.findall(NUMBER, shown), strict=False)
    return words(printed) == words(shown) and all(abs(float(a) - float(b)) <= 2.001 * unit(b) for a, b in numbers)


def test_agrees() -> None:
    assert agrees("loss 1.2349, step 10\n", "loss 1.2351,  step 10")
    assert agrees("-3.14e-07", "-3.15e-07")
    assert not agrees("loss 1.2349", "loss 1.2352")
    assert not agrees("loss 1.2349", "losses 1.2349")
    assert not agrees("3.1e-07", "3.1e-06")
    assert not agrees("1 2", "1 2 3")
    assert not agrees("step 10", "step 11")


# docs/debugging.md's programs run in test_gdb.py
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if name_of(d) != "docs/debugging.md"], ids=name_of)
def test_python_runs(document: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python runs, and prints what the block of text after it shows.

    ```python needs=torch runs where this is installed; ```text measured is what a longer run showed.
    """
    monkeypatch.chdir(stand_ins)
    known = names()
    for block, after in zip_longest(found := blocks(document), found[1:]):
        if block.language != "python" or block.notes == ("signatures",):
            continue
        for note in block.notes:
            required.module(note.removeprefix("needs="))
        with redirect_stdout(StringIO()) as out:
            exec(compile(block.text, f"{name_of(document)}, {block.heading}", "exec"), known)
        if after and after.language == "text" and after.heading == block.heading and not after.notes:
            assert agrees(out.getvalue(), after.text), out.getvalue()


def documented_signatures() -> list[tuple[str, str, str]]:
    """Object, method and arguments in docs/architecture.md."""
    text = "".join(block.text for block in blocks(ROOT / "docs" / "architecture.md") if block.notes == ("signatures",))
    return re.findall(r"\b(ops|model)\.(\w+)\(([^)]*)\)", text)


@pytest.mark.parametrize("owner, method, arguments", documented_signatures(), ids=lambda text: text)
def test_signatures(owner: str, method: str, arguments: str) -> None:
    for kind in (Layers, NativeLayers, ReferenceLayers) if owner == "ops" else (pygpt.GPT2,):
        actual = list(inspect.signature(getattr(kind, method)).parameters.values())[1:]
        documented = inspect.signature(eval(f"lambda {arguments}: 0")).parameters.values()
        assert [one.name for one in documented] == [one.name for one in actual]
        for one, other in zip(documented, actual, strict=True):
            assert one.default in (inspect.Parameter.empty, other.default)


# ---- command lines ----


def command_lines(document: Path) -> list[str]:
    """Whole lines of the blocks for a shell, without comments."""
    text = "".join(block.text for block in blocks(document) if block.language in ("sh", ""))
    return re.sub(r"\\\n", " ", re.sub(r" +#.*", "", text)).splitlines()


def calls(document: Path) -> list[list[str]]:
    """The words of each call of a program, up to what belongs to the shell."""
    lines = command_lines(document) + re.findall(r"`((?:python scripts/|pygpt )[^`]+)`", prose(document))
    found = []
    for line in lines:
        if match := re.search(r"python (scripts/\w+\.py.*)|(?<![\w/.-])(pygpt \w.*)", line):
            lexer = shlex.shlex(match[1] or match[2], posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            end = next((at for at, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
            found.append(words[:end])
    return found


@pytest.mark.parametrize(
    "call",
    [pytest.param(call, id=f"{name_of(d)}: {' '.join(call)}") for d in DOCUMENTS for call in calls(d)],
)
def test_flags_are_understood(
    call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parse = Parser.parse

    def parse_only(parser: Parser, argv: Any = None) -> Any:
        parse(parser, argv)
        sys.exit(0)

    monkeypatch.setattr(Parser, "parse", parse_only)
    monkeypatch.setattr(sys, "argv", call)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a script adds to it
    with pytest.raises(SystemExit) as end:
        if call[0] == "pygpt":
            main()
        runpy.run_path(str(ROOT / call[0]), run_name="__main__")
    assert end.value.code == 0, capsys.readouterr().err


@every_document
def test_shell_is_understood(document: Path) -> None:
    text = "".join(block.text for block in blocks(document) if block.language == "sh")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for path in re.findall(r"\b((?:scripts|tests)/[\w./]+)", text):
        assert (ROOT / path).exists(), path
    for variable in set(re.findall(r"\b(?:PYGPT|EMULATION)_[A-Z_0-9]+", document.read_text(encoding="utf-8"))):
        assert re.search(rf"\b{variable}\b", sources()), f"{variable} means nothing"


@cache
def sources() -> str:
    """Everything in which a variable or an option may be read."""
    files = [ROOT / "CMakeLists.txt", *(ROOT / "build_backend").glob("*.py"), *(ROOT / "tests").glob("*.py")]
    for folder in ("cuda", "csrc", "pygpt"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in (".pyc", ".so")]
    return "".join(path.read_text(encoding="utf-8") for path in files)
