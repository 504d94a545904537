"""The layers of a native library, each callable alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pygpt.backends.interface import Layers
from pygpt.backends.library import last_error
from pygpt.backends.pointers import (
    Floats,
    Integers,
    as_floats,
    as_integers,
    c_dropout,
    expect_shape,
    floats,
    gradient,
    integers,
    kernel_table,
)
from pygpt.errors import UserError
from pygpt.reference.dropout import Dropout


class NativeLayers(Layers):
    """Every layer alone, in float32; other dtypes are converted, but gradients to add to must be contiguous float32.

    Raises UserError for shapes that do not fit, tokens outside the vocabulary, and failures of a device.
    """

    def __init__(self, library: Any, kernels: str = "fast", dtype: str = "float32") -> None:
        self._library = library
        self._names = kernels, dtype
        kernel_table(library, kernels, dtype)  # raises UserError where there are no such kernels

    @property
    def _table(self) -> Any:
        """Asked for at each call, which then has the chosen number of threads, whichever thread makes it."""
        return kernel_table(self._library, *self._names)

    def _new(self, shape: int | tuple[int, ...]) -> Floats:
        """Where a layer writes; it may hold anything."""
        return np.empty(shape, np.float32)

    def _to(self, given: Floats | None, shape: tuple[int, ...], name: str) -> Floats:
        """What a layer adds to, or changes."""
        return gradient(given, shape, name)

    def _done(self) -> None:
        sentence = last_error(self._library)
        if sentence:
            raise UserError(sentence)

    def matmul(self, a: Floats, b: Floats, transpose_a: bool = False, transpose_b: bool = False) -> Floats:
        a, b = as_floats(a), as_floats(b)
        M, K = a.shape[::-1] if transpose_a else a.shape
        K_b, N = b.shape[::-1] if transpose_b else b.shape
        if K_b != K:
            raise UserError(f"op(a) has shape {(M, K)} and op(b) {(K_b, N)}, expected (M, K) and (K, N)")
        c = self._new((M, N))
        self._table.matmul(floats(c), floats(a), floats(b), M, N, K, transpose_a, transpose_b, False)
        self._done()
        return c

    def embedding_forward(self, tokens: Integers, wte: Floats, wpe: Floats | None) -> Floats:
        tokens, wte = as_integers(tokens), as_floats(wte)
        wpe = None if wpe is None else as_floats(wpe)
        _check_tokens(tokens, wte, wpe)
        (B, T), C = tokens.shape, wte.shape[1]
        x = self._new((B, T, C))
        self._table.embedding_forward(floats(x), integers(tokens), floats(wte), floats(wpe), B, T, C)
        self._done()
        return x

    def embedding_backward(
        self,
        dx: Floats,
        tokens: Integers,
        wte: Floats,
        wpe: Floats | None,
        dwte: Floats | None = None,
        dwpe: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        dx, tokens = as_floats(dx), as_integers(tokens)
        _check_tokens(tokens, wte, wpe)
        (B, T), C = tokens.shape, wte.shape[1]
        expect_shape("dx", dx, (B, T, C))
        dwte = self._to(dwte, wte.shape, "dwte")
        dwpe = self._to(dwpe, (T, C) if wpe is None else wpe.shape, "dwpe")
        self._table.embedding_backward(floats(dwte), floats(dwpe), floats(dx), integers(tokens), B, T, C)
        self._done()
        return dwte, dwpe

    def layernorm_forward(
        self, x: Floats, weight: Floats, bias: Floats | None, eps: float = 1e-5
    ) -> tuple[Floats, Floats, Floats]:
        x, weight = as_floats(x), as_floats(weight)
        bias = None if bias is None else as_floats(bias)
        N, C = _rows(x), x.shape[-1]
        expect_shape("weight", weight, (C,))
        if bias is not None:
            expect_shape("bias", bias, (C,))
        y, mean, rstd = self._new(x.shape), self._new(x.shape[:-1]), self._new(x.shape[:-1])
        self._table.layernorm_forward(
            floats(y), floats(mean), floats(rstd), floats(x), floats(weight), floats(bias), N, C, eps
        )
        self._done()
        return y, mean, rstd

    def layernorm_backward(
        self,
        dy: Floats,
        x: Floats,
        weight: Floats,
        mean: Floats,
        rstd: Floats,
        dx: Floats | None = None,
        dweight: Floats | None = None,
        dbias: Floats | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        dy, x, weight, mean, rstd = map(as_floats, (dy, x, weight, mean, rstd))
        N, C = _rows(x), x.shape[-1]
        expect_shape("dy", dy, x.shape)
        expect_shape("weight", weight, (C,))
        expect_shape("mean", mean, x.shape[:-1])
        expect_shape("rstd", rstd, x.shape[:-1])
        dx = self._to(dx, x.shape, "dx")
        dweight, dbias = self._to(dweight, (C,), "dweight"), self._to(dbias, (C,), "dbias")
        gradients = floats(dx), floats(dweight), floats(dbias)
        inputs = floats(dy), floats(x), floats(weight), floats(mean), floats(rstd)
        self._table.layernorm_backward(*gradients, *inputs, N, C)
        self._done()
        return dx, dweight, dbias

    def linear_forward(self, x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
        x, weight = as_floats(x), as_floats(weight)
        bias = None if bias is None else as_floats(bias)
        IC, OC = weight.shape
        expect_shape("x", x, (*x.shape[:-1], IC))
        if bias is not None:
            expect_shape("bias", bias, (OC,))
        y = self._new((*x.shape[:-1], OC))
        self._table.linear_forward(floats(y), floats(x), floats(weight), floats(bias), _rows(x), IC, OC)
        self._done()
        return y

    def linear_backward(
        self,
        dy: Floats,
        x: Floats,
        weight: Floats,
        dweight: Floats | None = None,
        dbias: Floats | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        dy, x, weight = as_floats(dy), as_floats(x), as_floats(weight)
        IC, OC = weight.shape
        expect_shape("x", x, (*x.shape[:-1], IC))
        expect_shape("dy", dy, (*x.shape[:-1], OC))
        dx = self._new(x.shape)
        dweight, dbias = self._to(dweight, weight.shape, "dweight"), self._to(dbias, (OC,), "dbias")
        gradients = floats(dx), floats(dweight), floats(dbias)
        self._table.linear_backward(*gradients, floats(dy), floats(x), floats(weight), _rows(x), IC, OC)
        self._done()
        return dx, dweight, dbias

    def rotary_forward(self, qkv: Floats, n_head: int) -> Floats:
        return self._turned(self._table.rotary_forward, qkv, n_head)

    def rotary_backward(self, dqkv: Floats, n_head: int) -> Floats:
        return self._turned(self._table.rotary_backward, dqkv, n_head)

    def _turned(self, turn: Any, qkv: Floats, n_head: int) -> Floats:
        qkv = as_floats(qkv)
        B, T, C = _attention_sizes(qkv, n_head)
        HS = C // n_head
        if HS % 2:
            raise UserError(f"qkv has heads of {HS} channels, expected an even number: they are turned in pairs")
        y = self._new(qkv.shape)
        turn(floats(y), floats(qkv), B, T, n_head, HS)
        self._done()
        return y

    def attention_forward(
        self, qkv: Floats, n_head: int, dropout: Dropout | None = None, scale: float | None = None, causal: bool = True
    ) -> tuple[Floats, Floats]:
        qkv = as_floats(qkv)
        B, T, C = _attention_sizes(qkv, n_head)
        y, lse = self._new((B, T, C)), self._new((B, n_head, T))
        sizes = B, T, n_head, C // n_head, _attention_scale(C // n_head, scale), causal
        self._table.attention_forward(floats(y), floats(lse), floats(qkv), *sizes, c_dropout(dropout))
        self._done()
        return y, lse

    def attention_backward(
        self,
        dy: Floats,
        y: Floats,
        lse: Floats,
        qkv: Floats,
        n_head: int,
        dropout: Dropout | None = None,
        scale: float | None = None,
        causal: bool = True,
    ) -> Floats:
        dy, y, lse, qkv = map(as_floats, (dy, y, lse, qkv))
        B, T, C = _attention_sizes(qkv, n_head)
        expect_shape("dy", dy, (B, T, C))
        expect_shape("y", y, (B, T, C))
        expect_shape("lse", lse, (B, n_head, T))
        dqkv = self._new(qkv.shape)
        inputs = floats(dy), floats(y), floats(lse), floats(qkv)
        sizes = B, T, n_head, C // n_head, _attention_scale(C // n_head, scale), causal
        self._table.attention_backward(floats(dqkv), *inputs, *sizes, c_dropout(dropout))
        self._done()
        return dqkv

    def attention_probabilities(
        self, lse: Floats, qkv: Floats, n_head: int, scale: float | None = None, causal: bool = True
    ) -> Floats:
        lse, qkv = as_floats(lse), as_floats(qkv)
        B, T, C = _attention_sizes(qkv, n_head)
        expect_shape("lse", lse, (B, n_head, T))
        p = self._new((B, n_head, T, T))
        sizes = B, T, n_head, C // n_head, _attention_scale(C // n_head, scale), causal
        self._table.attention_probabilities(floats(p), floats(lse), floats(qkv), *sizes)
        self._done()
        return p

    def gelu_forward(self, x: Floats) -> Floats:
        return self._elementwise("gelu", x)

    def gelu_backward(self, dy: Floats, x: Floats) -> Floats:
        return self._elementwise_backward("gelu", dy, x)

    def exact_gelu_forward(self, x: Floats) -> Floats:
        return self._elementwise("exact_gelu", x)

    def exact_gelu_backward(self, dy: Floats, x: Floats) -> Floats:
        return self._elementwise_backward("exact_gelu", dy, x)

    def relu_forward(self, x: Floats) -> Floats:
        return self._elementwise("relu", x)

    def relu_backward(self, dy: Floats, x: Floats) -> Floats:
        return self._elementwise_backward("relu", dy, x)

    def _elementwise(self, layer: str, x: Floats) -> Floats:
        x = as_floats(x)
        y = self._new(x.shape)
        getattr(self._table, f"{layer}_forward")(floats(y), floats(x), x.size)
        self._done()
        return y

    def _elementwise_backward(self, layer: str, dy: Floats, x: Floats) -> Floats:
        dy, x = as_floats(dy), as_floats(x)
        expect_shape("dy", dy, x.shape)
        dx = self._new(x.shape)
        getattr(self._table, f"{layer}_backward")(floats(dx), floats(dy), floats(x), x.size)
        self._done()
        return dx

    def residual_forward(self, x1: Floats, x2: Floats) -> Floats:
        x1, x2 = as_floats(x1), as_floats(x2)
        expect_shape("x2", x2, x1.shape)
        y = self._new(x1.shape)
        self._table.residual_forward(floats(y), floats(x1), floats(x2), y.size)
        self._done()
        return y

    def residual_backward(self, dy: Floats) -> tuple[Floats, Floats]:
        dy = as_floats(dy)
        dx1, dx2 = self._new(dy.shape), self._new(dy.shape)
        self._table.residual_backward(floats(dx1), floats(dx2), floats(dy), dy.size)
        self._done()
        return dx1, dx2

    def dropout_forward(self, x: Floats, dropout: Dropout) -> Floats:
        x = as_floats(x)
        y = self._new(x.shape)
        self._table.dropout_forward(floats(y), floats(x), x.size, c_dropout(dropout))
        self._done()
        return y

    def dropout_backward(self, dy: Floats, dropout: Dropout) -> Floats:
        dy = as_floats(dy)
        dx = self._new(dy.shape)
        self._table.dropout_backward(floats(dx), floats(dy), dy.size, c_dropout(dropout))
        self._done()
        return dx

    def cross_entropy_forward(self, logits: Floats, targets: Integers, vocab_size: int | None = None) -> Floats:
        logits, targets = as_floats(logits), as_integers(targets)
        N, V, Vp = _logits_sizes(logits, targets, vocab_size)
        losses = self._new(N)
        self._table.cross_entropy_forward(floats(losses), floats(logits), integers(targets), N, V, Vp)
        self._done()
        return losses

    def cross_entropy_backward(
        self, dlosses: Floats, logits: Floats, targets: Integers, vocab_size: int | None = None
    ) -> Floats:
        dlosses, logits, targets = as_floats(dlosses), as_floats(logits), as_integers(targets)
        N, V, Vp = _logits_sizes(logits, targets, vocab_size)
        expect_shape("dlosses", dlosses, (N,))
        dlogits = self._new(logits.shape)
        inputs = floats(dlosses), floats(logits), integers(targets)
        self._table.cross_entropy_backward(floats(dlogits), *inputs, N, V, Vp)
        self._done()
        return dlogits

    def cross_entropy_in_place(
        self, dlosses: Floats, logits: Floats, targets: Integers, vocab_size: int | None = None
    ) -> tuple[Floats, Floats]:
        dlosses, dlogits, targets = as_floats(dlosses), as_floats(logits).copy(), as_integers(targets)
        N, V, Vp = _logits_sizes(dlogits, targets, vocab_size)
        expect_shape("dlosses", dlosses, (N,))
        losses = self._new(N)
        inputs = floats(dlosses), integers(targets)
        self._table.cross_entropy_in_place(floats(losses), floats(dlogits), *inputs, N, V, Vp)
        self._done()
        return losses, dlogits

    def classifier_forward(self, x: Floats, wte: Floats, targets: Integers, rows: int | None = None) -> Floats:
        x, wte, targets = as_floats(x), as_floats(wte), as_integers(targets)
        N, C, V, rows = _classifier_sizes(x, wte, targets, rows)
        losses, logits = self._new(targets.shape), self._new((rows, V))
        inputs = floats(x), floats(wte), integers(targets)
        self._library.classifier_forward(self._table, floats(losses), *inputs, floats(logits), rows, N, C, V)
        self._done()
        return losses

    def classifier_backward(
        self,
        dlosses: Floats,
        x: Floats,
        wte: Floats,
        targets: Integers,
        rows: int | None = None,
        dwte: Floats | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        dlosses, x, wte, targets = as_floats(dlosses), as_floats(x), as_floats(wte), as_integers(targets)
        N, C, V, rows = _classifier_sizes(x, wte, targets, rows)
        expect_shape("dlosses", dlosses, targets.shape)
        losses, logits = self._new(targets.shape), self._new((rows, V))
        dx, dwte = self._new(x.shape), self._to(dwte, wte.shape, "dwte")
        outputs = floats(losses), floats(dx), floats(dwte)
        inputs = floats(dlosses), floats(x), floats(wte), integers(targets)
        self._library.classifier_backward(self._table, *outputs, *inputs, floats(logits), rows, N, C, V)
        self._done()
        return losses, dx, dwte

    def adamw_step(
        self,
        w: Floats,
        m: Floats,
        v: Floats,
        dw: Floats,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
    ) -> None:
        w, m, v = (self._to(array, w.shape, name) for array, name in ((w, "w"), (m, "m"), (v, "v")))
        dw = as_floats(dw)
        expect_shape("dw", dw, w.shape)
        tensors = floats(w), floats(m), floats(v), floats(dw)
        self._table.adamw_step(*tensors, w.size, lr, beta1, beta2, eps, weight_decay, step)
        self._done()

    def sgd_step(
        self, w: Floats, m: Floats | None, dw: Floats, lr: float, momentum: float, weight_decay: float
    ) -> None:
        w, dw = self._to(w, w.shape, "w"), as_floats(dw)
        if m is not None:
            m = self._to(m, w.shape, "m")
        expect_shape("dw", dw, w.shape)
        self._table.sgd_step(floats(w), floats(m), floats(dw), w.size, lr, momentum, weight_decay)
        self._done()

    def muon_step(
        self, w: Floats, m: Floats, dw: Floats, lr: float, momentum: float, weight_decay: float, parts: int = 1
    ) -> None:
        if w.ndim != 2 or parts < 1 or w.shape[1] % parts:
            raise UserError(
                f"w has shape {w.shape} and parts is {parts}, expected (IC, OC) with OC a multiple of parts"
            )
        w, m, dw = self._to(w, w.shape, "w"), self._to(m, w.shape, "m"), as_floats(dw)
        expect_shape("dw", dw, w.shape)
        (R, C), columns = w.shape, w.shape[1] // parts
        scratch = self._new(2 * (R * columns + min(R, columns) ** 2))
        tensors = floats(w), floats(m), floats(dw), floats(scratch)
        self._table.muon_step(*tensors, R, C, parts, lr, momentum, weight_decay)
        self._done()


def _check_tokens(tokens: Integers, wte: Floats, wpe: Floats | None) -> None:
    if tokens.ndim != 2:
        raise UserError(f"tokens has shape {tokens.shape}, expected (B, T)")
    if wte.ndim != 2:
        raise UserError(f"wte has shape {wte.shape}, expected (V, C)")
    if wpe is not None and (wpe.ndim != 2 or wte.shape[1] != wpe.shape[1] or wpe.shape[0] < tokens.shape[1]):
        raise UserError(f"wte has shape {wte.shape} and wpe {wpe.shape}, expected (V, C) and (T or more, C)")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= wte.shape[0]):
        raise UserError(f"tokens lie in {tokens.min()} ... {tokens.max()}, expected 0 ... {wte.shape[0] - 1}")


def _attention_sizes(qkv: Floats, n_head: int) -> tuple[int, int, int]:
    if qkv.ndim != 3 or n_head < 1 or qkv.shape[2] % (3 * n_head):
        raise UserError(f"qkv has shape {qkv.shape}, expected (B, T, 3C) with C a multiple of n_head = {n_head}")
    return qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3


def _attention_scale(head_size: int, scale: float | None) -> float:
    return 1 / math.sqrt(head_size) if scale is None else scale


def _logits_sizes(logits: Floats, targets: Integers, vocab_size: int | None) -> tuple[int, int, int]:
    if logits.ndim != 2:
        raise UserError(f"logits has shape {logits.shape}, expected (N, Vp)")
    N, Vp = logits.shape
    V = Vp if vocab_size is None else vocab_size
    expect_shape("targets", targets, (N,))
    if not 1 <= V <= Vp:
        raise UserError(f"vocab_size is {V}, expected 1 ... {Vp}")
    if N and targets.max() >= V:
        raise UserError(f"targets go up to {targets.max()}, expected at most {V - 1}")
    return N, V, Vp


def _classifier_sizes(x: Floats, wte: Floats, targets: Integers, rows: int | None) -> tuple[int, int, int, int]:
    if x.ndim < 1 or wte.ndim != 2 or x.shape[-1] != wte.shape[1]:
        raise UserError(f"x has shape {x.shape} and wte {wte.shape}, expected (..., C) and (V, C)")
    N, (V, C) = _rows(x), wte.shape
    expect_shape("targets", targets, x.shape[:-1])
    if N and targets.max() >= V:
        raise UserError(f"targets go up to {targets.max()}, expected at most {V - 1}")
    return N, C, V, max(N, 1) if rows is None else rows


def _rows(array: NDArray[Any]) -> int:
    return int(np.prod(array.shape[:-1], dtype=np.int64))
