/* Attention in fp32 on a CPU, see attention_op.c.
 *
 * Of tokens a tile at a time is read, with a running maximum, after FlashAttention (arXiv:2205.14135); tokens that few
 * queries read are split between threads, after Flash-Decoding. What comes out for a query is the same to the last bit
 * whatever queries run beside it, so that answers do not depend on which part of a prompt was kept from earlier: sums go
 * in one order, and of the tokens of one query splits are made wherever one thread takes them all, too.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"

#define TILE 64 /* tokens */
#define ROWS 32 /* of queries that read a tile together */
#define SPLIT 512 /* tokens that a thread takes of a single query; a result does not depend on how many threads there are */
#define FEW 16 /* tokens of a run whose splits go to several threads */

typedef struct { float top, total, kept, factor; } Softmax; /* kept: what is left of earlier sums; factor: see add_values */

/* Rows that read the same tokens together: the first is `row` of all queries. Each sees tokens from `begin` to `end`. */
typedef struct {
  int64_t head, row, rows, begins[ROWS], ends[ROWS];
  Softmax softmax[ROWS];
  float *sums[ROWS];
} Block;

#include "attention_int8.h"
#include "attention_float.h"

static int in_int8(const Work *work) { return work->kernel->behind > 0; }
static int64_t line_of(const Work *work) { return in_int8(work) ? work->size + SCALE : work->size * 4; }

/* ---- what is new: rotated, rounded, stored ---- */

static void take_query(const Work *work, const float *x, int64_t place, int64_t row) {
  float turned[MAX_SIZE];
  rotate(work, x, place, turned);
  if (in_int8(work)) {
    mix(turned, work->size);
    work->factors[row] = store_query(turned, work->size, (int16_t *)work->queries + row * work->size);
  } else
    for (int64_t c = 0; c < work->size; c++) ((float *)work->queries)[row * work->size + c] = turned[c] * work->kernel->scale;
}

/* side: 0 for keys, which are rotated, 1 for values. */
static void take_line(const Work *work, int side, const float *x, int64_t place, int64_t head) {
  int8_t *line = work->present[side] + (head * work->room + place) * line_of(work);
  float turned[MAX_SIZE];
  if (side == 0) rotate(work, x, place, turned);
  else memcpy(turned, x, work->size * sizeof *x);
  if (in_int8(work)) mix(turned, work->size), store(turned, work->size, line);
  else memcpy(line, turned, work->size * sizeof *turned);
}

static void take_token(void *self, size_t number) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t b = number / work->tokens, t = number % work->tokens, place = past_of(work, b) + t;
  const float *x[3];
  for (int i = 0; i < 3; i++) x[i] = (const float *)work->x[i] + (int64_t)number * work->strides[i];
  for (int64_t n = 0; n < kernel->heads; n++)
    take_query(work, x[0] + n * work->size, place,
               (b * kernel->kv_heads + n / work->group) * work->rows + t * work->group + n % work->group);
  for (int side = 0; side < 2; side++)
    for (int64_t h = 0; h < kernel->kv_heads; h++)
      take_line(work, side, x[1 + side] + h * work->size, place, b * kernel->kv_heads + h);
}

/* What was there before, of a head, where it does not stay in its place. */
static void copy_head(void *self, size_t head) {
  const Work *work = self;
  const int64_t line = line_of(work), kept = past_of(work, head / work->kernel->kv_heads) * line;
  for (int side = 0; side < 2; side++) {
    int8_t *to = work->present[side] + head * work->room * line;
    if (kept) memcpy(to, work->past[side] + head * work->past_room * line, kept);
    memset(to + kept, 0, work->room * line - kept);
  }
}

/* ---- attention ---- */

/* What a row has found, of all tokens. */
static void finish(const Work *work, float *sums, float total) {
  for (int64_t c = 0; c < work->size; c++) sums[c] /= total;
  if (in_int8(work)) mix(sums, work->size);
}

/* Adds what a split has found (size sums, their top and total) to what those before have. */
static __attribute__((noinline)) void join(const float *part, int64_t size, float *sums, Softmax *found) {
  const float top = part[size] > found->top ? part[size] : found->top;
  const float old = exponential(found->top - top), share = exponential(part[size] - top);
  for (int64_t c = 0; c < size; c++) sums[c] = sums[c] * old + part[c] * share;
  found->total = found->total * old + part[size + 1] * share;
  found->top = top;
}

