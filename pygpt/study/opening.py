"""A model to look into, and a text in its tokens."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import Any

from pygpt.backends.devices import resolve_device
from pygpt.errors import UserError
from pygpt.files.checkpoint import read_config
from pygpt.files.hub import resolve_folder
from pygpt.memory import check_memory
from pygpt.model import GPT2, memory_needed
from pygpt.opening import open_model, open_tokenizer
from pygpt.reference.arrays import Array
from pygpt.text.tokenizer import Tokenizer

SMALL = 20_000_000
"""Parameters up to which numpy in float64 is quick enough to be the default."""


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
        """Raises UserError where the folder is damaged, or the model does not fit into memory."""
        settings: dict[str, Any] = {**self.machine, "threads": self._threads, "batch_size": 1, "seq_len": 1}
        return open_model(self.folder, self.config, **settings, causal=False)

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

    def word(self, token: int) -> str:
        """A token as text in quotes, as bytes where it is not whole characters, or its number where it has no text."""
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
