"""Write text with a GPT-2, token by token.  See docs/generation.md."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pygpt.backends.interface import CACHES, Generator
from pygpt.command import colour, programs
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser
from pygpt.command.machine import add_machine_flags
from pygpt.command.weights import add_weights_flags, read_calibration
from pygpt.config import GPT2Config
from pygpt.errors import UserError, reading
from pygpt.files.checkpoint import read_config
from pygpt.files.hub import resolve_folder
from pygpt.generation.generate import WINDOWS, Drawn, generate_samples, printable, start_token
from pygpt.generation.sampling import Sampling
from pygpt.generation.text import TextStream
from pygpt.opening import open_generator
from pygpt.text.text_ends import read_text_ends
from pygpt.text.tokenizer import Tokenizer, load_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Write the text that a command line asks for."""
    flags = make_parser().parse(argv)
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p, flags.min_p, flags.repetition_penalty)
    folder = resolve_folder(flags.model)
    tokenizer = load_tokenizer(folder)
    config = read_config(folder)
    ends = read_text_ends(folder, config.vocab_size)
    stop = (ends.end or tokenizer.eot_token) if flags.stop_at_eot else None

    def encode(prompt: str) -> list[int]:
        return tokenizer.encode(prompt).tolist() if prompt else [start_token(tokenizer, ends.begin)]

    def samples(prompt: str, tokens: list[int]) -> _Samples:
        return _Samples(generator, tokenizer, prompt, tokens, flags, sampling, stop)

    if flags.json and flags.colour != "never":
        raise UserError(f"--colour is {flags.colour}, and --json has no colours: leave one out")
    if flags.interactive:
        if flags.prompt or flags.prompt_file or flags.json:
            raise UserError("--interactive asks for prompts and writes texts: it goes without a prompt and --json")
        generator = _open(folder, config, tokenizer, flags, config.n_positions)
        _converse(lambda prompt: samples(prompt, encode(prompt)))
        return
    prompt = _read_prompt(flags.prompt, flags.prompt_file)
    tokens = encode(prompt)
    positions = min(len(tokens) + flags.max_new_tokens - 1, config.n_positions)
    generator = _open(folder, config, tokenizer, flags, positions)
    (_print_json if flags.json else _print)(samples(prompt, tokens))


def make_parser() -> Parser:
    """The flags of the command."""
    parser = programs.parser("generate", __doc__)
    parser.add_argument(
        "prompt",
        nargs="?",
        default="",
        help="- reads it from standard input; what begins with - stands last, after --; none: a text begins anew",
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder, or a name on huggingface.co")
    parser.add_argument("--prompt-file", metavar="FILE", help="a file that holds the prompt")
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="ask for prompts until the input ends (Ctrl-D); Ctrl-C ends a text",
    )
    parser.add_argument("--json", action="store_true", help="print tokens, texts and log-probabilities (nats) as JSON")
    parser.add_argument(
        "--colour",
        choices=colour.WHEN,
        default="never",
        help=f"show how likely each token is; {colour.LEGEND}; auto: only in a terminal, and not with NO_COLOR",
    )
    parser.add_argument("--max-new-tokens", type=positive_int, default=256, metavar="N", help="length of a sample")
    parser.add_argument("--num-samples", type=positive_int, default=1, metavar="N", help="samples, computed together")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="0: always the likeliest token")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw only from the N likeliest tokens; 0: from all")
    parser.add_argument(
        "--top-p", type=float, metavar="X", help="draw only from the likeliest with probability X together; 0: from all"
    )
    parser.add_argument(
        "--min-p", type=float, metavar="X", help="draw only tokens at least X times as likely as the likeliest; 0: all"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: tokens of the text get less likely"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    parser.add_argument(
        "--stop-at-eot", action=argparse.BooleanOptionalAction, default=True, help="end at the end-of-text token"
    )
    add_weights_flags(parser, "by default, that of --dtype")
    parser.add_argument("--cache", choices=CACHES, default="float32", help="format of keys and values")
    parser.add_argument(
        "--window", choices=WINDOWS, default="half", help="what the model sees of a text longer than its context"
    )
    parser.add_argument(
        "--lookup",
        type=int,
        default=0,
        metavar="N",
        help="let the text propose up to N tokens at a time, for speed",
    )
    add_machine_flags(parser)
    return parser


