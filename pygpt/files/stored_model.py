"""A model as files hold it, without a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pygpt.config import GPT2Config
from pygpt.parameters import parameter_shapes
from pygpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class StoredModel:
    """parameters: name -> array, which may be a read-only view of a file.

    read_tokenizer: gives the tokenizer that comes with the model, or None; raises UserError where it is unusable.
    """

    config: GPT2Config
    parameters: Mapping[str, NDArray[np.float32]]
    read_tokenizer: Callable[[], Tokenizer | None] = lambda: None

    def with_biases(self) -> StoredModel:
        """The same model for formats that expect biases: they are 0 where it has none."""
        config = replace(self.config, bias=True)
        zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(config).items()}
        return replace(self, config=config, parameters={**zeros, **self.parameters})
