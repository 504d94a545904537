"""The sizes and settings of a GPT-2, with the field names of Hugging Face's config.json."""

from __future__ import annotations

import ctypes
import math
import operator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pygpt.errors import UserError, alternatives, show
from pygpt.files.json_file import read_json_object, write_json_object
from pygpt.parameters import parameter_count

VARIATIONS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu", "relu"),
    "position_embedding": ("learned", "sinusoidal", "rotary", "none"),
    "bias": (True, False),
    "tie_word_embeddings": (True, False),
    "causal": (True, False),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (False, True),
    "norm_position": ("pre", "post"),
}
"""Fields that change the mathematics: their values, by their numbers in pygpt.h and in files; 0 is GPT-2's."""

OWN_VARIATIONS = ("position_embedding", "causal", "norm_position")  # of which transformers' GPT-2 knows nothing
_OWN_MODEL_TYPE = "pygpt"  # of a model that has one of them, so that transformers does not take it for a GPT-2

# more names that transformers has for them
_OTHER_NAMES = {
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_python": "gelu",
}

# Tokens, head and layer numbers are 32-bit integers in files and libraries.
_LARGEST_SIZE = 2**31 - 1
_REQUIRED = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")

# Settings of config.json that change the mathematics, with the only value that is implemented.
_FIXED: dict[str, Any] = {
    "model_type": "gpt2",
    "add_cross_attention": False,
    "is_encoder_decoder": False,
}


