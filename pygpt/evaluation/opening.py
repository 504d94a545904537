"""A model to be evaluated, with the tokenizer that belongs to it."""

from __future__ import annotations

from pathlib import Path

from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.memory import check_memory
from pygpt.model import GPT2, memory_needed, set_threads
from pygpt.text.tokenizer import Tokenizer, load_tokenizer


def open_tokenizer(folder: Path, config: GPT2Config) -> Tokenizer:
    """The tokenizer in a model's folder.  Raises UserError when there is none, or it has more tokens than the model."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} {tokenizer.name} tokens, "
            f"but the model has {config.vocab_size}, so they do not belong together"
        )
    return tokenizer


def open_model(
    folder: Path,
    config: GPT2Config,
    *,
    device: str = "auto",
    dtype: str = "float32",
    kernels: str = "fast",
    threads: int | None = None,
    batch_size: int,
) -> GPT2:
    """The model in a folder, for batches of sequences as long as it has positions.

    Raises UserError when it cannot be opened, or does not fit into memory.
    """
    options = {"device": resolve_device(device), "dtype": dtype, "kernels": kernels}
    needed = memory_needed(config, training=False, batch_size=batch_size, seq_len=config.n_positions, **options)
    check_memory(needed, "take a smaller batch or a smaller model", options["device"])
    if DEVICES[options["device"]].has_threads:
        set_threads(threads)
    return GPT2.from_pretrained(folder, config=config, **options)
