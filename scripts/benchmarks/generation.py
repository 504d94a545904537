"""Text from GPT-2 124M, one sequence: tokens a second after a short prompt, and the pass over a long one.

A token needs each weight once, and the keys and values so far: those bytes over what the memory gives are the bound of
a token, and the FLOPs of a prompt over the peak that of a prompt. Every alternative has a model of the same sizes, and
draws the likeliest token.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.session import Session
from benchmarks.table import number, percent, ratio, render
from benchmarks.worker import Side, Worker, take_turns
from pygpt.backends.interface import WEIGHTS, Generator
from pygpt.config import GPT2Config
from pygpt.files.checkpoint import save_parameters
from pygpt.files.stored_model import StoredModel
from pygpt.model import GPT2, set_threads
from pygpt.text.bpe import END_OF_TEXT, Vocabulary
from pygpt.text.vocabulary_files import save_vocabulary

PROMPT, NEW, LONG = 32, 128, 1024
BITS = {"float32": 32, "bfloat16": 16, "int8": 8.5, "int4": 4.5}  # of a weight, with its share of a scale
CACHE = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16", "int4": "bfloat16"}
"""By weights. Transformers' keys and values are of the weights' dtype, llama.cpp's of 16 bits with any weights."""


@dataclass(frozen=True)
class Text:
    """A case: a prompt of so many tokens, and so many new ones after it."""

    prompt: int
    new: int  # 0: only the logits after the prompt

    def tokens(self, vocab_size: int) -> list[int]:
        found: list[int] = np.random.default_rng(0).integers(0, vocab_size, self.prompt).tolist()
        return found


@dataclass(frozen=True)
class PygptText:
    config: GPT2Config
    threads: int
    weights: str
    kernels: str
    name: str = "pygpt"

    @cached_property
    def generator(self) -> Generator:
        set_threads(self.threads)
        return GPT2(self.config, kernels=self.kernels).generator(self.weights, CACHE[self.weights])

    def prepare(self, case: Text) -> Callable[[], None]:
        generator, prompt = self.generator, case.tokens(self.config.vocab_size)

        def write() -> None:
            generator.rewind([0])
            logits = generator.feed([prompt])
            for _ in range(case.new):
                logits = generator.feed([[int(logits[0].argmax())]])

        return write


@dataclass(frozen=True)
class TransformersText:
    config: GPT2Config
    threads: int
    weights: str
    name: str = "transformers"

    @cached_property
    def model(self) -> Any:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
        torch.set_num_threads(self.threads)
        c = self.config
        sizes = {"vocab_size": c.vocab_size, "n_positions": c.n_positions, "n_embd": c.n_embd, "n_layer": c.n_layer}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, n_head=c.n_head))
        return model.to(getattr(torch, self.weights)).eval()

    def prepare(self, case: Text) -> Callable[[], None]:
        torch: Any = importlib.import_module("torch")
        model, prompt = self.model, torch.tensor([case.tokens(self.config.vocab_size)])
        known = torch.ones_like(prompt)

        def write() -> None:
            with torch.inference_mode():
                if not case.new:
                    model(prompt, logits_to_keep=1)
                else:
                    count = {"max_new_tokens": case.new, "min_new_tokens": case.new, "pad_token_id": 0}
                    model.generate(prompt, attention_mask=known, do_sample=False, **count)

        return write


@dataclass(frozen=True)
class LlamaText:
    """llama.cpp, which reads the GGUF that pygpt exports; int4 is its own Q4_0."""

    config: GPT2Config
    threads: int
    weights: str
    name: str = "llama.cpp"

    @cached_property
    def model(self) -> Any:
        llama: Any = importlib.import_module("llama_cpp")
        files: Any = importlib.import_module("pygpt.files.gguf_file")
        dtype = {"int8": "q8_0", "int4": "float32"}.get(self.weights, self.weights)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            files.write_gguf(path, StoredModel(self.config, GPT2(self.config).parameters), dtype)
            if self.weights == "int4":
                path, whole = path.with_stem("q4_0"), path
                parameters = llama.llama_model_quantize_default_params()
                parameters.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
                llama.llama_model_quantize(bytes(whole), bytes(path), parameters)
            threads = {"n_threads": self.threads, "n_threads_batch": self.threads}
            size = self.config.n_positions
            return llama.Llama(str(path), n_ctx=size, n_batch=size, n_ubatch=size, verbose=False, **threads)

    def prepare(self, case: Text) -> Callable[[], None]:
        model, prompt = self.model, case.tokens(self.config.vocab_size)

        def write() -> None:
            model.reset()
            model.eval(prompt)
            for _ in range(case.new):
                model.eval([model.sample(temp=0.0)])

        return write


