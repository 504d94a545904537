"""A model to look into, and a text as it reads one: its input, and what it is to predict."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pygpt.backends.devices import resolve_device
from pygpt.command.flags import number_list
from pygpt.errors import UserError
from pygpt.files.checkpoint import read_config
from pygpt.files.hub import resolve_folder
from pygpt.memory import check_memory
from pygpt.model import GPT2, memory_needed
from pygpt.opening import open_model, open_tokenizer
from pygpt.reference.arrays import Array
from pygpt.study.trace import next_tokens
from pygpt.text.masking import VALIDATION, masked
from pygpt.text.tokenizer import Tokenizer

SMALL = 20_000_000
"""Parameters up to which numpy in float64 is quick enough to be the default."""

MASK = "[MASK]"
"""How the token that hides others is shown."""

LISTED = 8
"""Masked tokens that are named."""


@dataclass(frozen=True)
class Reading:
    """A text as a model reads it."""

    tokens: Array  # (T,): its input
    targets: Array  # (T,), negative where nothing is to be predicted
    note: str = ""  # how masked tokens were chosen, for a model that predicts these


class Subject:
    """What is studied: a model in a folder, which is opened when it is asked for.

    device: None for numpy where the model is small, else "auto"; dtype: None for float64 with numpy, else float32.
    Raises UserError for a folder that holds no model, and for a device that cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        kernels: str = "fast",
        threads: int | None = None,
    ) -> None:
        self.folder = resolve_folder(name)
        self.config = read_config(self.folder)
        device = resolve_device(device or ("numpy" if self.config.num_parameters <= SMALL else "auto"))
        dtype = dtype or ("float64" if device == "numpy" else "float32")
        self.machine = {"device": device, "dtype": dtype, "kernels": kernels}
        self._threads = threads

    @cached_property
    def model(self) -> GPT2:
        """Raises UserError for a damaged folder, for weights that are not finite, and where memory does not suffice."""
        settings: dict[str, Any] = {**self.machine, "threads": self._threads, "batch_size": 1, "seq_len": 1}
        model = open_model(self.folder, self.config, **settings, causal=False)
        for name, value in model.parameters.items():
            if count := np.count_nonzero(~np.isfinite(value)):
                raise UserError(
                    f"{self.folder}: {count} of the {value.size} numbers of {name} are not finite: the training "
                    "diverged, or the file is damaged; take an earlier checkpoint"
                )
        return model

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError where the folder has none."""
        return open_tokenizer(self.folder, self.config)

    def tokens(self, text: str) -> Array:
        """The tokens of a text: (T,).  Raises UserError for fewer than 2 and for more than the model has positions."""
        tokens, positions = self.tokenizer.encode(text), self.config.n_positions
        if not 2 <= len(tokens) <= positions:
            raise UserError(
                f"the text has a length of {len(tokens)} tokens, expected 2 to {positions}, "
                f"the positions of {self.folder}"
            )
        self.check_memory(1, len(tokens))
        return tokens

    def read(self, text: str, positions: str | None = None) -> Reading:
        """A text with the targets that the model is trained on: the next tokens, or masked ones where causal is false.

        positions: of the tokens to mask, such as 3,7-9; if not given, they are chosen as in the first window of a
        validation, and as there a few of them are shown as another token, or as they are.
        Raises UserError as tokens() does, for positions that are not in the text, and for a model without a mask.
        """
        tokens = self.tokens(text)
        if self.config.causal:
            if positions is not None:
                raise UserError(f"--masked is for a model with causal: false, and {self.folder} predicts next tokens")
            return Reading(tokens, next_tokens(tokens[None])[0])
        own = self.tokenizer.vocab_size
        if self.config.vocab_size == own:
            raise UserError(
                f"{self.folder}: causal is false, so that masked tokens are predicted, but the vocabulary has only the "
                f"tokenizer's {own} tokens, expected one more for the mask, as `--objective mlm` trains it"
            )
        if positions is None:
            inputs, targets = (x[0] for x in masked((tokens[None], tokens[None]), 0, 0, VALIDATION, own, own))
            how = "chosen as in the first window of a validation, whose seed is 0"
        else:
            chosen = number_list("--masked", positions, "positions", len(tokens))
            inputs, targets = tokens.copy(), np.full_like(tokens, -1)
            inputs[chosen], targets[chosen] = own, tokens[chosen]
            how = "chosen by --masked"
        count = np.count_nonzero(targets >= 0)
        return Reading(inputs, targets, f"{count} of {len(tokens)} tokens are to be predicted, {how}")

    def masked_words(self, reading: Reading) -> str:
        """The first masked tokens of a text, with their positions."""
        words, at = self.words(reading), np.flatnonzero(reading.targets >= 0)
        more = f", and {len(at) - LISTED} more" if len(at) > LISTED else ""
        return ", ".join(f"{words[t]} at {t}" for t in at[:LISTED]) + more

    def words(self, reading: Reading) -> list[str]:
        """Each token as text; of a masked one what it was, and how it is shown to the model."""
        words = [self.word(token) for token in reading.tokens.tolist()]
        if self.config.causal:
            return words
        for t in np.flatnonzero(reading.targets >= 0):
            kept = reading.targets[t] == reading.tokens[t]
            words[t] = f"{self.word(int(reading.targets[t]))} as {'it is' if kept else words[t]}"
        return words

    def is_mask(self, token: int) -> bool:
        """Whether it is the one that hides others: the first that the tokenizer does not have."""
        return not self.config.causal and token == self.tokenizer.vocab_size

    def word(self, token: int) -> str:
        """A token as text in quotes, as bytes where it is not whole characters, or its number where it has no text."""
        if self.is_mask(token):
            return MASK
        if token not in self.tokenizer.known_tokens():
            return str(token)
        data = self.tokenizer.decode_bytes([token])
        with contextlib.suppress(UnicodeDecodeError):
            return repr(data.decode())
        return repr(data)

    def check_memory(self, batch_size: int, seq_len: int) -> None:
        """Raises UserError when a trace does not fit; numpy's figure has logits and attention whole."""
        sizes: dict[str, Any] = {"batch_size": batch_size, "seq_len": seq_len, "training": True}
        dtype = self.machine["dtype"] if self.machine["device"] == "numpy" else "float32"
        needed = memory_needed(self.config, device="numpy", dtype=dtype, **sizes)
        check_memory(needed, "take a shorter text or a smaller model")
