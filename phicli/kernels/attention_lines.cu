// Lines of the cache of Int8CacheAttentionCuda, for attention.cu: a token's key or value of a head, as attention_op.c says,
// and how tensor cores take it.
//
// Integers become fp16 exactly: 1024 + number + 128 in its bits. Of a key a thread takes 4 neighbouring channels, as one
// word, of 4 values the same 4 channels: which channel or token is which of a product does not matter, as long as both
// sides agree.

constexpr int LINES = 32;  // tokens at a time

// Walsh-Hadamard transform of a head, of which a lane has the channels lane, lane + 32, ...
template <int SIZE>
__device__ __forceinline__ void mix(float (&x)[SIZE / 32]) {
  constexpr int WIDTH = SIZE & -SIZE;
#pragma unroll
  for (int step = 1; step < 32; step *= 2)
#pragma unroll
    for (int i = 0; i < SIZE / 32; i++) {
      const float other = of_lane(x[i], step);
      x[i] = threadIdx.x & step ? other - x[i] : x[i] + other;
    }
#pragma unroll
  for (int step = 1; step < WIDTH / 32; step *= 2)
#pragma unroll
    for (int i = 0; i < SIZE / 32; i++)
      if (!(i & step)) {
        const float one = x[i], two = x[i + step];
        x[i] = one + two, x[i + step] = one - two;
      }
#pragma unroll
  for (int i = 0; i < SIZE / 32; i++) x[i] *= rsqrtf((float)WIDTH);
}

template <int SIZE>
struct Line {
  static constexpr int WORDS = SIZE / 4 + 1;
  static constexpr unsigned MIDDLE = 0x64806480;  // a pair of 1024 + 128

  static __device__ __forceinline__ float scale_of(unsigned word) { return __uint_as_float(word << 16); }
  static __device__ __forceinline__ float factor(const unsigned* key) { return scale_of(key[SIZE / 4]); }

  // What a lane has of a mixed head, into the cache.
  static __device__ __forceinline__ void put(unsigned* line, const float (&x)[SIZE / 32]) {
    const int lane = threadIdx.x % 32;
    float top = 0.f;
#pragma unroll
    for (int i = 0; i < SIZE / 32; i++) top = fmaxf(top, fabsf(x[i]));
#pragma unroll
    for (int step = 1; step < 32; step *= 2) top = fmaxf(top, of_lane(top, step));
    float all = 0.f;  // what is no number has gone into all channels that were mixed with it, of which each lane has one
#pragma unroll
    for (int i = 0; i < SIZE / 32; i++) all += x[i];
    const unsigned scale = all != all ? 0x7fc0 : (__float_as_uint(top / 127) + 0xffff) >> 16;  // up: nothing is above 127
    const float wide = __uint_as_float(scale << 16), inverse = wide > 0.f ? 1.f / wide : 0.f;
#pragma unroll
    for (int i = 0; i < SIZE / 32; i++) ((signed char*)line)[i * 32 + lane] = (signed char)__float2int_rn(x[i] * inverse);
    if (lane == 0) line[SIZE / 4] = scale;
  }

  // A thread's part of a row of queries; `side` of two that it has.
  static __device__ __forceinline__ void query(const half_bits* row, int side, unsigned (&query)[SIZE / 16][4]) {
#pragma unroll
    for (int j = 0; j < SIZE / 16; j++) {
      const uint2 four = *(const uint2*)(row + 16 * j + threadIdx.x % 4 * 4);
      query[j][side] = __byte_perm(four.x, four.y, 0x5410);  // channels 0 and 2, as below
      query[j][2 + side] = __byte_perm(four.x, four.y, 0x7632);
    }
  }

  static __device__ __forceinline__ void score(const unsigned* key, bool there, const unsigned (&query)[SIZE / 16][4],
                                               float (&score)[4]) {
    unsigned words[SIZE / 16];
#pragma unroll
    for (int j = 0; j < SIZE / 16; j++) words[j] = there ? key[4 * j + threadIdx.x % 4] : 0;
#pragma unroll
    for (int j = 0; j < SIZE / 16; j++)
      mma(score, query[j][0], query[j][1], query[j][2], query[j][3], sub2((words[j] & 0x00ff00ff) ^ MIDDLE, MIDDLE),
          sub2((words[j] >> 8 & 0x00ff00ff) ^ MIDDLE, MIDDLE));
  }

  struct Values {  // of 16 tokens, what a thread takes
    unsigned words[SIZE / 32][4];
    float scales[4];

    __device__ __forceinline__ void load(const unsigned* (&value)[4], const bool (&there)[4]) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scales[i] = there[i] ? scale_of(value[i][SIZE / 4]) : 0.f;
#pragma unroll
        for (int m = 0; m < SIZE / 32; m++) words[m][i] = there[i] ? value[i][8 * m + threadIdx.x % 32 / 4] : 0;
      }
    }
    // 4 of the channels: a pair of the first two tokens, and one of the others.
    __device__ __forceinline__ void pairs(int m, unsigned (&lower)[4], unsigned (&upper)[4]) const {
      widen(words[m][0], words[m][1], pack_fp16(scales[0], scales[1]), lower);
      widen(words[m][2], words[m][3], pack_fp16(scales[2], scales[3]), upper);
    }
    static __device__ __forceinline__ void widen(unsigned one, unsigned two, unsigned scales, unsigned (&pairs)[4]) {
      one ^= 0x80808080, two ^= 0x80808080;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const unsigned both = __byte_perm(one, two, i < 2 ? 0x5140 : 0x7362);
        pairs[i] = mul2(sub2(__byte_perm(both, 0x64646464, i % 2 ? 0x4342 : 0x4140), MIDDLE), scales);
      }
    }
  };
};
