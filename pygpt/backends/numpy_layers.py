"""The layers of the numpy reference, each callable alone: pygpt/reference/ behind the interface of all backends."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from pygpt.backends.interface import Layers
from pygpt.reference import (
    adamw,
    attention,
    bfloat16_attention,
    classifier,
    cross_entropy,
    embedding,
    exact_gelu,
    gelu,
    layernorm,
    linear,
    muon,
    relu,
    residual,
    rotary,
    sgd,
)
from pygpt.reference import dropout as dropout_layer
from pygpt.reference.arrays import Array, Operands, exact
from pygpt.reference.bfloat16 import round_bfloat16
from pygpt.reference.dropout import Dropout


class ReferenceLayers(Layers):
    """Every layer alone, in the dtype of its arguments, complex too.

    Gradients that are added to (csrc/pygpt.h) may be given: they are changed in place and returned; one that is not
    given starts at zero.
    `operands` is applied to both operands of each product in matmul, linear and classifier, such as
    pygpt.reference.bfloat16.round_bfloat16, and `stored` to the logits inside the classifier; a LayerCall applies it to
    what goes into and comes out of a layer, and `attended` to what goes into attention: `attention` is another module
    where that is rounded although it is not stored so, pygpt.reference.bfloat16_attention.
    """

    def __init__(self, operands: Operands = exact, stored: Operands = exact, attention: ModuleType = attention) -> None:
        self.operands, self.stored = operands, stored
        self.attended = round_bfloat16 if attention is bfloat16_attention else stored
        self._attention: Any = attention

    def matmul(self, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
        a, b = self.operands(a), self.operands(b)
        return (a.T if transpose_a else a) @ (b.T if transpose_b else b)

    def embedding_forward(self, tokens: Array, wte: Array, wpe: Array | None) -> Array:
        return embedding.forward(tokens, wte, wpe)

    def embedding_backward(
        self,
        dx: Array,
        tokens: Array,
        wte: Array,
        wpe: Array | None,
        dwte: Array | None = None,
        dwpe: Array | None = None,
    ) -> tuple[Array, Array]:
        to_wte, to_wpe = embedding.backward(dx, tokens, wte, wpe)
        return _add(dwte, to_wte), _add(dwpe, to_wpe)

    def layernorm_forward(
        self, x: Array, weight: Array, bias: Array | None, eps: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        return layernorm.forward(x, weight, bias, eps)

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
        to_x, to_weight, to_bias = layernorm.backward(dy, x, weight, mean, rstd)
        return _add(dx, to_x), _add(dweight, to_weight), _add(dbias, to_bias)

    def linear_forward(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return linear.forward(x, weight, bias, self.operands)

    def linear_backward(
        self,
        dy: Array,
        x: Array,
        weight: Array,
        dweight: Array | None = None,
        dbias: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        dx, to_weight, to_bias = linear.backward(dy, x, weight, self.operands)
        return dx, _add(dweight, to_weight), _add(dbias, to_bias)

    def rotary_forward(self, qkv: Array, n_head: int) -> Array:
        return rotary.forward(qkv, n_head)

    def rotary_backward(self, dqkv: Array, n_head: int) -> Array:
        return rotary.backward(dqkv, n_head)

    def attention_forward(
        self, qkv: Array, n_head: int, dropout: Dropout | None = None, scale: float | None = None, causal: bool = True
    ) -> tuple[Array, Array]:
        return self._attention.forward(qkv, n_head, dropout, scale, causal)

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
        return self._attention.backward(dy, y, lse, qkv, n_head, dropout, scale, causal)

    def attention_probabilities(
        self, lse: Array, qkv: Array, n_head: int, scale: float | None = None, causal: bool = True
    ) -> Array:
        return self._attention.probabilities(lse, qkv, n_head, scale, causal)

    def gelu_forward(self, x: Array) -> Array:
        return gelu.forward(x)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        return gelu.backward(dy, x)

    def exact_gelu_forward(self, x: Array) -> Array:
        return exact_gelu.forward(x)

    def exact_gelu_backward(self, dy: Array, x: Array) -> Array:
        return exact_gelu.backward(dy, x)

    def relu_forward(self, x: Array) -> Array:
        return relu.forward(x)

    def relu_backward(self, dy: Array, x: Array) -> Array:
        return relu.backward(dy, x)

    def residual_forward(self, x1: Array, x2: Array) -> Array:
        return residual.forward(x1, x2)

    def residual_backward(self, dy: Array) -> tuple[Array, Array]:
        dx1, dx2 = residual.backward(dy)
        return dx1.copy(), dx2.copy()

    def dropout_forward(self, x: Array, dropout: Dropout) -> Array:
        return dropout_layer.forward(x, dropout).copy()

    def dropout_backward(self, dy: Array, dropout: Dropout) -> Array:
        return dropout_layer.backward(dy, dropout).copy()

    def cross_entropy_forward(self, logits: Array, targets: Array, vocab_size: int | None = None) -> Array:
        return cross_entropy.forward(logits, targets, vocab_size)

    def cross_entropy_backward(
        self, dlosses: Array, logits: Array, targets: Array, vocab_size: int | None = None
    ) -> Array:
        return cross_entropy.backward(dlosses, logits, targets, vocab_size)

    def cross_entropy_in_place(
        self, dlosses: Array, logits: Array, targets: Array, vocab_size: int | None = None
    ) -> tuple[Array, Array]:
        losses = cross_entropy.forward(logits, targets, vocab_size)
        return losses, cross_entropy.backward(dlosses, logits, targets, vocab_size)

    def classifier_forward(self, x: Array, wte: Array, targets: Array, rows: int | None = None) -> Array:
        return classifier.forward(x, wte, targets, rows, self.operands, self.stored)

    def classifier_backward(
        self,
        dlosses: Array,
        x: Array,
        wte: Array,
        targets: Array,
        rows: int | None = None,
        dwte: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        losses, dx, to_wte = classifier.backward(dlosses, x, wte, targets, rows, self.operands, self.stored)
        return losses, dx, _add(dwte, to_wte)

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
        adamw.update(w, m, v, dw, lr, beta1, beta2, eps, weight_decay, step)

    def sgd_step(self, w: Array, m: Array | None, dw: Array, lr: float, momentum: float, weight_decay: float) -> None:
        sgd.update(w, m, dw, lr, momentum, weight_decay)

    def muon_step(
        self, w: Array, m: Array, dw: Array, lr: float, momentum: float, weight_decay: float, parts: int = 1
    ) -> None:
        muon.update(w, m, dw, lr, momentum, weight_decay, parts)


def _add(gradient: Array | None, contribution: Array) -> Array:
    """gradient += contribution, or a fresh array."""
    if gradient is None:
        return contribution.copy()
    gradient += contribution
    return gradient
