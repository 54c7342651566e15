// Kernels of the ops LoraDown (h = x A), LoraUp (y = base + h B) and LoraGatedUp (y = silu(gate + h B) * (up + h B'))
// of one adapter; fp16 matrices, fp32 sums. Those that end in `one` take one row, those in `many` any number, those in
// `each` rows that have an adapter each.
//
// What they share with others is in device.cu. Sums of products of many rows go through mma.sync (m16n8k16, see the PTX
// ISA for which thread holds what).
//
// A is (rank, inputs) and B (outputs, rank): both products run along contiguous memory. inputs is a multiple of 32,
// outputs of 8, rank of 16 and at most 1024.
//
// h is (rows, parts, rank): the inputs of many rows are summed in up to 8 parts, which the second kernel adds in their
// order, so that the same input always gives the same output.

__device__ __forceinline__ float dot2(unsigned a, unsigned b, float sum) {
  const float2 x = floats(a), y = floats(b);
  return fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
}

__device__ __forceinline__ float dot8(uint4 a, uint4 b, float sum) {
  return dot2(a.x, b.x, dot2(a.y, b.y, dot2(a.z, b.z, dot2(a.w, b.w, sum))));
}

__device__ __forceinline__ float silu(float x) { return x / (1.f + __expf(-x)); }

// Which rows of A, and which part of B, each row of a batch takes: rank 0 is no adapter.
struct Each {
  int starts[64], ranks[64];
};

// A block for each row of A, or for none. What of it 8,192 inputs need is loaded while the kernel before runs.
__device__ __forceinline__ void down_one(const half_bits* x, const half_bits* line, float* h, int inputs, bool there) {
  constexpr int EARLY = 4, STEP = 2048;
  __shared__ float sums[8];
  uint4 weights[EARLY];
  float sum = 0.f;
  let_next_start();
#pragma unroll
  for (int i = 0; i < EARLY; i++) {
    const int k = threadIdx.x * 8 + i * STEP;
    weights[i] = there && k < inputs ? load16_early(line + k) : make_uint4(0, 0, 0, 0);
  }
  wait_for_previous();
  if (!there) return;
#pragma unroll
  for (int i = 0; i < EARLY; i++) {
    const int k = threadIdx.x * 8 + i * STEP;
    if (k < inputs) sum = dot8(weights[i], *(const uint4*)(x + k), sum);
  }
#pragma unroll 4
  for (int k = threadIdx.x * 8 + EARLY * STEP; k < inputs; k += STEP)
    sum = dot8(__ldg((const uint4*)(line + k)), *(const uint4*)(x + k), sum);
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < 8; warp++) sum += sums[warp];
    *h = sum;
  }
}

extern "C" __global__ void __launch_bounds__(256)
lora_down_one(const half_bits* x, const half_bits* a, float* h, int inputs) {
  down_one(x, a + (size_t)blockIdx.x * inputs, h + blockIdx.x, inputs, true);
}

extern "C" __global__ void __launch_bounds__(256)
lora_down_each(const half_bits* x, const half_bits* a, float* h, int inputs, int stride,
               const __grid_constant__ Each each) {
  const size_t m = blockIdx.y;
  down_one(x + m * inputs, a + (size_t)(each.starts[m] + blockIdx.x) * inputs, h + m * stride + blockIdx.x, inputs,
           blockIdx.x < each.ranks[m]);
}

__device__ __forceinline__ float dot8(uint4 b, float4 h0, float4 h1, float sum) {
  const float2 w0 = floats(b.x), w1 = floats(b.y), w2 = floats(b.z), w3 = floats(b.w);
  sum = fmaf(w0.x, h0.x, fmaf(w0.y, h0.y, fmaf(w1.x, h0.z, fmaf(w1.y, h0.w, sum))));
  return fmaf(w2.x, h1.x, fmaf(w2.y, h1.y, fmaf(w3.x, h1.z, fmaf(w3.y, h1.w, sum))));
}

