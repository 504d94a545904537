/* Fast kernels: the same signatures and results as the plain layers, of which they are the twins (csrc/layers/). */
#ifndef PYGPT_FAST_H
#define PYGPT_FAST_H

#include "../pygpt.h"

void fast_matmul(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                 int transpose_b, int accumulate);
void fast_matmul_bf16(float *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int transpose_a,
                      int transpose_b, int accumulate);
void fast_linear_forward(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC, int64_t OC);
void fast_linear_forward_bf16(float *y, const float *x, const float *w, const float *b, int64_t N, int64_t IC,
                              int64_t OC);
void fast_linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, int64_t N,
                          int64_t IC, int64_t OC);
void fast_linear_backward_bf16(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                               int64_t N, int64_t IC, int64_t OC);

void fast_layernorm_forward(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                            int64_t N, int64_t C, float eps);
void fast_layernorm_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                             const float *mean, const float *rstd, int64_t N, int64_t C);
void fast_attention_forward(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                            float scale, int causal, const Dropout *dropout);
void fast_attention_backward(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                             int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                             const Dropout *dropout);
void fast_attention_forward_bf16(float *y, float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH, int64_t HS,
                                 float scale, int causal, const Dropout *dropout);
void fast_attention_backward_bf16(float *dqkv, const float *dy, const float *y, const float *lse, const float *qkv,
                                  int64_t B, int64_t T, int64_t NH, int64_t HS, float scale, int causal,
                                  const Dropout *dropout);
void fast_attention_probabilities(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                  int64_t HS, float scale, int causal);
void fast_attention_probabilities_bf16(float *p, const float *lse, const float *qkv, int64_t B, int64_t T, int64_t NH,
                                       int64_t HS, float scale, int causal);
void fast_gelu_forward(float *y, const float *x, int64_t n);
void fast_gelu_backward(float *dx, const float *dy, const float *x, int64_t n);
void fast_exact_gelu_forward(float *y, const float *x, int64_t n);
void fast_exact_gelu_backward(float *dx, const float *dy, const float *x, int64_t n);
void fast_dropout_forward(float *y, const float *x, int64_t n, const Dropout *dropout);
void fast_dropout_backward(float *dx, const float *dy, int64_t n, const Dropout *dropout);
void fast_cross_entropy_forward(float *losses, const float *logits, const int32_t *targets, int64_t N, int64_t V,
                                int64_t Vp);
void fast_cross_entropy_backward(float *dlogits, const float *dlosses, const float *logits, const int32_t *targets,
                                 int64_t N, int64_t V, int64_t Vp);
void fast_cross_entropy_in_place(float *losses, float *logits, const float *dlosses, const int32_t *targets, int64_t N,
                                 int64_t V, int64_t Vp);
void fast_adamw_step(float *w, float *m, float *v, const float *dw, int64_t n, float lr, float beta1, float beta2,
                     float eps, float weight_decay, int64_t step);
void fast_muon_step(float *w, float *m, const float *dw, float *scratch, int64_t R, int64_t C, int64_t parts, float lr,
                    float momentum, float weight_decay);

#endif
