"""What a backend is: its layers, its model, and what the rest of pygpt asks of its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from numpy.typing import ArrayLike

from pygpt.config import GPT2Config
from pygpt.reference.arrays import Array
from pygpt.reference.dropout import Dropout

# the place of each is its number in pygpt.h
DTYPES = ("float32", "bfloat16")
WEIGHTS = ("float32", "bfloat16", "int8", "int4")  # of a generator
CACHES = ("float32", "bfloat16")
LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # linear layers of a block
KERNELS = ("plain", "fast")
RECOMPUTE = ("none", "cheap", "block")
OPTIMIZERS = ("adamw", "sgd", "momentum", "muon")  # from 1 on, as what a model is for


class Layers(Protocol):
    """Every layer alone.

    Gradients that are added to (csrc/pygpt.h) may be given: they are changed in place and returned; one that is not
    given starts at zero.
    """

    def matmul(self, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
        """op(a): (M,K); op(b): (K,N).  Returns c: (M,N)."""

    def embedding_forward(self, tokens: Array, wte: Array, wpe: Array | None) -> Array:
        """tokens: (B,T); wte: (V,C); wpe: (>=T,C) or None.  Returns x: (B,T,C)."""

    def embedding_backward(
        self,
        dx: Array,
        tokens: Array,
        wte: Array,
        wpe: Array | None,
        dwte: Array | None = None,
        dwpe: Array | None = None,
    ) -> tuple[Array, Array]:
        """dx: (B,T,C).  Returns dwte: (V,C), dwpe: (>=T,C), or (T,C) without wpe."""

    def layernorm_forward(
        self, x: Array, weight: Array, bias: Array | None, eps: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        """x: (...,C); weight: (C,); bias: (C,) or None.  Returns y: (...,C), mean, rstd: (...)."""

    def layernorm_backward(
        self,
        dy: Array,
        x: Array,
        weight: Array,
        mean: Array,
        rstd: Array,
        dx: Array | None = None,
        dweight: Array | None = None,
        dbias: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """dy, x: (...,C); mean, rstd: (...).  Returns dx: (...,C), dweight, dbias: (C,)."""

    def linear_forward(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """x: (...,IC); weight: (IC,OC); bias: (OC,) or None.  Returns y: (...,OC)."""

    def linear_backward(
        self, dy: Array, x: Array, weight: Array, dweight: Array | None = None, dbias: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """dy: (...,OC); x: (...,IC).  Returns dx: (...,IC), dweight: (IC,OC), dbias: (OC,)."""

    def rotary_forward(self, qkv: Array, n_head: int) -> Array:
        """qkv: (B,T,3C).  Returns it with queries and keys turned by their positions."""

    def rotary_backward(self, dqkv: Array, n_head: int) -> Array:
        """dqkv: (B,T,3C).  Returns it turned back."""

    def attention_forward(
        self, qkv: Array, n_head: int, dropout: Dropout | None = None, scale: float | None = None, causal: bool = True
    ) -> tuple[Array, Array]:
        """qkv: (B,T,3C); scale: of the scores, None: 1/√HS.  Returns y: (B,T,C), lse: (B,NH,T)."""

    def attention_backward(
        self,
        dy: Array,
        y: Array,
        lse: Array,
        qkv: Array,
        n_head: int,
        dropout: Dropout | None = None,
        scale: float | None = None,
        causal: bool = True,
    ) -> Array:
        """dy, y: (B,T,C); lse: (B,NH,T); qkv: (B,T,3C).  Returns dqkv: (B,T,3C)."""

    def attention_probabilities(
        self, lse: Array, qkv: Array, n_head: int, scale: float | None = None, causal: bool = True
    ) -> Array:
        """lse: (B,NH,T); qkv: (B,T,3C).  Returns p, before dropout: (B,NH,T,T)."""

    def gelu_forward(self, x: Array) -> Array:
        """x: any shape.  Returns y of the same shape."""

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        """dy, x: any one shape.  Returns dx of the same shape."""

    def exact_gelu_forward(self, x: Array) -> Array:
        """x: any shape.  Returns y of the same shape."""

    def exact_gelu_backward(self, dy: Array, x: Array) -> Array:
        """dy, x: any one shape.  Returns dx of the same shape."""

    def relu_forward(self, x: Array) -> Array:
        """x: any shape.  Returns y of the same shape."""

    def relu_backward(self, dy: Array, x: Array) -> Array:
        """dy, x: any one shape.  Returns dx of the same shape."""

    def residual_forward(self, x1: Array, x2: Array) -> Array:
        """x1, x2: any one shape.  Returns y of the same shape."""

    def residual_backward(self, dy: Array) -> tuple[Array, Array]:
        """dy: any shape.  Returns dx1, dx2 of the same shape."""

    def dropout_forward(self, x: Array, dropout: Dropout) -> Array:
        """x: any shape.  Returns y of the same shape."""

    def dropout_backward(self, dy: Array, dropout: Dropout) -> Array:
        """dy: any shape.  Returns dx of the same shape."""

    def cross_entropy_forward(self, logits: Array, targets: Array, vocab_size: int | None = None) -> Array:
        """logits: (N,Vp), Vp >= vocab_size; targets: (N,).  Returns losses: (N,)."""

    def cross_entropy_backward(
        self, dlosses: Array, logits: Array, targets: Array, vocab_size: int | None = None
    ) -> Array:
        """dlosses, targets: (N,); logits: (N,Vp).  Returns dlogits: (N,Vp), 0 in the padding."""

    def cross_entropy_in_place(
        self, dlosses: Array, logits: Array, targets: Array, vocab_size: int | None = None
    ) -> tuple[Array, Array]:
        """dlosses, targets: (N,); logits: (N,Vp).  Returns losses: (N,), dlogits: (N,Vp), 0 in the padding."""

    def classifier_forward(self, x: Array, wte: Array, targets: Array, rows: int | None = None) -> Array:
        """x: (...,C); wte: (V,C); targets: (...); rows: of logits that exist at a time.  Returns losses: (...)."""

    def classifier_backward(
        self, dlosses: Array, x: Array, wte: Array, targets: Array, rows: int | None = None, dwte: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """dlosses, targets: (...); x: (...,C); wte: (V,C).  Returns losses: (...), dx: (...,C), dwte: (V,C)."""

    def adamw_step(
        self,
        w: Array,
        m: Array,
        v: Array,
        dw: Array,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
    ) -> None:
        """w, m, v, dw: any one shape; w, m and v are updated in place; step counts from 1."""

    def sgd_step(self, w: Array, m: Array | None, dw: Array, lr: float, momentum: float, weight_decay: float) -> None:
        """w, m, dw: any one shape; w and m are updated in place; m None: without momentum."""

    def muon_step(
        self, w: Array, m: Array, dw: Array, lr: float, momentum: float, weight_decay: float, parts: int = 1
    ) -> None:
        """w, m, dw: (IC,OC), `parts` matrices of equal width side by side; w and m are updated in place."""


class AdamW(NamedTuple):
    """The settings of a model's update by AdamW."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class Model(Protocol):
    """A GPT-2 as pygpt.GPT2 drives it, which says what each of these does.

    tokens, targets: (B,T) int32.  dropout: its seed and step are used.  step of an optimizer: counts from 1.  Where
    arrays are copies of what is in a device's memory, parameters and moments are Writable.
    """

    @property
    def parameters(self) -> Mapping[str, Array]: ...
    @property
    def gradients(self) -> Mapping[str, Array]: ...
    @property
    def first_moments(self) -> Mapping[str, Array]: ...
    @property
    def second_moments(self) -> Mapping[str, Array]: ...
    @property
    def activations(self) -> Mapping[str, Array]: ...
    @property
    def activation_gradients(self) -> Mapping[str, Array]: ...
    @property
    def summed_loss(self) -> float: ...
    @property
    def shape(self) -> tuple[int, int]: ...  # B and T of the latest forward pass; 0 and 0 before it
    def init_weights(self, seed: int) -> None: ...  # the same as every backend draws from this seed
    def forward(self, tokens: Array, targets: Array | None = None, dropout: Dropout | None = None) -> float | None: ...
    def backward(self, scale: float = 1.0) -> None: ...
    def forward_backward(
        self, tokens: Array, targets: Array, scale: float = 1.0, dropout: Dropout | None = None
    ) -> float: ...
    def accumulate(self, tokens: Array, targets: Array, scale: float = 1.0, dropout: Dropout | None = None) -> None: ...
    def logits(self, first: int, count: int) -> Array: ...  # of count rows of the latest forward pass: (count,V)
    def attention_probabilities(self, layer: int) -> Array: ...
    def zero_grad(self) -> None: ...
    def clip_grad_norm(self, max_norm: float) -> float: ...
    def adamw_step(self, adamw: AdamW, step: int) -> None: ...
    def sgd_step(self, lr: float, momentum: float, weight_decay: float) -> None: ...
    def muon_step(self, muon_lr: float, momentum: float, adamw: AdamW, step: int) -> None: ...
    def generator(self, weights: str, cache: str, batch_size: int, positions: int) -> Generator: ...


