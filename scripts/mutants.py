"""Plant small faults in the sources, one at a time, and say of each whether a test notices it.

    pip install universalmutator
    python scripts/mutants.py csrc/layers cuda/layers pygpt/reference --count 40

Works on copies of what is committed.  A fault that leaves the machine code, or the Python program, as it is counts for
nothing, and so does one that does not compile.  Of the survivors some only change speed or memory: reading tells those
from the ones that need a test.  CONTRIBUTING.md has the share killed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pygpt.command.cli import positive_int, run
from pygpt.command.flags import Parser
from pygpt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [
    "csrc",
    "csrc/layers",
    "csrc/fast",
    "csrc/step",
    "cuda",
    "cuda/layers",
    "pygpt",
    "pygpt/backends",
    "pygpt/command",
    "pygpt/comparing",
    "pygpt/files",
    "pygpt/generation",
    "pygpt/reference",
    "pygpt/text",
    "pygpt/training",
]
_C = ["universal.rules", "c_like.rules"]  # of universalmutator
RULES = {".c": _C, ".h": _C, ".cu": _C, ".cuh": _C, ".py": ["universal.rules", "python.rules"]}
BUILDS = {"build": ["-DPYGPT_TESTS=ON"], "build-tiny": ["-DPYGPT_TINY_BLOCKS=ON"]}
LEVEL = "x86-64-v3"  # beside the best that the processor has
LAYERS, MODEL = "tests/test_layers.py", "tests/test_model.py"
NATIVE = ("tests/test_native_library.py", "tests/test_memory.py", "tests/test_bench.py")  # of csrc/ beside its layers
STEP = ("pygpt-step", "test_step_files")
LONGEST = 300  # seconds; a command that takes longer has noticed
NO_TESTS = 5  # pytest's status where nothing was selected
_NAME = re.compile(r"[A-Za-z_]\w*|\d\w*[A-Za-z_]\w*")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_WORDS = {"break", "continue", "pass", "not", "and", "or", "None", "True", "False"}  # what the rules write


@dataclass(frozen=True)
class Check:
    """A command that fails when it notices a fault, with the libraries of a build."""

    command: tuple[str, ...]
    build: str = "build"
    level: str | None = None  # instruction set; the best that there is without it
    targets: tuple[str, ...] = ()  # beside the libraries that every test opens


FILES = Check(("ctest", "--test-dir", "build", "-R", "step_files"), targets=STEP)


@dataclass(frozen=True)
class Mutant:
    path: Path  # within the checkout
    number: int  # of the line, from 1
    line: str  # what stands there instead

    def applied_to(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        return "".join([*lines[: self.number - 1], self.line, *lines[self.number :]])

    def __str__(self) -> str:
        before = (ROOT / self.path).read_text("utf-8").splitlines()[self.number - 1]
        return f"{self.path}:{self.number}\n- {before}\n+ {self.line.rstrip()}"


def main() -> int:
    flags = _parser().parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would tests
    if _must(["git", "status", "--porcelain"], ROOT):
        raise UserError("there are changes that are not committed, and the copies would lack them: commit them first")
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as work:
        copies = [_copy(Path(work, str(number))) for number in range(flags.jobs)]
        for folder in flags.folders:
            results: Counter[str] = Counter()
            for mutant, result in _judge(copies, _shuffled(folder, flags.seed)):
                results[result] += 1
                print(f"{result}: {mutant}", flush=True)
                if results["killed"] + results["survived"] >= flags.count:
                    break
            survived += results["survived"]
            print(f"{folder}: {results['killed']} of {results['killed'] + results['survived']} killed", flush=True)
    return 1 if survived else 0


def _parser() -> Parser:
    parser = Parser(prog="mutants.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=FOLDERS, metavar="FOLDER", help="sources in it, not below it")
    parser.add_argument("--count", type=positive_int, default=25, metavar="N", help="faults in a folder (default: 25)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: 0)")
    parser.add_argument("--jobs", type=positive_int, default=2, metavar="N", help="at the same time (default: 2)")
    return parser


# ---- faults ----


def _shuffled(folder: str, seed: int) -> Iterator[Mutant]:
    """The faults that universalmutator's rules make in the sources of a folder, as far as they may be programs."""
    sources = sorted(path for path in (ROOT / folder).glob("*") if path.suffix in RULES)
    if not sources:
        raise UserError(f"{folder}: holds no sources")
    mutants = [mutant for source in sources for mutant in _mutants(source)]
    random.Random(seed).shuffle(mutants)
    return filter(_is_another_program, mutants)


