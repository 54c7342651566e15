/* Products of several rows with vectors of 64 bytes, for x86 with AVX-512 VNNI.
 *
 * Of a vector of activations each row has 64 / lanes bytes of a block, and so many of the weights, again and again, are
 * multiplied with it: a row's sum needs few additions within a vector, of 16 rows none. What is unpacked of 4-bit weights
 * waits in memory, from which a processor repeats bytes on loading.
 */
#define SUMS 8 /* see SUM_OF_EIGHT */

INLINE void spread(const int8_t *ints, int64_t block, int lanes, int64_t lane, int8_t *place) {
  const int piece = 64 / lanes;
  for (int i = 0; i < block; i += piece) memcpy(place + i * lanes + lane * piece, ints + i, piece);
}

/* A number of each row, as wide as its part of a vector. */
INLINE __m512i widened(const void *numbers, int lanes) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if (lanes == 16) return _mm512_loadu_si512(numbers);
  if (lanes == 8) return _mm512_permutexvar_epi32(_mm512_srli_epi32(index, 1),
                                                  _mm512_zextsi256_si512(_mm256_loadu_si256(numbers)));
  return _mm512_permutexvar_epi32(_mm512_srli_epi32(index, 2), _mm512_zextsi128_si512(_mm_loadu_si128(numbers)));
}

/* 64 / lanes bytes of weights, again and again. */
INLINE __m512i repeated(const uint8_t *weights, int lanes) {
  if (lanes == 4) return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)weights));
  const uint64_t few = some_bytes(weights, 64 / lanes);
  return lanes == 8 ? _mm512_set1_epi64((long long)few) : _mm512_set1_epi32((int)few);
}

/* The total of a row in all places of its part of a vector. */
INLINE __m512i totals_of_parts(__m512i v, int lanes) {
  if (lanes < 16) v = _mm512_add_epi32(v, _mm512_shuffle_epi32(v, _MM_PERM_CDAB));
  if (lanes < 8) v = _mm512_add_epi32(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC));
  return v;
}

/* Blocks of 4-bit weights as bytes: of each first the low halves. */
INLINE void unpack_64(const uint8_t *weights, int block, uint8_t *bytes) {
  if (block == 32) {
    const __m128i v = _mm_loadu_si128((const __m128i *)weights);
    _mm256_storeu_si256((__m256i *)bytes, _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v),
                                                           _mm256_set1_epi8(15)));
  } else if (block == 64) {
    const __m512i v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)weights));
    const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_setzero_si256(), 0);
    _mm512_storeu_si512(bytes, _mm512_and_si512(_mm512_srlv_epi16(v, shifts), _mm512_set1_epi8(15)));
  } else {
    const __m512i v = _mm512_loadu_si512(weights), low = _mm512_set1_epi8(15);
    _mm512_storeu_si512(bytes, _mm512_and_si512(v, low));
    _mm512_storeu_si512(bytes + 64, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
  }
}

/* Of up to 8 blocks of an output: scales, and zero points as what is added for each of a block's activations. */
typedef struct { float scales[SUMS]; int32_t points[SUMS]; } Eight;

INLINE void read_eight(const Matrix *m, int64_t n, int64_t b, int bits, Eight *eight) {
  const __m256i less = _mm256_sub_epi32(_mm256_setzero_si256(), zeros_of(m, n, b, bits));
  _mm256_storeu_ps(eight->scales, load(m->scales + n * m->blocks + b, m->blocks - b));
  _mm256_storeu_si256((__m256i *)eight->points, _mm256_and_si256(less, _mm256_set1_epi32(0xffff)));
}

/* sums + (found + points * ints) * scales, of block i of eight; points * ints by a product of the lower halves. */
INLINE __m512 scaled_64(__m512i found, const Eight *eight, int i, __m512i ints, __m512 scales, __m512 sums) {
  found = _mm512_dpwssd_epi32(found, ints, _mm512_set1_epi32(eight->points[i]));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(found), _mm512_mul_ps(scales, _mm512_set1_ps(eight->scales[i])), sums);
}

#ifdef __AMX_INT8__
#include "nbits_amx.h"
#else
static int by_tiles(int64_t rows, int64_t bits) { return (void)rows, (void)bits, 0; }
#endif

#define TOGETHER 8 /* outputs: what hides how long a sum takes */
#define NEAR 16384 /* bytes of their weights that may wait in the nearest cache */

/* Some outputs of as many rows as there are lanes: one block. Weights `ahead` bytes behind are fetched: a processor does not
 * see how so many lines of memory at once go on.
 */
