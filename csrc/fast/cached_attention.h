/* Attention to the keys and values of a cache, in vectors. */
#ifndef PYGPT_CACHED_ATTENTION_H
#define PYGPT_CACHED_ATTENTION_H

#include "../generation.h"

CacheRow fast_cache_row;
CachedAttention fast_cached_attention;   // up to MR queries
int64_t fast_cached_numbers(int cache, int64_t positions, int64_t HS);
int64_t fast_cached_attention_floats(int64_t positions, int64_t HS);

#endif
