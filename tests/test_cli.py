"""How a command line ends."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pygpt.command.cli import positive_int

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


def test_faults_of_the_program_keep_their_traceback():
    status, _, stderr = end("1 / 0")
    assert status == 1 and "Traceback" in stderr and "ZeroDivisionError" in stderr


def test_positive_int():
    assert positive_int("12") == 12
    for text in ("0", "-3", "1.5", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="integer of at least 1"):
            positive_int(text)
