/* What Int8CacheAttention is given, and what computes it. */
#pragma once
#include <math.h>
#include <string.h>

#include "ort_api.h"

#define SCALE 2 /* bytes, on a CPU */
#define MAX_SIZE 512 /* channels of a head: sums of so many products of 15 and 7 bits fit into 32 */

typedef struct {
  int64_t heads, kv_heads, window, rotary, interleaved, behind; /* behind: bytes of a line behind its numbers */
  float scale, softcap;
  int cuda;
} Kernel;

/* Of one run. x: query, key, value of the first token, with `strides` numbers to the next one. Rows of queries are those
 * of a head of keys, of all tokens: `rows` = tokens * group of them. On CUDA all numbers but `parts` are in fp16, and what
 * pointers point to is the GPU's.
 */
typedef struct {
  const Kernel *kernel;
  const void *x[3], *cosines, *sines;
  const int8_t *past[2];
  int8_t *present[2];
  const int32_t *lengths; /* NULL: the first run, nothing is there before */
  int64_t strides[3], batch, tokens, size, turned, positions, past_room, room, group, rows, blocks, splits;
  void *queries, *out; /* queries (batch, kv_heads, rows, size): int16 for a cache in int8, else floats */
  float *factors, *parts; /* factors: of queries; parts: sums of a split, then its largest score and total weight */
} Work;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* On a CPU. */
static inline int64_t past_of(const Work *work, int64_t b) {
  return work->lengths ? (int64_t)work->lengths[b] + 1 - work->tokens : 0;
}

/* Write `out` and `present`. */
Status attend_on_cpu(Handle context, Work *work);
Status attend_on_gpu(Handle context, Work *work);

/* ---- in fp32 on a CPU ---- */

#define MAGIC 12582912.f /* 1.5 * 2^23: what is added to it is rounded to a whole number, in the lowest bits */

typedef union { float number; uint32_t bits; } Bits;

/* A query or key of a position, rotated. */
static inline void rotate(const Work *work, const float *x, int64_t position, float *place) {
  const int64_t half = work->turned, step = work->kernel->interleaved ? 2 : 1, other = step == 2 ? 1 : half;
  const float *cosines = (const float *)work->cosines + position * half, *sines = (const float *)work->sines + position * half;
  memcpy(place + 2 * half, x + 2 * half, (work->size - 2 * half) * sizeof *x);
  for (int64_t i = 0, a = 0; i < half; i++, a += step) {
    place[a] = x[a] * cosines[i] - x[a + other] * sines[i];
    place[a + other] = x[a + other] * cosines[i] + x[a] * sines[i];
  }
}

static inline float exponential(float x) { /* of what is not above 0; after Cephes: 2^n times a polynomial of the rest */
  x = x > -60 ? x : -60; /* so that products with scales stay normal numbers */
  const Bits n = {x * 1.44269504f + MAGIC};
  const float whole = n.number - MAGIC, rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  float sum = 1.9875691e-4f;
  sum = sum * rest + 1.3981999e-3f;
  sum = sum * rest + 8.3334519e-3f;
  sum = sum * rest + 4.1665796e-2f;
  sum = sum * rest + 0.16666665f;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1;
  sum = sum * rest + 1;
  return sum * (Bits){.bits = (n.bits + 127) << 23}.number; /* of n.bits the lowest 9 stay */
}

static inline float capped(float x, float cap) { /* cap * tanh(x / cap) */
  const float power = exponential(-2 * fabsf(x) / cap);
  return copysignf(cap * (1 - power) / (1 + power), x);
}
