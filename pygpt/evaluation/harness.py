"""pygpt's models in lm-evaluation-harness: `--model pygpt --model_args pretrained=FOLDER`.  See docs/evaluation.md.

The harness finds the class by the entry point lm_eval.models.  Releases that do not look for entry points (0.4.13 is
one) know it when this module has been imported, so

    python -m pygpt.evaluation.harness --model pygpt --model_args pretrained=FOLDER --tasks lambada_openai

is their command lm_eval with the model added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval.models  # the harness's own models, which it adds only to a register that is empty  # noqa: F401
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from pygpt.errors import UserError
from pygpt.evaluation.perplexity import windows
from pygpt.evaluation.scoring import Query, answer_all
from pygpt.files.checkpoint import read_config
from pygpt.files.hub import resolve_folder
from pygpt.generation.generate import generate_samples, start_token
from pygpt.generation.sampling import Sampling
from pygpt.generation.text import TextStream
from pygpt.opening import open_model, open_tokenizer
from pygpt.text.text_ends import read_text_ends

_BATCH_SIZE = 8  # where the harness says auto
_NEW_TOKENS = 256  # where a task does not say how many
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # what tasks call it
_SAMPLING = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class _Wanted:
    """A request for a text."""

    prompt: list[int]
    count: int  # of new tokens, at most
    sampling: Sampling
    stops: tuple[str, ...]


@register_model("pygpt")
class PygptLM(TemplateLM):  # type: ignore[misc]
    """A GPT-2 of pygpt.

    pretrained: a model folder, or a name on huggingface.co; the rest as in `pygpt evaluate`.
    """

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        dtype: str = "float32",
        kernels: str = "fast",
        threads: int | None = None,
        batch_size: int | str = _BATCH_SIZE,
        **others: Any,
    ) -> None:
        super().__init__()
        if unknown := others.keys() - {"max_batch_size"}:  # the harness may pass that
            raise UserError(f"{min(unknown)} is not an argument of model pygpt")
        self._batch_size = _BATCH_SIZE if str(batch_size).startswith("auto") else int(batch_size)
        folder = resolve_folder(pretrained)
        config = read_config(folder)
        self._tokenizer = open_tokenizer(folder, config)
        self._start = start_token(self._tokenizer, read_text_ends(folder, config.vocab_size).begin)
        self._model = open_model(
            folder,
            config,
            device=device,
            dtype=dtype,
            kernels=kernels,
            threads=threads,
            batch_size=self._batch_size,
        )

    @property
    def eot_token_id(self) -> int | None:
        return self._tokenizer.eot_token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self._start

    @property
    def tokenizer_name(self) -> str:
        """For the names of the harness's caches."""
        return f"pygpt-{self._tokenizer.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        """The tokens of a text, with no special ones."""
        return self._tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        """For each (texts, context, continuation): its log-likelihood, and whether it is what greedy decoding gives."""
        queries = [
            Query(np.array(context + continuation, np.int32), len(continuation), f"request {number}")
            for number, (_, context, continuation) in enumerate(requests)
        ]
        found = [(0.0, False)] * len(queries)
        for answer in answer_all(self._model, queries, self._batch_size, disable_tqdm):
            texts, _, continuation = requests[answer.number]
            greedy = bool((answer.logits().argmax(axis=-1) == continuation).all())
            found[answer.number] = (-float(answer.losses.sum()), greedy)
            self.cache_hook.add_partial("loglikelihood", texts, found[answer.number])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows of the model's positions that do not overlap."""
        texts = [request.args[0] for request in requests]
        queries, owners = [], []
        for number, text in enumerate(texts):
            tokens = np.array([self._start, *self.tok_encode(text)], np.int32)
            width = self._model.config.n_positions
            parts = windows(tokens, width, width, f"request {number}")
            queries += parts
            owners += [number] * len(parts)
        found = [0.0] * len(texts)
        for answer in answer_all(self._model, queries, self._batch_size, disable_tqdm):
            found[owners[answer.number]] -= float(answer.losses.sum())
        for text, value in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to the first of its stop strings."""
        wanted = [self._wanted(*request.args) for request in requests]
        groups: dict[tuple[Sampling, int], list[int]] = {}
        for number, one in enumerate(wanted):
            groups.setdefault((one.sampling, one.count), []).append(number)
        found = [""] * len(wanted)
        with tqdm(total=len(wanted), desc="texts", disable=disable_tqdm or None) as bar:
            for numbers in groups.values():
                numbers.sort(key=lambda number: -len(wanted[number].prompt))
                for first in range(0, len(numbers), self._batch_size):
                    batch = numbers[first : first + self._batch_size]
                    texts = self._generate([wanted[number] for number in batch])
                    for number, text in zip(batch, texts, strict=True):
                        found[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return found

    def _wanted(self, context: str, settings: dict[str, Any]) -> _Wanted:
        count = next((int(settings[name]) for name in _LIMITS if settings.get(name) is not None), _NEW_TOKENS)
        room = max(1, self._model.config.n_positions - count)
        until = settings.get("until") or ()
        stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
        sampling = Sampling(0.0)
        if settings.get("do_sample"):
            sampling = Sampling(**{name: settings[name] for name in _SAMPLING if settings.get(name) is not None})
        return _Wanted(self.tok_encode(context)[-room:] or [self._start], count, sampling, stops)

    def _generate(self, batch: Sequence[_Wanted]) -> list[str]:
        """Texts that have the sampling and the number of tokens in common."""
        positions = min(len(batch[0].prompt) + batch[0].count, self._model.config.n_positions)  # the first is longest
        weights = "bfloat16" if self._model.dtype == "bfloat16" else "float32"
        streams = [TextStream(self._tokenizer, one.stops) for one in batch]
        for _ in generate_samples(
            self._model.generator(weights, batch_size=len(batch), positions=positions),
            [one.prompt for one in batch],
            batch[0].count,
            batch[0].sampling,
            stop_token=self._tokenizer.eot_token,
            allowed_tokens=self._tokenizer.known_tokens(),
            ends=lambda sample, token: streams[sample].add(token),
        ):
            pass
        for stream in streams:
            stream.end()
        return [stream.text for stream in streams]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
