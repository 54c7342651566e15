// Rows of queries of Int8CacheAttentionCuda, for attention.cu: what a tile of the tensor cores does with some tokens.
//
// Integers become fp16 exactly: 1024 + number + 128 in its bits. A thread takes 4 neighbouring channels of a key, as one
// word, and of 4 values' the same 4 channels: which channel or token is which of a product does not matter, as long as both
// sides agree.

constexpr int LINES = 32;  // tokens at a time
constexpr unsigned MIDDLE = 0x64806480;  // a pair of 1024 + 128
#define NOTHING (-__int_as_float(0x7f800000))  // of scores: minus infinity
constexpr float LOG2_E = 1.44269504f, LIFT = 8.f;  // 2^LIFT: of weights and their total, so that fp16 keeps small ones

struct Attending {
  const half_bits *x[3], *cosines, *sines;  // query, key, value of the first token
  const unsigned* past[2];
  unsigned* present[2];
  const int* lengths;  // of rows, less one; or null: nothing is there before
  half_bits *queries, *out;  // queries (batch, kv_heads, rows, size): rotated and mixed
  float* parts;  // (batch, tokens, heads, splits, size + 4): sums of a split, its largest score and total weight
  long long strides[3];  // numbers from a token to the next
  int batch, heads, kv_heads, tokens, turned, interleaved, positions, window, past_room, room, splits;
  float scale, softcap;
};

__device__ __forceinline__ int past_of(const Attending& of, int b) {
  return of.lengths ? max(min(of.lengths[b] + 1 - of.tokens, of.room - of.tokens), 0) : 0;
}

__device__ __forceinline__ float scale_of(unsigned word) { return __uint_as_float(word << 16); }

// Of a word of a key: the pairs of its numbers 0 and 2, 1 and 3.
__device__ __forceinline__ void widen_key(unsigned word, unsigned& even, unsigned& odd) {
  even = sub2((word & 0x00ff00ff) ^ MIDDLE, MIDDLE);
  odd = sub2((word >> 8 & 0x00ff00ff) ^ MIDDLE, MIDDLE);
}

// Of 4 channels of two values: a pair for each channel.
__device__ __forceinline__ void widen_values(unsigned one, unsigned two, unsigned scales, unsigned (&pairs)[4]) {
  one ^= 0x80808080, two ^= 0x80808080;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const unsigned both = __byte_perm(one, two, i < 2 ? 0x5140 : 0x7362);
    pairs[i] = mul2(sub2(__byte_perm(both, 0x64646464, i % 2 ? 0x4342 : 0x4140), MIDDLE), scales);
  }
}

// 16 rows of queries, and what they have found so far: two rows of a thread, `quad` and `quad` + 8.
template <int SIZE>
struct Rows {
  unsigned query[SIZE / 16][4];
  float sums[SIZE / 8][4], top[2], total[2];
  int begin[2], end[2];  // tokens that each sees

