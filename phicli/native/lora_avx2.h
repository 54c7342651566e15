/* Sums of the ops in fp32, for x86 with AVX2 and FMA: outputs 8 at a time, ranks in multiples of 16. */
#include <immintrin.h>

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

/* h times 8 rows of B, (8, rank). */
static inline __m256 eight_dots(const float *h, const float *b, int64_t rank) {
  __m256 sums[8];
  for (int j = 0; j < 8; j++) sums[j] = _mm256_setzero_ps();
  for (int64_t r = 0; r < rank; r += 8) {
    const __m256 part = _mm256_loadu_ps(h + r);
    for (int j = 0; j < 8; j++) sums[j] = _mm256_fmadd_ps(part, _mm256_loadu_ps(b + j * rank + r), sums[j]);
  }
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(sums[4], sums[5]), _mm256_hadd_ps(sums[6], sums[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

static inline float one_dot(const float *a, const float *b, int64_t count) {
  __m256 sums[4];
  for (int j = 0; j < 4; j++) sums[j] = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; i += 32)
    for (int j = 0; j < 4; j++)
      sums[j] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j), sums[j]);
  const __m256 sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
  float parts[8], total = 0;
  _mm256_storeu_ps(parts, sum);
  for (int j = 0; j < 8; j++) total += parts[j];
  return total;
}

/* Ranks begin to end of h. */
static void float_down(const Product *p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n++)
    for (int64_t m = 0; m < p->rows; m++)
      ((float *)p->out)[m * p->rank + n] =
          one_dot((const float *)p->in + m * p->width, (const float *)p->matrix[0] + n * p->width, p->width);
}

/* Outputs begin to end, multiples of 8. */
static void float_up(const Product *p, int64_t begin, int64_t end, int gated) {
  for (int64_t n = begin; n < end; n += 8)
    for (int64_t m = 0; m < p->rows; m++) {
      const int64_t i = m * p->width + n;
      const float *h = (const float *)p->in + m * p->rank;
      __m256 y = _mm256_add_ps(_mm256_loadu_ps((const float *)p->base[0] + i),
                               eight_dots(h, (const float *)p->matrix[0] + n * p->rank, p->rank));
      if (gated) {
        const __m256 up = _mm256_add_ps(_mm256_loadu_ps((const float *)p->base[1] + i),
                                        eight_dots(h, (const float *)p->matrix[1] + n * p->rank, p->rank));
        const __m256 sigmoid = _mm256_add_ps(_mm256_set1_ps(1), exponential(_mm256_sub_ps(_mm256_setzero_ps(), y)));
        y = _mm256_mul_ps(_mm256_div_ps(y, sigmoid), up);
      }
      _mm256_storeu_ps((float *)p->out + i, y);
    }
}
