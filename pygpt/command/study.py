"""Look inside a model with instruments.  See docs/study.md."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pygpt.backends.devices import DEVICES
from pygpt.backends.interface import DTYPES, KERNELS
from pygpt.command import programs, study_page
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser, nearest
from pygpt.errors import UserError
from pygpt.files.atomic import check_writable
from pygpt.files.json_file import json_text, save_json
from pygpt.model import GPT2, set_threads
from pygpt.reference.arrays import Array
from pygpt.study.answers import answers
from pygpt.study.attribution import attribution
from pygpt.study.budget import budget
from pygpt.study.changes import Change
from pygpt.study.gradcheck import gradcheck
from pygpt.study.heads import LONGEST, heads
from pygpt.study.landscape import DIRECTIONS, landscape
from pygpt.study.lens import lens
from pygpt.study.make import QUESTIONS, TASKS, make
from pygpt.study.memory import memory
from pygpt.study.neighbours import neighbours
from pygpt.study.norms import norms
from pygpt.study.opening import Reading, Subject
from pygpt.study.patch import part_of, patch
from pygpt.study.plot import plot
from pygpt.study.result import Result
from pygpt.study.sink import sink
from pygpt.study.spectrum import spectrum
from pygpt.study.step import step
from pygpt.study.step import summary as step_summary
from pygpt.study.thermo import thermo
from pygpt.study.trace import Trace, summary, trace
from pygpt.text.tokenizer import holds_tokenizer
from pygpt.training.optimizer import ModelMoments
from pygpt.training.run_folder import BEST, OPTIMIZER_FILE, RunFolder
from pygpt.training.settings import SETTINGS_FILE, read_settings


@dataclass(frozen=True)
class Verb:
    summary: str
    run: Callable[[argparse.Namespace, Subject], Result]
    text: bool = True  # whether it needs one
    exact: bool = False  # whether it computes in numpy in float64 only, and measures the backends beside that
    flags: tuple[str, ...] = ()  # that not all of them take

    @property
    def predicts(self) -> bool:
        """Whether the model reads the text and predicts tokens of it."""
        return "masked" in self.flags


def main(argv: Sequence[str] | None = None) -> int:
    """Use the instrument that a command line names.  Returns the exit status, 1 where it found what must not be."""
    flags = make_parser().parse(argv)
    verbs = [*VERBS, MAKE]
    if flags.verb not in verbs:
        raise UserError(f"{flags.verb!r} is no instrument, expected {', '.join(verbs)}{nearest(flags.verb, verbs)}")
    verb = VERBS.get(flags.verb)
    _check(flags, verb)
    if verb is None:
        print(f"{flags.text}: {make(flags.model, flags.text)!r}...")
        return 0
    machine = {name: getattr(flags, name) for name in ("device", "dtype", "kernels", "threads")}
    if verb.exact:
        machine |= {"device": "numpy", "dtype": "float64"}
        set_threads(flags.threads)  # of the backends beside it
    for path in (flags.plot, flags.json):
        if path not in (None, "-"):
            check_writable(path)
    subject = Subject(flags.model, **machine)
    result = verb.run(flags, subject)
    if verb.predicts and not subject.config.causal:
        reading = _read(flags, subject)
        result = replace(result, notes=[*result.notes, f"{reading.note}: {subject.masked_words(reading)}"])
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
    return int(result.failed)


def make_parser() -> Parser:
    """The flags of the command."""
    instruments = "\n".join(f"  {name:12}{verb.summary}" for name, verb in VERBS.items())
    parser = Parser(
        prog=" ".join(programs.call("study")),
        description=f"{__doc__}\n\ninstruments:\n{instruments}\n\n"
        f"  {MAKE:12}write a text to train a small model on: {MAKE} {'|'.join(TASKS)} FILE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", metavar="|".join([*VERBS, MAKE]), help="the instrument")
    parser.add_argument("model", metavar="FOLDER", help="model folder, or a name on huggingface.co")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what the model reads")
    devices = ("auto", *DEVICES)
    parser.add_argument("--device", choices=devices, help="(default: numpy for a small model, else auto)")
    parser.add_argument(
        "--dtype", choices=("float64", *DTYPES), help="(default: float64 with numpy, which alone has it, else float32)"
    )
    parser.add_argument("--kernels", choices=KERNELS, default="fast", help="(default: fast)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there, too; - prints them, and no table")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture there, a PNG")
    special = parser.add_argument_group("of some instruments")

    def add(name: str, help: str, *short: str, **settings: object) -> None:
        takers = ", ".join(verb for verb, about in VERBS.items() if name.replace("-", "_") in about.flags)
        special.add_argument(*short, f"--{name}", help=f"{takers}: {help}", **settings)  # type: ignore[arg-type]

    add("masked", "tokens to mask, such as 3,7-9, where causal is false (default: as in a validation)", metavar="LIST")
    add("other", "another text", metavar="TEXT")
    add("name", "an activation, such as h.0.attn.heads", metavar="NAME")
    add("toward", "add the embedding of this token, as long as --scale says, instead of setting to 0", metavar="TEXT")
    add("scale", "length of what is added (default: 1)", type=float, metavar="X")
    add("layer", "whose head it is", type=_index, metavar="N")
    add("head", "a head, from 0 on", type=_index, metavar="N")
    add("position", "a position in the text, from 0 on", type=_index, metavar="N")
    add("task", f"{' or '.join(QUESTIONS)}, as make writes them", metavar="NAME")
    add("tensor", "only this matrix, such as wte.weight or h.0.head.0.qk", metavar="NAME")
    add("length", f"random tokens (default: as many as fit twice, up to {LONGEST})", type=positive_int, metavar="N")
    add("count", "how many (default: 5)", type=positive_int, metavar="N")
    add("learning-rate", f"(default: {study_page.LEARNING_RATE:g})", type=float, metavar="X")
    add("output", f"the file to write (default: {study_page.OUTPUT})", "-o", metavar="FILE")
    add("layers", "blocks whose maps are stored, such as 0,3-5 (default: all)", metavar="LIST")
    add("channels", "how many of a map are stored (default: as many as fit)", type=positive_int, metavar="N")
    add("serve", "on a loopback address, with a text to type and steps to take", action="store_true", default=None)
    add("port", f"of --serve (default: {study_page.PORT})", type=int, metavar="N")
    add("direction", "(default: random)", choices=DIRECTIONS)
    add("plane", "a second direction, random", action="store_true", default=None)
    add("points", "in each direction (default: 21)", type=positive_int, metavar="N")
    add("extent", "how far to go; 1 is as long as the weights (default: 0.5)", type=float, metavar="X")
    return parser


def _index(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    return positive_int(text) if text != "0" else 0


def _check(flags: argparse.Namespace, verb: Verb | None) -> None:
    """Whether text and flags are those of the verb; None is the one that makes a text."""
    special = {flag for other in VERBS.values() for flag in other.flags}
    taken = () if verb is None else verb.flags
    for name in sorted(special):
        if getattr(flags, name) is not None and name not in taken:
            takers = " and ".join(other for other, about in VERBS.items() if name in about.flags)
            raise UserError(f"--{name.replace('_', '-')} is for {takers}, and {flags.verb} is asked for")
    for name in ("device", "dtype"):
        if verb is not None and verb.exact and getattr(flags, name) is not None:
            raise UserError(
                f"--{name} is given, but {flags.verb} computes in numpy in float64 and measures all that is here"
            )
    if verb is None and flags.text is None:
        raise UserError(f"the file is missing: {flags.verb} {flags.model} writes one, whose name comes after it")
    if verb is not None and verb.text and flags.text is None:
        raise UserError(f"the text is missing: {flags.verb} needs one after the folder")
    if verb is not None and not verb.text and flags.text is not None:
        raise UserError(f"{flags.verb} takes no text, and {flags.text!r} is given")


def _given(flags: argparse.Namespace, **names: str) -> dict[str, object]:
    """The flags that are given, by the names of arguments."""
    values = {argument: getattr(flags, flag) for argument, flag in names.items()}
    return {argument: value for argument, value in values.items() if value is not None}


def _read(flags: argparse.Namespace, subject: Subject) -> Reading:
    return subject.read(flags.text, flags.masked)


def _traced(flags: argparse.Namespace, subject: Subject) -> Trace:
    reading = _read(flags, subject)
    return trace(subject.model, reading.tokens, reading.targets)


def _patch(flags: argparse.Namespace, subject: Subject) -> Result:
    if flags.name is None:
        raise UserError("--name is missing: patch needs the name of an activation, such as h.0.attn.heads")
    if flags.other is not None and flags.toward is not None:
        raise UserError("--other replaces and --toward adds: expected one of them")
    if flags.scale is not None and flags.toward is None:
        raise UserError("--scale is the length of what --toward adds, which is not given")
    reading, model = _read(flags, subject), subject.model
    part = part_of(subject.config, flags.name, flags.head, flags.position)
    change = Change(flags.name, 0.0, part)
    if flags.other is not None:
        others = subject.read(flags.other, flags.masked).tokens
        if len(others) != len(reading.tokens):
            raise UserError(f"--other has {len(others)} tokens, expected {len(reading.tokens)}, as many as the text")
        activations = trace(model, others).activations
        change = Change(flags.name, activations[flags.name][part] if flags.name in activations else 0.0, part)
    if flags.toward is not None:
        change = Change(flags.name, _direction(flags, subject, model), part, add=True)
    return patch(model, reading.tokens, [change], subject.words(reading), reading.targets)


def _direction(flags: argparse.Namespace, subject: Subject, model: GPT2) -> Array:
    tokens = subject.tokenizer.encode(flags.toward)
    if len(tokens) != 1:
        raise UserError(f"--toward is {flags.toward!r}, which has {len(tokens)} tokens, expected one")
    row = np.asarray(model.parameters["wte.weight"][tokens[0]], np.float64)
    if flags.scale is not None and not math.isfinite(flags.scale):
        raise UserError(f"--scale is {flags.scale:g}, expected a finite number")
    length = float(np.linalg.norm(row))
    return row * ((1.0 if flags.scale is None else flags.scale) / (length or 1.0))


def _heads(flags: argparse.Namespace, subject: Subject) -> Result:
    known = subject.tokenizer.known_tokens() if holds_tokenizer(subject.folder) else None
    subject.check_memory(8, subject.config.n_positions if flags.length is None else 2 * flags.length)
    return heads(subject.model, known, flags.length)


def _answers(flags: argparse.Namespace, subject: Subject) -> Result:
    if flags.task is None:
        raise UserError(f"--task is missing: answers needs one, {' or '.join(QUESTIONS)}")
    return answers(subject.model, subject.tokenizer, flags.task)


def _neighbours(flags: argparse.Namespace, subject: Subject) -> Result:
    tokens = subject.tokenizer.encode(flags.text)
    return neighbours(subject.model, tokens, flags.count or 5, subject.word, subject.tokenizer.known_tokens())


def _attribution(flags: argparse.Namespace, subject: Subject) -> Result:
    found, position = _traced(flags, subject), flags.position
    if position is None and not subject.config.causal:
        position = int(np.flatnonzero(found.targets[0] >= 0)[-1])
    return attribution(found, position, word=subject.word)


def _step(flags: argparse.Namespace, subject: Subject) -> Result:
    reading, lr = _read(flags, subject), study_page.learning_rate(flags)
    _load_moments(subject)
    return step_summary(step(subject.model, reading.tokens, reading.targets, lr=lr))


def _load_moments(subject: Subject) -> None:
    """Those of the checkpoint in a run's folder; the model of another folder has none."""
    if not (subject.folder / OPTIMIZER_FILE).is_file():
        return
    path = subject.folder.resolve().parent
    optimizer = read_settings(path / SETTINGS_FILE).get("optimizer", "adamw")
    if optimizer != "adamw":
        raise UserError(f"{path}: was trained with {optimizer}, and this is a step of AdamW: take {path / BEST}")
    with RunFolder(path, resume=True) as run:
        state = run.load_state()
        if state is not None and state.step:
            moments = ModelMoments(subject.model, optimizer)
            moments.load(run.read_moments(moments.shapes))
            subject.model.steps = state.step


