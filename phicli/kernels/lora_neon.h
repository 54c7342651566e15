/* Eight numbers at a time for lora_tiles.h, on 64-bit ARM. */
#include <arm_neon.h>

#define TILE static inline __attribute__((always_inline))

typedef struct { float32x4_t half[2]; } Eight;

TILE Eight repeat_8(float number) { return (Eight){{vdupq_n_f32(number), vdupq_n_f32(number)}}; }
TILE Eight load_8(const float *numbers) { return (Eight){{vld1q_f32(numbers), vld1q_f32(numbers + 4)}}; }
TILE void store_8(float *numbers, Eight x) { vst1q_f32(numbers, x.half[0]), vst1q_f32(numbers + 4, x.half[1]); }
TILE Eight added_8(Eight x, Eight y) {
  return (Eight){{vaddq_f32(x.half[0], y.half[0]), vaddq_f32(x.half[1], y.half[1])}};
}
TILE Eight fused_8(Eight x, Eight y, Eight sum) {
  return (Eight){{vfmaq_f32(sum.half[0], x.half[0], y.half[0]), vfmaq_f32(sum.half[1], x.half[1], y.half[1])}};
}
TILE float sum_of(Eight x) { return vaddvq_f32(vaddq_f32(x.half[0], x.half[1])); }

TILE Eight widened_8(const void *numbers, int64_t i, int int8) {
  if (int8) {
    const int16x8_t wide = vmovl_s8(vld1_s8((const int8_t *)numbers + i));
    return (Eight){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)))}};
  }
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16((const uint16_t *)numbers + i));
  return (Eight){{vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)}};
}

TILE void fetch(const char *line, int64_t ahead, int64_t i, int int8) { __builtin_prefetch(line + ahead + (int8 ? i : 2 * i)); }

TILE float32x4_t exponential(float32x4_t x) { /* as in lora_avx2.h */
  x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-87)), vdupq_n_f32(88));
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
  x = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
  x = vfmsq_f32(x, n, vdupq_n_f32(-2.12194440e-4f));
  static const float terms[] = {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 0.16666665f, 0.5f, 1, 1};
  float32x4_t sum = vdupq_n_f32(1.9875691e-4f);
  for (int i = 0; i < 7; i++) sum = vfmaq_f32(vdupq_n_f32(terms[i]), sum, x);
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(sum, vreinterpretq_f32_s32(power));
}

TILE Eight gated_8(Eight gate, Eight up) { /* silu(gate) * up */
  for (int i = 0; i < 2; i++) {
    const float32x4_t below = vaddq_f32(vdupq_n_f32(1), exponential(vnegq_f32(gate.half[i])));
    gate.half[i] = vmulq_f32(vdivq_f32(gate.half[i], below), up.half[i]);
  }
  return gate;
}