@dataclass(frozen=True)
class CTranslate2Text:
    """CTranslate2, which converts the folder that pygpt writes; with int8 it rounds the inputs of products, too."""

    config: GPT2Config
    threads: int
    weights: str
    name: str = "CTranslate2"

    @cached_property
    def model(self) -> Any:
        ctranslate2: Any = importlib.import_module("ctranslate2")
        converters: Any = importlib.import_module("ctranslate2.converters")
        ranks = {word.encode(): token for token, word in enumerate(self.words[:-1])}
        end = {END_OF_TEXT: len(ranks)}
        vocabulary = Vocabulary(ranks, end, merges=[], bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
        with tempfile.TemporaryDirectory() as folder:
            save_parameters(
                folder, self.config, GPT2(self.config).parameters, extra=partial(save_vocabulary, vocabulary)
            )
            converters.TransformersConverter(folder).convert(f"{folder}/converted", quantization=self.weights)
            threads = {"inter_threads": 1, "intra_threads": self.threads}
            return ctranslate2.Generator(f"{folder}/converted", compute_type=self.weights, **threads)

    @cached_property
    def words(self) -> list[str]:
        """Names of the tokens, by which CTranslate2 is told them."""
        return [*(f"w{token}" for token in range(self.config.vocab_size - 1)), END_OF_TEXT]

    def prepare(self, case: Text) -> Callable[[], None]:
        model, prompt = self.model, [self.words[token] for token in case.tokens(self.config.vocab_size)]

        def write() -> None:
            write_likeliest(model, prompt, case.new)

        return write


def write_likeliest(model: Any, prompt: list[str], new: int) -> list[int]:
    """What CTranslate2 writes after a prompt: the token that follows from it, and as many new ones."""
    count = {"max_length": new + 1, "min_length": new + 1}
    (found,) = model.generate_batch([prompt], include_prompt_in_result=False, sampling_topk=1, **count)
    tokens: list[int] = found.sequences_ids[0]
    return tokens


def bytes_per_token(config: GPT2Config, weights: str, length: int) -> float:
    """What a token after `length` others reads: matrices, the head among them, and keys and values."""
    C, inner = config.n_embd, config.inner
    blocks = config.n_layer * (4 * C * C + 2 * C * inner) * BITS[weights]
    head = config.vocab_size * C * BITS["int8" if weights == "int4" else weights]
    return (blocks + head + 2 * config.n_layer * C * length * BITS[CACHE[weights]]) / 8


def flops_of_prompt(config: GPT2Config, length: int) -> float:
    """Multiplications and additions of a pass with the logits of its last token alone."""
    C, inner = config.n_embd, config.inner
    attention = 2 * length * length / 2 * C * 2
    return config.n_layer * (2.0 * length * (4 * C * C + 2 * C * inner) + attention) + 2.0 * config.vocab_size * C


def measure(session: Session) -> list[dict[str, Any]]:
    """Each format of the weights and alternative: tokens a second, seconds of a long prompt, and their bounds."""
    short, long = (Text(4, 4), Text(12, 0)) if session.quick else (Text(PROMPT, NEW), Text(LONG, 0))
    return [row for weights in WEIGHTS for row in _measure(session, weights, short, long)]


def _measure(session: Session, weights: str, short: Text, long: Text) -> list[dict[str, Any]]:
    config, threads = session.config, session.threads
    sides: list[Side] = [PygptText(config, threads, weights, session.kernels)]
    if session.torch != "none" and weights in ("float32", "bfloat16"):
        sides.append(TransformersText(config, threads, weights))
    sides.append(LlamaText(config, threads, weights))
    if weights in ("float32", "int8"):
        sides.append(CTranslate2Text(config, threads, weights))
    workers = [Worker(side) for side in sides]
    prompt_alone = Text(short.prompt, 0)
    try:
        cases = [(worker, case) for worker in workers for case in (short, prompt_alone, long)]
        *found, reading, peak = take_turns(
            [*cases, (session.peaks, "read"), (session.peaks, "bfloat16" if weights == "bfloat16" else "float32")],
            session.turns,
            lambda seconds: session.say_duration(f"generation, {weights}, {session.repeats} repeats", seconds),
        )
    finally:
        for worker in workers:
            worker.close()
    rows = []
    for number_of, side in enumerate(sides):
        whole, first, prompt = found[3 * number_of : 3 * number_of + 3]
        absent = whole.absent or first.absent or prompt.absent
        row: dict[str, Any] = {"weights": weights, "alternative": side.name, "absent": absent}
        if whole.median is not None and first.median is not None and prompt.median is not None:
            each = max(whole.median - first.median, 1e-9) / short.new  # noise may be more, in small shapes
            bound = bytes_per_token(config, weights, short.prompt + short.new // 2) / reading.median_result
            row |= {"tokens_per_second": 1 / each, "of_memory": bound / each, "prompt_seconds": prompt.median}
            row["of_peak"] = flops_of_prompt(config, long.prompt) / prompt.median / peak.median_result
        rows.append({**row, "read_gbytes": reading.median_result / 1e9, "peak_gflops": peak.median_result / 1e9})
    return rows


def table(session: Session, rows: Sequence[dict[str, Any]]) -> str:
    own = {row["weights"]: row for row in rows if row["alternative"] == "pygpt"}
    cells: list[Sequence[str]] = []
    notes = []
    for row in rows:
        if row["absent"] is not None:
            notes.append(f"{row['alternative']}, {row['weights']}: {row['absent']}")
            continue
        mine = own[row["weights"]]
        other = row is not mine
        cells.append(
            (
                row["weights"],
                row["alternative"],
                number(row["tokens_per_second"], 1),
                percent(row["of_memory"]),
                ratio(mine["tokens_per_second"] / row["tokens_per_second"]) if other else "",
                number(1e3 * row["prompt_seconds"], 1),
                percent(row["of_peak"]),
                ratio(row["prompt_seconds"] / mine["prompt_seconds"]) if other else "",
            )
        )
    memory = sorted(row["read_gbytes"] for row in rows)
    title = (
        f"text, one sequence, {PROMPT} tokens of prompt and {NEW} new, and a prompt of {LONG}: {session.median}\n"
        f"  memory reads {memory[0]:.1f} to {memory[-1]:.1f} GB/s; ratio: how many times faster pygpt is"
    )
    head = ("weights", "", "tokens/s", "of memory", "ratio", "prompt, ms", "of peak", "ratio")
    return render(title, head, cells, left=2, notes=notes)