// `lanes` neighbouring threads share an output, 8 columns of B at a time each; lanes is a power of two. Their first
// columns are loaded while the kernel before runs.
template <bool GATED>
__device__ __forceinline__ void up_one(const float* h, const half_bits* b, const half_bits* base, const half_bits* b2,
                                       const half_bits* base2, half_bits* y, int outputs, int rank, int lanes) {
  const int thread = blockIdx.x * 256 + threadIdx.x;
  const int n = thread / lanes, lane = thread % lanes;
  const bool inside = n < outputs, first = inside && lane == 0;
  const size_t line = (size_t)n * rank;
  uint4 w = make_uint4(0, 0, 0, 0), w2 = w;
  let_next_start();
  if (inside && lane * 8 < rank) {
    w = load16_early(b + line + lane * 8);
    if (GATED) w2 = load16_early(b2 + line + lane * 8);
  }
  wait_for_previous();
  const float start = first ? floats(base[n]).x : 0.f, start2 = GATED && first ? floats(base2[n]).x : 0.f;
  float sum = 0.f, sum2 = 0.f;
  for (int r = lane * 8; inside && r < rank; r += lanes * 8) {
    const float4 h0 = *(const float4*)(h + r), h1 = *(const float4*)(h + r + 4);
    if (r > lane * 8) {
      w = __ldg((const uint4*)(b + line + r));
      if (GATED) w2 = __ldg((const uint4*)(b2 + line + r));
    }
    sum = dot8(w, h0, h1, sum);
    if (GATED) sum2 = dot8(w2, h0, h1, sum2);
  }
  for (int step = lanes / 2; step; step >>= 1) {
    sum += __shfl_xor_sync(~0u, sum, step);
    if (GATED) sum2 += __shfl_xor_sync(~0u, sum2, step);
  }
  sum += start;
  if (first) y[n] = (half_bits)pack_fp16(GATED ? silu(sum) * (sum2 + start2) : sum, 0.f);
}

extern "C" __global__ void __launch_bounds__(256)
lora_up_one(const float* h, const half_bits* b, const half_bits* base, half_bits* y, int outputs, int rank, int lanes) {
  up_one<false>(h, b, base, nullptr, nullptr, y, outputs, rank, lanes);
}

extern "C" __global__ void __launch_bounds__(256)
lora_gated_up_one(const float* h, const half_bits* b, const half_bits* base, const half_bits* b2,
                  const half_bits* base2, half_bits* y, int outputs, int rank, int lanes) {
  up_one<true>(h, b, base, b2, base2, y, outputs, rank, lanes);
}

extern "C" __global__ void __launch_bounds__(256)
lora_up_each(const float* h, const half_bits* b, const half_bits* base, half_bits* y, int outputs, int stride,
             int lanes, const __grid_constant__ Each each) {
  const size_t m = blockIdx.y, at = m * outputs;
  up_one<false>(h + m * stride, b + (size_t)each.starts[m] * outputs, base + at, nullptr, nullptr, y + at, outputs,
                each.ranks[m], lanes);
}

extern "C" __global__ void __launch_bounds__(256)
lora_gated_up_each(const float* h, const half_bits* b, const half_bits* base, const half_bits* b2,
                   const half_bits* base2, half_bits* y, int outputs, int stride, int lanes,
                   const __grid_constant__ Each each) {
  const size_t m = blockIdx.y, at = m * outputs, start = (size_t)each.starts[m] * outputs;
  up_one<true>(h + m * stride, b + start, base + at, b2 + start, base2 + at, y + at, outputs, each.ranks[m], lanes);
}

// 16 rows of x and 8 TILES rows of A a block, which takes one part of the inputs; its 8 warps take every eighth 32 of
// them and are summed in order. Which inputs the two products of a step take does not matter, as long as both sides
// agree, so each thread loads 8 neighbours at once.
template <int TILES>
__device__ __forceinline__ void down_many(const half_bits* x, const half_bits* a, float* h, int rows, int inputs,
                                          int rank) {
  __shared__ float all[8][16][TILES * 8 + 1];
  let_next_start();
  wait_for_previous();
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const int m0 = blockIdx.x * 16, n0 = blockIdx.y * TILES * 8, part = blockIdx.z, parts = gridDim.z;
  const half_bits* upper = x + (size_t)min(m0 + group, rows - 1) * inputs + quad * 8;
  const half_bits* lower = x + (size_t)min(m0 + group + 8, rows - 1) * inputs + quad * 8;
  float sum[TILES][4] = {};
#pragma unroll 2
  for (int k = (part * 8 + warp) * 32; k < inputs; k += parts * 256) {
    const uint4 p = *(const uint4*)(upper + k), q = *(const uint4*)(lower + k);
    uint4 w[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
      w[tile] = __ldg((const uint4*)(a + (size_t)min(n0 + tile * 8 + group, rank - 1) * inputs + quad * 8 + k));
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      mma(sum[tile], p.x, q.x, p.y, q.y, w[tile].x, w[tile].y);
      mma(sum[tile], p.z, q.z, p.w, q.w, w[tile].z, w[tile].w);
    }
  }
#pragma unroll
  for (int tile = 0; tile < TILES; tile++)
    for (int i = 0; i < 4; i++) all[warp][group + i / 2 * 8][tile * 8 + quad * 2 + i % 2] = sum[tile][i];
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * TILES * 8; i += 256) {
    const int m = i / (TILES * 8), n = i % (TILES * 8);
    float total = 0.f;
    for (int w = 0; w < 8; w++) total += all[w][m][n];
    if (m0 + m < rows && n0 + n < rank) h[((size_t)(m0 + m) * parts + part) * rank + n0 + n] = total;
  }
}

extern "C" __global__ void __launch_bounds__(256)
lora_down_many_16(const half_bits* x, const half_bits* a, float* h, int rows, int inputs, int rank) {
  down_many<2>(x, a, h, rows, inputs, rank);
}