class Generator(Protocol):
    """A snapshot of a model's weights, and sequences of tokens whose keys and values it keeps.

    A new token costs one row instead of a pass over everything before it.  Only one thread at a time may use it.
    """

    @property
    def config(self) -> GPT2Config: ...
    @property
    def positions(self) -> int: ...  # the largest length of a sequence
    @property
    def lengths(self) -> tuple[int, ...]: ...  # (B,), how many tokens each sequence has

    def feed(self, tokens: Sequence[ArrayLike], every: bool = False) -> Array:
        """Append tokens[b], (n,) integers, to sequence b; some may be empty, but not longer than there are positions.

        Returns the logits of the token that comes next: after the last token of each sequence to which something was
        appended, (fed,V), or, with every, after each token, those of the first sequence first, (all,V).
        Raises UserError for tokens outside the vocabulary and beyond the positions; the sequences are as before then.
        """

    def write(self, layer: int, name: str, w: Array, scales: Array) -> None:
        """Replace the weights of a linear layer, one of LINEAR, by w: (IC,OC), rounded with given scales.

        scales: (IC / 32 rounded up,OC), for weights of "int8" or "int4".  Raises UserError for others.
        """

    def rewind(self, lengths: Sequence[int]) -> None:
        """Leave the first lengths[b] tokens of sequence b.  Raises UserError where it has fewer."""


