/* Products of LoRA on a CPU. Without AVX2 or NEON, and for activations in fp16, they are to be right rather than fast. */
#include "lora_cpu.h"

#define PART 8192 /* numbers of a matrix that a thread of a CPU takes at a time, */
#define PART_ROWS 32 /* and the most rows for them */

/* Where a row of A, or the block of B with output n, begins: in int8 with its scales. */
static inline const char *row_of_a(const Product *p, int64_t n, int int8) {
  return p->matrix[0] + n * (int8 ? p->width + SCALE : 2 * p->width);
}
static inline const char *block_of_b(const Product *p, int side, int64_t n, int int8) {
  return p->matrix[side] + n / 8 * 8 * (int8 ? p->rank + SCALE : 2 * p->rank);
}

/* The columns of h in row m that output n reads. */
static inline const float *row_of_h(const Product *p, int side, int64_t m, int64_t n) {
  const int64_t segments = p->kernel->segments, *ends = p->kernel->ends[side];
  int64_t segment = 0;
  while (segment < segments - 1 && n >= ends[segment]) segment++;
  return (const float *)p->in + number_of(p, m) * p->stride + segment * p->rank;
}

#if defined(PLAIN) /* to compare with */
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lora_avx2.h"
#define TILES
#elif defined(__aarch64__)
#include "lora_neon.h"
#define TILES
#endif
#ifdef TILES
#include "lora_tiles.h"
#endif

static float widened(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 0) return (sign ? -1.f : 1.f) * fraction * 0x1p-24f;
  const union { uint32_t bits; float number; } wide = {
      sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13};
  return wide.number;
}

static uint16_t narrowed(float number) { /* to nearest, ties to even */
  union { float number; uint32_t bits; } wide = {number};
  const uint16_t sign = wide.bits >> 16 & 0x8000;
  wide.bits &= 0x7fffffff;
  if (wide.bits >= 0x477ff000) return sign | (wide.bits > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (wide.bits < 0x38800000) { /* too small for a leading one: adding 0.5 lines the fraction up and rounds it */
    wide.number += 0.5f;
    return sign | (uint16_t)(wide.bits - 0x3f000000);
  }
  return sign | (uint16_t)((wide.bits - 0x38000000 + 0xfff + (wide.bits >> 13 & 1)) >> 13);
}

enum { FLOATS, HALVES, BYTES };

static inline float at(const void *numbers, int64_t i, int type) {
  return type == HALVES ? widened(((const uint16_t *)numbers)[i])
         : type == BYTES ? ((const int8_t *)numbers)[i] : ((const float *)numbers)[i];
}

static inline float dot(const void *x, int64_t begin, int x_type, const char *matrix, int64_t first, int64_t step,
                        int type, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; i++) sum += at(x, begin + i, x_type) * at(matrix, first + i * step, type);
  return sum;
}

/* Ranks, or outputs, begin to end of one row. */
static void plain_row(const Product *p, int kind, int half, int int8, int64_t m, int64_t begin, int64_t end) {
  const int type = int8 ? BYTES : HALVES;
  const int64_t row = number_of(p, m);
  for (int64_t n = begin; n < end; n++) {
    if (kind == DOWN) {
      const char *a = row_of_a(p, n, int8);
      const float sum = dot(p->in, row * p->width, half, a + (int8 ? SCALE : 0), 0, 1, type, p->width);
      ((float *)p->out)[row * p->stride + n] = int8 ? sum * *(const float *)a : sum;
      continue;
    }
    const int64_t i = row * p->width + n, lane = n % 8;
    float sum[2] = {0};
    for (int side = 0; side < kind; side++) {
      const char *b = block_of_b(p, side, n, int8);
      sum[side] = dot(row_of_h(p, side, m, n), 0, FLOATS, b + (int8 ? 8 * SCALE : 0), half ? lane * p->rank : lane,
                      half ? 1 : 8, type, p->rank);
      sum[side] = at(p->base[side], i, half) + (int8 ? sum[side] * ((const float *)b)[lane] : sum[side]);
    }
    const float y = kind == GATED ? sum[0] / (1 + expf(-sum[0])) * sum[1] : sum[0];
    if (half) ((uint16_t *)p->out)[i] = narrowed(y);
    else ((float *)p->out)[i] = y;
  }
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void cpu_part(void *self, size_t part) {
  const CpuWork *work = self;
  const Share *share = work->shares;
  int64_t own = (int64_t)part;
  for (; (int64_t)part >= share->end; share++) own = (int64_t)part - share->end;
  const Product *p = &share->product;
  const int64_t begin = own % share->chunks * share->chunk, end = least(begin + share->chunk, share->count);
  const int64_t first = own / share->chunks * PART_ROWS, last = least(first + PART_ROWS, p->rows);
#ifdef TILES
  if (!work->op->half) {
    float_part(p, work->op->kind, share->int8, first, last, begin, end);
    return;
  }
#endif
  for (int64_t m = first; m < last; m++) plain_row(p, work->op->kind, work->op->half, share->int8, m, begin, end);
}

int64_t shared_parts(Share *shares, int64_t count, const Op *op) {
  int64_t parts = 0;
  for (int64_t i = 0; i < count; i++) {
    Share *share = &shares[i];
    const Product *p = &share->product;
    share->int8 = op->int8 && p->rank; /* no rank: no scales to read */
    share->count = op->kind == DOWN ? p->rank : p->width;
    share->chunk = (PART / (op->kind == DOWN ? p->width : p->rank + 1) + 8) / 8 * 8;
    share->chunks = (share->count + share->chunk - 1) / share->chunk;
    share->end = parts += share->chunks * ((p->rows + PART_ROWS - 1) / PART_ROWS);
  }
  return parts;
}

int64_t shares_of(const Product *all, const int64_t *ids, int64_t groups, Share *shares, int64_t *numbers) {
  int64_t ends[MAX_ADAPTERS + 1] = {0}, count = 0, placed = 0;
  if (groups == 1) {
    shares->product = of_adapter(all, ids[0]);
    return 1;
  }
  for (int64_t g = 0; g < groups; g++) ends[ids[g]] += all->rows;
  for (size_t id = 0; id <= all->adapters->count; id++) {
    if (ends[id] && (id || all->kernel->op->kind != DOWN)) {
      Product *p = &shares[count++].product;
      *p = of_adapter(all, (int64_t)id);
      p->rows = ends[id];
      p->numbers = numbers + placed;
    }
    placed += ends[id];
    ends[id] = placed - ends[id]; /* where its rows begin, then where the next one goes */
  }
  for (int64_t g = 0; g < groups; g++)
    for (int64_t m = 0; m < all->rows; m++) numbers[ends[ids[g]]++] = g * all->rows + m;
  return count;
}
