/* Attention over a cache in int8, see attention_op.c.
 *
 * Queries, and the weights of values, are rounded to int16, so that all products are of whole numbers; what that changes
 * is less than fp32's own rounding of a long sum. Of tokens a tile at a time is read, with a running maximum, after
 * FlashAttention (arXiv:2205.14135); tokens that few queries read are split between threads, after Flash-Decoding.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"

#define TILE 64 /* tokens */
#define ROWS 32 /* of queries that read a tile together */
#define SPLIT 512 /* tokens that a thread takes of a single query; a result does not depend on how many threads there are */
#define FEW 16 /* tokens of a run whose queries are split too: guesses of a row round as they do one by one */
#define LARGEST_INT16 32767
#define MAGIC 12582912.f /* 1.5 * 2^23: what is added to it is rounded to a whole number, in the lowest bits */

typedef union { float number; uint32_t bits; } Bits;

static inline float scale_of(const int8_t *row, int64_t size) {
  uint16_t half;
  memcpy(&half, row + size, SCALE);
  return (Bits){.bits = (uint32_t)half << 16}.number;
}

#if defined(__AVX2__) && defined(__FMA__)
#include "attention_avx2.h"
#else
#include "attention_plain.h"
#endif

/* ---- what is new: rotated, rounded, stored ---- */

static inline float largest_size(const float *x, int64_t count) {
  uint32_t top = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t size = (Bits){x[i]}.bits & 0x7fffffff;
    top = size > top ? size : top;
  }
  return (Bits){.bits = top}.number;
}

static void store(const float *x, int64_t size, int8_t *row) {
  const uint16_t half = ((Bits){largest_size(x, size) / 127}.bits + 0xffff) >> 16; /* up: nothing is more than 127 */
  memcpy(row + size, &half, SCALE);
  const float scale = scale_of(row, size), inverse = scale > 0 ? 1 / scale : 0;
  for (int64_t c = 0; c < size; c++) row[c] = (int8_t)(Bits){x[c] * inverse + MAGIC}.bits;
}

static float store_query(const float *x, int64_t size, int16_t *row) {
  const float top = largest_size(x, size), inverse = top > 0 ? LARGEST_INT16 / top : 0;
  for (int64_t c = 0; c < size; c++) row[c] = (int16_t)(Bits){x[c] * inverse + MAGIC}.bits;
  return top / LARGEST_INT16;
}

/* Walsh-Hadamard transform of as many channels at a time as the largest power of two that divides their number; it
 * undoes itself. One that is much larger than the others goes into all of them, so that what is rounded by the largest is
 * rounded less, after QuaRot (arXiv:2404.00456); products of queries with keys stay as they are.
 */
static void mix(float *x, int64_t size) {
  const int64_t width = size & -size;
  for (int64_t step = 1; step < width; step *= 2)
    for (int64_t i = 0; i < size; i += 2 * step)
      for (int64_t j = i; j < i + step; j++) {
        const float one = x[j], two = x[j + step];
        x[j] = one + two, x[j + step] = one - two;
      }
  const float norm = 1 / sqrtf((float)width);
  for (int64_t c = 0; c < size; c++) x[c] *= norm;
}

/* A query or key, rotated and mixed. */
static void turn(const Work *work, const float *x, int64_t position, float *place) {
  const int64_t half = work->turned, step = work->kernel->interleaved ? 2 : 1, other = step == 2 ? 1 : half;
  const float *cosines = work->cosines + position * half, *sines = work->sines + position * half;
  memcpy(place + 2 * half, x + 2 * half, (work->size - 2 * half) * sizeof *x);
  for (int64_t i = 0, a = 0; i < half; i++, a += step) {
    place[a] = x[a] * cosines[i] - x[a + other] * sines[i];
    place[a + other] = x[a + other] * cosines[i] + x[a] * sines[i];
  }
  mix(place, work->size);
}

