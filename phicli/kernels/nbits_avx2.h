/* Weights in 4 or 8 bits times activations in 8, for x86 with AVX2 and FMA; with VNNI where there is any.
 *
 * Each block of a row of activations is rounded to int8 by its largest number, as onnxruntime's accuracy level 4 does.
 * Weights lie as MatMulNBits has them (outputs, blocks, bytes), so that a file's mapped pages are read where they are.
 * Of a block in 4 bits the low halves of the bytes, which are the even weights, make the first vectors and the high
 * halves the others. Activations are stored in that order.
 */
#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define AHEAD 1024 /* bytes of weights that are fetched ahead */

INLINE __m128 halves(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

INLINE float total(__m256 v) {
  __m128 sum = halves(v);
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

INLINE float largest(__m256 v) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

/* 32 whole numbers as bytes, in their order; of 4-bit weights the even ones, then the odd ones. */
INLINE __m256i as_bytes(const __m256i *whole, int bits) {
  const __m256i turned = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                            _mm256_packs_epi32(whole[2], whole[3]));
  const __m256i bytes = _mm256_permutevar8x32_epi32(turned, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  if (bits == 8) return bytes;
  const __m256i apart = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14,
                                                                  1, 3, 5, 7, 9, 11, 13, 15));
  return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, apart), 0xd8);
}

/* Round a block of activations; sum: of its integers. */
INLINE void round_block(const float *x, int block, int bits, int8_t *ints, float *scale, int32_t *sum) {
  __m256 sizes = _mm256_setzero_ps();
  for (int i = 0; i < block; i += 8)
    sizes = _mm256_max_ps(sizes, _mm256_andnot_ps(_mm256_set1_ps(-0.f), _mm256_loadu_ps(x + i)));
  const float top = largest(sizes);
  const __m256 inverse = _mm256_set1_ps(top > 0 ? 127 / top : 0);
  __m256i all = _mm256_setzero_si256();
  for (int i = 0; i < block; i += 32) {
    __m256i whole[4] = {all, all, all, all}; /* a block of 16 has two of them */
    for (int j = 0; j < 4 && i + 8 * j < block; j++) {
      whole[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), inverse));
      all = _mm256_add_epi32(all, whole[j]);
    }
    const __m256i bytes = as_bytes(whole, bits);
    if (bits == 4) {
      _mm_storeu_si128((__m128i *)(ints + i / 2), _mm256_castsi256_si128(bytes));
      _mm_storeu_si128((__m128i *)(ints + (block + i) / 2), _mm256_extracti128_si256(bytes, 1));
    } else if (block == 16) _mm_storeu_si128((__m128i *)ints, _mm256_castsi256_si128(bytes));
    else _mm256_storeu_si256((__m256i *)(ints + i), bytes);
  }
  *scale = top / 127;
  *sum = (int32_t)total(_mm256_cvtepi32_ps(all)); /* exact: less than 2^24 */
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define FOURS(sum, left, right) _mm256_dpbusd_epi32(sum, left, right)
#elif defined(__AVXVNNI__)
#define FOURS(sum, left, right) _mm256_dpbusd_avx_epi32(sum, left, right)
#endif
#ifdef FOURS
#define LESS 0 /* what is taken off 8-bit weights, and off their zero points */
#else
#define LESS 128 /* so that sums of two products fit into 16 bits */
#endif

/* A block of weights as vectors of 32 bytes, in 8 bits less LESS. */
INLINE void unpack(const uint8_t *weights, int block, int bits, __m256i *out) {
  const __m256i low = _mm256_set1_epi8(15);
  if (block == 16) /* of 8 bits: half a vector, the rest is zero */
    out[0] = _mm256_zextsi128_si256(_mm_xor_si128(_mm_loadu_si128((const __m128i *)weights),
                                                  _mm_set1_epi8((char)LESS)));
  else if (bits == 8)
    for (int i = 0; i < block / 32; i++)
      out[i] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)weights + i), _mm256_set1_epi8((char)LESS));
  else if (block == 32) {
    const __m128i v = _mm_loadu_si128((const __m128i *)weights);
    out[0] = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), low);
  } else
    for (int i = 0; i < block / 64; i++) {
      const __m256i v = _mm256_loadu_si256((const __m256i *)weights + i);
      out[i] = _mm256_and_si256(v, low);
      out[block / 64 + i] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    }
}

