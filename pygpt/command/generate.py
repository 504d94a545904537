"""Write text with a GPT-2, token by token.  See docs/training.md."""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser
from pygpt.command.machine import add_machine_flags
from pygpt.command.programs import call
from pygpt.config import GPT2Config
from pygpt.files.checkpoint import read_config
from pygpt.files.hub import resolve_folder
from pygpt.generation.generate import generate_samples, printable, start_token
from pygpt.generation.sampling import check_sampling
from pygpt.memory import check_memory
from pygpt.model import GPT2, memory_needed, set_threads
from pygpt.text.text_ends import read_text_ends
from pygpt.text.tokenizer import Tokenizer, load_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Write the text that a command line asks for."""
    flags = make_parser().parse(argv)
    check_sampling(flags.temperature, flags.top_k, flags.top_p)
    folder = resolve_folder(flags.model)
    tokenizer = load_tokenizer(folder)
    config = read_config(folder)
    ends = read_text_ends(folder, config.vocab_size)
    prompt = _read_prompt(flags.prompt)
    tokens = tokenizer.encode(prompt) if prompt else [start_token(tokenizer, ends.begin)]
    stop = ends.end or tokenizer.eot_token
    model = _load(folder, config, flags)
    samples = generate_samples(
        model,
        tokens,
        flags.num_samples,
        flags.max_new_tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        seed=flags.seed,
        stop_token=stop if flags.stop_at_eot else None,
        allowed_tokens=tokenizer.known_tokens(),
    )
    _print(samples, flags.num_samples, prompt, tokenizer)


def make_parser() -> Parser:
    """The flags of the command."""
    parser = Parser(
        prog=" ".join(call("generate")),
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "prompt",
        nargs="?",
        default="",
        help="- reads it from standard input; what begins with - stands last, after --; none: a text begins anew",
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder, or a name on huggingface.co")
    parser.add_argument("--max-new-tokens", type=positive_int, default=256, metavar="N", help="length of a sample")
    parser.add_argument("--num-samples", type=positive_int, default=1, metavar="N", help="samples, computed together")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="0: always the likeliest token")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw only from the N likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, metavar="X", help="draw only from the likeliest with probability X together"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws")
    parser.add_argument(
        "--stop-at-eot", action=argparse.BooleanOptionalAction, default=True, help="end at the end-of-text token"
    )
    add_machine_flags(parser)
    return parser


def _read_prompt(argument: str) -> str:
    """The prompt, from standard input if it is -; bytes that are not UTF-8 stay what they are."""
    if argument == "-":
        data = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    else:
        data = argument.encode("utf-8", "surrogateescape")  # of which the locale may have understood less
    return data.decode("utf-8", "surrogateescape")


def _load(folder: Path, config: GPT2Config, flags: argparse.Namespace) -> GPT2:
    device = resolve_device(flags.device)
    options = {"device": device, "dtype": flags.dtype, "kernels": flags.kernels}
    needed = memory_needed(config, training=False, batch_size=flags.num_samples, seq_len=config.n_positions, **options)
    check_memory(needed, "take fewer samples or a smaller model", device)
    if DEVICES[device].has_threads:
        set_threads(flags.threads)
    return GPT2.from_pretrained(folder, config=config, **options)


def _print(samples: Iterator[list[int | None]], count: int, prompt: str, tokenizer: Tokenizer) -> None:
    """Print the first sample as it comes, and the others, which came with it, after it."""
    texts: list[list[int]] = [[] for _ in range(count)]

    def first() -> Iterator[int]:
        for row in samples:
            for text, token in zip(texts, row, strict=True):
                if token is not None:
                    text.append(token)
            if row[0] is not None:
                yield row[0]

    for number in range(count):
        if count > 1:
            print(f"---- sample {number + 1} of {count}")
        _write(prompt)
        for piece in tokenizer.decode_stream(first() if number == 0 else texts[number]):
            _write(piece)
        print(flush=True)


def _write(text: str) -> None:
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
