"""Look inside a model with instruments.  See docs/study.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pygpt.backends.devices import DEVICES
from pygpt.backends.interface import DTYPES, KERNELS
from pygpt.command import programs, study_page
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser, nearest
from pygpt.errors import UserError
from pygpt.files.json_file import json_text, save_json
from pygpt.study.opening import Subject
from pygpt.study.plot import plot
from pygpt.study.result import Result
from pygpt.study.trace import summary, trace


@dataclass(frozen=True)
class Verb:
    summary: str
    run: Callable[[argparse.Namespace, Subject], Result]
    text: bool = True  # whether it needs one
    flags: tuple[str, ...] = ()  # that not all of them take


def main(argv: Sequence[str] | None = None) -> None:
    """Use the instrument that a command line names."""
    flags = make_parser().parse(argv)
    if flags.verb not in VERBS:
        raise UserError(
            f"{flags.verb!r} is no instrument, expected {', '.join(VERBS)}{nearest(flags.verb, list(VERBS))}"
        )
    verb = VERBS[flags.verb]
    _check(flags, verb)
    machine = {name: getattr(flags, name) for name in ("device", "dtype", "kernels", "threads")}
    result = verb.run(flags, Subject(flags.model, **machine))
    if flags.json != "-":
        print(result.table())
    if flags.plot is not None:
        plot(flags.plot, result)
    if flags.json is not None:
        numbers = {"verb": flags.verb, "model": flags.model, "text": flags.text, "arrays": result.as_json()}
        if flags.json == "-":
            print(json_text(numbers))
        else:
            save_json(flags.json, numbers)


def make_parser() -> Parser:
    """The flags of the command."""
    instruments = "\n".join(f"  {name:12}{verb.summary}" for name, verb in VERBS.items())
    parser = Parser(
        prog=" ".join(programs.call("study")),
        description=f"{__doc__}\n\ninstruments:\n{instruments}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", metavar="|".join(VERBS), help="the instrument")
    parser.add_argument("model", metavar="FOLDER", help="model folder, or a name on huggingface.co")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the text that the model reads")
    devices = ("auto", *DEVICES)
    parser.add_argument("--device", choices=devices, help="(default: numpy for a small model, else auto)")
    parser.add_argument(
        "--dtype", choices=("float64", *DTYPES), help="(default: float64 with numpy, which alone has it, else float32)"
    )
    parser.add_argument("--kernels", choices=KERNELS, default="fast", help="(default: fast)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--json", metavar="FILE", help="write all numbers there, too; - prints them instead of the table"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw a picture there, a PNG")
    special = parser.add_argument_group("of some instruments")

    def add(name: str, help: str, *short: str, **settings: object) -> None:
        takers = ", ".join(verb for verb, about in VERBS.items() if name.replace("-", "_") in about.flags)
        special.add_argument(*short, f"--{name}", help=f"{takers}: {help}", **settings)  # type: ignore[arg-type]

    add("output", f"the file to write (default: {study_page.OUTPUT})", "-o", metavar="FILE")
    add("layers", "blocks whose maps are stored, such as 0,3-5 (default: all)", metavar="LIST")
    add("channels", "how many of a map are stored (default: as many as fit)", type=positive_int, metavar="N")
    add("learning-rate", "(default: 0.001)", type=float, metavar="X")
    add("serve", "on a loopback address, with a text to type and steps to take", action="store_true", default=None)
    add("port", f"of --serve (default: {study_page.PORT})", type=int, metavar="N")
    return parser


def _check(flags: argparse.Namespace, verb: Verb) -> None:
    """Whether text and flags are those of the verb."""
    for name in sorted({flag for other in VERBS.values() for flag in other.flags}):
        if getattr(flags, name) is not None and name not in verb.flags:
            takers = " and ".join(other for other, about in VERBS.items() if name in about.flags)
            raise UserError(f"--{name.replace('_', '-')} is for {takers}, and {flags.verb} is asked for")
    if verb.text and flags.text is None:
        raise UserError(f"the text is missing: {flags.verb} needs one after the folder")
    if not verb.text and flags.text is not None:
        raise UserError(f"{flags.verb} takes no text, and {flags.text!r} is given")


def _trace(flags: argparse.Namespace, subject: Subject) -> Result:
    tokens = subject.tokens(flags.text)
    return summary(trace(subject.model, tokens))


VERBS: dict[str, Verb] = {
    "trace": Verb("every activation and its gradient", _trace),
    "page": Verb("a page on which every number explains itself", study_page.page, flags=study_page.FLAGS),
}
