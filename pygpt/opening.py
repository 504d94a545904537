"""A model in a folder, opened if there is memory for it: with its tokenizer, or as a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pygpt.backends.devices import DEVICES, resolve_device
from pygpt.backends.interface import Generator
from pygpt.config import GPT2Config, check_causal
from pygpt.errors import UserError
from pygpt.memory import check_memory
from pygpt.model import GPT2, generator_memory_needed, memory_needed, set_threads
from pygpt.reference.arrays import Array
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
    seq_len: int | None = None,
    extra_memory: int = 0,
    advice: str = "take a smaller batch or a smaller model",
    causal: bool = True,
) -> GPT2:
    """The model in a folder, for batches of (batch_size, seq_len), by default as long as it has positions.

    extra_memory: bytes on its device that are needed besides it; advice: what helps where there is not enough; causal:
    whether the model is to predict the next token, and so must not see it.
    Raises UserError when it cannot be opened, or does not fit into memory.
    """
    if causal:
        check_causal(config, "predicts the next token of a text")
    options = {"device": resolve_device(device), "dtype": dtype, "kernels": kernels}
    seq_len = seq_len or config.n_positions
    needed = memory_needed(config, training=False, batch_size=batch_size, seq_len=seq_len, **options) + extra_memory
    check_memory(needed, advice, options["device"])
    if DEVICES[options["device"]].has_threads:
        set_threads(threads)
    return GPT2.from_pretrained(folder, config=config, **options)


def open_generator(
    folder: Path,
    config: GPT2Config,
    *,
    device: str = "auto",
    dtype: str = "float32",
    kernels: str = "fast",
    threads: int | None = None,
    weights: str | None = None,
    calibration: Array | None = None,
    cache: str = "float32",
    batch_size: int = 1,
    positions: int | None = None,
) -> Generator:
    """A generator of the model in a folder, which is all of the model that stays in memory.

    weights: their format, by default that of dtype; calibration: (n,T) tokens, and the other settings, as in
    GPT2.generator().  Raises UserError when it cannot be opened, or does not fit into memory.
    """
    device = resolve_device(device)
    settings: dict[str, Any] = {"weights": weights or dtype, "cache": cache}
    settings |= {"batch_size": batch_size, "positions": positions}
    rows, length = (1, 1) if calibration is None else calibration.shape
    model = open_model(
        folder,
        config,
        device=device,
        dtype=dtype,
        kernels=kernels,
        threads=threads,
        batch_size=rows,
        seq_len=length,
        extra_memory=generator_memory_needed(config, device=device, **settings),
        advice="take fewer samples, --weights of fewer bits, or a smaller model",
    )
    return model.generator(**settings, calibration=calibration)
