"""How a command line ends."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pygpt.command import programs
from pygpt.command.cli import positive_int
from pygpt.command.programs import PROGRAMS

ROOT = Path(__file__).parents[1]


def end(body):
    code = f"import sys; sys.path.append({str(ROOT)!r})\n"
    code += "from pygpt.command.cli import run\nfrom pygpt.errors import UserError\n"
    code += f"def main():\n    {body}\nrun(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print('done')", (0, "done\n", "")),
        ("return 1", (1, "", "")),
        ("raise UserError('x.bin: is empty')", (2, "", "error: x.bin: is empty\n")),
        ("raise KeyboardInterrupt", (130, "", "interrupted\n")),
    ],
)
def test_statuses(body, expected):
    assert end(body) == expected


def test_a_reader_that_goes_away():
    body = "[print('x' * 1000) for _ in range(1000)]"
    code = f"import sys; sys.path.append({str(ROOT)!r})\nfrom pygpt.command.cli import run\nrun(lambda: {body} and 0)"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.read(10)
    writer.stdout.close()
    assert writer.wait(20) == 141
    assert writer.stderr.read() == b""


def test_what_standard_output_cannot_show_is_replaced():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = f"import sys; sys.path.append({str(ROOT)!r})\nfrom pygpt.command.cli import run\n"
    code += "run(lambda: print('a\\u65e5\\udcff\\ud800é'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a?\xff??\n", b"")


# ---- the command pygpt ----


def run_pygpt(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As the file that pip makes for it: a script of the name pygpt, which calls what pyproject.toml says."""
    text = (ROOT / "pyproject.toml").read_text()
    module, function = re.search(r'^pygpt = "([\w.]+):(\w+)"$', text, re.MULTILINE).groups()
    code = f"import sys; sys.argv[0] = '/bin/pygpt'; from {module} import {function}; {function}()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_command_is_the_script(name: str) -> None:
    script = PROGRAMS[name].script
    command = run_pygpt(name, "--help")
    other = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--help"], capture_output=True, text=True, check=True
    )
    assert command.returncode == 0 and f"usage: pygpt {name} " in command.stdout
    assert f"usage: python scripts/{script} " in other.stdout
    # the usage is indented by the length of the name
    flags = [help[help.index("\n\n") :] for help in (command.stdout, other.stdout)]
    assert flags[0] == flags[1]


def test_the_commands_are_listed() -> None:
    found = run_pygpt("--help")
    assert found.returncode == 0
    for name, program in PROGRAMS.items():
        assert re.search(rf"^ *{name} +{program.summary}$", found.stdout, re.MULTILINE)
    assert {program.script for program in PROGRAMS.values()} <= {path.name for path in (ROOT / "scripts").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            [],
            "pygpt stands alone, expected one of train, generate, .*, experiment, study, compare, exercise after it",
        ),
        (["genrate"], "'genrate' is not a command of pygpt, expected one of .*; did you mean generate?"),
        (["--help-me"], "--help-me is not a flag; did you mean --help?"),
        (["--print-completion", "ksh"], "--print-completion: invalid choice: 'ksh'"),
        (["compare", "--seqlen", "3"], "--seqlen is not a flag; did you mean --seq-len?"),
        (["prepare", "--data", "no/such/text"], "no/such/text: there is no such file or folder"),
    ],
)
def test_wrong_commands(arguments: list[str], sentence: str) -> None:
    found = run_pygpt(*arguments)
    assert (found.returncode, found.stdout) == (2, "")
    assert re.match(f"error: {sentence}", found.stderr) and found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv0", "words"),
    [
        ("/usr/bin/pygpt", ["pygpt", "prepare"]),
        ("C:/Scripts/pygpt.exe", ["pygpt", "prepare"]),
        ("scripts/train.py", ["python", "scripts/prepare_data.py"]),
        ("", ["python", "scripts/prepare_data.py"]),
    ],
)
def test_messages_name_the_program_in_the_same_way(argv0: str, words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [argv0])
    assert programs.call("prepare") == words


def test_messages_of_an_installed_package_name_no_script(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "CHECKOUT", tmp_path)
    assert programs.call("train") == ["pygpt", "train"]


# ---- completion ----


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, in a folder with a text and a run."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "output.txt").touch()
    (folder / "out" / "stdlib").mkdir(parents=True)
    script = run_pygpt("--print-completion", "bash")
    assert (script.returncode, script.stderr) == (0, "")
    (folder / "script").write_text(script.stdout)
    return folder / "script"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pygpt tr", "train"),
        ("pygpt ", "train generate prepare tokenizer export import evaluate experiment study compare exercise"),
        ("pygpt train --pre", "--preset"),
        ("pygpt train --preset shakespeare-char-", "shakespeare-char-gpu"),
        ("pygpt train --device ", "auto cpu cuda cuda-emulated numpy"),
        ("pygpt generate --device ", "auto cpu cuda cuda-emulated numpy"),
        ("pygpt train --overwrite --dtype b", "bfloat16"),
        ("pygpt prepare --tokenizer ", "bpe byte char gpt2"),
        ("pygpt study att", "attribution"),
        ("pygpt compare --se", "--seq-len --seed"),
        ("pygpt exercise s", "start"),
        ("pygpt exercise start attention_h", "attention_head attention_heads"),
        ("pygpt train --data out", "out output.txt"),
        ("pygpt train --resume out", "out"),
        ("pygpt generate --model out/", "out/stdlib"),
        ("pygpt export out", "out output.txt"),
        ("pygpt export out --dtype q", "q8_0"),
        ("pygpt import output.txt out --add", "--add-token"),
        ("pygpt tokenizer out", "out output.txt"),
        ("pygpt tokenizer out --o", "--out"),
        ("pygpt tokenizer out --vocab-size ", ""),
        ("pygpt train --max-iters ", ""),
        ("pygpt train --learning-rate ", ""),
        ("pygpt generate --model out ", ""),
    ],
)
def test_bash_completes(line: str, expected: str, completion: Path) -> None:
    """What TAB at the end of a line calls, where no program can be called: it does not start Python."""
    function = re.search(r"^complete .*-F (\w+) pygpt$", completion.read_text(), re.MULTILINE)
    words = [*line.split(), *([""] if line.endswith(" ") else [])]
    code = f'source ./script; COMP_LINE="$*" COMP_POINT={len(line)} COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))\n'
    code += f'{function[1]} pygpt "${{@:$#}}" "${{@:$#-1:1}}"; printf "%s\n" "${{COMPREPLY[@]}}"'
    command = [shutil.which("bash"), "--norc", "-c", code, "bash", *words]
    done = subprocess.run(command, cwd=completion.parent, env={"PATH": ""}, capture_output=True, text=True, check=True)
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(expected.split()), "")


@pytest.mark.parametrize(("shell", "registration"), [("zsh", "#compdef pygpt\n"), ("fish", "complete -c pygpt ")])
def test_other_shells_complete(shell: str, registration: str) -> None:
    script = run_pygpt("--print-completion", shell)
    assert (script.returncode, script.stderr) == (0, "")
    assert registration in script.stdout and "default bytes shakespeare-char shakespeare-char-gpu gpt2" in script.stdout


def test_faults_of_the_program_keep_their_traceback():
    status, _, stderr = end("1 / 0")
    assert status == 1 and "Traceback" in stderr and "ZeroDivisionError" in stderr


def test_positive_int():
    assert positive_int("12") == 12
    for text in ("0", "-3", "1.5", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="integer of at least 1"):
            positive_int(text)