def _mutants(source: Path) -> list[Mutant]:
    try:
        from universalmutator.mutator import mutants_regexp
    except ImportError:
        raise UserError("this needs universalmutator: pip install universalmutator") from None
    lines = source.read_text("utf-8").splitlines(keepends=True)
    with redirect_stdout(io.StringIO()):
        made = mutants_regexp(lines, RULES[source.suffix], ignorePatterns=("from __future__",), ignoreStringOnly=True)
    return [Mutant(source.relative_to(ROOT), number, line) for number, line, *_ in made]


def _is_another_program(mutant: Mutant) -> bool:
    """False where a look tells that it is broken, or the same program."""
    before = (ROOT / mutant.path).read_text("utf-8")
    if not set(_NAME.findall(mutant.line)) <= {*_NAME.findall(before), *_WORDS}:  # int64_t became int1_t
        return False
    if mutant.path.suffix != ".py":
        return _COMMENT.sub("", before).split() != _COMMENT.sub("", mutant.applied_to(before)).split()
    try:
        return _program(before) != _program(mutant.applied_to(before))
    except SyntaxError:
        return False


def _program(text: str) -> str:
    """What a Python program says apart from its docstrings."""
    warnings.simplefilter("ignore", SyntaxWarning)
    compile(text, "", "exec", dont_inherit=True)  # a break outside of a loop is found here
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.dump(tree)


# ---- what notices them ----


def _checks(path: Path) -> list[Check]:
    """What bears on a source, the quickest to notice first."""
    if path.suffix == ".py":
        numerics = [Check(_pytest(test, "-k", device)) for device in ("not cuda", "cuda") for test in (LAYERS, MODEL)]
        others = [Check(_pytest(test)) for test in _tests_of(path)]
        return [*numerics, *others] if path.parent.name == "backends" else others
    if path.parts[1] == "step" or path.name == "main.c":
        return [*(Check(_pytest(f"tests/test_{name}.py"), targets=STEP) for name in ("step", "checkpoint_fuzz")), FILES]
    cuda = path.parts[0] == "cuda"
    of_device = "cuda" if cuda else "not cuda and not numpy"  # also a test that has no backend in its name
    layers, model = _pytest(LAYERS, "-k", of_device), _pytest(MODEL, "-k", of_device)
    checks = [Check(_pytest(LAYERS, "-k", f"({of_device}) and {path.stem}"))] if path.parts[1] != path.name else []
    checks += [Check(layers), Check(model)] if checks else [Check(model), Check(layers)]
    if cuda:
        own = [str(test.relative_to(ROOT)) for test in sorted(ROOT.glob("tests/test_cuda*.py"))]
        checks += [Check(_pytest(test)) for test in (*own, "tests/test_emulation.py")]
    else:
        checks += [Check(("ctest", "--test-dir", "build", "--stop-on-failure", "-E", "step_files"), targets=("all",))]
        checks += [Check(tests, level=LEVEL, targets=(f"pygpt_cpu_{LEVEL}",)) for tests in (layers, model)]
    checks += [Check(layers, "build-tiny"), Check(model, "build-tiny")]
    if path.parts[:-1] == ("csrc",):
        checks += [Check(_pytest(test)) for test in NATIVE]
        checks += [Check(_pytest(MODEL, "-k", "cuda")), FILES]  # which have the table of tensors from here
    return checks


def _pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", *arguments)


def _tests_of(module: Path) -> list[str]:
    """The test files named after a Python module, those that import it, and those of the modules that do."""
    importers = [path for path in _importers(module) if path.parts[0] == "pygpt"]
    tests = [test for path in (module, *importers) for test in _importers(path) if test.name.startswith("test_")]
    named = [path.relative_to(ROOT) for path in sorted(ROOT.glob(f"tests/test_*{module.stem}*.py"))]
    return [str(test) for test in dict.fromkeys(named + tests)]


def _importers(module: Path) -> list[Path]:
    name = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
    return [path for path, imported in _imports().items() if name in imported]