def _memory(flags: argparse.Namespace, subject: Subject) -> Result:
    if flags.other is None:
        raise UserError("--other is missing: memory needs another text, whose loss is measured beside")
    text, other, lr = _read(flags, subject), subject.read(flags.other), study_page.learning_rate(flags)
    _load_moments(subject)
    return memory(subject.model, text.tokens, other.tokens, targets=text.targets, other_targets=other.targets, lr=lr)


def _landscape(flags: argparse.Namespace, subject: Subject) -> Result:
    names = ("direction", "plane", "points", "extent")
    settings: dict[str, object] = _given(flags, **dict(zip(names, names, strict=True)))
    reading = _read(flags, subject)
    return landscape(subject.model, reading.tokens, targets=reading.targets, **settings)  # type: ignore[arg-type]


def _gradcheck(flags: argparse.Namespace, subject: Subject) -> Result:
    reading = _read(flags, subject)
    return gradcheck(subject.model, reading.tokens, targets=reading.targets)


VERBS: dict[str, Verb] = {
    "trace": Verb(
        "every activation and its gradient",
        lambda flags, subject: summary(_traced(flags, subject)),
        flags=("masked",),
    ),
    "page": Verb("a page on which every number explains itself", study_page.page, exact=True, flags=study_page.FLAGS),
    "patch": Verb(
        "an activation set to 0, to another text's, or moved; and what becomes of the predictions",
        _patch,
        flags=("name", "head", "position", "other", "toward", "scale", "masked"),
    ),
    "step": Verb("one step of the optimizer, tensor by tensor", _step, flags=("learning_rate", "masked")),
    "memory": Verb(
        "what one step on a text changes, and for another text", _memory, flags=("other", "learning_rate", "masked")
    ),
    "lens": Verb(
        "what the model would predict after each block",
        lambda flags, subject: lens(_traced(flags, subject)),
        flags=("masked",),
    ),
    "norms": Verb(
        "residual stream, branches and gradients",
        lambda flags, subject: norms(_traced(flags, subject)),
        flags=("masked",),
    ),
    "heads": Verb("what heads attend to when random tokens come twice", _heads, text=False, flags=("length",)),
    "sink": Verb("attention to the first position", lambda flags, subject: sink(_traced(flags, subject))),
    "thermo": Verb(
        "softmax at other temperatures",
        lambda flags, subject: thermo(_traced(flags, subject), flags.layer, flags.head),
        flags=("layer", "head", "masked"),
    ),
    "answers": Verb("questions of a task, asked one by one", _answers, text=False, flags=("task",)),
    "spectrum": Verb(
        "singular values, beside those of random matrices",
        lambda flags, subject: spectrum(subject.model, flags.tensor),
        text=False,
        flags=("tensor",),
    ),
    "neighbours": Verb("the nearest embeddings of each token", _neighbours, flags=("count",)),
    "attribution": Verb(
        "what heads and neurons add to the difference of two logits", _attribution, flags=("position", "masked")
    ),
    "landscape": Verb(
        "the loss along a direction, or on a plane",
        _landscape,
        flags=("direction", "plane", "points", "extent", "masked"),
    ),
    "gradcheck": Verb(
        "gradients of the device's layers against finite differences",
        _gradcheck,
        flags=("masked",),
    ),
    "budget": Verb(
        "errors of every backend's layers, beside what rounding explains",
        lambda flags, subject: budget(_traced(flags, subject)),
        exact=True,
        flags=("masked",),
    ),
}
"""By their names."""

MAKE = "make"
"""Beside them: it has no model."""
