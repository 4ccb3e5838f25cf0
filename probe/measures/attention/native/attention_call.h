/* What one call of `attention_sums` is given, the memory that it works in, and how queries and keys
   get there. */

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

#define PAIR 2            /* vectors of queries in a block */
#define LANES (PAIR * WIDTH)
#define TILE 12           /* keys whose scores stay in registers: PAIR * TILE sums */
#define CHUNK 32          /* keys that are summed before they are added to a total: less rounding */
#define HIDDEN -1e30f     /* finite: a weight of 0 times it is 0 */

typedef struct { int64_t type, start, stop; } Run;

typedef struct {
    const void *query, *key;          /* (head, query, dim), (key head, key, dim) of one sequence */
    const int64_t *row;               /* (queries) which queries of the call */
    const int64_t *begin, *end;       /* (queries) the keys that each query sees */
    const int64_t *query_type;        /* (queries) */
    const float *bias;                /* (queries, keys) or NULL: added to the scores */
    const Run *runs;                  /* (run_count) the keys by type, in order; type -1: none */
    float *mass;                      /* (head, query, type) sum of p */
    double *plogp;                    /* (head, query, type) sum of p ln p */
    double *pooled, *pooled_plogp;    /* (query, type) the same of the weights averaged over heads */
    float *received;                  /* (type, received_width) what keys get in that average */
    int64_t queries, keys, heads, group, dim, types, run_count;
    int64_t query_head_stride, query_stride, key_head_stride, key_stride;
    int64_t sums_head_stride, received_width;
    float scaling;
    int32_t is_bfloat16, threads;
} Call;

typedef struct {
    vec *scores, *average, *bias, *queries; /* (keys, LANES) three times, (dim, LANES) */
    float *keys, *received;                 /* (TILE, dim), (types, keys) */
    double *sums, *weighted;                /* (types, LANES) */
} Work;

static void *take(char **memory, int64_t bytes)
{
    char *here = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return here;
}

static char *allocate(Work *work, const Call *call)
{
    const int64_t column = LANES * sizeof(float);
    const int64_t bytes = column * (call->keys + TILE) * 3 + column * call->dim +
                          4 * TILE * call->dim + 4 * call->types * call->keys +
                          2 * 8 * call->types * LANES + 1024;
    char *base = aligned_alloc(64, (bytes + 63) / 64 * 64), *memory = base;
    if (!base)
        return NULL;
    work->scores = take(&memory, column * (call->keys + TILE));
    work->average = take(&memory, column * (call->keys + TILE));
    work->bias = take(&memory, column * (call->keys + TILE));
    work->queries = take(&memory, column * call->dim);
    work->keys = take(&memory, 4 * TILE * call->dim);
    work->received = take(&memory, 4 * call->types * call->keys);
    work->sums = take(&memory, 8 * call->types * LANES);
    work->weighted = take(&memory, 8 * call->types * LANES);
    memset(work->received, 0, 4 * call->types * call->keys);
    return base;
}

static inline float from_bfloat16(uint16_t x)
{
    union { uint32_t i; float f; } bits = {(uint32_t)x << 16};
    return bits.f;
}

static void load_queries(const Call *call, Work *work, int64_t head, int64_t first, int64_t count)
{
    float *out = (float *)work->queries;
    for (int64_t lane = 0; lane < LANES; lane++) {
        const int64_t query = first + (lane < count ? lane : count - 1);
        const int64_t at = head * call->query_head_stride + call->row[query] * call->query_stride;
        for (int64_t d = 0; d < call->dim; d++) {
            const float x = call->is_bfloat16
                                ? from_bfloat16(((const uint16_t *)call->query)[at + d])
                                : ((const float *)call->query)[at + d];
            out[d * LANES + lane] = x * call->scaling;
        }
    }
}

static void locate_keys(const Call *call, Work *work, int64_t key_head, int64_t first,
                        int64_t stop, const float **out)
{
    for (int i = 0; i < TILE; i++) {
        const int64_t key = first + i < stop ? first + i : stop - 1;
        const int64_t at = key_head * call->key_head_stride + key * call->key_stride;
        if (call->is_bfloat16) {
            const uint16_t *from = (const uint16_t *)call->key + at;
            float *to = work->keys + i * call->dim;
            for (int64_t d = 0; d < call->dim; d++)
                to[d] = from_bfloat16(from[d]);
            out[i] = to;
        } else {
            out[i] = (const float *)call->key + at;
        }
    }
}

typedef struct {
    const char *line;   /* of the memory that comes next */
    int64_t lines, gap; /* lines in a row of it, and bytes from the last one to the next row */
} Ahead;

static Ahead keys_after(const Call *call, int64_t key_head, int64_t key)
{
    const int64_t size = call->is_bfloat16 ? 2 : 4;
    const int64_t lines = (call->dim * size + 63) / 64;
    const int64_t at = key_head * call->key_head_stride + (key + TILE) * call->key_stride;
    return (Ahead){(const char *)call->key + at * size, lines, call->key_stride * size - lines * 64};
}
