/* Sums of the ops in fp32 with matrices in fp16 or int8, for x86 with AVX2, FMA and F16C, in tiles: some rows of
 * activations by some ranks, or by some blocks of 8 outputs. A tile's sums stay in registers, and what it
 * widens is used for all its rows. The sizes of tiles are constants where these functions are called, and so are int8
 * and gated.
 */
#include <immintrin.h>

#define TILE static inline __attribute__((always_inline))
#define ROWS 4 /* of a tile, where there are as many */
#define SPLITS 2 /* sums of an output, whatever the tile: a row's result does not depend on the rows beside it */

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

/* What the next tile reads, `ahead` bytes behind a number of this one; lines of a matrix are too short for a processor to
 * see that others follow.
 */
TILE void fetch(const char *line, int64_t ahead, int64_t i, int int8) {
  _mm_prefetch(line + ahead + (int8 ? i : 2 * i), _MM_HINT_T0);
}

/* h of rows from m and ranks from n. */
TILE void down_tile(const Product *p, int64_t m, int64_t n, int rows, int ranks, int int8) {
  const float *x[ROWS];
  const char *a[4];
  __m256 sums[ROWS][4];
  for (int i = 0; i < rows; i++) x[i] = (const float *)p->in + number_of(p, m + i) * p->width;
  for (int j = 0; j < ranks; j++) {
    a[j] = row_of_a(p, n + j, int8);
    for (int i = 0; i < rows; i++) sums[i][j] = _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < p->width; k += 8) {
    __m256 wide[4];
    for (int j = 0; j < ranks && k % 32 == 0; j++) fetch(a[j], ranks * (a[1] - a[0]), k, int8);
    for (int j = 0; j < ranks; j++) wide[j] = widened_8(a[j] + (int8 ? SCALE : 0), k, int8);
    for (int i = 0; i < rows; i++) {
      const __m256 part = _mm256_loadu_ps(x[i] + k);
      for (int j = 0; j < ranks; j++) sums[i][j] = _mm256_fmadd_ps(part, wide[j], sums[i][j]);
    }
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < ranks; j++)
      ((float *)p->out)[number_of(p, m + i) * p->stride + n + j] = sum_of(sums[i][j]) *
                                                                   (int8 ? *(const float *)a[j] : 1);
}

/* base + h B of rows from m and some blocks of 8 outputs from n. */
TILE void up_sums(const Product *p, int side, int64_t m, int64_t n, int rows, int blocks, int int8, __m256 y[ROWS][4]) {
  const char *b[4];
  const float *h[ROWS][4];
  __m256 sums[ROWS][4][SPLITS];
  for (int j = 0; j < blocks; j++) {
    b[j] = block_of_b(p, side, n + 8 * j, int8);
    for (int i = 0; i < rows; i++) {
      h[i][j] = row_of_h(p, side, m + i, n + 8 * j);
      for (int s = 0; s < SPLITS; s++) sums[i][j][s] = _mm256_setzero_ps();
    }
  }
  for (int64_t r = 0; r < p->rank; r += SPLITS)
    for (int s = 0; s < SPLITS; s++)
      for (int j = 0; j < blocks; j++) {
        if (s == 0) fetch(b[j], blocks * (block_of_b(p, side, 8, int8) - p->matrix[side]), r * 8, int8);
        const __m256 wide = widened_8(b[j] + (int8 ? 8 * SCALE : 0), (r + s) * 8, int8);
        for (int i = 0; i < rows; i++)
          sums[i][j][s] = _mm256_fmadd_ps(_mm256_broadcast_ss(h[i][j] + r + s), wide, sums[i][j][s]);
      }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < blocks; j++) {
      const __m256 sum = _mm256_add_ps(sums[i][j][0], sums[i][j][1]);
      const __m256 base = _mm256_loadu_ps((const float *)p->base[side] + number_of(p, m + i) * p->width + n + 8 * j);
      y[i][j] = int8 ? _mm256_fmadd_ps(sum, _mm256_loadu_ps((const float *)b[j]), base) : _mm256_add_ps(sum, base);
    }
}

TILE void up_tile(const Product *p, int64_t m, int64_t n, int rows, int blocks, int int8, int gated) {
  __m256 y[ROWS][4], up[ROWS][4];
  up_sums(p, 0, m, n, rows, blocks, int8, y);
  if (gated) up_sums(p, 1, m, n, rows, blocks, int8, up);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < blocks; j++) {
      if (gated) {
        const __m256 less = _mm256_sub_ps(_mm256_setzero_ps(), y[i][j]);
        const __m256 below = _mm256_add_ps(_mm256_set1_ps(1), exponential(less));
        y[i][j] = _mm256_mul_ps(_mm256_div_ps(y[i][j], below), up[i][j]);
      }
      _mm256_storeu_ps((float *)p->out + number_of(p, m + i) * p->width + n + 8 * j, y[i][j]);
    }
}

/* Rows from m; ranks, or outputs, begin to end, multiples of 8. What is read of a matrix fills the registers. */
TILE void tiles(const Product *p, int kind, int int8, int64_t m, int rows, int64_t begin, int64_t end) {
  const int ranks = rows == ROWS ? 2 : 4, blocks = ROWS / rows;
  int64_t n = begin;
  if (kind == DOWN) {
    for (; n < end; n += ranks) down_tile(p, m, n, rows, ranks, int8);
    return;
  }
  for (; n + 8 * blocks <= end; n += 8 * blocks) up_tile(p, m, n, rows, blocks, int8, kind == GATED);
  for (; n < end; n += 8) up_tile(p, m, n, rows, 1, int8, kind == GATED);
}

/* Rows from m up to `last`. */
TILE void float_tiles(const Product *p, int kind, int int8, int64_t m, int64_t last, int64_t begin, int64_t end) {
  for (; m + ROWS <= last; m += ROWS) tiles(p, kind, int8, m, ROWS, begin, end);
  for (; m + 2 <= last; m += 2) tiles(p, kind, int8, m, 2, begin, end);
  if (m < last) tiles(p, kind, int8, m, 1, begin, end);
}

static void float_part(const Product *p, int kind, int int8, int64_t m, int64_t last, int64_t begin, int64_t end) {
#define CASE(kind, int8) case kind * 2 + int8: float_tiles(p, kind, int8, m, last, begin, end); break;
  switch (kind * 2 + int8) { CASE(DOWN, 0) CASE(DOWN, 1) CASE(UP, 0) CASE(UP, 1) CASE(GATED, 0) CASE(GATED, 1) }
#undef CASE
}
