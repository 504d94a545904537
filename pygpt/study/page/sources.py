"""Where each formula of the page stands: the line of numpy, C and CUDA that computes it, found by its text.

A line that has been edited is found nowhere, and one whose text comes twice is ambiguous: tests/test_study_page.py
holds every line to exactly once.
"""

from __future__ import annotations

from pygpt.backends.sources import CHECKOUT

TONGUES = ("numpy", "C", "CUDA")

# The backward pass computes the logits again: the next line tells the two apart.
FORWARD_LOGITS = """k->matmul(logits, x + n * C, wte, count, V, C, 0, 1, 0);
k->cross_entropy_forward(losses + n, logits, targets + n, count, V, V);"""

# By what is computed, for each tongue a file and the text of the line in it.
LINES: dict[str, tuple[tuple[str, str], ...]] = {
    "embd": (
        ("pygpt/reference/embedding.py", "return wte[tokens] if wpe is None else wte[tokens] + wpe[: tokens.shape[1]]"),
        ("csrc/layers/embedding.c", "for (int64_t c = 0; c < C; c++) x[n * C + c] = token[c] + position[c];"),
        ("cuda/layers/embedding.cu", "for (int i = 0; i < W; i++) token[i] += position[i];"),
    ),
    "embd alone": (
        ("pygpt/reference/embedding.py", "return wte[tokens] if wpe is None else wte[tokens] + wpe[: tokens.shape[1]]"),
        ("csrc/layers/embedding.c", "memcpy(x + n * C, token, (size_t)C * sizeof *x);"),
        ("cuda/layers/embedding.cu", "load<W>(token, wte + tokens[n] * C + c);"),
    ),
    "positions": (
        (
            "pygpt/reference/positions.py",
            "rows = np.stack([np.sin(theta), np.cos(theta)], -1).reshape(positions, -1)[:, :channels]",
        ),
        ("csrc/positions.c", "wpe[t * C + c] = (float)((c % 2 ? cos(angle) : sin(angle)) / sqrt((double)C));"),
        ("csrc/positions.c", "wpe[t * C + c] = (float)((c % 2 ? cos(angle) : sin(angle)) / sqrt((double)C));"),
    ),
    "dwte": (
        (
            "pygpt/reference/classifier.py",
            "dx[part], dwte_part, _ = linear.backward(dz, linear.rows(x)[part], wte.T, operands)",
        ),
        ("csrc/layers/classifier.c", "k->matmul(dwte, logits, x + n * C, V, C, count, 1, 0, 1);"),
        ("cuda/layers/classifier.cu", "product(queue, to_wte);"),
    ),
    "dembd": (
        (
            "pygpt/reference/embedding.py",
            "np.add.at(dwte, tokens, dx)  # unlike dwte[tokens] += dx, it counts a repeated token every time",
        ),
        ("csrc/layers/embedding.c", "for (int64_t c = first; c < end; c++) token[c] += dx[n * C + c];"),
        ("cuda/layers/embedding.cu", "row[i] = whole ? row[i] + sum[i] : sum[i];"),
    ),
    "dwpe": (
        ("pygpt/reference/embedding.py", "dwpe[: tokens.shape[1]] = dx.sum(0)"),
        ("csrc/layers/embedding.c", "for (int64_t c = first; c < end; c++) position[c] += dx[n * C + c];"),
        ("cuda/layers/embedding.cu", "for (int i = 0; i < W; i++) dwpe[at + i] += sum[i];"),
    ),
    "ln": (
        ("pygpt/reference/layernorm.py", "y = (x - mean) * rstd * w"),
        (
            "csrc/layers/layernorm.c",
            "for (int64_t c = 0; c < C; c++) y[n * C + c] = (xn[c] - mean[n]) * rstd[n] * w[c] + b[c];",
        ),
        ("cuda/layers/layernorm.cu", "for (int i = 0; i < W; i++) y[i] = (x[i] - s.mean) * s.rstd * w[i] + b[i];"),
    ),
    "dln": (
        (
            "pygpt/reference/layernorm.py",
            "dx = rstd * (u - u.mean(-1, keepdims=True) - x_hat * (u * x_hat).mean(-1, keepdims=True))",
        ),
        ("csrc/layers/layernorm.c", "dx[n * C + c] += rstd[n] * (u - u_mean - x_hat * ux_mean);"),
        ("cuda/layers/layernorm.cu", "dx[i] += rstd * (u - u_mean - x_hat * ux_mean);"),
    ),
    "dlnw": (
        ("pygpt/reference/layernorm.py", "return dx, (dy * x_hat).sum(rows), dy.sum(rows)"),
        ("csrc/layers/layernorm.c", "dw_sum[c] += dyn[c] * ((xn[c] - mean[n]) * rstd[n]);"),
        ("cuda/layers/layernorm.cu", "dw[i] += dy[i] * x_hat;"),
    ),
    "lin": (
        ("pygpt/reference/linear.py", "y = operands(rows(x)) @ operands(w)"),
        ("csrc/layers/linear.c", "product(y, x, w, N, OC, IC, 0, 0, 0);"),
        ("cuda/layers/linear.cu", "m.c = y, m.a = x, m.b = w;"),
    ),
    "dlin": (
        ("pygpt/reference/linear.py", "dx = operands(rows(dy)) @ operands(w).T"),
        ("csrc/layers/linear.c", "if (dx) product(dx, dy, w, N, IC, OC, 0, 1, 0);"),
        ("cuda/layers/linear.cu", "m.c = dx, m.a = dy, m.b = w;"),
    ),
    "dW": (
        ("pygpt/reference/linear.py", "dw = operands(rows(x)).T @ operands(rows(dy))"),
        ("csrc/layers/linear.c", "if (dw) product(dw, x, dy, IC, OC, N, 1, 0, 1);"),
        ("cuda/layers/linear.cu", "m.c = dw, m.a = x, m.b = dy;"),
    ),
    "db": (
        ("pygpt/reference/linear.py", "return dx.reshape(x.shape), dw, rows(dy).sum(0)"),
        ("csrc/layers/linear.c", "for (int64_t o = 0; o < columns; o++) sums[o] += dy[n * OC + first + o];"),
        ("cuda/layers/linear.cu", "if (db) add_column_sums(queue, db, dy, N, OC);"),
    ),
    "rotary": (
        ("pygpt/reference/rotary.py", "y[..., :2, :, 0, :] = first * cos - second * sin"),
        ("csrc/layers/rotary.c", "y[at + i] = a * cosine[i] - b * sine[i];"),
        ("cuda/layers/rotary.cuh", "y[0] = static_cast<T>(a * cosine - b * sine);"),
    ),
    "rotary partner": (
        ("pygpt/reference/rotary.py", "y[..., :2, :, 1, :] = second * cos + first * sin"),
        ("csrc/layers/rotary.c", "y[at + half + i] = b * cosine[i] + a * sine[i];"),
        ("cuda/layers/rotary.cuh", "y[half] = static_cast<T>(b * cosine + a * sine);"),
    ),
    "rotary value": (
        ("pygpt/reference/rotary.py", "y = x.copy()"),
        ("csrc/layers/rotary.c", "for (int64_t c = 0; c < C; c++) yv[c] = v[c];"),
        ("cuda/layers/rotary.cu", "y[h * HS] = x[h * HS];"),
    ),
    "drotary": (
        ("pygpt/reference/rotary.py", "return turn(dqkv, n_head, -np.arange(dqkv.shape[1]))"),
        ("csrc/layers/rotary.c", "turn_all(dqkv, dy, B, T, NH, HS, -1);"),
        ("cuda/layers/rotary.cu", "rotate_all(queue, dqkv, dy, B, T, NH, HS, -1);"),
    ),
    "S": (
        ("pygpt/reference/attention.py", "s = q @ k.swapaxes(-1, -2) * scale_of(q, scale)"),
        ("csrc/layers/attention.c", "for (int64_t u = 0; u <= t; u++) row[u] = scale * dot(q, k + u * 3 * C, HS);"),
        (
            "cuda/layers/attention.cu",
            "const float score = u < end ? s.scale * dot(q, k + lane * 3 * C, s.HS) : -INFINITY;",
        ),
    ),
    "P": (
        ("pygpt/reference/attention.py", "p = np.exp(s - lse)"),
        ("csrc/layers/attention.c", "float p = row[u] / sum;"),
        ("cuda/layers/attention.cu", "const float p = u < end ? expf(score - larger) : 0.0f;"),
    ),
    "y": (
        ("pygpt/reference/attention.py", "y = dropout_layer.forward(p, dropout) @ v"),
        ("csrc/layers/attention.c", "add_scaled(yt, p * factor_of(bh * T + t, u, T, dropout), v + u * 3 * C, HS);"),
        (
            "cuda/layers/attention.cu",
            "add_rows(yt, shrink, weights, k + C, 3 * C, static_cast<int>(min(int64_t{32}, end - first)), s.HS);",
        ),
    ),
    "S of all": (
        ("pygpt/reference/attention.py", "s = q @ k.swapaxes(-1, -2) * scale_of(q, scale)"),
        ("csrc/layers/attention.c", "float s = scale * dot(qt, k + u * 3 * C, HS);"),
        (
            "cuda/layers/attention.cu",
            "const float score = u < end ? s.scale * dot(q, k + lane * 3 * C, s.HS) : -INFINITY;",
        ),
    ),
    "P of all": (
        ("pygpt/reference/attention.py", "p = np.exp(s - lse)"),
        ("csrc/layers/attention.c", "float p = expf(scale * dot(qt, k + u * 3 * C, HS) - largest) / sum;"),
        ("cuda/layers/attention.cu", "const float p = u < end ? expf(score - larger) : 0.0f;"),
    ),
    "y of all": (
        ("pygpt/reference/attention.py", "y = dropout_layer.forward(p, dropout) @ v"),
        ("csrc/layers/attention.c", "add_scaled(yt, p * factor_of(row + t, u, T, dropout), v + u * 3 * C, HS);"),
        (
            "cuda/layers/attention.cu",
            "add_rows(yt, shrink, weights, k + C, 3 * C, static_cast<int>(min(int64_t{32}, end - first)), s.HS);",
        ),
    ),
    "dP": (
        (
            "pygpt/reference/attention.py",
            "return dropout_layer.backward(heads(dy, v.shape[1]) @ v.swapaxes(-1, -2), dropout)",
        ),
        ("csrc/layers/attention.c", "float ds = p * (m * dot(dyt, v, HS) - D);"),
        ("cuda/layers/attention.cu", "dS = p * (m * dot(dyt, k + C + lane * 3 * C, s.HS) - Dt);"),
    ),
    "dS": (
        ("pygpt/reference/attention.py", "return p * (dp - (dy * y).sum(-1, keepdims=True))"),
        ("csrc/layers/attention.c", "float ds = p * (m * dot(dyt, v, HS) - D);"),
        ("cuda/layers/attention.cu", "dS = p * (m * dot(dyt, k + C + lane * 3 * C, s.HS) - Dt);"),
    ),
    "dq": (
        ("pygpt/reference/attention.py", "dq = ds @ k * scale_of(q, scale)"),
        ("csrc/layers/attention.c", "add_scaled(dq, scale * ds, k, HS);"),
        (
            "cuda/layers/attention.cu",
            "add_rows(dq, 1.0f, weights, k, 3 * C, static_cast<int>(min(int64_t{32}, end - first)), s.HS);",
        ),
    ),
    "dk": (
        ("pygpt/reference/attention.py", "dk = ds.swapaxes(-1, -2) @ q * scale_of(q, scale)"),
        ("csrc/layers/attention.c", "add_scaled(dk, scale * ds, q, HS);"),
        ("cuda/layers/attention.cu", "add_rows(dk, 1.0f, dS, q, 3 * C, rows, s.HS);"),
    ),
    "dv": (
        ("pygpt/reference/attention.py", "dv = dropout_layer.forward(p, dropout).swapaxes(-1, -2) @ heads(dy, n_head)"),
        ("csrc/layers/attention.c", "add_scaled(dv, p * m, dyt, HS);"),
        ("cuda/layers/attention.cu", "add_rows(dv, 1.0f, P, dyt, C, rows, s.HS);"),
    ),
    "resid": (
        ("pygpt/reference/residual.py", "return x1 + x2"),
        ("csrc/layers/residual.c", "for (int64_t i = 0; i < n; i++) y[i] = x1[i] + x2[i];"),
        ("cuda/layers/residual.cu", "for (int i = 0; i < W; i++) y[i] = x[0][i] + x[1][i];"),
    ),
    "dresid": (
        ("pygpt/reference/residual.py", "return dy, dy"),
        ("csrc/layers/residual.c", "dx1[i] = dy[i];"),
        ("cuda/layers/residual.cu", "copy(queue, dx1, dy, n);"),
    ),
    "gelu": (
        ("pygpt/reference/gelu.py", "return 0.5 * x * (1 + t)"),
        ("csrc/layers/gelu.c", "y[i] = 0.5f * x[i] * (1.0f + t);"),
        ("cuda/layers/gelu.cuh", "return 0.5f * x * (1.0f + tanhf(s * (x + 0.044715f * x * x * x)));"),
    ),
    "dgelu": (
        ("pygpt/reference/gelu.py", "return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * du)"),
        ("csrc/layers/gelu.c", "dx[i] = dy[i] * (0.5f * (1.0f + t) + 0.5f * x[i] * (1.0f - t * t) * slope);"),
        (
            "cuda/layers/gelu.cuh",
            "return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * s * (1.0f + 3.0f * 0.044715f * x * x);",
        ),
    ),
    "exact_gelu": (
        ("pygpt/reference/exact_gelu.py", "return x * normal_distribution(x)"),
        ("csrc/layers/exact_gelu.c", "for (int64_t i = 0; i < n; i++) y[i] = x[i] * 0.5f * erfcf(-SQRT_HALF * x[i]);"),
        ("cuda/layers/exact_gelu.cuh", "return x * normal_distribution(x);"),
    ),
    "dexact_gelu": (
        ("pygpt/reference/exact_gelu.py", "return dy * (normal_distribution(x) + x * normal_density(x))"),
        ("csrc/layers/exact_gelu.c", "dx[i] = dy[i] * (0.5f * erfcf(-SQRT_HALF * x[i]) + x[i] * density);"),
        (
            "cuda/layers/exact_gelu.cuh",
            "return normal_distribution(x) + x * 0.3989422804014327f * expf(-0.5f * x * x);",
        ),
    ),
    "relu": (
        ("pygpt/reference/relu.py", "return np.where(x.real > 0, x, x.dtype.type(0))"),
        ("csrc/layers/relu.c", "for (int64_t i = 0; i < n; i++) y[i] = x[i] > 0.0f ? x[i] : 0.0f;"),
        ("cuda/layers/relu.cu", "for (int i = 0; i < W; i++) y[i] = x[0][i] > 0.0f ? x[0][i] : 0.0f;"),
    ),
    "drelu": (
        ("pygpt/reference/relu.py", "return np.where(x.real > 0, dy, dy.dtype.type(0))"),
        ("csrc/layers/relu.c", "for (int64_t i = 0; i < n; i++) dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;"),
        ("cuda/layers/relu.cu", "for (int i = 0; i < W; i++) dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;"),
    ),
    "logits": (
        ("pygpt/reference/classifier.py", "return linear.forward(x, wte.T, operands=operands)"),
        ("csrc/layers/classifier.c", FORWARD_LOGITS),
        ("cuda/layers/classifier.cu", "product(queue, m);"),
    ),
    "dlnf": (
        (
            "pygpt/reference/classifier.py",
            "dx[part], dwte_part, _ = linear.backward(dz, linear.rows(x)[part], wte.T, operands)",
        ),
        ("csrc/layers/classifier.c", "k->matmul(dx + n * C, logits, wte, count, C, V, 0, 0, 0);"),
        ("cuda/layers/classifier.cu", "product(queue, to_x);"),
    ),
    "loss": (
        ("pygpt/reference/cross_entropy.py", "losses = (log_sum_exp(z) - np.take_along_axis(z, target, -1))[..., 0]"),
        ("csrc/layers/cross_entropy.c", "losses[n] = (float)(lse.log_sum + ((double)lse.largest - z[targets[n]]));"),
        (
            "cuda/layers/cross_entropy.cu",
            "if (threadIdx.x == 0 && losses) losses[n] = target < 0 ? 0.0f : lse - target_z;",
        ),
    ),
    "dz": (
        (
            "pygpt/reference/cross_entropy.py",
            "np.put_along_axis(dz, target, np.take_along_axis(dz, target, -1) - 1, -1)",
        ),
        (
            "csrc/layers/cross_entropy.c",
            "for (int64_t v = 0; v < V; v++) dz[v] = target < 0 ? 0.0f : dloss * expf(z[v] - lse.largest - log_sum);",
        ),
        (
            "cuda/layers/cross_entropy.cu",
            "for (unsigned i = 0; i < W; i++) x[i] -= i == of_target ? 1.0f : 0.0f;",
        ),
    ),
    "adamw": (
        ("pygpt/reference/adamw.py", "w -= lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * w)"),
        ("csrc/layers/adamw.c", "w[i] -= lr * (m_hat / (sqrtf(v_hat) + eps) + weight_decay * w[i]);"),
        ("cuda/layers/adamw.cu", "wi[i] -= update.lr * (m_hat / (sqrtf(v_hat) + update.eps) + decay * wi[i]);"),
    ),
}


def find(path: str, code: str) -> list[int]:
    """The numbers, from 1, of the lines in a file of the checkout where this code begins; none if it is absent."""
    file = CHECKOUT / path
    if not file.is_file():
        return []
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    wanted = code.split("\n")
    return [at + 1 for at in range(len(lines)) if lines[at : at + len(wanted)] == wanted]


def where() -> dict[str, list[tuple[str, str, int, str]]]:
    """By what is computed: tongue, path, line and its text, for the files that are there."""
    return {
        name: [
            (tongue, path, found[0], code.split("\n")[0])
            for tongue, (path, code) in zip(TONGUES, lines, strict=True)
            if (found := find(path, code))
        ]
        for name, lines in LINES.items()
    }
