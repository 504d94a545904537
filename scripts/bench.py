"""Measure this machine, this library on it, and numpy and torch beside it.  See docs/performance.md.

Everything takes more than half an hour; --only measures some sections."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever is installed

from benchmarks.plot import HAVE_PICTURE, plot
from benchmarks.run import SECTIONS, chosen, run
from benchmarks.session import ENOUGH_REPEATS, TORCH, Session
from pygpt.backends.interface import DTYPES, KERNELS, RECOMPUTE
from pygpt.backends.library import available_cores
from pygpt.command.cli import positive_int
from pygpt.command.cli import run as run_main
from pygpt.command.flags import Parser
from pygpt.errors import UserError
from pygpt.files.atomic import check_writable, write_file


def main() -> None:
    flags = _parser().parse()
    sections = chosen(flags.only)
    if flags.plot is not None and not set(sections) & set(HAVE_PICTURE):
        raise UserError(f"--plot shows {', '.join(HAVE_PICTURE)}, and none of them is measured")
    for path in (flags.json, flags.plot):
        if path is not None:
            check_writable(path)
    session = Session(
        threads=flags.threads or available_cores(),
        repeats=flags.repeats,
        dtypes=DTYPES if flags.dtype is None else (flags.dtype,),
        kernels=flags.kernels,
        recompute=flags.recompute,
        torch=flags.torch,
        quick=flags.quick,
    )
    for found in run(session, sections):
        if flags.json is not None:
            with write_file(flags.json) as file:
                file.write(json.dumps(found, indent=1, allow_nan=False).encode())
        if flags.plot is not None and set(found) & set(HAVE_PICTURE):
            plot(flags.plot, found)


def _parser() -> Parser:
    parser = Parser(prog="bench.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", metavar="NAME[,NAME...]", help=f"sections: {', '.join(SECTIONS)}; all if not given")
    parser.add_argument("--repeats", type=positive_int, default=ENOUGH_REPEATS, metavar="N", help="samples of a median")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="on every side; one a core if not given")
    parser.add_argument("--dtype", choices=DTYPES, help="operands of matrix products; both if not given")
    parser.add_argument("--kernels", choices=KERNELS, default="fast", help="plain: the code to read and step through")
    parser.add_argument("--recompute", choices=RECOMPUTE, default="cheap", help="in whole steps; memory shows each")
    parser.add_argument(
        "--torch", choices=TORCH, default="all", help="all: eager and compiled; compiling takes minutes"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes: whether everything runs, not how fast")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--plot", metavar="FILE.png", help=f"draw {', '.join(HAVE_PICTURE)}")
    return parser


if __name__ == "__main__":
    run_main(main)
