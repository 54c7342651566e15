/* Products for ARM with dot products of bytes (dotprod), and of matrices of bytes where there are any (i8mm). Weights of
 * 8 bits are taken less 128, so that all bytes have a sign. Measured on no processor yet.
 */
#include <arm_neon.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LESS 128

/* Round a block of activations; sum: of its integers. Of 4-bit weights those at even places come first. */
INLINE void round_block(const float *x, int block, int bits, int8_t *ints, float *scale, int32_t *sum) {
  float32x4_t sizes = vdupq_n_f32(0);
  for (int i = 0; i < block; i += 4) sizes = vmaxq_f32(sizes, vabsq_f32(vld1q_f32(x + i)));
  const float top = vmaxvq_f32(sizes), inverse = top > 0 ? 127 / top : 0;
  int32x4_t all = vdupq_n_s32(0);
  for (int i = 0; i < block; i += 16) {
    int32x4_t whole[4];
    for (int j = 0; j < 4; j++) {
      whole[j] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4 * j), inverse));
      all = vaddq_s32(all, whole[j]);
    }
    const int8x16_t bytes = vcombine_s8(vqmovn_s16(vcombine_s16(vqmovn_s32(whole[0]), vqmovn_s32(whole[1]))),
                                        vqmovn_s16(vcombine_s16(vqmovn_s32(whole[2]), vqmovn_s32(whole[3]))));
    if (bits == 8) vst1q_s8(ints + i, bytes);
    else {
      vst1_s8(ints + i / 2, vget_low_s8(vuzp1q_s8(bytes, bytes)));
      vst1_s8(ints + (block + i) / 2, vget_low_s8(vuzp2q_s8(bytes, bytes)));
    }
  }
  *scale = top / 127;
  *sum = vaddvq_s32(all);
}

/* A block of weights as vectors of 16 bytes. */
INLINE void unpack(const uint8_t *weights, int block, int bits, int8x16_t *out) {
  for (int i = 0; i < block * bits / 128; i++) {
    const uint8x16_t v = vld1q_u8(weights + 16 * i);
    if (bits == 8) out[i] = vreinterpretq_s8_u8(veorq_u8(v, vdupq_n_u8(LESS)));
    else {
      out[i] = vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
      out[block / 32 + i] = vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
    }
  }
}

INLINE int32x4_t totals(const int32x4_t *v) {
  return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

INLINE int32_t point_of(const Matrix *m, int64_t n, int64_t b, int bits) {
  if (!m->zeros) return bits == 8 ? 128 - LESS : 8;
  if (bits == 8) return m->zeros[n * m->blocks + b] - LESS;
  return m->zeros[n * ((m->blocks + 1) / 2) + b / 2] >> b % 2 * 4 & 15;
}

/* sums + (found - points * ints) * scales */
INLINE float32x4_t scaled(int32x4_t found, int32x4_t points, int32x4_t ints, float32x4_t scales, float32x4_t sums) {
  return vfmaq_f32(sums, vcvtq_f32_s32(vmlsq_s32(found, points, ints)), scales);
}

INLINE void one_row(const Matrix *m, const Rounded *x, int64_t begin, int64_t end, float *out, int block, int bits) {
  const int64_t bytes = block * bits / 8;
  for (int64_t n = begin; n < end; n++) {
    float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t b = 0; b < m->blocks; b += 4) {
      const int64_t count = m->blocks - b < 4 ? m->blocks - b : 4;
      int32x4_t found[4];
      int32_t points[4] = {0}, ints[4] = {0};
      float scales[4] = {0}; /* of the weights, times those of the activations */
      for (int i = 0; i < 4; i++) {
        int8x16_t w[8];
        found[i] = vdupq_n_s32(0);
        if (i >= count) continue;
        unpack(m->weights + (n * m->blocks + b + i) * bytes, block, bits, w);
        for (int j = 0; j < block / 16; j++)
          found[i] = vdotq_s32(found[i], w[j], vld1q_s8(x->ints + (b + i) * block + 16 * j));
        points[i] = point_of(m, n, b + i, bits), ints[i] = x->sums[b + i];
        scales[i] = m->scales[n * m->blocks + b + i] * x->scales[b + i];
      }
      sums[b / 4 % 2] = scaled(totals(found), vld1q_s32(points), vld1q_s32(ints), vld1q_f32(scales), sums[b / 4 % 2]);
    }
    const float32x4_t four = vaddq_f32(sums[0], sums[1]);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    out[n] = vget_lane_f32(two, 0) + vget_lane_f32(two, 1) + (m->bias ? m->bias[n] : 0);
  }
}

