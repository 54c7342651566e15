// Rows of queries, for attention.cu: what a tile of the tensor cores does with some tokens.

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
  int batch, heads, kv_heads, group, tokens, turned, interleaved, positions, window, past_room, room, splits;
  float scale, softcap;
};

__device__ __forceinline__ int past_of(const Attending& of, int b) {
  return of.lengths ? max(min(of.lengths[b] + 1 - of.tokens, of.room - of.tokens), 0) : 0;
}

// 16 rows of queries, and what they have found so far: two rows of a thread, `quad` and `quad` + 8.
template <int SIZE>
struct Rows {
  unsigned query[SIZE / 16][4];
  float sums[SIZE / 8][4], top[2], total[2];
  int begin[2], end[2];  // tokens that each sees

  __device__ __forceinline__ void load(const Attending& of, int head, int first) {
    const int group = of.group, rows = of.tokens * group;
#pragma unroll
    for (int side = 0; side < 2; side++) {
      const int row = first + threadIdx.x % 32 / 4 + 8 * side;
      top[side] = NOTHING, total[side] = 0.f;
      end[side] = row < rows ? past_of(of, head / of.kv_heads) + row / group + 1 : 0;
      begin[side] = of.window > 0 ? max(end[side] - of.window, 0) : 0;
      Line<SIZE>::query(of.queries + ((size_t)head * rows + min(row, rows - 1)) * SIZE, side, query);
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
    for (int i = 0; i < LINES / 8; i++)
      Line<SIZE>::score(keys + (i * 8 + quad) * line, at + i * 8 + quad < stop, query, scores[i]);
    typename Line<SIZE>::Values taken[LINES / 16];  // on their way while weights are computed
#pragma unroll
    for (int s = 0; s < LINES / 16; s++) {
      const unsigned* value[4];
      bool there[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int j = s * 16 + own * 2 + i % 2 + i / 2 * 8;
        value[i] = values + j * line, there[i] = at + j < stop;
      }
      taken[s].load(value, there);
    }
    weigh(of, keys, line, at, stop, scores);
#pragma unroll
    for (int s = 0; s < LINES / 16; s++) {
      unsigned p[4];
#pragma unroll
      for (int i = 0; i < 4; i++) p[i] = pack_fp16(scores[2 * s + i / 2][i % 2 * 2], scores[2 * s + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int m = 0; m < SIZE / 32; m++) {
        unsigned lower[4], upper[4];
        taken[s].pairs(m, lower, upper);
#pragma unroll
        for (int c = 0; c < 4; c++) mma(sums[4 * m + c], p[0], p[1], p[2], p[3], lower[c], upper[c]);
      }
    }
  }

  // Weights out of scores; what there was before is made to go with them.
  __device__ __forceinline__ void weigh(const Attending& of, const unsigned* keys, int line, int at, int stop,
                                        float (&scores)[LINES / 8][4]) {
    float largest[2] = {top[0], top[1]}, kept[2], middle[2];
#pragma unroll
    for (int i = 0; i < LINES / 8; i++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int j = i * 8 + threadIdx.x % 4 * 2 + e;
        const float factor = at + j < stop ? Line<SIZE>::factor(keys + j * line) * of.scale : 0.f;
        scores[i][e] *= factor, scores[i][e + 2] *= factor;
      }
    if (of.softcap > 0.f)
#pragma unroll
      for (int i = 0; i < LINES / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) scores[i][e] = of.softcap * tanhf(scores[i][e] / of.softcap);
#pragma unroll
    for (int i = 0; i < LINES / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int j = at + i * 8 + threadIdx.x % 4 * 2 + e % 2, side = e / 2;
        scores[i][e] = j >= begin[side] && j < min(end[side], stop) ? scores[i][e] * LOG2_E : NOTHING;
        largest[side] = fmaxf(largest[side], scores[i][e]);
      }
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
  }

  // A thread's sums of a row are 4 neighbouring channels of 32, twice.
  __device__ __forceinline__ void store(const Attending& of, int head, int first, int split) {
    const int own = threadIdx.x % 4, group = of.group, b = head / of.kv_heads, h = head % of.kv_heads;
#pragma unroll
    for (int side = 0; side < 2; side++) {
      total[side] += of_lane(total[side], 1);
      total[side] += of_lane(total[side], 2);
      const int row = first + threadIdx.x % 32 / 4 + 8 * side;
      if (row >= of.tokens * group) continue;
      const size_t query = ((size_t)b * of.tokens + row / group) * of.heads + h * group + row % group;
      float* part = of.parts + (query * of.splits + split) * (SIZE + 4);
#pragma unroll
      for (int i = 0; i < SIZE / 16; i++)
        *(float4*)(part + i / 2 * 32 + own * 8 + i % 2 * 4) = float4{
            sums[i / 2 * 4][side * 2 + i % 2], sums[i / 2 * 4 + 1][side * 2 + i % 2], sums[i / 2 * 4 + 2][side * 2 + i % 2],
            sums[i / 2 * 4 + 3][side * 2 + i % 2]};
      if (own == 0) part[SIZE] = top[side], part[SIZE + 1] = total[side];
    }
  }
};