static void take_token(void *self, size_t number) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t b = number / work->tokens, t = number % work->tokens, size = work->size, place = past_of(work, b) + t;
  float x[MAX_SIZE];
  for (int64_t n = 0; n < kernel->heads; n++) {
    turn(work, work->x[0] + (int64_t)number * work->strides[0] + n * size, place, x);
    const int64_t row = (b * kernel->kv_heads + n / work->group) * work->rows + t * work->group + n % work->group;
    work->factors[row] = store_query(x, size, work->queries + row * size);
  }
  for (int64_t h = 0; h < kernel->kv_heads; h++) {
    const int64_t at = ((b * kernel->kv_heads + h) * work->room + place) * (size + SCALE);
    turn(work, work->x[1] + (int64_t)number * work->strides[1] + h * size, place, x);
    store(x, size, work->present[0] + at);
    memcpy(x, work->x[2] + (int64_t)number * work->strides[2] + h * size, size * sizeof *x);
    mix(x, size);
    store(x, size, work->present[1] + at);
  }
}

/* What was there before, of a head, where it does not stay in its place. */
static void copy_head(void *self, size_t head) {
  const Work *work = self;
  const int64_t line = work->size + SCALE, kept = past_of(work, head / work->kernel->kv_heads) * line;
  for (int side = 0; side < 2; side++) {
    int8_t *to = work->present[side] + head * work->room * line;
    if (kept) memcpy(to, work->past[side] + head * work->past_room * line, kept);
    memset(to + kept, 0, work->room * line - kept);
  }
}

/* ---- attention ---- */

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

typedef struct { float top, total, kept, factor; } Softmax; /* kept, factor: see add_values */

/* The weights of a tile's values, of which a row sees those from `begin` to `end`. */
static void weigh(const Kernel *kernel, const int32_t *dots, float factor, const float *key_scales,
                  const float *value_scales, int begin, int end, Softmax *softmax, int16_t *weights) {
  float x[TILE], top = softmax->top, total = 0, largest = 0;
  softmax->kept = 1, softmax->factor = 0;
  memset(weights, 0, TILE * sizeof *weights);
  if (begin >= end) return;
  for (int j = 0; j < TILE; j++) x[j] = dots[j] * (factor * key_scales[j]);
  if (kernel->softcap > 0)
    for (int j = 0; j < TILE; j++) x[j] = capped(x[j], kernel->softcap);
#pragma omp simd reduction(max : top)
  for (int j = 0; j < TILE; j++) {
    x[j] = j >= begin && j < end ? x[j] : -INFINITY;
    top = x[j] > top ? x[j] : top;
  }
#pragma omp simd reduction(+ : total) reduction(max : largest)
  for (int j = 0; j < TILE; j++) {
    const float weight = exponential(x[j] - top);
    total += weight;
    x[j] = weight * value_scales[j];
    largest = x[j] > largest ? x[j] : largest;
  }
  const float inverse = largest > 0 ? LARGEST_INT16 / largest : 0;
  for (int j = 0; j < TILE; j++) weights[j] = (int16_t)(Bits){x[j] * inverse + MAGIC}.bits;
  softmax->kept = exponential(softmax->top - top);
  softmax->total = softmax->total * softmax->kept + total;
  softmax->top = top;
  softmax->factor = largest / LARGEST_INT16;
}

static void finish(float *sums, int64_t size, float total) {
  for (int64_t c = 0; c < size; c++) sums[c] /= total;
  mix(sums, size);
}

