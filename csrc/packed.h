/* Matrices of weights, packed once for y = x w: panels of `width` outputs, each made of groups of 32 inputs. A panel is read
 * from its first byte to its last, whether one row of x comes or a thousand.
 *
 *   float32    w[32][width]
 *   bfloat16   w[16][width][2]: inputs k and k + 1 side by side
 *   int8       s[width], q[8][width][4]: w = s q; 128 + q of four inputs side by side
 *   int4       s[width], q[4][width][4]: of 8 inputs, 8 + q of the first four in the low bits of the bytes, of the others in
 *              the high bits
 *
 * s is a bfloat16, so a weight takes 8.5 or 4.5 bits. What lies beyond the matrix is zero.
 *
 * With int8 and int4 the inputs become eight bits, x = sx qx with one scale for 32 inputs, so that a group is a sum of integers:
 *   y_n = Σ_groups s_n sx Σ_k q_kn qx_k
 */
#ifndef PYGPT_PACKED_H
#define PYGPT_PACKED_H

#include "internal.h"

enum { GROUP = 32, WIDEST = 32 };   // inputs; the largest width

typedef struct {
    int type;   // PYGPT_FLOAT32 ... PYGPT_INT4
    int64_t K, N, width;
    unsigned char *data;
} PackedMatrix;

int64_t packed_group_bytes(int type, int64_t width);

static inline int64_t packed_panels(const PackedMatrix *m) {
    return divide_up(m->N, m->width);
}

static inline int64_t packed_panel_bytes(const PackedMatrix *m) {
    return divide_up(m->K, GROUP) * packed_group_bytes(m->type, m->width);
}

static inline const unsigned char *packed_panel(const PackedMatrix *m, int64_t panel) {
    return m->data + panel * packed_panel_bytes(m);
}

int64_t packed_bytes(const PackedMatrix *m);   // of data; -1 if they overflow 64 bits

/* From w(k,n) = w[k * k_stride + n * n_stride]. scales: (⌈K/32⌉,N), of int8 and int4, or NULL for those that the weights have. */
void packed_fill(PackedMatrix *m, const float *w, int64_t k_stride, int64_t n_stride, const float *scales);

float packed_value(const PackedMatrix *m, int64_t k, int64_t n);

static inline int packs_integers(const PackedMatrix *m) {
    return m->type == PYGPT_INT8 || m->type == PYGPT_INT4;
}

/* Of int8 and int4: s and q. */
float packed_scale(const PackedMatrix *m, int64_t k, int64_t n);
int packed_integer(const PackedMatrix *m, int64_t k, int64_t n);

/* A group of inputs in eight bits: scale = max |x| / 127, and q from -127 to 127. sum: of q. */
typedef struct {
    float scale;
    int32_t sum;
    int8_t q[GROUP];
} QuantisedInputs;

/* One row; (⌈K/32⌉) groups. */
void quantise_inputs(QuantisedInputs *to, const float *x, int64_t K);

#endif
