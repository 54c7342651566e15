// Kernels of the op Int8CacheAttention on CUDA: attention in fp16 over keys and values in 8 bits, each token's with a
// scale of its own for each head, behind device.cu. What is computed is what attention_cpu.c says; a line of the cache is
// (size) numbers, their scale in bfloat16, and two bytes that are 0, so that words are read.
//
// `take` rotates, mixes and rounds what is new. `attend` goes over the keys and values, after FlashAttention
// (arXiv:2205.14135), with tensor cores: 16 rows of queries, which are those of a head of keys, of all tokens, are a tile
// of m16n8k16. Few rows share the tokens out to warps that know nothing of each other, after Flash-Decoding; of many the
// warps of a block take 16 each, and read the same tokens from shared memory. `finish` adds what the warps found.
//
// Integers become fp16 exactly: 1024 + number + 128 in its bits. A thread takes 4 neighbouring channels of a key, as one
// word, and of 4 values' the same 4 channels: which channel or token is which of a product does not matter, as long as both
// sides agree.

constexpr int LINES = 32;  // tokens at a time
constexpr int ATTEND_WARPS = 4, TAKE_WARPS = 8;
constexpr int SPLIT = 64;  // tokens that a warp takes at least, where they are shared out
constexpr unsigned MIDDLE = 0x64806480;  // a pair of 1024 + 128
#define NOTHING (-__int_as_float(0x7f800000))  // of scores: minus infinity
constexpr float LIFT = 16.f, LOG2_E = 1.44269504f;  // LIFT: of values, so that small scales are normal numbers in fp16

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

// The channel c of a query or key, rotated.
__device__ __forceinline__ float rotated(const Attending& of, const half_bits* x, int c, int place) {
  const float own = floats(x[c]).x;
  if (c >= 2 * of.turned) return own;
  const int pair = of.interleaved ? c / 2 : c % of.turned, second = of.interleaved ? c % 2 : c / of.turned;
  const float other = floats(x[of.interleaved ? c ^ 1 : second ? c - of.turned : c + of.turned]).x;
  const int at = min(place, of.positions - 1) * of.turned + pair;
  const float cosine = floats(of.cosines[at]).x, sine = floats(of.sines[at]).x;
  return second ? own * cosine + other * sine : own * cosine - other * sine;
}

