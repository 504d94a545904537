/* Multi-head self-attention, causal or not. For each sequence and head, with row t of queries q, keys k and values v:
 *
 *   forward    s_tu = scale q_t·k_u  (causal: u ≤ t)     P_tu = exp(s_tu − lse_t)     lse_t = log Σ_u exp(s_tu)
 *              y_t = Σ_u P_tu m_tu v_u                      m: dropout's factor, 1 without dropout
 *   backward   dP_tu = m_tu dy_t·v_u      D_t = Σ_u P_tu dP_tu = dy_t·y_t      dS_tu = P_tu (dP_tu − D_t)
 *              dq_t = scale Σ_u dS_tu k_u      dk_u = scale Σ_t dS_tu q_t      dv_u = Σ_t P_tu m_tu dy_t
 *
 * The forward pass goes over the keys of a row once for each step of the softmax: scores, the largest, exponentials and
 * their sum, weighted values. The exponents are relative to the largest score, so that none overflows. No row of P stays,
 * only lse_t, from which the backward pass computes any P_tu again. (The fast one goes over the keys once.) Without the
 * causal mask, there is no place for a row of scores, so each step computes its scores again.
 *
 * qkv: (B,T,3,NH,HS)   y: (B,T,NH,HS)   lse: (B,NH,T)
 */
#include <math.h>

#include "../internal.h"
#include "../philox.h"

static inline float dot(const float *a, const float *b, int64_t n) {
    float sum = 0.0f;
    #pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* y += factor x */
static inline void add_scaled(float *y, float factor, const float *x, int64_t n) {
    #pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += factor * x[i];
}

/* Query t looks at the keys before this one. */
static inline int64_t keys_end(int64_t t, int64_t T, int causal) {
    return causal ? t + 1 : T;
}

static inline float factor_of(int64_t row, int64_t u, int64_t T, const Dropout *dropout) {
    return dropout ? dropout_factor((uint64_t)(row * T + u), dropout) : 1.0f;
}

/* One sequence and head without the mask; y, q, k, v: its rows, C or 3C floats apart. row: of its query 0 in P, for dropout. */
static void forward_unmasked(float *y, float *lse, const float *q, const float *k, const float *v, int64_t T, int64_t C,
                             int64_t HS, float scale, int64_t row, const Dropout *dropout) {
    for (int64_t t = 0; t < T; t++) {
        const float *qt = q + t * 3 * C;
        float *yt = y + t * C;

        float largest = scale * dot(qt, k, HS);
        for (int64_t u = 1; u < T; u++) {
            float s = scale * dot(qt, k + u * 3 * C, HS);
            largest = s > largest ? s : largest;
        }

        float sum = 0.0f;
        for (int64_t u = 0; u < T; u++) sum += expf(scale * dot(qt, k + u * 3 * C, HS) - largest);

        for (int64_t i = 0; i < HS; i++) yt[i] = 0.0f;
        for (int64_t u = 0; u < T; u++) {
            float p = expf(scale * dot(qt, k + u * 3 * C, HS) - largest) / sum;
            add_scaled(yt, p * factor_of(row + t, u, T, dropout), v + u * 3 * C, HS);
        }
        lse[t] = largest + logf(sum);
    }
}

void attention_forward(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                       float scale, int causal, const Dropout *dropout) {
    int64_t C = NH * HS;

    #pragma omp parallel for schedule(dynamic)
    for (int64_t bh = 0; bh < B * NH; bh++) {
        int64_t b = bh / NH, h = bh % NH;
        if (!causal) {
            const float *q = qkv + b * T * 3 * C + h * HS;
            forward_unmasked(y + b * T * C + h * HS, lse + bh * T, q, q + C, q + 2 * C, T, C, HS, scale, bh * T,
                             dropout);
            continue;
        }
        float *row = lse + bh * T;   // row t is in its places 0 ... t, before lse_t is; so the last row comes first
        for (int64_t t = T - 1; t >= 0; t--) {
            const float *q = qkv + (b * T + t) * 3 * C + h * HS, *k = qkv + b * T * 3 * C + C + h * HS, *v = k + C;
            float *yt = y + (b * T + t) * C + h * HS;

            for (int64_t u = 0; u <= t; u++) row[u] = scale * dot(q, k + u * 3 * C, HS);

            float largest = row[0];
            for (int64_t u = 1; u <= t; u++) largest = row[u] > largest ? row[u] : largest;

            float sum = 0.0f;
            for (int64_t u = 0; u <= t; u++) {
                row[u] = expf(row[u] - largest);
                sum += row[u];
            }

            for (int64_t i = 0; i < HS; i++) yt[i] = 0.0f;
            for (int64_t u = 0; u <= t; u++) {
                float p = row[u] / sum;
                add_scaled(yt, p * factor_of(bh * T + t, u, T, dropout), v + u * 3 * C, HS);
            }
            row[t] = largest + logf(sum);
        }
    }
}

void attention_backward(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv, int64_t B,
                        int64_t T, int64_t NH, int64_t HS, float scale, int causal, const Dropout *dropout) {
    int64_t C = NH * HS;

    #pragma omp parallel for schedule(dynamic)   // over heads, because the rows t of one head add to the same dk and dv
    for (int64_t bh = 0; bh < B * NH; bh++) {
        int64_t b = bh / NH, h = bh % NH;
        for (int64_t t = 0; t < T; t++) {
            float *dq = dqkv + (b * T + t) * 3 * C + h * HS, *dk = dq + C, *dv = dk + C;
            for (int64_t i = 0; i < HS; i++) dq[i] = dk[i] = dv[i] = 0.0f;
        }
        for (int64_t t = 0; t < T; t++) {
            const float *q = qkv + (b * T + t) * 3 * C + h * HS;
            const float *yt = y + (b * T + t) * C + h * HS, *dyt = dy + (b * T + t) * C + h * HS;
            float *dq = dqkv + (q - qkv);
            float D = dot(dyt, yt, HS);
            for (int64_t u = 0; u < keys_end(t, T, causal); u++) {
                const float *k = qkv + (b * T + u) * 3 * C + C + h * HS, *v = k + C;
                float *dk = dqkv + (k - qkv), *dv = dk + C;
                float p = expf(scale * dot(q, k, HS) - lse[bh * T + t]);
                float m = factor_of(bh * T + t, u, T, dropout);
                float ds = p * (m * dot(dyt, v, HS) - D);
                add_scaled(dq, scale * ds, k, HS);
                add_scaled(dk, scale * ds, q, HS);
                add_scaled(dv, p * m, dyt, HS);
            }
        }
    }
}

void attention_probabilities(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                             float scale, int causal) {
    int64_t C = NH * HS;

    #pragma omp parallel for collapse(2)
    for (int64_t bh = 0; bh < B * NH; bh++) {
        for (int64_t t = 0; t < T; t++) {
            int64_t b = bh / NH, h = bh % NH;
            const float *q = qkv + (b * T + t) * 3 * C + h * HS;
            float *row = p + (bh * T + t) * T;
            int64_t end = keys_end(t, T, causal);
            for (int64_t u = 0; u < end; u++) {
                const float *k = qkv + (b * T + u) * 3 * C + C + h * HS;
                row[u] = expf(scale * dot(q, k, HS) - lse[bh * T + t]);
            }
            for (int64_t u = end; u < T; u++) row[u] = 0.0f;
        }
    }
}
