/* Products of queries with keys, and of weights with values, for x86 with AVX2 and FMA; with VNNI where there is any. */
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __AVX512VL__
#define TOGETHER 4 /* rows: 16 sums, which is what the registers hold */
#else
#define TOGETHER 2
#endif

INLINE __m256i added(__m256i sum, __m256i left, __m256i right) { /* products of two neighbours go into one sum */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpwssd_epi32(sum, left, right);
#elif defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sum, left, right);
#else
  return _mm256_add_epi32(sum, _mm256_madd_epi16(left, right));
#endif
}

/* Of four keys from number j on; where there are not as many, the last one again. */
INLINE void four_keys(const int16_t *queries, int rows, int64_t size, const int8_t *keys, int64_t j, int64_t tokens,
                      int32_t *dots) {
  const int8_t *key[4];
  __m256i sums[TOGETHER][4];
  for (int i = 0; i < 4; i++) {
    key[i] = keys + least(j + i, tokens - 1) * (size + SCALE);
    for (int r = 0; r < rows; r++) sums[r][i] = _mm256_setzero_si256();
  }
  for (int64_t c = 0; c < size; c += 16) {
    __m256i wide[4];
    for (int i = 0; i < 4; i++) wide[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(key[i] + c)));
    for (int r = 0; r < rows; r++) {
      const __m256i query = _mm256_loadu_si256((const __m256i *)(queries + r * size + c));
      for (int i = 0; i < 4; i++) sums[r][i] = added(sums[r][i], query, wide[i]);
    }
  }
  for (int r = 0; r < rows; r++) {
    const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[r][0], sums[r][1]),
                                          _mm256_hadd_epi32(sums[r][2], sums[r][3]));
    _mm_storeu_si128((__m128i *)(dots + r * TILE + j),
                     _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
  }
}

INLINE void all_keys(const int16_t *queries, int rows, int64_t size, const int8_t *keys, int64_t tokens,
                     int32_t *dots) {
  for (int64_t j = 0; j < tokens; j += 4) four_keys(queries, rows, size, keys, j, tokens, dots);
}

/* Products of rows of queries with the keys of a tile: dots (rows, TILE). */
static void multiply_keys(const int16_t *queries, int64_t rows, int64_t size, const int8_t *keys, int64_t tokens,
                          int32_t *dots) {
  int64_t r = 0;
  for (; r + TOGETHER <= rows; r += TOGETHER)
    all_keys(queries + r * size, TOGETHER, size, keys, tokens, dots + r * TILE);
  for (; r < rows; r++) all_keys(queries + r * size, 1, size, keys, tokens, dots + r * TILE);
}

/* Of 16 channels from number c on. Two tokens' values lie side by side, as their weights do. */
INLINE void some_values(const int16_t *weights, int rows, int64_t c, int64_t size, const int8_t *values,
                        int64_t tokens, const float *kept, const float *factors, float *const *sums) {
  __m256i found[4][2];
  for (int r = 0; r < rows; r++) found[r][0] = found[r][1] = _mm256_setzero_si256();
  for (int64_t j = 0; j < tokens; j += 2) {
    const int8_t *line = values + j * (size + SCALE) + c;
    const __m128i one = _mm_loadu_si128((const __m128i *)line);
    const __m128i two = _mm_loadu_si128((const __m128i *)(j + 1 < tokens ? line + size + SCALE : line)); /* or weight 0 */
    const __m256i low = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(one, two));
    const __m256i high = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(one, two));
    for (int r = 0; r < rows; r++) {
      int32_t pair;
      memcpy(&pair, weights + r * TILE + j, sizeof pair);
      found[r][0] = added(found[r][0], low, _mm256_set1_epi32(pair));
      found[r][1] = added(found[r][1], high, _mm256_set1_epi32(pair));
    }
  }
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < 2; i++) {
      float *place = sums[r] + c + 8 * i;
      const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(place), _mm256_set1_ps(kept[r]));
      _mm256_storeu_ps(place, _mm256_fmadd_ps(_mm256_cvtepi32_ps(found[r][i]), _mm256_set1_ps(factors[r]), old));
    }
}

/* sums[r] = sums[r] * kept[r] + (weights (rows, TILE) times the values of a tile) * factors[r] */
static void add_values(const int16_t *weights, int64_t rows, int64_t size, const int8_t *values, int64_t tokens,
                       const float *kept, const float *factors, float *const *sums) {
  int64_t r = 0;
#define OF(rows)                                                                                                  \
  for (int64_t c = 0; c < size; c += 16)                                                                          \
    some_values(weights + r * TILE, rows, c, size, values, tokens, kept + r, factors + r, sums + r)
  for (; r + 4 <= rows; r += 4) OF(4);
  switch (rows - r) {
    case 3: OF(3); break;
    case 2: OF(2); break;
    case 1: OF(1); break;
    default: break;
  }
#undef OF
}
