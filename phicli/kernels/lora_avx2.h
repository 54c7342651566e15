/* Eight numbers at a time for lora_tiles.h, on x86 with AVX2, FMA and F16C. */
#include <immintrin.h>

#define TILE static inline __attribute__((always_inline))

typedef __m256 Eight;

TILE Eight repeat_8(float number) { return _mm256_set1_ps(number); }
TILE Eight load_8(const float *numbers) { return _mm256_loadu_ps(numbers); }
TILE void store_8(float *numbers, Eight x) { _mm256_storeu_ps(numbers, x); }
TILE Eight added_8(Eight x, Eight y) { return _mm256_add_ps(x, y); }
TILE Eight fused_8(Eight x, Eight y, Eight sum) { return _mm256_fmadd_ps(x, y, sum); }

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

TILE Eight gated_8(Eight gate, Eight up) { /* silu(gate) * up */
  const Eight below = _mm256_add_ps(_mm256_set1_ps(1), exponential(_mm256_sub_ps(_mm256_setzero_ps(), gate)));
  return _mm256_mul_ps(_mm256_div_ps(gate, below), up);
}