  __device__ __forceinline__ void load(const Attending& of, int head, int first) {
    const int lane = threadIdx.x % 32, group = of.heads / of.kv_heads, rows = of.tokens * group;
    const half_bits* from = of.queries + (size_t)head * rows * SIZE;
#pragma unroll
    for (int side = 0; side < 2; side++) {
      const int row = first + lane / 4 + 8 * side, own = min(row, rows - 1);
      top[side] = NOTHING, total[side] = 0.f;
      end[side] = row < rows ? past_of(of, head / of.kv_heads) + row / group + 1 : 0;
      begin[side] = of.window > 0 ? max(end[side] - of.window, 0) : 0;
#pragma unroll
      for (int j = 0; j < SIZE / 16; j++) {
        const uint2 four = *(const uint2*)(from + (size_t)own * SIZE + 16 * j + lane % 4 * 4);
        query[j][side] = __byte_perm(four.x, four.y, 0x5410);  // channels 0 and 2, as in `widen_key`
        query[j][2 + side] = __byte_perm(four.x, four.y, 0x7632);
      }
    }
#pragma unroll
    for (int i = 0; i < SIZE / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[i][e] = 0.f;
  }

  // LINES tokens from `at` on, of which those before `stop` are there. keys, values: of the first one, `line` words apart.
  __device__ __forceinline__ void add(const Attending& of, const unsigned* keys, const unsigned* values, int line, int at,
                                      int stop) {
    const int quad = threadIdx.x % 32 / 4, own = threadIdx.x % 4;
    float scores[LINES / 8][4] = {};
#pragma unroll
    for (int i = 0; i < LINES / 8; i++) {
      const bool there = at + i * 8 + quad < stop;
      const unsigned* key = keys + (i * 8 + quad) * line + own;
      unsigned words[SIZE / 16];
#pragma unroll
      for (int j = 0; j < SIZE / 16; j++) words[j] = there ? key[4 * j] : 0;
#pragma unroll
      for (int j = 0; j < SIZE / 16; j++) {
        unsigned even, odd;
        widen_key(words[j], even, odd);
        mma(scores[i], query[j][0], query[j][1], query[j][2], query[j][3], even, odd);
      }
    }
    float factor[LINES / 8][2], largest[2] = {top[0], top[1]};
#pragma unroll
    for (int i = 0; i < LINES / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int j = i * 8 + own * 2 + e % 2, side = e / 2;
        if (side == 0) factor[i][e] = at + j < stop ? scale_of(keys[j * line + SIZE / 4]) * of.scale : 0.f;
        float score = scores[i][e] * factor[i][e % 2];
        if (of.softcap > 0.f) score = of.softcap * tanhf(score / of.softcap);
        scores[i][e] = at + j >= begin[side] && at + j < min(end[side], stop) ? score * LOG2_E : NOTHING;
        largest[side] = fmaxf(largest[side], scores[i][e]);
      }
    float kept[2], middle[2];
#pragma unroll
    for (int side = 0; side < 2; side++) {
      largest[side] = fmaxf(largest[side], of_lane(largest[side], 1));
      largest[side] = fmaxf(largest[side], of_lane(largest[side], 2));
      middle[side] = largest[side] == NOTHING ? 0.f : largest[side];
      kept[side] = exp2_of(top[side] - middle[side]);
      top[side] = largest[side], total[side] *= kept[side];
    }
#pragma unroll
    for (int i = 0; i < LINES / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        scores[i][e] = exp2_of(scores[i][e] - middle[e / 2] + LIFT);
        total[e / 2] += scores[i][e];
      }
#pragma unroll
    for (int i = 0; i < SIZE / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[i][e] *= kept[e / 2];
    add_values(scores, values, line, at, stop);
  }

  __device__ __forceinline__ void add_values(const float (&weights)[LINES / 8][4], const unsigned* values, int line, int at,
                                             int stop) {
    const int quad = threadIdx.x % 32 / 4, own = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < LINES / 16; s++) {  // of 16 tokens a thread reads 4
      const unsigned* value[4];
      bool there[4];
      float scales[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int j = s * 16 + own * 2 + i % 2 + i / 2 * 8;
        value[i] = values + j * line, there[i] = at + j < stop;
        scales[i] = there[i] ? scale_of(value[i][SIZE / 4]) : 0.f;
      }
      const unsigned lower = pack_fp16(scales[0], scales[1]), upper = pack_fp16(scales[2], scales[3]);
      unsigned p[4];
#pragma unroll
      for (int i = 0; i < 4; i++) p[i] = pack_fp16(weights[2 * s + i / 2][i % 2 * 2], weights[2 * s + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int m = 0; m < SIZE / 32; m++) {
        unsigned words[4], low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = there[i] ? value[i][8 * m + quad] : 0;
        widen_values(words[0], words[1], lower, low);
        widen_values(words[2], words[3], upper, high);
#pragma unroll
        for (int c = 0; c < 4; c++) mma(sums[4 * m + c], p[0], p[1], p[2], p[3], low[c], high[c]);
      }
    }
  }

  // A thread's sums of a row are 4 neighbouring channels of 32, twice.
  __device__ __forceinline__ void store(const Attending& of, int head, int first, int split) {
    const int lane = threadIdx.x % 32, group = of.heads / of.kv_heads, b = head / of.kv_heads, h = head % of.kv_heads;
#pragma unroll
    for (int side = 0; side < 2; side++) {
      total[side] += of_lane(total[side], 1);
      total[side] += of_lane(total[side], 2);
      const int row = first + lane / 4 + 8 * side;
      if (row >= of.tokens * group) continue;
      const size_t query = ((size_t)b * of.tokens + row / group) * of.heads + h * group + row % group;
      float* part = of.parts + (query * of.splits + split) * (SIZE + 4);
#pragma unroll
      for (int i = 0; i < SIZE / 16; i++)
        *(float4*)(part + i / 2 * 32 + lane % 4 * 8 + i % 2 * 4) = float4{
            sums[i / 2 * 4][side * 2 + i % 2], sums[i / 2 * 4 + 1][side * 2 + i % 2], sums[i / 2 * 4 + 2][side * 2 + i % 2],
            sums[i / 2 * 4 + 3][side * 2 + i % 2]};
      if (lane % 4 == 0) part[SIZE] = top[side], part[SIZE + 1] = total[side];
    }
  }
};
