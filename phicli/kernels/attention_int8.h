/* Keys and values in int8 with a scale for each token, for attention_cpu.c.
 *
 * Queries, and the weights of values, are rounded to int16, so that all products are of whole numbers; what that changes
 * is less than fp32's own rounding of a long sum.
 */
#define LARGEST_INT16 32767

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

/* Up to TILE tokens from number `at` on, for all rows of a block. */
static void tile_int8(const Work *work, Block *block, int64_t at, int64_t tokens) {
  const int64_t size = work->size, line = size + SCALE, begin = block->head * work->room + at;
  const int8_t *keys = work->present[0] + begin * line, *values = work->present[1] + begin * line;
  int32_t dots[ROWS * TILE];
  int16_t weights[ROWS * TILE];
  float key_scales[TILE] = {0}, value_scales[TILE] = {0}, kept[ROWS], factors[ROWS];
  for (int64_t j = 0; j < tokens; j++) {
    key_scales[j] = scale_of(keys + j * line, size);
    value_scales[j] = scale_of(values + j * line, size);
  }
  multiply_keys((const int16_t *)work->queries + block->row * size, block->rows, size, keys, tokens, dots);
  for (int64_t r = 0; r < block->rows; r++) {
    Softmax *softmax = &block->softmax[r];
    memset(dots + r * TILE + tokens, 0, (TILE - tokens) * sizeof *dots);
    weigh(work->kernel, dots + r * TILE, work->factors[block->row + r] * work->kernel->scale, key_scales, value_scales,
          (int)most(block->begins[r] - at, 0), (int)least(block->ends[r] - at, tokens), softmax, weights + r * TILE);
    kept[r] = softmax->kept, factors[r] = softmax->factor;
  }
  add_values(weights, block->rows, size, values, tokens, kept, factors, block->sums);
}
