/* Packing; see packed.h. */
#include "packed.h"

#include <math.h>
#include <string.h>

#include "bf16.h"

int64_t packed_group_bytes(int type, int64_t width) {
    const int64_t bits[] = {[PYGPT_FLOAT32] = 32, [PYGPT_BFLOAT16] = 16, [PYGPT_INT8] = 8, [PYGPT_INT4] = 4};
    int64_t scales = type == PYGPT_INT8 || type == PYGPT_INT4 ? 2 * width : 0;
    return scales + GROUP * width * bits[type] / 8;
}

int64_t packed_bytes(const PackedMatrix *m) {
    int64_t groups = checked_mul(packed_panels(m), divide_up(m->K, GROUP));
    return checked_mul(groups, packed_group_bytes(m->type, m->width));
}

/* The scale with which the GROUP weights of output n are kept: the largest becomes 127, or, with four bits, -8, whose sign it
 * has, as there are more negative numbers than positive ones. */
static float scale_of(int type, float w[GROUP][WIDEST], int64_t n) {
    float largest = 0.0f;
    for (int k = 0; k < GROUP; k++) {
        if (!(fabsf(w[k][n]) <= fabsf(largest))) largest = w[k][n];   // a NaN too, and then it is one that stays
        if (largest != largest) break;
    }
    return type == PYGPT_INT8 ? fabsf(largest) / 127.0f : largest / -8.0f;
}

static int quantised(float w, float scale, int lowest, int highest) {
    float q = scale != 0.0f ? nearbyintf(w / scale) : 0.0f;
    return q >= (float)lowest ? q <= (float)highest ? (int)q : highest : lowest;   // lowest for a NaN
}

/* Which byte has the integer of input k, and how far to the left in it. */
static int64_t byte_of(int type, int64_t width, int64_t k, int64_t n) {
    int64_t inputs = type == PYGPT_INT8 ? 4 : 8;   // of four bytes
    return (k / inputs * width + n) * 4 + k % 4;
}

static int int4_shift(int64_t k) {
    return k % 8 < 4 ? 0 : 4;
}

static void fill_int8(int64_t width, unsigned char *q, int64_t n, float w[GROUP][WIDEST], float scale) {
    for (int k = 0; k < GROUP; k++)
        q[byte_of(PYGPT_INT8, width, k, n)] = (unsigned char)(quantised(w[k][n], scale, -127, 127) + 128);
}

static void fill_int4(int64_t width, unsigned char *q, int64_t n, float w[GROUP][WIDEST], float scale) {
    for (int k = 0; k < GROUP; k++) {
        unsigned bits = (unsigned)(quantised(w[k][n], scale, -8, 7) + 8) << int4_shift(k);
        unsigned char *byte = q + byte_of(PYGPT_INT4, width, k, n);
        *byte = (unsigned char)(int4_shift(k) ? *byte | bits : bits);
    }
}

/* scales: those of the first `columns` outputs, or NULL. */
static void fill_group(int type, int64_t width, unsigned char *group, float w[GROUP][WIDEST], const float *scales,
                       int64_t columns) {
    if (type == PYGPT_FLOAT32) {
        for (int k = 0; k < GROUP; k++) memcpy(group + k * width * 4, w[k], (size_t)width * 4);
        return;
    }
    if (type == PYGPT_BFLOAT16) {
        for (int k = 0; k < GROUP; k++) {
            for (int64_t n = 0; n < width; n++) {
                uint16_t half = to_bf16(w[k][n]);
                memcpy(group + 2 * ((k / 2 * width + n) * 2 + k % 2), &half, 2);
            }
        }
        return;
    }
    for (int64_t n = 0; n < width; n++) {
        uint16_t half = to_bf16(scales && n < columns ? scales[n] : scale_of(type, w, n));
        float scale = from_bf16(half);
        memcpy(group + 2 * n, &half, 2);
        (type == PYGPT_INT8 ? fill_int8 : fill_int4)(width, group + 2 * width, n, w, scale);
    }
}

void packed_fill(PackedMatrix *m, const float *w, int64_t k_stride, int64_t n_stride, const float *scales) {
    int64_t group_bytes = packed_group_bytes(m->type, m->width);
    #pragma omp parallel for
    for (int64_t panel = 0; panel < packed_panels(m); panel++) {
        unsigned char *group = m->data + panel * packed_panel_bytes(m);
        int64_t first = panel * m->width, columns = min64(m->width, m->N - first);
        for (int64_t k0 = 0; k0 < m->K; k0 += GROUP, group += group_bytes) {
            float values[GROUP][WIDEST] = {{0.0f}};
            for (int64_t k = k0; k < min64(k0 + GROUP, m->K); k++) {
                for (int64_t n = 0; n < columns; n++) values[k - k0][n] = w[k * k_stride + (first + n) * n_stride];
            }
            const float *given = scales ? scales + k0 / GROUP * m->N + first : NULL;
            fill_group(m->type, m->width, group, values, given, columns);
        }
    }
}

/* The group in which w(k,n) is. */
static const unsigned char *group_of(const PackedMatrix *m, int64_t k, int64_t n) {
    return packed_panel(m, n / m->width) + k / GROUP * packed_group_bytes(m->type, m->width);
}

static float bf16_at(const unsigned char *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return from_bf16(half);
}

float packed_scale(const PackedMatrix *m, int64_t k, int64_t n) {
    return bf16_at(group_of(m, k, n) + 2 * (n % m->width));
}

int packed_integer(const PackedMatrix *m, int64_t k, int64_t n) {
    int64_t i = k % GROUP, width = m->width;
    unsigned char byte = group_of(m, k, n)[2 * width + byte_of(m->type, width, i, n % width)];
    return m->type == PYGPT_INT8 ? byte - 128 : (byte >> int4_shift(i) & 15) - 8;
}

float packed_value(const PackedMatrix *m, int64_t k, int64_t n) {
    const unsigned char *group = group_of(m, k, n);
    int64_t width = m->width, i = k % GROUP, j = n % width;
    float value;
    switch (m->type) {
    case PYGPT_FLOAT32: memcpy(&value, group + 4 * (i * width + j), sizeof value); return value;
    case PYGPT_BFLOAT16: return bf16_at(group + 2 * ((i / 2 * width + j) * 2 + i % 2));
    default: return packed_scale(m, k, n) * (float)packed_integer(m, k, n);
    }
}

void quantise_inputs(QuantisedInputs *to, const float *x, int64_t K) {
    for (; K > 0; x += GROUP, K -= GROUP, to++) {
        float largest = 0.0f;
        for (int k = 0; k < min64(K, GROUP) && largest == largest; k++) {
            if (!(fabsf(x[k]) <= largest)) largest = fabsf(x[k]);   // a NaN too, and then it stays
        }
        to->scale = largest / 127.0f;
        to->sum = 0;
        for (int k = 0; k < GROUP; k++) {
            to->q[k] = (int8_t)(k < K ? quantised(x[k], to->scale, -127, 127) : 0);
            to->sum += to->q[k];
        }
    }
}