/* Eight sums, of the products of a block of weights and one of activations. */
INLINE __m256i block_product(const __m256i *weights, const int8_t *ints, int block, int bits) {
  (void)bits; /* not looked at with VNNI */
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < (block + 31) / 32; i++) {
    __m256i left = weights[i], right = block == 16 ? _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)ints))
                                                   : _mm256_loadu_si256((const __m256i *)ints + i);
#ifdef FOURS
    sum = FOURS(sum, left, right);
#else
    if (bits == 8) right = _mm256_sign_epi8(right, left), left = _mm256_abs_epi8(left); /* left has no sign */
    const __m256i pairs = _mm256_maddubs_epi16(left, right); /* of 4 bits, four of these fit into 16 bits */
    sum = bits == 8 ? _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                    : _mm256_add_epi16(sum, pairs);
#endif
  }
#ifndef FOURS
  if (bits == 4) sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
#endif
  return sum;
}

/* The totals of 4 or 8 vectors; of 4, then zeros. */
INLINE __m256i totals(const __m256i *v, int count) {
  __m256i four[2];
  for (int i = 0; i < count / 4; i++)
    four[i] = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4 * i], v[4 * i + 1]),
                                _mm256_hadd_epi32(v[4 * i + 2], v[4 * i + 3]));
  if (count == 4) return _mm256_zextsi128_si256(_mm_add_epi32(_mm256_castsi256_si128(four[0]),
                                                              _mm256_extracti128_si256(four[0], 1)));
  return _mm256_add_epi32(_mm256_permute2x128_si256(four[0], four[1], 0x20),
                          _mm256_permute2x128_si256(four[0], four[1], 0x31));
}

INLINE uint64_t some_bytes(const uint8_t *bytes, int count) { /* 4 or 8 */
  uint32_t four;
  uint64_t eight;
  if (count == 8) return memcpy(&eight, bytes, 8), eight;
  return memcpy(&four, bytes, 4), four;
}

/* Zero points of 8 blocks of an output; its last block may come sooner. */
INLINE __m256i zeros_of(const Matrix *m, int64_t output, int64_t block, int bits) {
  if (!m->zeros) return _mm256_set1_epi32(bits == 8 ? 128 - LESS : 8);
  const int64_t size = bits == 8 ? m->blocks : (m->blocks + 1) / 2, at = block * bits / 8;
  const uint8_t *zeros = m->zeros + output * size + at;
  uint64_t packed = 0;
  if (size - at >= bits) packed = some_bytes(zeros, bits);
  else if (size >= bits) packed = some_bytes(zeros + size - at - bits, bits) >> 8 * (bits - (size - at));
  else memcpy(&packed, zeros, size - at);
  if (bits == 8)
    return _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)packed)), _mm256_set1_epi32(LESS));
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)packed), shifts), _mm256_set1_epi32(15));
}

INLINE __m256i first(int64_t count) { /* a mask */
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Up to 8 numbers, then zeros. */
INLINE __m256 load(const float *numbers, int64_t count) {
  return count >= 8 ? _mm256_loadu_ps(numbers) : _mm256_maskload_ps(numbers, first(count));
}
INLINE __m256i load_ints(const int32_t *numbers, int64_t count) {
  return count >= 8 ? _mm256_loadu_si256((const __m256i *)numbers) : _mm256_maskload_epi32(numbers, first(count));
}

/* sums + (found - points * ints) * scales: found of the weights as they are stored, so less their zero points. */
INLINE __m256 scaled(__m256i found, __m256i points, __m256i ints, __m256 scales, __m256 sums) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(found, _mm256_mullo_epi32(points, ints))), scales, sums);
}