def _read_prompt(argument: str, file: str | None = None) -> str:
    """The prompt, from standard input if it is -; bytes that are not UTF-8 stay what they are."""
    if file is not None:
        if argument:
            raise UserError(f"there is a prompt, {argument!r:.40}, and --prompt-file {file}: expected one of them")
        with reading(file):
            data = Path(file).read_bytes().removeprefix(codecs.BOM_UTF8)
    elif argument == "-":
        data = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    else:
        data = argument.encode("utf-8", "surrogateescape")  # of which the locale may have understood less
    return data.decode("utf-8", "surrogateescape")


def _open(
    folder: Path, config: GPT2Config, tokenizer: Tokenizer, flags: argparse.Namespace, positions: int
) -> Generator:
    names = ("device", "dtype", "kernels", "threads", "weights", "cache")
    options = {name: getattr(flags, name) for name in names}
    calibration = read_calibration(flags, config, tokenizer)
    sizes = {"batch_size": flags.num_samples, "positions": positions}
    return open_generator(folder, config, **options, **sizes, calibration=calibration)


class _Samples:
    """The samples of one prompt, as they are written."""

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        prompt: str,
        tokens: list[int],
        flags: argparse.Namespace,
        sampling: Sampling,
        stop: int | Sequence[int] | None,
    ) -> None:
        self.prompt, self.prompt_tokens = prompt, tokens
        self.coloured = colour.is_wanted(flags.colour, sys.stdout)
        self.streams = [TextStream(tokenizer, flags.stop) for _ in range(flags.num_samples)]
        self.drawn: list[list[Drawn]] = [[] for _ in self.streams]
        self._steps = generate_samples(
            generator,
            [tokens] * flags.num_samples,
            flags.max_new_tokens,
            sampling,
            seed=flags.seed,
            stop_token=stop,
            allowed_tokens=tokenizer.known_tokens(),
            window=flags.window,
            lookup=flags.lookup,
            ends=lambda sample, token: self.streams[sample].add(token),
        )

    def grow(self) -> Iterator[None]:
        """Write all samples; yields when their texts may have grown."""
        self._times = [time.perf_counter()]
        for step in self._steps:
            self._times.append(time.perf_counter())
            for drawn, more in zip(self.drawn, step, strict=True):
                drawn.extend(more)
            yield
        for stream in self.streams:
            stream.end()
        yield

    def say_speed(self) -> None:
        """On standard error.  The first tokens come with the prompt, which is computed at once."""
        began, *steps = self._times
        prompts, first = len(self.prompt_tokens) * len(self.streams), sum(map(bool, self.drawn))
        after = sum(map(len, self.drawn)) - first
        if steps:
            speed = f", then {after / (steps[-1] - steps[0]):,.1f} tokens/s" if after else ""
            print(f"{prompts:,} prompt tokens in {steps[0] - began:.2f} s{speed}", file=sys.stderr)


def _print(samples: _Samples) -> None:
    """Print the first sample as it comes, and the others, which came with it, after it."""
    for number, (stream, drawn) in enumerate(zip(samples.streams, samples.drawn, strict=True), start=1):
        if len(samples.streams) > 1:
            print(f"---- sample {number} of {len(samples.streams)}")
        _write(samples.prompt)
        shown = 0
        for _ in samples.grow() if number == 1 else [None]:
            for token, piece in stream.pieces(shown):
                _write(piece, drawn[token].log_probability if samples.coloured else None)
            shown = len(stream.text)
        print(flush=True)
    samples.say_speed()


def _print_json(samples: _Samples) -> None:
    for _ in samples.grow():
        pass
    texts = [
        {
            "text": stream.text,
            "tokens": [one.token for one in drawn],
            "log_probabilities": [one.log_probability for one in drawn],
        }
        for stream, drawn in zip(samples.streams, samples.drawn, strict=True)
    ]
    print(json.dumps({"prompt": samples.prompt, "prompt_tokens": samples.prompt_tokens, "samples": texts}), flush=True)
    samples.say_speed()


def _converse(samples: Callable[[str], _Samples]) -> None:
    """A text for each line, with editing and history where standard input is a terminal."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if sys.stdin.isatty():
        with suppress(ImportError):
            # input() uses it
            import readline  # noqa: F401
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        try:
            _print(samples(prompt))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


def _write(text: str, log_probability: float | None = None) -> None:
    """log_probability: of the token, which is shown as a colour; None: it is not."""
    shown = printable(text) if sys.stdout.isatty() else text
    print(shown if log_probability is None else colour.paint(shown, log_probability), end="", flush=True)