// A warp for each head of a new token.
template <int SIZE>
__device__ __forceinline__ void take(const Attending& of) {
  const int lane = threadIdx.x % 32, each = of.heads + 2 * of.kv_heads;
  const int number = blockIdx.x * TAKE_WARPS + threadIdx.x / 32, token = number / each, n = number % each;
  let_next_start();
  wait_for_previous();
  if (token >= of.batch * of.tokens) return;
  const int side = n < of.heads ? 0 : n < of.heads + of.kv_heads ? 1 : 2;
  const int head = side == 0 ? n : (n - of.heads) % of.kv_heads, b = token / of.tokens, t = token % of.tokens;
  const int place = past_of(of, b) + t, group = of.heads / of.kv_heads;
  const half_bits* from = of.x[side] + token * of.strides[side] + head * SIZE;
  float x[SIZE / 32];
#pragma unroll
  for (int i = 0; i < SIZE / 32; i++) x[i] = side < 2 ? rotated(of, from, i * 32 + lane, place) : floats(from[i * 32 + lane]).x;
  mix<SIZE>(x);
  if (side == 0) {
    const size_t row = ((size_t)b * of.kv_heads + head / group) * of.tokens * group + t * group + head % group;
#pragma unroll
    for (int i = 0; i < SIZE / 32; i++) of.queries[row * SIZE + i * 32 + lane] = (half_bits)pack_fp16(x[i], 0.f);
    return;
  }
  float top = 0.f;
#pragma unroll
  for (int i = 0; i < SIZE / 32; i++) top = fmaxf(top, fabsf(x[i]));
#pragma unroll
  for (int step = 1; step < 32; step *= 2) top = fmaxf(top, of_lane(top, step));
  const unsigned scale = (__float_as_uint(top / 127) + 0xffff) >> 16;  // up: nothing is more than 127
  const float wide = __uint_as_float(scale << 16), inverse = wide > 0.f ? 1.f / wide : 0.f;
  unsigned* line = of.present[side - 1] + (((size_t)b * of.kv_heads + head) * of.room + place) * (SIZE / 4 + 1);
#pragma unroll
  for (int i = 0; i < SIZE / 32; i++) ((signed char*)line)[i * 32 + lane] = (signed char)__float2int_rn(x[i] * inverse);
  if (lane == 0) line[SIZE / 4] = scale;
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
        scores[i][e] = exp2_of(scores[i][e] - middle[e / 2]);
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
        scales[i] = there[i] ? scale_of(value[i][SIZE / 4]) * LIFT : 0.f;
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

// Tokens from the first that the first of these rows sees to the last that the last sees.
struct Seen {
  int begin, end;
  __device__ __forceinline__ Seen(const Attending& of, int head, int first, int count) {
    const int group = of.heads / of.kv_heads, past = past_of(of, head / of.kv_heads);
    begin = of.window > 0 ? max(past + first / group + 1 - of.window, 0) : 0;
    end = past + (min(first + count, of.tokens * group) - 1) / group + 1;
  }
};

// A warp for 16 rows and a split of the tokens. A split is a power of two times SPLIT tokens.
template <int SIZE>
__device__ __forceinline__ void attend_few(const Attending& of) {
  const int head = blockIdx.z, first = blockIdx.y * 16, split = blockIdx.x * ATTEND_WARPS + threadIdx.x / 32;
  let_next_start();
  wait_for_previous();
  if (split >= of.splits) return;
  const Seen seen(of, head, first, 16);
  int each = SPLIT;
  while (each * of.splits < seen.end) each *= 2;
  Rows<SIZE> rows;
  rows.load(of, head, first);
  const int stop = min((split + 1) * each, seen.end);
  const size_t begin = (size_t)head * of.room;
  for (int at = max(split * each, seen.begin / LINES * LINES); at < stop; at += LINES)
    rows.add(of, of.present[0] + (begin + at) * (SIZE / 4 + 1), of.present[1] + (begin + at) * (SIZE / 4 + 1), SIZE / 4 + 1,
             at, stop);
  rows.store(of, head, first, split);
}

// A block for 16 rows of each of its warps. Lines lie in shared memory so that no two threads need the same bank at once.
template <int SIZE>
__device__ __forceinline__ void attend_many(const Attending& of) {
  constexpr int WORDS = SIZE / 4 + 1, LINE = SIZE / 4 + 4, ROWS = 16 * ATTEND_WARPS;
  const int head = blockIdx.z, block = (gridDim.y - 1 - blockIdx.y) * ROWS, first = block + threadIdx.x / 32 * 16;
  unsigned* shared = (unsigned*)dynamic_shared;
  let_next_start();
  wait_for_previous();
  const Seen seen(of, head, block, ROWS);
  Rows<SIZE> rows;
  rows.load(of, head, first);
  const auto fetch = [&](int at, int place) {
    for (int i = threadIdx.x; i < 2 * LINES * WORDS; i += 32 * ATTEND_WARPS) {
      const int side = i / (LINES * WORDS), j = i / WORDS % LINES, word = i % WORDS;
      const bool there = at + j < seen.end;
      copy4(shared + ((place * 2 + side) * LINES + j) * LINE + word,
            of.present[side] + ((size_t)head * of.room + (there ? at + j : 0)) * WORDS + word, there);
    }
  };
  const int start = seen.begin / LINES * LINES;
  fetch(start, 0);
  for (int at = start, place = 0; at < seen.end; at += LINES, place ^= 1) {
    wait_for_copies();
    __syncthreads();
    if (at + LINES < seen.end) fetch(at + LINES, place ^ 1);
    const unsigned* keys = shared + place * 2 * LINES * LINE;
    rows.add(of, keys, keys + LINES * LINE, LINE, at, seen.end);
  }
  rows.store(of, head, first, 0);
}

// A warp for each head of queries of a token: the sum of its splits, each multiplied by its share, mixed back.
template <int SIZE>
__device__ __forceinline__ void finish(const Attending& of) {
  const int lane = threadIdx.x % 32, query = blockIdx.x * TAKE_WARPS + threadIdx.x / 32;
  let_next_start();
  wait_for_previous();
  if (query >= of.batch * of.tokens * of.heads) return;
  const float* part = of.parts + (size_t)query * of.splits * (SIZE + 4);
  float top = NOTHING, total = 0.f, x[SIZE / 32] = {};
  for (int s = lane; s < of.splits; s += 32) top = fmaxf(top, part[(size_t)s * (SIZE + 4) + SIZE]);
#pragma unroll
  for (int step = 1; step < 32; step *= 2) top = fmaxf(top, of_lane(top, step));
#pragma unroll 4
  for (int s = 0; s < of.splits; s++, part += SIZE + 4) {
    if (part[SIZE] == NOTHING) continue;
    const float share = exp2_of(part[SIZE] - top);
    total += share * part[SIZE + 1];
#pragma unroll
    for (int i = 0; i < SIZE / 32; i++) x[i] += share * part[i * 32 + lane];
  }
  mix<SIZE>(x);
#pragma unroll
  for (int i = 0; i < SIZE / 32; i++)
    of.out[(size_t)query * SIZE + i * 32 + lane] = (half_bits)pack_fp16(x[i] / (total * LIFT), 0.f);
}

// What was there before, where it does not stay in its place; zeros behind it.
__device__ __forceinline__ void copy_past(const Attending& of, int words) {
  const size_t head = blockIdx.y, whole = (size_t)of.room * words, there = (size_t)min(of.past_room, of.room) * words;
  wait_for_previous();
  for (size_t i = blockIdx.x * 256 + threadIdx.x; i < whole; i += gridDim.x * 256)
    of.present[blockIdx.z][head * whole + i] = i < there ? of.past[blockIdx.z][head * of.past_room * words + i] : 0;
}

#ifndef EMULATED
#define ATTENTION(NAME, SIZE, COUNT)                                                                                   \
  extern "C" __global__ void __launch_bounds__(COUNT) attention_##NAME##_##SIZE(const __grid_constant__ Attending of) { \
    NAME<SIZE>(of);                                                                                                    \
  }
#define ATTENTIONS(SIZE)                                                                                        \
  ATTENTION(take, SIZE, 32 * TAKE_WARPS) ATTENTION(attend_few, SIZE, 32 * ATTEND_WARPS)                         \
  ATTENTION(attend_many, SIZE, 32 * ATTEND_WARPS) ATTENTION(finish, SIZE, 32 * TAKE_WARPS)
ATTENTIONS(64) ATTENTIONS(96) ATTENTIONS(128)
extern "C" __global__ void __launch_bounds__(256) attention_copy(const __grid_constant__ Attending of, int words) {
  copy_past(of, words);
}
#endif
