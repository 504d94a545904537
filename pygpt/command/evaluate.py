"""Measure a GPT-2: perplexity of a text, or a published task.  See docs/evaluation.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict

from pygpt.backends.devices import resolve_device
from pygpt.command import programs
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser, nearest
from pygpt.command.machine import add_machine_flags
from pygpt.command.weights import add_weights_flags, read_calibration
from pygpt.errors import UserError
from pygpt.evaluation import hellaswag, lambada, perplexity
from pygpt.evaluation.result import Estimate, Result
from pygpt.evaluation.scoring import Evaluated
from pygpt.files.atomic import check_writable
from pygpt.files.checkpoint import read_config
from pygpt.files.hub import resolve_folder
from pygpt.files.json_file import save_json
from pygpt.opening import open_generator, open_model, open_tokenizer
from pygpt.text.tokenizer import Tokenizer

Measure = Callable[[Evaluated], Result]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what a command line asks for."""
    flags = make_parser().parse(argv)
    if flags.task not in TASKS:
        raise UserError(f"--task is {flags.task!r}, expected {', '.join(TASKS)}{nearest(flags.task, list(TASKS))}")
    for name in ("window", "stride"):
        if flags.task != "perplexity" and getattr(flags, name) is not None:
            raise UserError(f"--{name} is for --task perplexity, and {flags.task} is asked for")
    if flags.json is not None:
        check_writable(flags.json)
    folder = resolve_folder(flags.model)
    config = read_config(folder)
    tokenizer = open_tokenizer(folder, config)
    measure = TASKS[flags.task](flags, tokenizer)
    calibration = read_calibration(flags, config, tokenizer)
    machine = {name: getattr(flags, name) for name in ("device", "dtype", "kernels")}
    model: Evaluated
    if flags.weights is None:
        model = open_model(folder, config, **machine, threads=flags.threads, batch_size=flags.batch_size)
    else:
        formats = {"weights": flags.weights, "calibration": calibration}
        model = open_generator(folder, config, **machine, threads=flags.threads, **formats)
    result = measure(model)
    print(_table(flags, result))
    if flags.json is not None:
        names = ("model", "task", "data", "limit", "batch_size", "weights", "calibrate")
        about = {name: getattr(flags, name) for name in names} | machine | {"device": resolve_device(flags.device)}
        save_json(flags.json, {**about, **asdict(result)})


def make_parser() -> Parser:
    """The flags of the command."""
    parser = programs.parser("evaluate", __doc__)
    parser.add_argument("model", metavar="FOLDER", help="model folder, or a name on huggingface.co")
    parser.add_argument("--task", default="perplexity", metavar="|".join(TASKS), help="what is measured")
    parser.add_argument(
        "--data",
        metavar="NAME|PATH",
        help="for perplexity: a text file, or a folder of tokens or name, of which the validation part is taken; "
        "for a task: its file, which is downloaded if it is not given",
    )
    parser.add_argument("--window", type=positive_int, metavar="N", help="tokens that a prediction sees at most")
    parser.add_argument("--stride", type=positive_int, metavar="N", help="tokens between windows; half a window")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N examples, or windows")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="sequences in a batch; with --weights, one"
    )
    add_weights_flags(parser, "without it, the model itself computes, in --dtype")
    add_machine_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    return parser


def _perplexity(flags: argparse.Namespace, tokenizer: Tokenizer) -> Measure:
    if flags.data is None:
        raise UserError("--data is missing: --task perplexity needs a text file, a folder of tokens, or a data set")
    tokens = perplexity.read_text(flags.data, tokenizer)
    sizes = {"width": flags.window, "stride": flags.stride, "batch_size": flags.batch_size, "limit": flags.limit}
    return lambda model: perplexity.evaluate(model, tokenizer, tokens, flags.data, **sizes)


def _lambada(flags: argparse.Namespace, tokenizer: Tokenizer) -> Measure:
    passages = lambada.read_passages(flags.data, flags.limit)
    return lambda model: lambada.evaluate(model, tokenizer, passages, batch_size=flags.batch_size)


def _hellaswag(flags: argparse.Namespace, tokenizer: Tokenizer) -> Measure:
    choices = hellaswag.read_choices(flags.data, flags.limit)
    return lambda model: hellaswag.evaluate(model, tokenizer, choices, batch_size=flags.batch_size)


TASKS: dict[str, Callable[[argparse.Namespace, Tokenizer], Measure]] = {
    "perplexity": _perplexity,
    "lambada": _lambada,
    "hellaswag": _hellaswag,
}
"""What reads a task's data, and returns what measures a model on them."""


def _table(flags: argparse.Namespace, result: Result) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in result.counts.items())
    formats = "" if flags.weights is None else f", weights in {flags.weights}"
    formats += "" if flags.calibrate is None else f" calibrated on {flags.calibrate}"
    lines = [f"{flags.model}: {flags.task}{'' if flags.data is None else f' of {flags.data}'}, {counts}{formats}"]
    lines.append(result.protocol)
    width = max(map(len, result.metrics))
    lines += [f"{name.replace('_', ' '):{width}}  {_number(estimate)}" for name, estimate in result.metrics.items()]
    return "\n".join(lines)


def _number(estimate: Estimate) -> str:
    style = ".4f" if estimate.value < 1e6 else ".4g"
    error = "" if estimate.error is None else f" ± {estimate.error:{style}}"
    return f"{estimate.value:10{style}}{error}"
