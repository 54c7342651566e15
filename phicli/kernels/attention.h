/* What Int8CacheAttention is given, and what computes it. */
#pragma once
#include "ort_api.h"

#define SCALE 2 /* bytes */
#define MAX_SIZE 512 /* channels of a head: sums of so many products of 15 and 7 bits fit into 32 */

typedef struct { int64_t heads, kv_heads, window, rotary, interleaved; float scale, softcap; } Kernel;

/* Of one run. x: query, key, value of the first token, with `strides` numbers to the next one. Rows of queries are those
 * of a head of keys, of all tokens: `rows` = tokens * group of them.
 */
typedef struct {
  const Kernel *kernel;
  const float *x[3], *cosines, *sines;
  const int8_t *past[2];
  int8_t *present[2];
  const int32_t *lengths; /* NULL: the first run, nothing is there before */
  int64_t strides[3], batch, tokens, size, turned, past_room, room, group, rows, blocks, splits;
  int16_t *queries; /* (batch, kv_heads, rows, size) */
  float *factors, *out, *parts; /* factors: of queries; parts: sums of a split, then its largest score and total weight */
} Work;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t past_of(const Work *work, int64_t b) {
  return work->lengths ? (int64_t)work->lengths[b] + 1 - work->tokens : 0;
}

/* Writes `out` and `present`. */
Status attend_all(Handle context, Work *work);
