/* The numbers of the model's dropouts, on which their masks depend: one of the embedding, three of each block. */
#ifndef PYGPT_SITES_H
#define PYGPT_SITES_H

#include <stdint.h>

enum {
    SITE_EMBEDDING = 0,
    SITE_ATTENTION = 1,
    SITE_ATTENTION_BRANCH = 2,
    SITE_FEED_FORWARD_BRANCH = 3,
    SITES_PER_BLOCK = 3
};

static inline uint32_t dropout_site(int site, int64_t layer) {
    return (uint32_t)(site + layer * SITES_PER_BLOCK);
}

#endif
