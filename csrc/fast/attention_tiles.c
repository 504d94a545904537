/* attention_tiles.h: packing, products and dropout of a head. */
#include "attention_tiles.h"

#include "../threads.h"
#include "dropout_mask.h"

enum { SMALL = DIVIDES_WORK(1 << 16, 0) };

Head head_of(PanelType type, const float *qkv, int64_t b, int64_t h, int64_t T, int64_t NH, int64_t HS, float scale,
             int causal, const Dropout *dropout) {
    int64_t C = NH * HS;
    const float *q = qkv + b * T * 3 * C + h * HS;
    return (Head){type,
                  q,
                  q + C,
                  q + 2 * C,
                  3 * C,
                  T,
                  HS,
                  divide_up(HS, panel_pair(type)),
                  scale,
                  causal,
                  (b * NH + h) * T,
                  dropout && dropout->p > 0.0f ? dropout : NULL};
}

PanelType bf16_attention_type(void) {
    return panel_pair(PANEL_BF16) == 2 ? PANEL_BF16 : PANEL_F32;
}

int attention_threads(int64_t B, int64_t T, int64_t NH, int64_t HS) {
    return B * NH * T * T * HS > SMALL ? omp_get_max_threads() : 1;
}

void multiply_panels(const Head *head, float *c, int64_t c_stride, int accumulate, const float *a, const float *b,
                     int64_t depth, int64_t rows) {
    Microkernel *microkernel = head->type == PANEL_BF16 ? microkernel_bf16 : microkernel_f32;
    microkernel(c, c_stride, accumulate ? c : NO_START, accumulate ? c_stride : 0, a, b, depth, rows, &NOTHING_AHEAD);
}

void pack_row_panels(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_rows(head->type, panels, (Operand){x, stride, 1}, rows, head->HS);
}

void pack_column_panels(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_columns(head->type, panels, (Operand){x, stride, 1}, rows, head->HS);
}

void pack_channels_as_rows(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_rows(head->type, panels, (Operand){x, stride, 0}, head->HS, rows);
}

void pack_channels_as_columns(const Head *head, float *panels, const float *x, int64_t stride, int64_t rows) {
    pack_columns(head->type, panels, (Operand){x, stride, 0}, head->HS, rows);
}

void multiply_keys(const Head *head, float *tile, const float *row_panels, const float *column_panel, int64_t keys) {
    for (int64_t i = 0; i < keys; i += MR) {
        multiply_panels(head, tile + i * NR, NR, 0, row_panels + i * head->depth, column_panel, head->depth,
                        min64(MR, keys - i));
    }
}

void multiply_channels(const Head *head, float *sums, int accumulate, const float *channel_panels, int64_t keys,
                       const float *tile, int64_t n, float *pairs) {
    int64_t pair = panel_pair(head->type), depth = divide_up(keys, pair);
    if (head->type != PANEL_F32) {
        pack_columns(head->type, pairs, (Operand){tile, NR, 0}, NR, n);
        tile = pairs;
    }
    for (int64_t c = 0; c < head->HS; c += MR) {
        multiply_panels(head, sums + c * NR, NR, accumulate, channel_panels + c * depth, tile, divide_up(n, pair),
                        min64(MR, head->HS - c));
    }
}

void store_columns(float *y, int64_t stride, const float *sums, int64_t HS, int64_t queries) {
    for (int64_t t = 0; t < queries; t += LANES) {
        for (int64_t c = 0; c < HS; c += LANES) {
            Floats block[LANES];
            for (int i = 0; i < LANES; i++) block[i] = load(sums + (c + i) * NR + t);
            transpose(block);
            for (int i = 0; i < LANES && t + i < queries; i++) {
                store_first(y + (t + i) * stride + c, block[i], HS - c);
            }
        }
    }
}

/* In P as (B·NH·T, T) the elements of one lane lie side by side, and a counter has four of them; where the first one is its
 * counter's second, third or fourth, four elements come from two successive counters. */
void draw_factors(float *factors, const Head *head, int64_t query, int64_t key, int64_t keys) {
    for (int j = 0; j < NR; j += LANES) {
        Words low, high, phase;
        for (int lane = 0; lane < LANES; lane++) {
            uint64_t element = (uint64_t)((head->probability_row + query + j + lane) * head->T + key);
            low[lane] = (uint32_t)(element / 4);
            high[lane] = (uint32_t)(element / 4 >> 32);
            phase[lane] = (uint32_t)(element % 4);
        }
        Words word[8];   // of the counter and the next one
        philox_words(word + 4, low, high, head->dropout);
        for (int64_t i = 0; i < keys; i += 4) {
            for (int w = 0; w < 4; w++) word[w] = word[w + 4];
            low += 1u;
            high -= (Words)(low == 0u);   // a true comparison is −1
            philox_words(word + 4, low, high, head->dropout);
            for (int w = 0; w < 4 && i + w < keys; w++) {
                Words chosen = word[w];
                for (uint32_t p = 1; p < 4; p++)
                    chosen = (Words)choose((Ints)(phase == p), (Floats)word[w + p], (Floats)chosen);
                store(factors + (i + w) * NR + j, dropout_factors(chosen, head->dropout));
            }
        }
    }
}

Sizes attention_sizes(int64_t HS) {
    int64_t channels = round_up(round_up(round_up(HS, NR), MR), LANES);
    return (Sizes){QUERIES * channels, KEYS * channels, QUERIES * channels, KEYS * NR, divide_up(KEYS, 2) * NR};
}
