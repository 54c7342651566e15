// Integers of 4 and 8 bits, as they lie in the weights of MatMulNBits, as pairs of fp16: for nbits.cu.

// What 8 inputs of an output are, as 4 pairs; exact but for the product with the scale. A number below 1024 in the low
// bits of fp16's 1024 makes their sum, in bits 4 to 7 that with 16 times the number.
struct Scaling { unsigned scale, zero, zero16; };  // pairs of: the scale, 1024 + zero point, -(64 + zero point)

__device__ __forceinline__ void widen4(unsigned word, const Scaling& s, unsigned (&pairs)[4]) {  // 04 15 26 37
#pragma unroll
  for (int i = 0; i < 2; i++, word >>= 8) {
    pairs[2 * i] = mul2(sub2((word & 0x000f000f) | 0x64006400, s.zero), s.scale);
    pairs[2 * i + 1] = mul2(fma2((word & 0x00f000f0) | 0x64006400, 0x2c002c00, s.zero16), s.scale);  // by 1/16
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