/* Up to `most` blocks of an output, 4 or 8, from block b. */
INLINE __m256 blocks_of_row(const Matrix *m, const Rounded *x, int64_t n, int64_t b, int64_t count, int most,
                            __m256 sums, int block, int bits) {
  const int64_t bytes = block * bits / 8;
  const uint8_t *weights = m->weights + (n * m->blocks + b) * bytes;
  __m256i found[8];
  for (int i = 0; i < most; i++) {
    __m256i w[4];
    found[i] = _mm256_setzero_si256();
    if (i >= count) continue;
    unpack(weights + i * bytes, block, bits, w);
    _mm_prefetch((const char *)weights + i * bytes + AHEAD, _MM_HINT_T0);
    found[i] = block_product(w, x->ints + (b + i) * block, block, bits);
  }
  return scaled(totals(found, most), zeros_of(m, n, b, bits), load_ints(x->sums + b, count),
                _mm256_mul_ps(load(m->scales + n * m->blocks + b, count), load(x->scales + b, count)), sums);
}

/* One row of activations: bound by memory. */
INLINE void one_row(const Matrix *m, const Rounded *x, int64_t begin, int64_t end, float *out, int block, int bits) {
  for (int64_t n = begin; n < end; n++) {
    __m256 sums = _mm256_setzero_ps();
    int64_t b = 0;
    for (; b + 8 <= m->blocks; b += 8) sums = blocks_of_row(m, x, n, b, 8, 8, sums, block, bits);
    if (b + 4 < m->blocks) sums = blocks_of_row(m, x, n, b, m->blocks - b, 8, sums, block, bits);
    else if (b < m->blocks) sums = blocks_of_row(m, x, n, b, m->blocks - b, 4, sums, block, bits);
    out[n] = total(sums) + (m->bias ? m->bias[n] : 0);
  }
}

#ifndef WIDE
/* As many rows as there are lanes, of which the first `rows` are wanted: bound by arithmetic. */
INLINE void lanes_of_rows(const Matrix *m, const Rounded *x, int64_t rows, int64_t begin, int64_t end, float *out,
                      int lanes, int block, int bits) {
  const int64_t bytes = block * bits / 8;
  for (int64_t n = begin; n < end; n++) {
    const uint8_t *weights = m->weights + n * m->blocks * bytes;
    const float *scales = m->scales + n * m->blocks;
    const int8_t *ints = x->ints;
    __m256 sums[8];
    int32_t points[8];
    float found[8];
    for (int i = 0; i < 8; i++) sums[i] = _mm256_setzero_ps();
    for (int64_t b = 0; b < m->blocks; b++, weights += bytes, ints += lanes * block) {
      __m256i w[4], products[8];
      if (b % 8 == 0) _mm256_storeu_si256((__m256i *)points, zeros_of(m, n, b, bits));
      unpack(weights, block, bits, w);
      _mm_prefetch((const char *)weights + AHEAD, _MM_HINT_T0);
      for (int i = 0; i < lanes; i++) products[i] = block_product(w, ints + i * block, block, bits);
      sums[b % 8] = scaled(totals(products, lanes), _mm256_set1_epi32(points[b % 8]),
                           load_ints(x->sums + b * lanes, lanes),
                           _mm256_mul_ps(_mm256_set1_ps(scales[b]), load(x->scales + b * lanes, lanes)), sums[b % 8]);
    }
    _mm256_storeu_ps(found, SUM_OF_EIGHT(_mm256_add_ps, sums));
    for (int64_t i = 0; i < rows; i++) out[i * m->outputs + n] = found[i] + (m->bias ? m->bias[n] : 0);
  }
}


INLINE void many_rows(const Matrix *m, const Rounded *x, int64_t rows, int64_t begin, int64_t end, float *out, int lanes,
                      int block, int bits) {
  if (lanes == 4) lanes_of_rows(m, x, rows, begin, end, out, 4, block, bits);
  else lanes_of_rows(m, x, rows, begin, end, out, 8, block, bits);
}

static int64_t lanes_of(int64_t rows, int64_t bits) { return (void)bits, rows == 1 ? 1 : rows <= 4 ? 4 : 8; }

/* A block of a row, rounded, to its place between those of other rows. */
INLINE void place(const int8_t *ints, int64_t block, int64_t lanes, int64_t lane, int8_t *to) {
  (void)lanes;
  memcpy(to + lane * block, ints, block);
}
#endif
