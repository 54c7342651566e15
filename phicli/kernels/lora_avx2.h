/* Sums of the ops in fp32 with matrices in fp16 or int8, for x86 with AVX2, FMA and F16C, in tiles: some rows of
 * activations by some ranks, or by 8 outputs. A tile's sums stay in registers, and what it widens is used for all its
 * rows. The sizes of tiles are constants where these functions are called, and so are int8 and gated.
 */
#include <immintrin.h>

#define TILE static inline __attribute__((always_inline))
#define ROWS 4 /* of a tile, where there are as many */

static inline __m256 exponential(__m256 x) { /* after Cephes: 2^n times a polynomial of what is left; 1e-7 exact */
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87)), _mm256_set1_ps(88));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8); /* to nearest */
  x = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  x = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), x);
  static const float terms[] = {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 0.16666665f, 0.5f, 1, 1};
  __m256 sum = _mm256_set1_ps(1.9875691e-4f);
  for (int i = 0; i < 7; i++) sum = _mm256_fmadd_ps(sum, x, _mm256_set1_ps(terms[i]));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}

static inline float sum_of(__m256 numbers) {
  float parts[8], total = 0;
  _mm256_storeu_ps(parts, numbers);
  for (int j = 0; j < 8; j++) total += parts[j];
  return total;
}

TILE __m256 widened_8(const void *numbers, int64_t i, int int8) {
  if (int8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((void *)((const int8_t *)numbers + i))));
  return _mm256_cvtph_ps(_mm_loadu_si128((void *)((const uint16_t *)numbers + i)));
}

/* h of rows from m and ranks from n. */
TILE void down_tile(const Product *p, int64_t m, int64_t n, int rows, int ranks, int int8) {
  const float *x = (const float *)p->in + m * p->width;
  const char *a[4];
  __m256 sums[ROWS][4];
  for (int j = 0; j < ranks; j++) {
    a[j] = row_of_a(p, n + j, int8);
    for (int i = 0; i < rows; i++) sums[i][j] = _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < p->width; k += 8) {
    __m256 wide[4];
    for (int j = 0; j < ranks; j++) wide[j] = widened_8(a[j] + (int8 ? SCALE : 0), k, int8);
    for (int i = 0; i < rows; i++) {
      const __m256 part = _mm256_loadu_ps(x + i * p->width + k);
      for (int j = 0; j < ranks; j++) sums[i][j] = _mm256_fmadd_ps(part, wide[j], sums[i][j]);
    }
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < ranks; j++)
      ((float *)p->out)[(m + i) * p->rank + n + j] = sum_of(sums[i][j]) * (int8 ? *(const float *)a[j] : 1);
}

/* base + h B of rows from m and 8 outputs from n, in `splits` sums each, which do not wait for one another. */
TILE void up_sums(const Product *p, int side, int64_t m, int64_t n, int rows, int splits, int int8, __m256 *y) {
  const char *b = block_of_b(p, side, n, int8);
  const float *h = row_of_h(p, side, m, n);
  const int64_t row = p->rank * p->kernel->segments;
  __m256 sums[ROWS][4];
  for (int i = 0; i < rows; i++)
    for (int s = 0; s < splits; s++) sums[i][s] = _mm256_setzero_ps();
  for (int64_t r = 0; r < p->rank; r += splits)
    for (int s = 0; s < splits; s++) {
      const __m256 wide = widened_8(b + (int8 ? 8 * SCALE : 0), (r + s) * 8, int8);
      for (int i = 0; i < rows; i++)
        sums[i][s] = _mm256_fmadd_ps(_mm256_broadcast_ss(h + i * row + r + s), wide, sums[i][s]);
    }
  for (int i = 0; i < rows; i++) {
    for (int s = 1; s < splits; s++) sums[i][0] = _mm256_add_ps(sums[i][0], sums[i][s]);
    const __m256 base = _mm256_loadu_ps((const float *)p->base[side] + (m + i) * p->width + n);
    y[i] = int8 ? _mm256_fmadd_ps(sums[i][0], _mm256_loadu_ps((const float *)b), base)
                : _mm256_add_ps(sums[i][0], base);
  }
}

TILE void up_tile(const Product *p, int64_t m, int64_t n, int rows, int splits, int int8, int gated) {
  __m256 y[ROWS], up[ROWS];
  up_sums(p, 0, m, n, rows, splits, int8, y);
  if (gated) up_sums(p, 1, m, n, rows, splits, int8, up);
  for (int i = 0; i < rows; i++) {
    if (gated) {
      const __m256 below = _mm256_add_ps(_mm256_set1_ps(1), exponential(_mm256_sub_ps(_mm256_setzero_ps(), y[i])));
      y[i] = _mm256_mul_ps(_mm256_div_ps(y[i], below), up[i]);
    }
    _mm256_storeu_ps((float *)p->out + (m + i) * p->width + n, y[i]);
  }
}

/* Rows from m up to `last`; ranks, or outputs, begin to end, multiples of 8. */
TILE void float_tiles(const Product *p, int kind, int int8, int64_t m, int64_t last, int64_t begin, int64_t end) {
  for (; m + ROWS <= last; m += ROWS) {
    if (kind == DOWN) for (int64_t n = begin; n < end; n += 2) down_tile(p, m, n, ROWS, 2, int8);
    else for (int64_t n = begin; n < end; n += 8) up_tile(p, m, n, ROWS, 2, int8, kind == GATED);
  }
  for (; m < last; m++) {
    if (kind == DOWN) for (int64_t n = begin; n < end; n += 4) down_tile(p, m, n, 1, 4, int8);
    else for (int64_t n = begin; n < end; n += 8) up_tile(p, m, n, 1, 4, int8, kind == GATED);
  }
}

static void float_part(const Product *p, int kind, int int8, int64_t m, int64_t last, int64_t begin, int64_t end) {
#define CASE(kind, int8) case kind * 2 + int8: float_tiles(p, kind, int8, m, last, begin, end); break;
  switch (kind * 2 + int8) { CASE(DOWN, 0) CASE(DOWN, 1) CASE(UP, 0) CASE(UP, 1) CASE(GATED, 0) CASE(GATED, 1) }
#undef CASE
}