extern "C" __global__ void __launch_bounds__(256)
lora_down_many_64(const half_bits* x, const half_bits* a, float* h, int rows, int inputs, int rank) {
  down_many<8>(x, a, h, rows, inputs, rank);
}

// 32 rows and 256 outputs a block, 32 of them a warp. h goes through shared memory, 64 columns at a time: summed and
// rounded to fp16. Four tiles of a product are dealt out so that a thread holds 8 neighbours of an output row.
constexpr int MAX_PARTS = 8;

template <bool GATED>
__device__ __forceinline__ void up_many(const float* h, const half_bits* b, const half_bits* base, const half_bits* b2,
                                        const half_bits* base2, half_bits* y, int rows, int outputs, int rank,
                                        int parts) {
  constexpr int SIDES = GATED ? 2 : 1, STRIDE = 40;  // in words: rows fall on different banks
  __shared__ unsigned sums[32 * STRIDE];
  let_next_start();
  wait_for_previous();
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const int m0 = blockIdx.x * 32, n0 = (blockIdx.y * 8 + warp) * 32;
  const half_bits* weights[2] = {b, b2};
  float sum[SIDES][2][4][4] = {};
  for (int r0 = 0; r0 < rank; r0 += 64) {
    const int pairs = min(64, rank - r0) / 2;
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * pairs; i += 256) {
      const int m = i / pairs, r = r0 + i % pairs * 2;
      float2 total = make_float2(0.f, 0.f);
#pragma unroll
      for (int part = 0; part < MAX_PARTS; part++)
        if (m0 + m < rows && part < parts) {
          const float2 s = *(const float2*)(h + ((size_t)(m0 + m) * parts + part) * rank + r);
          total.x += s.x, total.y += s.y;
        }
      sums[m * STRIDE + i % pairs] = pack_fp16(total.x, total.y);
    }
    __syncthreads();
    for (int k = 0; k < pairs; k += 8) {  // 16 columns of h; a thread takes 4 neighbours on both sides
      uint2 w[SIDES][4], rows_of_h[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int n = min(n0 + group / 2 * 8 + i * 2 + group % 2, outputs - 1);
#pragma unroll
        for (int side = 0; side < SIDES; side++)
          w[side][i] = __ldg((const uint2*)(weights[side] + (size_t)n * rank + r0 + k * 2 + quad * 4));
        rows_of_h[i] = *(const uint2*)(sums + (group + i * 8) * STRIDE + k + quad * 2);
      }
#pragma unroll
      for (int side = 0; side < SIDES; side++)
        for (int half = 0; half < 2; half++)
          for (int tile = 0; tile < 4; tile++) {
            const uint2 top = rows_of_h[half * 2], bottom = rows_of_h[half * 2 + 1];
            mma(sum[side][half][tile], top.x, bottom.x, top.y, bottom.y, w[side][tile].x, w[side][tile].y);
          }
    }
  }
  const int n = n0 + quad * 8;
#pragma unroll
  for (int i = 0; i < 4; i++) {  // rows group, + 8, + 16, + 24
    const int m = m0 + group + i * 8;
    if (m >= rows || n >= outputs) continue;
    const size_t at = (size_t)m * outputs + n;
    const uint4 start = *(const uint4*)(base + at), start2 = GATED ? *(const uint4*)(base2 + at) : start;
    const unsigned in[4] = {start.x, start.y, start.z, start.w}, in2[4] = {start2.x, start2.y, start2.z, start2.w};
    unsigned out[4];
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
      float2 v = floats(in[tile]);
      v.x += sum[0][i / 2][tile][i % 2 * 2], v.y += sum[0][i / 2][tile][i % 2 * 2 + 1];
      if (GATED) {
        const float2 v2 = floats(in2[tile]);
        v.x = silu(v.x) * (v2.x + sum[SIDES - 1][i / 2][tile][i % 2 * 2]);
        v.y = silu(v.y) * (v2.y + sum[SIDES - 1][i / 2][tile][i % 2 * 2 + 1]);
      }
      out[tile] = pack_fp16(v.x, v.y);
    }
    *(uint4*)(y + at) = make_uint4(out[0], out[1], out[2], out[3]);
  }
}

extern "C" __global__ void __launch_bounds__(256)
lora_up_many(const float* h, const half_bits* b, const half_bits* base, half_bits* y, int rows, int outputs, int rank,
             int parts) {
  up_many<false>(h, b, base, nullptr, nullptr, y, rows, outputs, rank, parts);
}

extern "C" __global__ void __launch_bounds__(256)
lora_gated_up_many(const float* h, const half_bits* b, const half_bits* base, const half_bits* b2,
                   const half_bits* base2, half_bits* y, int rows, int outputs, int rank, int parts) {
  up_many<true>(h, b, base, b2, base2, y, rows, outputs, rank, parts);
}