/* Some rows of a head of keys, over one split of the tokens. */
static void attend(void *self, size_t part) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t size = work->size, line = size + SCALE, group = work->group;
  const int64_t split = part % work->splits, block = part / work->splits % work->blocks;
  const int64_t head = part / work->splits / work->blocks, b = head / kernel->kv_heads, h = head % kernel->kv_heads;
  const int64_t first = block * ROWS, rows = least(ROWS, work->rows - first), past = past_of(work, b);
  const int8_t *keys = work->present[0] + head * work->room * line, *values = work->present[1] + head * work->room * line;
  Softmax softmax[ROWS];
  float *sums[ROWS], kept[ROWS], factors[ROWS];
  int64_t begins[ROWS], ends[ROWS];
  for (int64_t r = 0; r < rows; r++) {
    const int64_t t = (first + r) / group, query = (b * work->tokens + t) * kernel->heads + h * group + (first + r) % group;
    softmax[r] = (Softmax){.top = -INFINITY};
    sums[r] = work->parts ? work->parts + (query * work->splits + split) * (size + 2) : work->out + query * size;
    memset(sums[r], 0, size * sizeof(float));
    ends[r] = past + t + 1;
    begins[r] = kernel->window > 0 ? most(0, ends[r] - kernel->window) : 0;
  }
  const int64_t last = work->parts ? least(ends[rows - 1], (split + 1) * SPLIT) : ends[rows - 1];
  for (int64_t at = most(split * SPLIT, begins[0] / TILE * TILE); at < last; at += TILE) {
    const int64_t tokens = least(TILE, last - at);
    int32_t dots[ROWS * TILE];
    int16_t weights[ROWS * TILE];
    float key_scales[TILE] = {0}, value_scales[TILE] = {0};
    for (int64_t j = 0; j < tokens; j++) {
      key_scales[j] = scale_of(keys + (at + j) * line, size);
      value_scales[j] = scale_of(values + (at + j) * line, size);
    }
    const int64_t row = head * work->rows + first;
    multiply_keys(work->queries + row * size, rows, size, keys + at * line, tokens, dots);
    for (int64_t r = 0; r < rows; r++) {
      memset(dots + r * TILE + tokens, 0, (TILE - tokens) * sizeof *dots);
      weigh(kernel, dots + r * TILE, work->factors[row + r] * kernel->scale, key_scales, value_scales,
            (int)most(begins[r] - at, 0), (int)least(ends[r] - at, tokens), &softmax[r], weights + r * TILE);
      kept[r] = softmax[r].kept, factors[r] = softmax[r].factor;
    }
    add_values(weights, rows, size, values + at * line, tokens, kept, factors, sums);
  }
  for (int64_t r = 0; r < rows; r++) {
    if (work->parts) sums[r][size] = softmax[r].top, sums[r][size + 1] = softmax[r].total;
    else finish(sums[r], size, softmax[r].total);
  }
}

/* One query's result, of its splits. */
static void gather(void *self, size_t query) {
  const Work *work = self;
  const int64_t size = work->size;
  const float *part = work->parts + (int64_t)query * work->splits * (size + 2);
  float *out = work->out + (int64_t)query * size, top = -INFINITY, total = 0;
  for (int64_t s = 0; s < work->splits; s++) top = part[s * (size + 2) + size] > top ? part[s * (size + 2) + size] : top;
  memset(out, 0, size * sizeof *out);
  for (int64_t s = 0; s < work->splits; s++, part += size + 2) {
    const float share = exponential(part[size] - top);
    total += share * part[size + 1];
    for (int64_t c = 0; c < size; c++) out[c] += share * part[c];
  }
  finish(out, size, total);
}

/* ---- all of it ---- */

Status attend_all(Handle context, Work *work) {
  const int64_t heads = work->batch * work->kernel->kv_heads, queries = work->batch * work->tokens * work->kernel->heads;
  work->group = work->kernel->heads / work->kernel->kv_heads;
  work->rows = work->tokens * work->group;
  work->blocks = (work->rows + ROWS - 1) / ROWS;
  work->splits = work->tokens <= FEW ? (work->room + SPLIT - 1) / SPLIT : 1;
  const int64_t parts = work->splits > 1 ? queries * work->splits * (work->size + 2) : 0;
  float *scratch = malloc((queries + parts) * sizeof(float) + queries * work->size * sizeof(int16_t));
  if (!scratch) return failure(RUNTIME_EXCEPTION, "not enough memory");
  work->factors = scratch;
  work->parts = parts ? scratch + queries : NULL;
  work->queries = (int16_t *)(scratch + queries + parts);
  Status status = NULL;
  if (work->past[0] != work->present[0]) status = parallel(context, copy_head, heads, work);
  if (!status) status = parallel(context, take_token, work->batch * work->tokens, work);
  if (!status) status = parallel(context, attend, heads * work->blocks * work->splits, work);
  if (!status && parts) status = parallel(context, gather, queries, work);
  free(scratch);
  return status;
}