static int64_t lanes_of(int64_t rows, int64_t bits) { return (void)bits, rows == 1 ? 1 : 4; }

#ifdef __ARM_FEATURE_MATMUL_INT8
#define PIECE 8 /* bytes of a row beside those of the next: a product of matrices takes 2 rows of 8 */
#else
#define PIECE 16
#endif

/* A block of a row, rounded, to its places between those of other rows. */
static void place(const int8_t *ints, int64_t block, int64_t lanes, int64_t lane, int8_t *to) {
  const int64_t piece = lanes == 1 ? 16 : PIECE;
  for (int64_t i = 0; i < block; i += piece) memcpy(to + i * lanes + lane * piece, ints + i, piece);
}

/* Sums of a block of two outputs' weights and of four rows: found (outputs, rows). */
INLINE void two_outputs(int8x16_t w[2][8], const int8_t *ints, int block, int32x4_t *found) {
  int32x4_t sums[2][4];
  for (int i = 0; i < 4; i++) sums[0][i] = sums[1][i] = vdupq_n_s32(0);
  for (int j = 0; j < block / 16; j++, ints += 64) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    const int64x2_t one = vreinterpretq_s64_s8(w[0][j]), two = vreinterpretq_s64_s8(w[1][j]);
    const int8x16_t pairs[2] = {vreinterpretq_s8_s64(vzip1q_s64(one, two)), vreinterpretq_s8_s64(vzip2q_s64(one, two))};
    for (int i = 0; i < 4; i++) /* i % 2: which pair of rows */
      sums[0][i % 2] = vmmlaq_s32(sums[0][i % 2], pairs[i / 2], vld1q_s8(ints + 16 * i));
#else
    for (int o = 0; o < 2; o++)
      for (int i = 0; i < 4; i++) sums[o][i] = vdotq_s32(sums[o][i], w[o][j], vld1q_s8(ints + 16 * i));
#endif
  }
#ifdef __ARM_FEATURE_MATMUL_INT8
  const int64x2_t first = vreinterpretq_s64_s32(sums[0][0]), last = vreinterpretq_s64_s32(sums[0][1]);
  found[0] = vreinterpretq_s32_s64(vzip1q_s64(first, last)), found[1] = vreinterpretq_s32_s64(vzip2q_s64(first, last));
#else
  for (int o = 0; o < 2; o++) found[o] = totals(sums[o]);
#endif
}

/* Four rows, of which the first `rows` are wanted. */
INLINE void many_rows(const Matrix *m, const Rounded *x, int64_t rows, int64_t begin, int64_t end, float *out, int lanes,
                      int block, int bits) {
  const int64_t bytes = block * bits / 8;
  (void)lanes;
  for (int64_t n = begin; n < end; n += 2) {
    const int64_t outputs = end - n < 2 ? 1 : 2; /* of one, it is taken twice */
    float32x4_t sums[2][8];
    for (int i = 0; i < 8; i++) sums[0][i] = sums[1][i] = vdupq_n_f32(0);
    for (int64_t b = 0; b < m->blocks; b++) {
      int8x16_t w[2][8];
      int32x4_t found[2];
      for (int64_t o = 0; o < 2; o++) unpack(m->weights + ((n + o % outputs) * m->blocks + b) * bytes, block, bits, w[o]);
      two_outputs(w, x->ints + b * 4 * block, block, found);
      for (int64_t o = 0; o < outputs; o++)
        sums[o][b % 8] = scaled(found[o], vdupq_n_s32(point_of(m, n + o, b, bits)), vld1q_s32(x->sums + 4 * b),
                                vmulq_n_f32(vld1q_f32(x->scales + 4 * b), m->scales[(n + o) * m->blocks + b]),
                                sums[o][b % 8]);
    }
    for (int64_t o = 0; o < outputs; o++) {
      float found[4];
      vst1q_f32(found, SUM_OF_EIGHT(vaddq_f32, sums[o]));
      for (int64_t i = 0; i < rows; i++) out[i * m->outputs + n + o] = found[i] + (m->bias ? m->bias[n + o] : 0);
    }
  }
}
