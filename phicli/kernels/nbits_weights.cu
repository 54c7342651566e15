// Weights of MatMulNBits, as they lie in a file: integers of 4 and 8 bits in registers, as pairs of fp16 for the tensor
// cores. For nbits.cu, which says how threads share them.

constexpr int WARPS = 16, THREADS = 32 * WARPS, STEP = 128;  // a warp makes 16 outputs

struct Matrices {
  const half_bits* x;
  const unsigned char* weights;
  const half_bits* scales;
  const unsigned char* zeros;
  half_bits* y;
  float* sums;  // (parts, rows, outputs), where there are several parts
  int rows, outputs, inputs, group_bits, steps;  // group: 1 << group_bits; steps: of 128 inputs, of a part
};

// What 8 inputs of an output are, as 4 pairs; exact but for the product with the scale. A number below 1024 in the low
// bits of fp16's 1024 makes their sum, in bits 4 to 7 that with 16 times the number.
struct Scaling { unsigned scale, zero, zero16; };  // pairs of: the scale, 1024 + zero point, -(64 + zero point)

__device__ __forceinline__ void widen4(unsigned word, const Scaling& s, unsigned (&pairs)[4]) {  // 04 15 26 37
#pragma unroll
  for (int i = 0; i < 2; i++, word >>= 8) {
    pairs[2 * i] = mul2(sub2(masked_or<0x000f000f>(word, 0x64006400), s.zero), s.scale);
    pairs[2 * i + 1] = mul2(fma2(masked_or<0x00f000f0>(word, 0x64006400), 0x2c002c00, s.zero16), s.scale);  // by 1/16
  }
}

__device__ __forceinline__ void widen8(unsigned low, unsigned high, const Scaling& s, unsigned (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    pairs[i] = mul2(sub2(__byte_perm(i < 2 ? low : high, 0x64646464, i % 2 ? 0x4342 : 0x4140), s.zero), s.scale);
}

// Where an output has the zero point of a group, in bytes.
template <int BITS>
__device__ __forceinline__ size_t point_at(int output, int group, int groups) {
  return BITS == 4 ? (size_t)output * ((groups + 1) / 2) + group / 2 : (size_t)output * groups + group;
}

template <int BITS>
__device__ __forceinline__ Scaling scaling(unsigned scale, bool given, unsigned byte, int group) {
  const unsigned point = !given ? 1 << (BITS - 1) : BITS == 4 ? byte >> group % 2 * 4 & 15 : byte;
  const unsigned points = __byte_perm(point | 0x6400, 0, 0x1010);
  return {__byte_perm(scale, 0, 0x1010), points, sub2(0x63806380, points)};  // 960 - 1024 - zero point
}

__device__ __forceinline__ unsigned word(const uint4& of, int i) {
  return i == 0 ? of.x : i == 1 ? of.y : i == 2 ? of.z : of.w;
}

// A thread's 32 inputs of a step, of 2 outputs that are 8 apart.
template <int BITS>
struct Weights {
  uint4 words[2][BITS / 4];
  half_bits scales[2];
  unsigned char zeros[2];  // the byte that the zero point is in

  // Behind the last inputs the last ones again, and behind the last outputs: x is zero there, y not stored.
  __device__ __forceinline__ void load(const Matrices& of, const int (&outputs)[2], int k) {
    const int groups = of.inputs >> of.group_bits, group = k >> of.group_bits;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const unsigned char* from = of.weights + ((size_t)outputs[i] * of.inputs + k) * BITS / 8;
#pragma unroll
      for (int c = 0; c < BITS / 4; c++) words[i][c] = load16(from + c * 16);
      scales[i] = __ldg(of.scales + (size_t)outputs[i] * groups + group);
      if (of.zeros) zeros[i] = __ldg(of.zeros + point_at<BITS>(outputs[i], group, groups));
    }
  }

  // 8 of the 32: pairs of the output i.
  __device__ __forceinline__ void widen(int i, int j, const Scaling& s, unsigned (&pairs)[4]) const {
    if (BITS == 4) return widen4(word(words[i][0], j), s, pairs);
    const uint4& from = words[i][j / 2 % (BITS / 4)];
    widen8(word(from, j % 2 * 2), word(from, j % 2 * 2 + 1), s, pairs);
  }
};