@dataclass(frozen=True)
class GPT2Config:
    """A GPT-2's configuration; the defaults are GPT-2 124M without dropout (Hugging Face's default is 0.1).

    Raises UserError when a field is out of its range, n_embd is not a multiple of n_head, or the parameters
    would take 2^63 bytes or more.
    """

    vocab_size: int = 50257  # V
    n_positions: int = 1024  # largest T
    n_embd: int = 768  # C
    n_layer: int = 12  # L
    n_head: int = 12  # NH
    n_inner: int | None = None  # channels between the two linear layers of the feed-forward part; None: 4 C
    activation_function: str = "gelu_new"  # this and what else is in VARIATIONS: docs/variations.md
    position_embedding: str = "learned"
    bias: bool = True  # whether linear layers and LayerNorm have one
    tie_word_embeddings: bool = True  # whether the head is wte.weight; otherwise it is lm_head.weight
    causal: bool = True  # whether a position looks only at those up to its own
    scale_attn_weights: bool = True  # scores by 1/√HS
    scale_attn_by_inverse_layer_idx: bool = False  # scores of block l, from 0, by 1/(l + 1)
    norm_position: str = "pre"  # LayerNorm at the beginning of each branch, or after each residual connection
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02  # standard deviation of fresh weights
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    bos_token_id: int | None = None  # with which a text begins and ends; pygpt/text/text_ends.py
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in _REQUIRED:
            self._set(name, _size(name, getattr(self, name)))
        if self.n_inner is not None:
            self._set("n_inner", _size("n_inner", self.n_inner))
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd is {self.n_embd}, expected a multiple of n_head, which is {self.n_head}")
        if isinstance(self.activation_function, str):
            self._set("activation_function", _OTHER_NAMES.get(self.activation_function, self.activation_function))
        for name, known in VARIATIONS.items():
            if getattr(self, name) not in known:
                expected = alternatives([repr(value) for value in known])
                raise UserError(f"{name} is {show(getattr(self, name))}, expected {expected}")
            self._set(name, known[known.index(getattr(self, name))])  # 1 is True
        if self.position_embedding == "rotary" and self.head_size % 2:
            raise UserError(
                f"position_embedding is 'rotary', which turns the channels of a head in pairs, but n_embd / n_head is "
                f"{self.n_embd} / {self.n_head} = {self.head_size}, expected an even number"
            )
        self._set("layer_norm_epsilon", _number("layer_norm_epsilon", self.layer_norm_epsilon))
        if ctypes.c_float(self.layer_norm_epsilon).value == 0:
            raise UserError("layer_norm_epsilon is 0 in float32, expected a positive number")
        self._set("initializer_range", _number("initializer_range", self.initializer_range))
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            p = _number(name, getattr(self, name))
            if ctypes.c_float(p).value >= 1:
                raise UserError(f"{name} is {p:.9g}, expected a probability of at least 0 and below 1")
            self._set(name, p)
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) is not None:
                self._set(name, _token(name, getattr(self, name), self.vocab_size))
        if self.num_parameters >= 2**61:
            raise UserError(
                f"vocab_size, n_positions, n_embd, n_layer and n_inner ask for {self.num_parameters} parameters, "
                f"expected less than 2^61, so that their bytes are counted in 63 bits"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def inner(self) -> int:
        """Channels between the two linear layers of the feed-forward part."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def head_size(self) -> int:
        """HS = C / NH."""
        return self.n_embd // self.n_head

    def attention_scale(self, layer: int) -> float:
        """By what the scores of a block's attention are multiplied: 1/√HS in GPT-2."""
        scale = 1 / math.sqrt(self.head_size) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @property
    def head(self) -> str:
        """The name of the head's matrix, (V,C)."""
        return "wte.weight" if self.tie_word_embeddings else "lm_head.weight"

    @property
    def head_input(self) -> str:
        """The activation that the head multiplies, (B,T,C)."""
        return "ln_f" if self.norm_position == "pre" else f"h.{self.n_layer - 1}.ln_2"

    @property
    def variations(self) -> dict[str, Any]:
        """What is not as in GPT-2."""
        return {name: getattr(self, name) for name, known in VARIATIONS.items() if getattr(self, name) != known[0]}

    @property
    def num_parameters(self) -> int:
        """How many numbers the model learns; a head that is wte again counts once."""
        return parameter_count(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPT2Config:
        """The configuration in the contents of a config.json.

        Keys that do not change the mathematics are ignored, and an optional one that is null is as if it were absent.
        Raises UserError for a value that is not implemented, and for missing or invalid sizes.
        """
        if values.get("model_type") == _OWN_MODEL_TYPE:
            values = {**values, "model_type": "gpt2"}
        for name, implemented in _FIXED.items():
            found = values.get(name, implemented)
            if found != implemented and not (found is None and implemented is False):
                raise UserError(
                    f"{name} is {show(values[name])}, expected {implemented!r}: nothing else is implemented"
                )
        known = {
            field.name: values[field.name]
            for field in fields(cls)
            if field.name in values
            and (values[field.name] is not None or field.name in (*_REQUIRED, "scale_attn_weights"))
        }
        if known.get("n_positions") is None and "n_ctx" in values:  # its older name
            known["n_positions"] = values["n_ctx"]
        for name in _REQUIRED:
            if name not in known:
                raise UserError(f"{name} is missing")
        for name in ("bos_token_id", "eos_token_id"):
            token, size = known.get(name), known["vocab_size"]
            if isinstance(token, list):
                token = known[name] = token[0] if token else None
            # 50256 stays behind in the files of models that have a smaller vocabulary.
            if isinstance(token, int) and isinstance(size, int) and token >= size:
                del known[name]
        return cls(**known)

    @classmethod
    def from_json(cls, path: str | Path) -> GPT2Config:
        """Read a Hugging Face config.json.  Raises UserError, naming the file, when that cannot be done."""
        values = read_json_object(Path(path))
        try:
            return cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def to_dict(self, dtype: str = "float32") -> dict[str, Any]:
        """The contents of a config.json; dtype is that of the tensors beside it.

        transformers opens it, unless the model has a variation that its GPT-2 has not, which the model_type then says.
        """
        own = [name for name in self.variations if name in OWN_VARIATIONS]
        fields = {name: value for name, value in asdict(self).items() if name in own or name not in OWN_VARIATIONS}
        kind = {"model_type": _OWN_MODEL_TYPE} if own else {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
        return {**kind, **fields, "torch_dtype": dtype}

    def to_json(self, path: str | Path, dtype: str = "float32") -> None:
        """Write to_dict() as a config.json."""
        write_json_object(Path(path), self.to_dict(dtype))


def check_causal(config: GPT2Config, does: str) -> None:
    """Raises UserError for a model that looks at what comes after; does: what only a causal one does."""
    if not config.causal:
        raise UserError(f"the model has causal: false, and only one with causal: true {does}: see docs/variations.md")


def _size(name: str, value: Any) -> int:
    size = _integer(value)
    if size is None or not 1 <= size <= _LARGEST_SIZE:
        raise UserError(f"{name} is {show(value)}, expected an integer from 1 to {_LARGEST_SIZE}")
    return size


def _token(name: str, value: Any, vocab_size: int) -> int:
    token = _integer(value)
    if token is None or not 0 <= token < vocab_size:
        raise UserError(f"{name} is {show(value)}, expected a token from 0 to {vocab_size - 1}")
    return token


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _number(name: str, value: Any) -> float:
    """value as a float, when it is finite in float32 and not negative."""
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(ctypes.c_float(number).value) or number < 0:
        raise UserError(f"{name} is {show(value)}, expected a number that is finite in float32 and not negative")
    return number


MODEL_SIZES: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}
"""The four sizes that OpenAI published, by their Hugging Face names."""