/* What the rows of a block find in one split of the tokens, written to their sums, as `join` reads it. */
static void find(const Work *work, Block *block, int64_t split) {
  const int64_t size = work->size, last = least(block->ends[block->rows - 1], (split + 1) * SPLIT);
  for (int64_t r = 0; r < block->rows; r++) {
    block->softmax[r] = (Softmax){.top = -INFINITY};
    memset(block->sums[r], 0, size * sizeof(float));
  }
  for (int64_t at = most(split * SPLIT, block->begins[0] / TILE * TILE); at < last; at += TILE)
    (in_int8(work) ? tile_int8 : tile_floats)(work, block, at, least(TILE, last - at));
  for (int64_t r = 0; r < block->rows; r++)
    block->sums[r][size] = block->softmax[r].top, block->sums[r][size + 1] = block->softmax[r].total;
}

/* Some rows of a head of keys, over one split of the tokens if each is a part, else over all of them. */
static void attend(void *self, size_t part) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t size = work->size, group = work->group, shares = work->parts ? work->splits : 1;
  const int64_t split = part % shares, number = part / shares;
  const int64_t first = number % work->blocks * ROWS, head = number / work->blocks;
  const int64_t b = head / kernel->kv_heads, h = head % kernel->kv_heads;
  Block block = {.head = head, .row = head * work->rows + first, .rows = least(ROWS, work->rows - first)};
  Softmax all[ROWS];
  float found[ROWS * (MAX_SIZE + 2)], *out[ROWS];
  for (int64_t r = 0; r < block.rows; r++) {
    const int64_t t = (first + r) / group, query = (b * work->tokens + t) * kernel->heads + h * group + (first + r) % group;
    out[r] = (float *)work->out + query * size;
    block.sums[r] = work->parts ? work->parts + (query * work->splits + split) * (size + 2) : found + r * (size + 2);
    block.ends[r] = past_of(work, b) + t + 1;
    block.begins[r] = kernel->window > 0 ? most(0, block.ends[r] - kernel->window) : 0;
  }
  if (work->parts) {
    find(work, &block, split);
    return;
  }
  for (int64_t r = 0; r < block.rows; r++) all[r] = (Softmax){.top = -INFINITY}, memset(out[r], 0, size * sizeof(float));
  for (int64_t s = block.begins[0] / SPLIT; s * SPLIT < block.ends[block.rows - 1]; s++) {
    find(work, &block, s);
    for (int64_t r = 0; r < block.rows; r++) join(block.sums[r], size, out[r], &all[r]);
  }
  for (int64_t r = 0; r < block.rows; r++) finish(work, out[r], all[r].total);
}

/* One query's result, of its splits. */
static void gather(void *self, size_t query) {
  const Work *work = self;
  float *out = (float *)work->out + (int64_t)query * work->size;
  Softmax all = {.top = -INFINITY};
  memset(out, 0, work->size * sizeof *out);
  for (int64_t s = 0; s < work->splits; s++)
    join(work->parts + ((int64_t)query * work->splits + s) * (work->size + 2), work->size, out, &all);
  finish(work, out, all.total);
}

/* ---- all of it ---- */

Status attend_on_cpu(Handle context, Work *work) {
  const int64_t heads = work->batch * work->kernel->kv_heads, queries = work->batch * work->tokens * work->kernel->heads;
  work->blocks = (work->rows + ROWS - 1) / ROWS;
  work->splits = work->tokens <= FEW ? (work->room + SPLIT - 1) / SPLIT : 1;
  const int64_t parts = work->splits > 1 ? queries * work->splits * (work->size + 2) : 0;
  const size_t number = in_int8(work) ? sizeof(int16_t) : sizeof(float);
  float *scratch = malloc((queries + parts) * sizeof(float) + queries * work->size * number);
  if (!scratch) return failure(RUNTIME_EXCEPTION, "not enough memory");
  work->factors = scratch;
  work->parts = parts ? scratch + queries : NULL;
  work->queries = scratch + queries + parts;
  Status status = NULL;
  if (work->past[0] != work->present[0]) status = parallel(context, copy_head, heads, work);
  if (!status) status = parallel(context, take_token, work->batch * work->tokens, work);
  if (!status) status = parallel(context, attend, heads * work->blocks * work->splits, work);
  if (!status && parts) status = parallel(context, gather, queries, work);
  free(scratch);
  return status;
}