INLINE void block_of_outputs(const Rounded *x, int64_t b, const uint8_t *const *weights, const Eight *eight, int lanes,
                             int block, int bits, int64_t ahead, __m512 sums[TOGETHER][SUMS]) {
  uint8_t bytes[TOGETHER][128];
  const uint8_t *from[TOGETHER];
  __m512i found[TOGETHER];
  for (int o = 0; o < TOGETHER; o++) {
    from[o] = bits == 8 ? weights[o] + b * block : bytes[o];
    _mm_prefetch((const char *)weights[o] + b * block * bits / 8 + ahead, _MM_HINT_T0);
    if (bits == 4) unpack_64(weights[o] + b * block / 2, block, bytes[o]);
    found[o] = _mm512_setzero_si512();
  }
  for (int c = 0; c < block * lanes / 64; c++) {
    const __m512i ints = _mm512_loadu_si512(x->ints + b * lanes * block + c * 64);
    for (int o = 0; o < TOGETHER; o++)
      found[o] = _mm512_dpbusd_epi32(found[o], repeated(from[o] + c * 64 / lanes, lanes), ints);
  }
  const __m512 scales = _mm512_castsi512_ps(widened(x->scales + b * lanes, lanes));
  const __m512i ints = widened(x->sums + b * lanes, lanes);
  for (int o = 0; o < TOGETHER; o++)
    sums[o][b % SUMS] = scaled_64(totals_of_parts(found[o], lanes), &eight[o], (int)(b % SUMS), ints, scales,
                                  sums[o][b % SUMS]);
}

/* As many rows as there are lanes, of which the first `rows` are wanted. */
INLINE void lanes_of_rows(const Matrix *m, const Rounded *x, int64_t rows, int64_t begin, int64_t end, float *out,
                         int lanes, int block, int bits) {
  const int64_t next = TOGETHER * m->blocks * (block * bits / 8), ahead = next <= NEAR ? next : AHEAD;
  for (int64_t n = begin; n < end; n += TOGETHER) {
    const int64_t outputs = end - n < TOGETHER ? end - n : TOGETHER;
    const uint8_t *weights[TOGETHER];
    Eight eight[TOGETHER];
    __m512 sums[TOGETHER][SUMS];
    for (int64_t o = 0; o < TOGETHER; o++) { /* where there are not as many, the last one again */
      weights[o] = m->weights + (n + (o < outputs ? o : outputs - 1)) * m->blocks * (block * bits / 8);
      for (int i = 0; i < SUMS; i++) sums[o][i] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < m->blocks; b++) {
      if (b % SUMS == 0)
        for (int64_t o = 0; o < TOGETHER; o++)
          read_eight(m, n + (o < outputs ? o : outputs - 1), b, bits, &eight[o]);
      block_of_outputs(x, b, weights, eight, lanes, block, bits, ahead, sums);
    }
    for (int64_t o = 0; o < outputs; o++) {
      float found[16];
      _mm512_storeu_ps(found, SUM_OF_EIGHT(_mm512_add_ps, sums[o]));
      for (int64_t i = 0; i < rows; i++)
        out[i * m->outputs + n + o] = found[i * 16 / lanes] + (m->bias ? m->bias[n + o] : 0);
    }
  }
}

static int64_t lanes_of(int64_t rows, int64_t bits) {
  return rows == 1 ? 1 : by_tiles(rows, bits) ? 16 : rows <= 4 ? 4 : rows <= 8 ? 8 : 16;
}

#define EACH_LANES(CASE) CASE(4) CASE(8) CASE(16)

/* The sizes of blocks are no constants here, so that a compiler is not busy for long. */
static void many_rows(const Matrix *m, const Rounded *x, int64_t rows, int64_t begin, int64_t end, float *out, int lanes,
                      int block, int bits) {
  switch (lanes) {
#define CASE(lanes) case lanes: lanes_of_rows(m, x, rows, begin, end, out, lanes, block, bits); break;
    EACH_LANES(CASE)
#undef CASE
  }
}

/* A block of a row, rounded, to its places between those of other rows. */
static void place(const int8_t *ints, int64_t block, int64_t lanes, int64_t lane, int8_t *to) {
  switch (lanes) {
    case 1: memcpy(to, ints, block); break;
#define CASE(lanes) case lanes: spread(ints, block, lanes, lane, to); break;
    EACH_LANES(CASE)
#undef CASE
  }
}
