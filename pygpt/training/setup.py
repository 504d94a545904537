"""What a training run needs before its first step: data, configuration, memory, model.

Each part raises UserError where the settings, the data and the model do not fit together.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pygpt.backends.devices import DEVICES
from pygpt.backends.library import default_threads
from pygpt.config import VARIATIONS, GPT2Config
from pygpt.errors import UserError
from pygpt.files import checkpoint
from pygpt.memory import available_memory, check_memory, gigabytes
from pygpt.model import GPT2, memory_needed, set_threads
from pygpt.parallel.exchange import slices
from pygpt.parallel.messages import EXCHANGE_BYTES
from pygpt.parallel.nccl import nccl_version
from pygpt.parallel.ranks import Ranks
from pygpt.parallel.tree import levels
from pygpt.text import tokenizer
from pygpt.text.batches import Batch, TokenDataset
from pygpt.text.masking import TRAINING, VALIDATION, masked
from pygpt.text.prepare import DEFAULT, ensure, kind_of
from pygpt.text.tokenizer import GPT2Tokenizer, Tokenizer
from pygpt.training.optimizer import Optimizer, WholeOptimizer, moment_shapes
from pygpt.training.settings import TrainSettings
from pygpt.training.sliced_optimizer import SLICED, SlicedOptimizer

_SHAPE = ("n_layer", "n_head", "n_embd", *(name for name in VARIATIONS if name != "causal"))  # objective says that
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    train: TokenDataset
    val: TokenDataset
    tokenizer: Tokenizer

    @property
    def mask_token(self) -> int:
        """That hides a token with objective mlm: the first which the tokenizer does not have."""
        return self.tokenizer.vocab_size

    def training_batch(self, first: int, settings: TrainSettings) -> Batch:
        """Windows number first, first + 1, ...: tokens and targets, (B,T) each."""
        batch = self.train.batch(first, settings.batch_size, settings.seq_len, settings.seed)
        return self._masked(batch, first, settings.seed, TRAINING) if settings.objective == "mlm" else batch

    def validation_batches(self, settings: TrainSettings) -> Iterator[Batch]:
        """The same batches in every validation and run, however they are seeded."""
        first = 0
        for batch in self.val.validation_batches(settings.batch_size, settings.seq_len, settings.eval_iters):
            yield self._masked(batch, first, 0, VALIDATION) if settings.objective == "mlm" else batch
            first += len(batch[0])

    def _masked(self, batch: Batch, first: int, seed: int, stream: int) -> Batch:
        return masked(batch, first, seed, stream, self.tokenizer.vocab_size, self.mask_token)

    @property
    def fingerprint(self) -> str:
        """The same only for the same tokens, as far as the description beside them tells."""
        parts = [self.tokenizer.fingerprint]
        parts += [f"{dataset.described.sha256} {len(dataset)}" for dataset in (self.train, self.val)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_data(settings: TrainSettings, source: Path | None) -> Data:
    """The data set, prepared unless it has been, in the tokens of the model folder `source` if there is one."""
    chosen: str | Tokenizer | None = settings.tokenizer
    own = source is not None and tokenizer.holds_tokenizer(source)
    if source is not None and (own or chosen is None):
        chosen = tokenizer.load_tokenizer(source)
        if settings.tokenizer is not None and kind_of(settings.tokenizer) != chosen.name:
            raise UserError(f"tokenizer is {settings.tokenizer}, but the model in {source} has {chosen.name} tokens")
    vocab = None if isinstance(chosen, Tokenizer) else settings.vocab
    folder = ensure(settings.data, chosen, default=DEFAULT, vocab=vocab, eot_in_text=settings.eot_in_text)
    data = Data(
        TokenDataset(folder, "train"),
        TokenDataset(folder, "val"),
        chosen if isinstance(chosen, Tokenizer) else _tokenizer_of(folder, settings.vocab),
    )
    data.train.check_tokenizer(data.tokenizer)
    return data


def check_windows(settings: TrainSettings, data: Data) -> None:
    """Raises UserError when the text is too short for a window in training and one in validation."""
    data.train.batch(0, 1, settings.seq_len, settings.seed)
    next(data.val.validation_batches(1, settings.seq_len, 1))


def _tokenizer_of(folder: Path, vocab: str | None) -> Tokenizer:
    """The tokenizer beside token files; beside llm.c's there is none, and they hold GPT-2's tokens."""
    if (folder / tokenizer.FILE_NAME).is_file():
        return tokenizer.load_tokenizer(folder)
    return GPT2Tokenizer.from_tiktoken() if vocab is None else GPT2Tokenizer.from_folder(vocab)


def model_config(settings: TrainSettings, given: frozenset[str], source: Path | None, data: Data) -> GPT2Config:
    """The model's configuration: that of the folder `source` if there is one, otherwise of the settings.

    given: settings that somebody asked for, which the folder may not contradict.
    """
    causal = settings.objective == "clm"
    dropout: dict[str, Any] = {} if settings.dropout is None else dict.fromkeys(_DROPOUTS, settings.dropout)
    if source is None:
        shape = {name: getattr(settings, name) for name in _SHAPE}
        vocab_size = data.tokenizer.vocab_size + (0 if causal else 1)  # the mask token
        sizes = {"vocab_size": vocab_size, "n_positions": settings.seq_len, "causal": causal, **shape}
        eot = data.tokenizer.eot_token
        return GPT2Config(**sizes, **dropout, bos_token_id=eot, eos_token_id=eot)
    config = replace(checkpoint.read_config(source), **dropout)
    for name in given.intersection(_SHAPE):
        asked, found = getattr(settings, name), getattr(config, name)
        if asked != found:
            raise UserError(f"{name} is {asked}, but the model in {source} has {found}; leave it out")
    if config.causal != causal:
        raise UserError(
            f"objective is {settings.objective}, but the model in {source} has causal: {str(config.causal).lower()}, "
            f"which goes with --objective {'clm' if config.causal else 'mlm'}"
        )
    if "seq_len" in given and settings.seq_len > config.n_positions:
        raise UserError(f"seq_len is {settings.seq_len}, but the model in {source} has {config.n_positions} positions")
    if config.vocab_size < data.tokenizer.vocab_size:
        raise UserError(
            f"{settings.data}: has a vocabulary of {data.tokenizer.vocab_size} {data.tokenizer.name} tokens, "
            f"but the model in {source} has {config.vocab_size}"
        )
    if not causal and config.vocab_size == data.tokenizer.vocab_size:
        raise UserError(
            f"objective mlm takes one token more than the {config.vocab_size} of the tokenizer, for the mask, and the "
            f"model in {source} has no more"
        )
    return config


def fitted(settings: TrainSettings, config: GPT2Config) -> TrainSettings:
    """The settings with the sizes of the model, and sequences that are not longer than it has positions."""
    shape = {name: getattr(config, name) for name in _SHAPE}
    return replace(settings, **shape, seq_len=min(settings.seq_len, config.n_positions))


def check_ranks(settings: TrainSettings, ranks: Ranks) -> None:
    """Raises UserError when several processes cannot train with these settings."""
    if ranks.several and not DEVICES[settings.device].ranks:
        able = ", ".join(name for name, device in DEVICES.items() if device.ranks)
        raise UserError(f"device is {settings.device}, expected {able} where {ranks.size} ranks train one model")
    if ranks.size > settings.grad_accum:
        raise UserError(
            f"grad_accum is {settings.grad_accum}, expected at least {ranks.size}, the number of ranks: "
            f"each computes whole batches of a step (--grad-accum {ranks.size}, with a smaller --batch-size)"
        )


def choose_device(settings: TrainSettings, ranks: Ranks) -> None:
    """Give each of several ranks a GPU of its own, by its number on its host.  Raises UserError where two share one."""
    choose = DEVICES[settings.device].choose
    if choose is None or not ranks.several:
        return
    chosen = ranks.gather(choose(ranks.rank_on_host))
    for rank, device in enumerate(chosen):
        if (other := chosen.index(device)) < rank:
            raise UserError(
                f"ranks {other} and {rank} would share the GPU {uuid.UUID(bytes=device)}, expected one for each: "
                "start as many on a host as it has GPUs, which CUDA_VISIBLE_DEVICES may hide"
            )


def check_run_memory(config: GPT2Config, settings: TrainSettings, ranks: Ranks) -> None:
    """Raises UserError, naming the batch size that would fit, when the device has less memory than is needed."""
    available = available_memory(settings.device)
    sharing = ranks.on_host if DEVICES[settings.device].in_host_memory else 1
    needed = sharing * memory_of_run(config, settings, settings.batch_size, ranks)
    if needed <= available:
        return
    fits, too_large = 0, settings.batch_size
    middle = 1  # first, so that a model which is far too large is refused at once
    while too_large - fits > 1:
        if sharing * memory_of_run(config, settings, middle, ranks) <= available:
            fits = middle
        else:
            too_large = middle
        middle = (fits + too_large) // 2
    advice = f"--batch-size {fits} would fit" if fits else "even --batch-size 1 would not fit; take a smaller model"
    if settings.recompute != "block" and DEVICES[settings.device].recomputes:
        advice += ", and --recompute block needs less"
    check_memory(needed, advice, settings.device)


def memory_of_run(config: GPT2Config, settings: TrainSettings, batch_size: int, ranks: Ranks) -> int:
    """Bytes that training takes on each rank with batches of this size."""
    machine = {name: getattr(settings, name) for name in ("device", "dtype", "kernels", "recompute", "optimizer")}
    needed = memory_needed(config, batch_size=batch_size, seq_len=settings.seq_len, training=True, **machine)
    if DEVICES[settings.device].ranks:
        needed += 4 * config.num_parameters * levels(len(ranks.share(settings.grad_accum)))
    if ranks.several:
        needed += EXCHANGE_BYTES
    if is_sliced(settings, ranks):
        whole = config.num_parameters
        kinds = sum(map(math.prod, moment_shapes(settings.optimizer, config).values())) // whole
        kinds += slices_weights(settings, ranks)
        needed -= 4 * kinds * (whole - max(part.stop - part.start for part in slices(ranks.size, slice(0, whole))))
    return needed


def create_model(config: GPT2Config, settings: TrainSettings, source: Path | None, ranks: Ranks) -> GPT2:
    """The model with the weights of the folder `source`, or with fresh ones."""
    names = ("device", "dtype", "kernels", "recompute", "seed")
    options: dict[str, Any] = {name: getattr(settings, name) for name in names}
    if DEVICES[settings.device].has_threads:
        set_threads(settings.threads or default_threads(ranks.on_cores), beyond_cores=settings.threads is None)
    if source is None:
        return GPT2(config, **options)
    return GPT2.from_pretrained(source, config=config, **options)


def create_optimizer(model: GPT2, settings: TrainSettings, ranks: Ranks) -> Optimizer:
    """The optimizer of a run, sliced over several ranks where it can be."""
    return (SlicedOptimizer if is_sliced(settings, ranks) else WholeOptimizer)(model, settings, ranks)


def is_sliced(settings: TrainSettings, ranks: Ranks) -> bool:
    """Whether each rank has only a slice of the moments."""
    return ranks.several and settings.optimizer in SLICED


def slices_weights(settings: TrainSettings, ranks: Ranks) -> bool:
    """Whether each rank has only a slice of the float32 weights, from which those in bfloat16 are rounded."""
    return is_sliced(settings, ranks) and settings.dtype == "bfloat16" and DEVICES[settings.device].stores_bfloat16


def describe(settings: TrainSettings, config: GPT2Config, data: Data, folder: Path, ranks: Ranks) -> str:
    """What will be done, in a few lines."""
    vocabulary = f"vocabulary of {data.tokenizer.vocab_size:,} ({data.tokenizer.name})"
    kernels = f", {settings.kernels} kernels" if len(DEVICES[settings.device].kernels) > 1 else ""
    needed = memory_of_run(config, settings, settings.batch_size, ranks)
    by = f" by each of {ranks.on_host} ranks" if ranks.several else ""
    available = available_memory(settings.device)
    batch = f"{settings.batch_size} x {settings.seq_len} tokens"
    if settings.grad_accum > 1:
        batch = f"{settings.grad_accum} x {batch}"
    lines = {
        "data": f"{settings.data}: {len(data.train):,} tokens and {len(data.val):,} for validation, {vocabulary}",
        "model": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
        f"{config.n_positions} positions: {config.num_parameters:,} parameters"
        + "".join(f", {name} {value}" for name, value in config.variations.items()),
        "device": f"{settings.device}, {settings.dtype}{kernels}",
        "memory": f"{gigabytes(needed)} needed{by}, {gigabytes(available)} available",
        "run": f"{folder}: {settings.max_iters:,} steps of {batch}, {settings.optimizer}",
    }
    if ranks.several:
        lines["ranks"] = _describe_ranks(settings, ranks)
    return "\n".join(f"{name:8}{text}" for name, text in lines.items())


def _describe_ranks(settings: TrainSettings, ranks: Ranks) -> str:
    hosts = f"{ranks.hosts} host{'' if ranks.hosts == 1 else 's'}"
    weights = " and the float32 weights" if slices_weights(settings, ranks) else ""
    how = "sliced" if is_sliced(settings, ranks) else "whole"
    words = f"{ranks.size} on {hosts}, {settings.optimizer}'s moments{weights} {how}"
    if DEVICES[settings.device].nccl is not None:
        version = nccl_version(settings.device)
        words += f", exchanged by NCCL {version}" if version else ", exchanged through the host's memory"
    if ranks.size & (ranks.size - 1) or settings.grad_accum % ranks.size:
        words += "; not a power of two that divides --grad-accum, so the bits are those of this number of ranks alone"
    return words
