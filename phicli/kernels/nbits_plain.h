/* Products in plain C, which say what those by hand are to give: right rather than fast. */
#include <math.h>
#include <string.h>

#define INLINE static inline

INLINE void round_block(const float *x, int block, int bits, int8_t *ints, float *scale, int32_t *sum) {
  float top = 0;
  for (int i = 0; i < block; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
  const float inverse = top > 0 ? 127 / top : 0;
  *sum = 0;
  for (int i = 0; i < block; i++) {
    const int8_t whole = (int8_t)lrintf(x[i] * inverse);
    ints[bits == 8 ? i : i / 2 + i % 2 * (block / 2)] = whole; /* of 4-bit weights the even ones, then the odd ones */
    *sum += whole;
  }
  *scale = top / 127;
}

/* What of a block, or of its zero point, is stored: number i of an output. */
INLINE int stored(const uint8_t *bytes, int64_t i, int bits) { return bits == 8 ? bytes[i] : bytes[i / 2] >> i % 2 * 4 & 15; }

INLINE void one_row(const Matrix *m, const Rounded *x, int64_t begin, int64_t end, float *out, int block, int bits) {
  for (int64_t n = begin; n < end; n++) {
    const uint8_t *weights = m->weights + n * m->blocks * block * bits / 8;
    const uint8_t *zeros = m->zeros ? m->zeros + n * ((m->blocks * bits + 7) / 8) : NULL;
    float sums[8] = {0};
    for (int64_t b = 0; b < m->blocks; b++) {
      int32_t found = 0;
      for (int i = 0; i < block; i++)
        found += stored(weights, b * block + i, bits) * x->ints[b * block + (bits == 8 ? i : i / 2 + i % 2 * (block / 2))];
      found -= (zeros ? stored(zeros, b, bits) : 1 << (bits - 1)) * x->sums[b];
      sums[b % 8] = fmaf((float)found, m->scales[n * m->blocks + b] * x->scales[b], sums[b % 8]);
    }
#define ADD(a, b) ((a) + (b))
    out[n] = SUM_OF_EIGHT(ADD, sums) + (m->bias ? m->bias[n] : 0);
#undef ADD
  }
}

static int64_t lanes_of(int64_t rows, int64_t bits) { return (void)rows, (void)bits, 1; }
INLINE void many_rows(const Matrix *m, const Rounded *x, int64_t rows, int64_t begin, int64_t end, float *out, int lanes,
                      int block, int bits) {
  (void)rows, (void)lanes;
  one_row(m, x, begin, end, out, block, bits);
}
INLINE void place(const int8_t *ints, int64_t block, int64_t lanes, int64_t lane, int8_t *to) {
  (void)lanes, (void)lane;
  memcpy(to, ints, block);
}