@runtime_checkable
class Writable(Protocol):
    """Tensors by name that are changed by a method."""

    def write(self, name: str, values: ArrayLike) -> None: ...


@dataclass(frozen=True)
class Device:
    """How the backend of a device is opened, and what it can.

    Nothing is opened before one of the functions is called.  They raise UserError for settings that the backend does
    not have, and where it cannot be used.
    """

    layers: Callable[[str, str], Layers]  # dtype, kernels
    model: Callable[[GPT2Config, str, str, str], Model]  # dtype, kernels, recompute
    memory_needed: Callable[
        [GPT2Config, int, int, bool, str, str, str, str], int
    ]  # as pygpt.memory_needed, in its order
    generator_memory: Callable[[GPT2Config, str, str, int, int], int]  # as pygpt.generator_memory_needed, in its order
    check: Callable[[], object] = lambda: None  # whether it can be used
    library_path: Callable[[], Path] | None = None
    memory: Callable[[], tuple[int, int]] | None = None  # of its own: bytes that are free, and all
    in_host_memory: bool = True  # whether its tensors are in the machine's memory
    kernels: tuple[str, ...] = KERNELS
    recomputes: bool = True
    has_threads: bool = False  # whether pygpt.set_threads decides how many it has
    stores_bfloat16: bool = False  # with dtype bfloat16: tensors too, not only the operands of products
    multiplies_bfloat16: Callable[[], bool] = lambda: False  # whether dtype "auto" is bfloat16
    ranks: bool = False  # whether several processes can train on it
    nccl: Callable[[], str | None] | None = None  # opens NCCL between several; its version, None where there is none
    choose: Callable[[int], bytes] | None = None  # one of several such devices by its number; returns its UUID
    preferred: bool = False  # whether "auto" takes it where it can be used
