// Kernels of the op Int8CacheAttentionCuda: attention in fp16 over a cache in int8, behind device.cu, attention_lines.cu and
// attention_rows.cu. What is computed is what attention_cpu.c says.
//
// `take` rotates, mixes and rounds what is new. `attend` goes over the keys and values, after FlashAttention
// (arXiv:2205.14135), with tensor cores: 16 rows of queries, which are those of a head of keys, of all tokens, are a tile
// of m16n8k16. Few rows share the tokens out to warps that know nothing of each other, after Flash-Decoding; of many the
// warps of a block take 16 each, and read the same tokens from shared memory. `finish` adds what the warps found.

constexpr int ATTEND_WARPS = 4, TAKE_WARPS = 8, FINISH_WARPS = 2;
constexpr int SPLIT = 64;  // tokens that a warp takes at least, where they are shared out

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
  const int place = past_of(of, b) + t, group = of.group;
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
  Line<SIZE>::put(of.present[side - 1] + (((size_t)b * of.kv_heads + head) * of.room + place) * Line<SIZE>::WORDS, x);
}

// Tokens from the first that the first of these rows sees to the last that the last sees, and how they are shared out: a
// power of two times SPLIT each.
struct Seen {
  int begin, end, each;
  __device__ __forceinline__ Seen(const Attending& of, int head, int first, int count) {
    const int group = of.group, past = past_of(of, head / of.kv_heads);
    begin = of.window > 0 ? max(past + first / group + 1 - of.window, 0) / LINES * LINES : 0;
    end = past + (min(first + count, of.tokens * group) - 1) / group + 1;
    for (each = SPLIT; each * of.splits < end - begin;) each *= 2;
  }
  __device__ __forceinline__ int used() const { return (end - begin + each - 1) / each; }
};

// A warp for 16 rows and a split of the tokens.
template <int SIZE>
__device__ __forceinline__ void attend_few(const Attending& of) {
  const int head = blockIdx.z, first = blockIdx.y * 16, split = blockIdx.x * ATTEND_WARPS + threadIdx.x / 32;
  let_next_start();
  wait_for_previous();
  const Seen seen(of, head, first, 16);
  if (split >= of.splits || split >= seen.used()) return;
  Rows<SIZE> rows;
  rows.load(of, head, first);
  const int start = seen.begin + split * seen.each, stop = min(start + seen.each, seen.end);
  for (int at = start; at < stop; at += LINES) {
    const size_t from = ((size_t)head * of.room + at) * Line<SIZE>::WORDS;
    rows.add(of, of.present[0] + from, of.present[1] + from, Line<SIZE>::WORDS, at, stop);
  }
  rows.store(of, head, first, split);
}

// A block for 16 rows of each of its warps. Lines lie in shared memory so that no two threads need the same bank at once.
template <int SIZE>
__device__ __forceinline__ void attend_many(const Attending& of) {
  constexpr int WORDS = Line<SIZE>::WORDS, LINE = SIZE / 4 + 4, ROWS = 16 * ATTEND_WARPS;
  const int head = blockIdx.z, block = (gridDim.y - 1 - blockIdx.y) * ROWS, first = block + threadIdx.x / 32 * 16;
  unsigned* shared = (unsigned*)dynamic_shared;
  let_next_start();
  wait_for_previous();
  const Seen seen(of, head, block, ROWS), own(of, head, first, 16);
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
  fetch(seen.begin, 0);
  for (int at = seen.begin, place = 0; at < seen.end; at += LINES, place ^= 1) {
    wait_for_copies();
    __syncthreads();
    if (at + LINES < seen.end) fetch(at + LINES, place ^ 1);
    const unsigned* keys = shared + place * 2 * LINES * LINE;
    if (at >= own.begin && at < own.end) rows.add(of, keys, keys + LINES * LINE, LINE, at, seen.end);
  }
  rows.store(of, head, first, 0);
}

// A warp for each head of queries of a token: the sum of its splits, each multiplied by its share, mixed back. Several are
// read at once, whether they are there or not, so that one does not wait for the one before.
template <int SIZE>
__device__ __forceinline__ void finish(const Attending& of) {
  constexpr int AT_ONCE = 8;
  const int lane = threadIdx.x % 32, query = blockIdx.x * FINISH_WARPS + threadIdx.x / 32;
  let_next_start();
  wait_for_previous();
  if (query >= of.batch * of.tokens * of.heads) return;
  const int group = of.group, token = query / of.heads, n = query % of.heads;
  const int row = token % of.tokens * group + n % group;
  const int splits = of.splits == 1 ? 1 : Seen(of, token / of.tokens * of.kv_heads + n / group, row / 16 * 16, 16).used();
  const float* parts = of.parts + (size_t)query * of.splits * (SIZE + 4);
  float top = NOTHING, total = 0.f, x[SIZE / 32] = {};
  for (int s = lane; s < splits; s += 32) top = fmaxf(top, parts[(size_t)s * (SIZE + 4) + SIZE]);
#pragma unroll
  for (int step = 1; step < 32; step *= 2) top = fmaxf(top, of_lane(top, step));
  for (int first = 0; first < splits; first += AT_ONCE)
#pragma unroll
    for (int s = first; s < first + AT_ONCE; s++) {
      const float* part = parts + (size_t)min(s, splits - 1) * (SIZE + 4);
      const float share = s < splits ? exp2_of(part[SIZE] - top) : 0.f;
      total += share * part[SIZE + 1];
#pragma unroll
      for (int i = 0; i < SIZE / 32; i++) x[i] += share * part[i * 32 + lane];
    }
  mix<SIZE>(x);
#pragma unroll
  for (int i = 0; i < SIZE / 32; i++)
    of.out[(size_t)query * SIZE + i * 32 + lane] = (half_bits)pack_fp16(x[i] / total, 0.f);
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
  extern "C" __global__ void __launch_bounds__(COUNT, SIZE < 128 ? 3 : 2) attention_##NAME##_##SIZE(                   \
      const __grid_constant__ Attending of) {                                                                          \
    NAME<SIZE>(of);                                                                                                    \
  }
#define ATTENTIONS(SIZE)                                                                                        \
  ATTENTION(take, SIZE, 32 * TAKE_WARPS) ATTENTION(attend_few, SIZE, 32 * ATTEND_WARPS)                         \
  ATTENTION(attend_many, SIZE, 32 * ATTEND_WARPS) ATTENTION(finish, SIZE, 32 * FINISH_WARPS)
ATTENTIONS(64) ATTENTIONS(96) ATTENTIONS(128)
extern "C" __global__ void __launch_bounds__(256) attention_copy(const __grid_constant__ Attending of, int words) {
  copy_past(of, words);
}
#endif
