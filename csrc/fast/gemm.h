/* Matrix products from packed panels, after Goto & van de Geijn (2008) and Van Zee & van de Geijn (2015). */
#ifndef PYGPT_GEMM_H
#define PYGPT_GEMM_H

#include "../divides_work.h"
#include "pack.h"

/* A stretch of k, in elements of a panel, which are pairs in bfloat16. Long, because at its end c is read and written; one for all
 * products, so that whichever way one is computed, its sums of float32 have the same bits. */
enum { KC = DIVIDES_WORK(768, 20) };

/* c_ij = from_ij + Σ_k a_ik b_kj      c: (M,N), rows c_stride apart
 *
 * from: c itself to accumulate, a bias with stride 0, or NULL for nothing. */
typedef struct {
    PanelType type;
    float *c;
    int64_t c_stride;
    const float *from;
    int64_t from_stride;
    Operand a, b;
    int64_t M, N, K;
} Product;

int gemm(const Product *product);   // 0 if it has done nothing: no memory for the panels, or K = 0
int64_t gemm_workspace_bytes(void);   // that are kept between products

#endif