@cache
def _imports() -> dict[Path, set[str]]:
    """What each Python file of the package and the tests imports, by full names."""
    found: dict[Path, set[str]] = {}
    for path in sorted([*ROOT.glob("pygpt/**/*.py"), *ROOT.glob("tests/*.py")]):
        names = found.setdefault(path.relative_to(ROOT), set())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _judge(copies: Sequence[Path], mutants: Iterator[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Each with its result, as many at the same time as there are copies."""
    with ThreadPoolExecutor(len(copies)) as pool:
        while some := list(islice(mutants, len(copies))):
            yield from zip(some, pool.map(_result, copies, some), strict=False)


def _result(copy: Path, mutant: Mutant) -> str:
    """killed, survived, equal (the same machine code) or invalid (does not compile)."""
    path, checks = copy / mutant.path, _checks(mutant.path)
    before = path.read_text("utf-8")
    path.write_text(mutant.applied_to(before), "utf-8")
    try:
        if path.suffix != ".py":
            if not _build(copy, checks[0]):
                return "invalid"
            if not any(_is_other_code(copy, check) for check in checks if check.build == "build"):
                return "equal"
        noticed = next((check for check in checks if not _passes(copy, check)), None)
    finally:
        path.write_text(before, "utf-8")
    if noticed is None:
        return "survived"
    _must_pass(copy, noticed)
    return "killed"


@cache
def _must_pass(copy: Path, check: Check) -> None:
    """Raises UserError where a check fails without a fault: it could not notice one."""
    if not _passes(copy, check):
        raise UserError(f"`{' '.join(check.command)}` fails without a fault; mend that first")


# ---- copies ----


def _copy(copy: Path) -> Path:
    """A clone of the checkout with its libraries built."""
    _must(["git", "clone", "-q", str(ROOT), str(copy)], ROOT)
    for build, options in BUILDS.items():
        _must(["cmake", "-S", ".", "-B", build, "-DPYGPT_CUDA=OFF", *options], copy)
        _must(["cmake", "--build", build, "-j", str(os.cpu_count())], copy)
    _first_objects(copy)
    return copy


def _build(copy: Path, check: Check) -> bool:
    """Whether what a check needs can be built."""
    targets = _targets(copy, check)
    return _run(["cmake", "--build", check.build, "-j", str(os.cpu_count()), "--target", *targets], copy, {}) == 0


def _targets(copy: Path, check: Check) -> tuple[str, ...]:
    return check.targets if check.targets == ("all",) else (*_libraries(copy), *check.targets)


@cache
def _libraries(copy: Path) -> tuple[str, ...]:
    """What every test opens: an outdated library is an error there."""
    names = (
        "from pygpt.backends.devices import DEVICES\n"
        "print(*(DEVICES[name].library_path() for name in ('cpu', 'cuda-emulated')))"
    )
    paths = _must([sys.executable, "-c", names], copy).split()
    return "pygpt_cpu_baseline", *(Path(path).stem.removeprefix("lib") for path in paths)


def _is_other_code(copy: Path, check: Check) -> bool:
    """Whether the compiler makes something else of the sources with the fault, in what the check needs."""
    targets = _targets(copy, check)
    return _build(copy, check) and not _objects(copy, targets).items() <= _first_objects(copy).items()


def _objects(copy: Path, targets: Sequence[str] = ("*",)) -> dict[Path, str]:
    """What the compiler made of each source."""
    folders = ["*" if target == "all" else target for target in targets]
    objects = [path for folder in folders for path in copy.glob(f"build/**/{folder}.dir/**/*.o")]
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in objects if not path.name.startswith("digest.c")
    }


def _passes(copy: Path, check: Check) -> bool:
    if not _build(copy, check):
        return False
    environment = {"PYTHONPATH": str(copy), "PYGPT_LIB_DIR": str(copy / check.build)}
    if check.level:
        environment["PYGPT_ISA"] = check.level
    return _run(check.command, copy, environment) in (0, NO_TESTS)


_first_objects = cache(_objects)  # before any fault


def _run(command: Sequence[str], folder: Path, environment: dict[str, str]) -> int | None:
    """The exit status of a command; None if it takes too long."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left running, too
        process.wait()


def _must(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    run(main)
