/* The sums of `query_sums.py` for the queries of one sequence, beside their scores: what `compiled.py`
   compiles and calls. `tensor_sums.py` gives the same numbers by tensor operations.

   Queries are the lanes of vectors: a pair of vectors walks along the keys of one head at a time, so
   that the maximum, the sums over the keys of a type and the average over heads need no sums within
   a vector, and keys are read where they lie. All arrays are in C order. */

#include <math.h>

#include "attention_call.h"

/* Scores of TILE keys by LANES queries. `queries`: (dim, LANES), already scaled. The keys after
   these are asked for meanwhile: without it, long sequences take 1.6 times as long. */
static inline void score_tile(const vec *queries, const float *const *keys, int64_t dim, vec *out,
                              Ahead ahead)
{
    vec sum[TILE][PAIR] = {};
    int64_t left = ahead.lines;
    for (int64_t d = 0; d < dim; d++) {
        __builtin_prefetch(ahead.line);
        ahead.line += 64;
        if (--left == 0) {
            ahead.line += ahead.gap;
            left = ahead.lines;
        }
        const vec first = queries[PAIR * d], second = queries[PAIR * d + 1];
#pragma GCC unroll 12
        for (int i = 0; i < TILE; i++) {
            const float key = keys[i][d];
            sum[i][0] += key * first;
            sum[i][1] += key * second;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < TILE; i++) {
        out[PAIR * i] = sum[i][0];
        out[PAIR * i + 1] = sum[i][1];
    }
}

/* Some queries from `first` on, and the keys that any of them sees. Lanes beyond `count` repeat the
   last query and are not stored. */
typedef struct {
    int64_t first, count;
    int64_t start, stop;         /* keys that some lane sees */
    int64_t all_start, all_stop; /* keys that every lane sees */
    ivec begin[PAIR], end[PAIR]; /* keys that each lane sees */
} Block;

static Block plan_block(const Call *call, Work *work, int64_t first)
{
    const int64_t left = call->queries - first;
    Block block = {first, left < LANES ? left : LANES, call->keys, 0, 0, call->keys};
    for (int64_t lane = 0; lane < LANES; lane++) {
        const int64_t query = first + (lane < block.count ? lane : block.count - 1);
        int64_t from = call->begin[query], to = call->end[query];
        if (call->bias) { /* without the hidden keys at both ends, where others remain */
            const float *bias = call->bias + query * call->keys;
            int64_t a = from, b = to;
            while (b > a && bias[b - 1] <= HIDDEN)
                b--;
            while (b > a && bias[a] <= HIDDEN)
                a++;
            if (b > a)
                from = a, to = b;
            float *column = (float *)work->bias + lane;
            for (int64_t key = from; key < to; key++)
                column[key * LANES] = bias[key];
        }
        block.begin[lane / WIDTH][lane % WIDTH] = (int32_t)from;
        block.end[lane / WIDTH][lane % WIDTH] = (int32_t)to;
        block.start = from < block.start ? from : block.start;
        block.stop = to > block.stop ? to : block.stop;
        block.all_start = from > block.all_start ? from : block.all_start;
        block.all_stop = to < block.all_stop ? to : block.all_stop;
    }
    memset(work->average + PAIR * block.start, 0,
           LANES * sizeof(float) * (block.stop - block.start));
    return block;
}

/* The scores of one head, and the largest of each query. */
static void score(const Call *call, Work *work, const Block *block, int64_t head, vec *top)
{
    const int64_t key_head = head / call->group;
    vec *scores = work->scores;
    load_queries(call, work, head, block->first, block->count);
    for (int64_t key = block->start; key < block->stop; key += TILE) {
        const float *keys[TILE];
        locate_keys(call, work, key_head, key, block->stop, keys);
        const Ahead ahead = keys_after(call, key_head, key);
        score_tile(work->queries, keys, call->dim, scores + PAIR * key, ahead);
        const int64_t stop = key + TILE < block->stop ? key + TILE : block->stop;
        const int some_hidden = key < block->all_start || stop > block->all_stop;
        for (int64_t k = key; k < stop; k++)
            for (int j = 0; j < PAIR; j++) {
                vec s = scores[PAIR * k + j];
                if (call->bias)
                    s += work->bias[PAIR * k + j];
                if (some_hidden) {
                    const ivec at = (int32_t)k - (ivec){};
                    s = choose((at >= block->begin[j]) & (at < block->end[j]), s, fill(HIDDEN));
                }
                scores[PAIR * k + j] = s;
                top[j] = larger(s, top[j]);
            }
    }
}

typedef struct { vec sum[PAIR], weighted[PAIR]; } Total;

/* Of the keys from `from` to `to`: e^(s - top), in the place of s; its sum, and that times s - top. */
static Total exponentials(vec *scores, const vec *top, int64_t from, int64_t to)
{
    Total total = {};
    for (int64_t chunk = from; chunk < to; chunk += CHUNK) {
        Total part = {};
        const int64_t stop = chunk + CHUNK < to ? chunk + CHUNK : to;
        for (int64_t k = chunk; k < stop; k++)
            for (int j = 0; j < PAIR; j++) {
                const vec below = scores[PAIR * k + j] - top[j];
                const vec e = exp_negative(below);
                scores[PAIR * k + j] = e;
                part.sum[j] += e;
                part.weighted[j] += e * below;
            }
        for (int j = 0; j < PAIR; j++)
            total.sum[j] += part.sum[j], total.weighted[j] += part.weighted[j];
    }
    return total;
}

/* Of the keys from `from` to `to`: the sum of r = p / top, and of r ln r. */
static Total relative_weights(const vec *average, const vec *top, int64_t from, int64_t to)
{
    Total total = {};
    for (int64_t chunk = from; chunk < to; chunk += CHUNK) {
        Total part = {};
        const int64_t stop = chunk + CHUNK < to ? chunk + CHUNK : to;
        for (int64_t k = chunk; k < stop; k++)
            for (int j = 0; j < PAIR; j++) {
                const vec r = average[PAIR * k + j] / top[j];
                part.sum[j] += r;
                part.weighted[j] += r * log_of(larger(r, fill(1e-37f)));
            }
        for (int j = 0; j < PAIR; j++)
            total.sum[j] += part.sum[j], total.weighted[j] += part.weighted[j];
    }
    return total;
}

/* The part of a run that the block sees. */
static Run within(const Run *run, const Block *block)
{
    return (Run){run->type, run->start > block->start ? run->start : block->start,
                 run->stop < block->stop ? run->stop : block->stop};
}

/* The weights of one head: their sums by type are stored, and they join the average. */
static void add_head(const Call *call, Work *work, const Block *block, int64_t head)
{
    const int64_t types = call->types;
    vec top[PAIR] = {fill(HIDDEN), fill(HIDDEN)}, share[PAIR] = {};
    double z[LANES] = {0};
    score(call, work, block, head, top);
    memset(work->sums, 0, sizeof(double) * types * LANES);
    memset(work->weighted, 0, sizeof(double) * types * LANES);
    for (int64_t number = 0; number < call->run_count; number++) {
        const Run run = within(call->runs + number, block);
        const Total total = exponentials(work->scores, top, run.start, run.stop);
        for (int64_t lane = 0; lane < block->count; lane++) {
            const float sum = total.sum[lane / WIDTH][lane % WIDTH];
            z[lane] += sum;
            if (run.type >= 0) {
                work->sums[run.type * LANES + lane] += sum;
                work->weighted[run.type * LANES + lane] +=
                    total.weighted[lane / WIDTH][lane % WIDTH];
            }
        }
    }
    for (int64_t lane = 0; lane < block->count; lane++) {
        const double log_z = log(z[lane]), inverse = 1 / z[lane];
        const int64_t at = head * call->sums_head_stride + (block->first + lane) * types;
        for (int64_t type = 0; type < types; type++) {
            const double mass = work->sums[type * LANES + lane] * inverse;
            const double weighted = work->weighted[type * LANES + lane] * inverse;
            call->mass[at + type] = (float)mass;
            call->plogp[at + type] = weighted - log_z * mass;
        }
        share[lane / WIDTH][lane % WIDTH] = (float)(inverse / call->heads);
    }
    for (int64_t k = block->start; k < block->stop; k++)
        for (int j = 0; j < PAIR; j++)
            work->average[PAIR * k + j] += work->scores[PAIR * k + j] * share[j];
}

/* The sums of the weights averaged over heads. Relative to a query's largest weight they are exact
   where weights are even. */
static void add_average(const Call *call, Work *work, const Block *block)
{
    const vec *average = work->average;
    vec top[PAIR] = {fill(1e-30f), fill(1e-30f)};
    for (int64_t k = block->start; k < block->stop; k++)
        for (int j = 0; j < PAIR; j++)
            top[j] = larger(average[PAIR * k + j], top[j]);
    for (int64_t number = 0; number < call->run_count; number++) {
        const Run run = within(call->runs + number, block);
        if (run.type < 0)
            continue;
        const Total total = relative_weights(average, top, run.start, run.stop);
        for (int64_t lane = 0; lane < block->count; lane++) {
            const double most = top[lane / WIDTH][lane % WIDTH];
            const double sum = total.sum[lane / WIDTH][lane % WIDTH];
            const double weighted = total.weighted[lane / WIDTH][lane % WIDTH];
            const int64_t at = (block->first + lane) * call->types + run.type;
            call->pooled[at] += most * sum;
            call->pooled_plogp[at] += most * (weighted + log(most) * sum);
        }
    }
    for (int64_t type = 0; type < call->types; type++) {
        vec is_type[PAIR] = {};
        int any = 0;
        for (int64_t lane = 0; lane < block->count; lane++) {
            const int same = call->query_type[block->first + lane] == type;
            is_type[lane / WIDTH][lane % WIDTH] = (float)same;
            any |= same;
        }
        for (int64_t k = block->start; any && k < block->stop; k++) {
            const vec both = average[PAIR * k] * is_type[0] + average[PAIR * k + 1] * is_type[1];
            float sum = 0;
            for (int i = 0; i < WIDTH; i++)
                sum += both[i];
            work->received[type * call->keys + k] += sum;
        }
    }
}

/* Returns 0, or 1 without memory. */
int attention_sums(const Call *call)
{
    const int64_t blocks = (call->queries + LANES - 1) / LANES;
    int failed = 0;
#pragma omp parallel num_threads(call->threads) if (call->threads > 1 && blocks > 1)
    {
        Work work = {0};
        char *memory = allocate(&work, call);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (int64_t block = blocks - 1; block >= 0; block--)
            if (memory) {
                const Block planned = plan_block(call, &work, block * LANES);
                for (int64_t head = 0; head < call->heads; head++)
                    add_head(call, &work, &planned, head);
                add_average(call, &work, &planned);
            }
#pragma omp critical
        for (int64_t type = 0; memory && type < call->types; type++)
            for (int64_t key = 0; key < call->keys; key++)
                call->received[type * call->received_width + key] +=
                    work.received[type * call->keys + key];
        free(memory);
    }
    return failed;
}
