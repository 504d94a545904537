"""Compare a device with numpy in float64, layer by layer.  See docs/comparing.md.

Exit status: 0 within the bounds, 1 out of them, 2 for bad input."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.backends.sources import OutdatedLibrary
from pygpt.command import programs
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser
from pygpt.command.machine import add_machine_flags
from pygpt.comparing.compare import Row, as_json, compare, first_out_of_bounds, perturb, table, verdict
from pygpt.config import GPT2Config
from pygpt.files.atomic import check_writable
from pygpt.files.checkpoint import read_config
from pygpt.files.hub import resolve_folder
from pygpt.files.json_file import save_json
from pygpt.memory import check_memory
from pygpt.model import GPT2, layers, memory_needed, set_threads
from pygpt.reference.arrays import Array
from pygpt.text.batches import TokenDataset
from pygpt.text.prepare import ensure
from pygpt.text.tokenizer import load_tokenizer

SEQ_LEN = 29  # no multiple of any block
BYTES = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Compare as a command line asks for.  Returns the exit status."""
    flags = make_parser().parse(argv)
    if flags.json is not None:
        check_writable(flags.json)
    warnings.simplefilter("error", OutdatedLibrary)  # what an edit has outdated is not judged
    folder = None if flags.model is None else resolve_folder(flags.model)
    data = None if flags.data is None else _open_data(flags.data, folder)
    config = _fresh_config(flags, data) if folder is None else read_config(folder)
    seq_len = flags.seq_len or min(SEQ_LEN, config.n_positions)
    device = resolve_device(flags.device)
    sets = (flags.kernels,) if flags.kernels else DEVICES[device].kernels
    backends = {kernels: {"device": device, "dtype": flags.dtype, "kernels": kernels} for kernels in sets}
    for backend in backends.values():
        _check_memory(config, flags.batch_size, seq_len, backend)
    if DEVICES[device].has_threads:
        set_threads(flags.threads)

    found = {
        kernels: _judge(backend, config, folder, data, (flags.batch_size, seq_len), flags.seed)
        for kernels, backend in backends.items()
    }

    shape = f"{config.n_layer} blocks, {config.n_head} heads, {config.n_embd} channels, {config.vocab_size} tokens"
    print(f"{flags.model or 'fresh model'}: {shape}; batch {flags.batch_size} x {seq_len}")
    print(f"{device} {flags.dtype} against numpy float64{_library(device)}")
    for kernels, rows in found.items():
        print(f"{kernels} kernels")
        print(table(rows, flags.dtype))
    print("; ".join(f"{kernels} kernels: {verdict(rows)}" for kernels, rows in found.items()))
    first = {kernels: first_out_of_bounds(rows) for kernels, rows in found.items()}
    if flags.json is not None:
        settings = {"model": flags.model, "data": flags.data, "batch_size": flags.batch_size, "seq_len": seq_len}
        settings |= {"seed": flags.seed, "device": device, "dtype": flags.dtype}
        judged = {
            kernels: {"first_out_of_bounds": first[kernels] and str(first[kernels]), "rows": as_json(rows)}
            for kernels, rows in found.items()
        }
        save_json(flags.json, {**settings, "kernels": judged})
    return 1 if any(first.values()) else 0


def _judge(
    backend: dict[str, str],
    config: GPT2Config,
    folder: Path | None,
    data: TokenDataset | None,
    shape: tuple[int, int],
    seed: int,
) -> list[Row]:
    """folder: of the model, and data: of the batch; random numbers in place of None.  shape: (B,T) of the batch."""
    if folder is None:
        model = GPT2(config, **backend, seed=seed)
        perturb(model, seed)
    else:
        model = GPT2.from_pretrained(folder, config=config, **backend, seed=seed)
    if data is None:
        tokens, targets = _random_batch(config.vocab_size, *shape, seed)
    else:
        tokens, targets = data.batch(0, *shape, seed)
    return compare(model, layers(**backend), tokens, targets)


def _library(device: str) -> str:
    """The end of a line: which file is judged, and when it was built."""
    library_path = DEVICES[device].library_path
    if library_path is None:
        return ""
    path = library_path()
    return f": {path}, built {datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"


def make_parser() -> Parser:
    """The flags of the command."""
    parser = programs.parser("compare", __doc__)
    parser.add_argument(
        "--model", metavar="FOLDER", help="model folder or a name on huggingface.co; else a small one of random numbers"
    )
    parser.add_argument("--data", metavar="NAME|PATH", help="the batch's text or token files; random tokens without it")
    parser.add_argument("--batch-size", type=positive_int, default=2, metavar="N", help="sequences in the batch")
    parser.add_argument(
        "--seq-len", type=positive_int, metavar="N", help=f"tokens in a sequence; up to {SEQ_LEN} if it is not given"
    )
    parser.add_argument("--dropout", type=float, default=0.0, metavar="X", help="of the model of random numbers")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights, tokens and dropout")
    add_machine_flags(parser, all_kernels=True)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    return parser


def _open_data(data: str, folder: Path | None) -> TokenDataset:
    """The training tokens, in those of the model if there is one."""
    return TokenDataset(ensure(data, None if folder is None else load_tokenizer(folder)), "train")


def _fresh_config(flags: argparse.Namespace, data: TokenDataset | None) -> GPT2Config:
    """A small model, with more positions than the batch has, and of a head size that CUDA's attention in tiles has."""
    dropouts = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), flags.dropout)
    vocab_size = BYTES if data is None else data.vocab_size
    positions = (flags.seq_len or SEQ_LEN) + 3
    return GPT2Config(vocab_size=vocab_size, n_positions=positions, n_embd=128, n_layer=2, n_head=2, **dropouts)


def _check_memory(config: GPT2Config, batch_size: int, seq_len: int, backend: dict[str, str]) -> None:
    """Room for the model, for numpy's in float64, and in bfloat16 for the emulation."""
    sizes: dict[str, Any] = {"batch_size": batch_size, "seq_len": seq_len, "training": True}
    models: list[dict[str, Any]] = [{**backend}, {"device": "numpy", "dtype": "float64"}]
    if backend["dtype"] == "bfloat16":
        models.append({"device": "numpy", "dtype": "float32"})
    advice, needed = "take a smaller batch or a smaller model", [memory_needed(config, **sizes, **m) for m in models]
    device = DEVICES[backend["device"]]
    if device.memory:
        check_memory(needed[0], advice, backend["device"])
    check_memory(sum(needed if device.in_host_memory else needed[1:]), advice)


def _random_batch(vocab_size: int, batch_size: int, seq_len: int, seed: int) -> tuple[Array, Array]:
    """Tokens and the tokens that follow, (B,T) each; one target is left out."""
    rows = np.random.default_rng(seed).integers(0, vocab_size, (batch_size, seq_len + 1), np.int32)
    targets = rows[:, 1:].copy()
    if targets.size > 1:
        targets[0, 0] = -1
    return rows[:, :-1].copy(), targets
