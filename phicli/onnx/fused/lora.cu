// Kernels of the ops LoraDown (h = x A) and LoraUp (y = base + h B) of one adapter; fp16 matrices, fp32 sums.
//
// No header is included, so that NVRTC alone can compile it. Halves travel as 16-bit integers; sums of products of
// many rows go through mma.sync (m16n8k16, see the PTX ISA for which thread holds what).
//
// A is (rank, inputs) and B (outputs, rank): both products run along contiguous memory. inputs is a multiple of 32,
// outputs of 8, rank of 16 and at most 1024.
// "Programmatic dependent launch": a kernel starts while the one before it still runs, fetches what is constant, and
// reads nothing else before `wait_for_previous`.

typedef unsigned short half_bits;

#if __CUDA_ARCH__ >= 900
#define wait_for_previous() asm volatile("griddepcontrol.wait;" ::: "memory")
#define let_next_start() asm volatile("griddepcontrol.launch_dependents;" ::: "memory")
#else
#define wait_for_previous()
#define let_next_start()
#endif

__device__ __forceinline__ float2 floats(unsigned pair) {
  float2 f;
  asm("{ .reg .f16 lo, hi; mov.b32 {lo, hi}, %2; cvt.f32.f16 %0, lo; cvt.f32.f16 %1, hi; }"
      : "=f"(f.x), "=f"(f.y) : "r"(pair));
  return f;
}

__device__ __forceinline__ unsigned halves(float lo, float hi) {
  unsigned pair;
  asm("{ .reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b}; }"
      : "=r"(pair) : "f"(lo), "f"(hi));
  return pair;
}

__device__ __forceinline__ float dot2(unsigned a, unsigned b, float sum) {
  const float2 x = floats(a), y = floats(b);
  return fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
}

__device__ __forceinline__ float dot8(uint4 a, uint4 b, float sum) {
  return dot2(a.x, b.x, dot2(a.y, b.y, dot2(a.z, b.z, dot2(a.w, b.w, sum))));
}

__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// One row of x. A warp sums 512 inputs for one row of A; the parts, h[parts][rank], are added by lora_up_one, always
// in the same order.
extern "C" __global__ void __launch_bounds__(256)
lora_down_one(const half_bits* x, const half_bits* a, float* h, int inputs, int rank, int parts) {
  const int warp = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / parts, part = warp % parts;
  const int k0 = part * 512 + lane * 8, k1 = k0 + 256;
  const bool in0 = row < rank && k0 < inputs, in1 = row < rank && k1 < inputs;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  const half_bits* line = a + (size_t)row * inputs;
  let_next_start();
  const uint4 a0 = in0 ? __ldg((const uint4*)(line + k0)) : zero;
  const uint4 a1 = in1 ? __ldg((const uint4*)(line + k1)) : zero;
  wait_for_previous();
  const uint4 x0 = in0 ? *(const uint4*)(x + k0) : zero;
  const uint4 x1 = in1 ? *(const uint4*)(x + k1) : zero;
  float sum = dot8(a0, x0, dot8(a1, x1, 0.f));
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0 && row < rank) h[part * rank + row] = sum;
}

// `lanes` neighbouring threads share an output, 8 columns of B at a time each; lanes is a power of two.
extern "C" __global__ void __launch_bounds__(256)
lora_up_one(const float* h, const half_bits* b, const half_bits* base, half_bits* y, int outputs, int rank, int parts,
            int lanes) {
  __shared__ float sums[1024];
  const int thread = blockIdx.x * 256 + threadIdx.x;
  const int n = thread / lanes, lane = thread % lanes;
  const bool inside = n < outputs;
  const half_bits* line = b + (size_t)n * rank;
  let_next_start();
  uint4 weights = make_uint4(0, 0, 0, 0);
  if (inside && lane * 8 < rank) weights = __ldg((const uint4*)(line + lane * 8));
  wait_for_previous();
  const half_bits start = inside && lane == 0 ? base[n] : (half_bits)0;
  for (int r = threadIdx.x; r < rank; r += 256) {
    float sum = 0.f;
#pragma unroll 8
    for (int part = 0; part < parts; part++) sum += h[part * rank + r];
    sums[r] = sum;
  }
  __syncthreads();
  float sum = 0.f;
  for (int r = lane * 8; r < rank; r += lanes * 8) {
    if (r != lane * 8 && inside) weights = __ldg((const uint4*)(line + r));
    const float* s = sums + r;
    const float2 w0 = floats(weights.x), w1 = floats(weights.y), w2 = floats(weights.z), w3 = floats(weights.w);
    sum = fmaf(w0.x, s[0], fmaf(w0.y, s[1], fmaf(w1.x, s[2], fmaf(w1.y, s[3], sum))));
    sum = fmaf(w2.x, s[4], fmaf(w2.y, s[5], fmaf(w3.x, s[6], fmaf(w3.y, s[7], sum))));
  }
  for (int step = lanes / 2; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  if (inside && lane == 0) y[n] = (half_bits)halves(floats(start).x + sum, 0.f);
}

// Many rows: 16 rows of x and up to 64 of A a block; its 8 warps take every eighth 32 inputs and are summed in order.
// Which inputs the two products of a step take does not matter, as long as both sides agree, so each thread loads 8
// neighbours at once.
extern "C" __global__ void __launch_bounds__(256)
lora_down_many(const half_bits* x, const half_bits* a, float* h, int rows, int inputs, int rank) {
  __shared__ float parts[8][16][65];
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const int m0 = blockIdx.x * 16, n0 = blockIdx.y * 64, tiles = min(64, rank - n0) / 8;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  float sum[8][4] = {};
  for (int k = warp * 32; k < inputs; k += 256) {
    const int at = k + quad * 8, upper = m0 + group, lower = upper + 8;
    const uint4 p = upper < rows ? *(const uint4*)(x + (size_t)upper * inputs + at) : zero;
    const uint4 q = lower < rows ? *(const uint4*)(x + (size_t)lower * inputs + at) : zero;
#pragma unroll
    for (int tile = 0; tile < 8; tile++) {
      if (tile < tiles) {
        const uint4 w = __ldg((const uint4*)(a + (size_t)(n0 + tile * 8 + group) * inputs + at));
        mma(sum[tile], p.x, q.x, p.y, q.y, w.x, w.y);
        mma(sum[tile], p.z, q.z, p.w, q.w, w.z, w.w);
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < 8; tile++)
    for (int i = 0; i < 4; i++) parts[warp][group + i / 2 * 8][tile * 8 + quad * 2 + i % 2] = sum[tile][i];
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * 64; i += 256) {
    const int m = i / 64, n = i % 64;
    float total = 0.f;
    for (int w = 0; w < 8; w++) total += parts[w][m][n];
    if (m0 + m < rows && n < tiles * 8) h[(size_t)(m0 + m) * rank + n0 + n] = total;
  }
}

// 16 rows and 64 outputs a warp.
extern "C" __global__ void __launch_bounds__(256)
lora_up_many(const float* h, const half_bits* b, const half_bits* base, half_bits* y, int rows, int outputs, int rank) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const int upper = blockIdx.x * 16 + group, lower = upper + 8, n0 = (blockIdx.y * 8 + warp) * 64;
  const float2 none = make_float2(0.f, 0.f);
  float sum[8][4] = {};
  for (int k = quad * 2; k < rank; k += 16) {
    const float2* p = (const float2*)(h + (size_t)upper * rank + k);
    const float2* q = (const float2*)(h + (size_t)lower * rank + k);
    const float2 p0 = upper < rows ? p[0] : none, p8 = upper < rows ? p[4] : none;
    const float2 q0 = lower < rows ? q[0] : none, q8 = lower < rows ? q[4] : none;
    const unsigned a0 = halves(p0.x, p0.y), a1 = halves(q0.x, q0.y), a2 = halves(p8.x, p8.y), a3 = halves(q8.x, q8.y);
#pragma unroll
    for (int tile = 0; tile < 8; tile++) {
      if (n0 + tile * 8 < outputs) {
        const unsigned* w = (const unsigned*)(b + (size_t)(n0 + tile * 8 + group) * rank + k);
        mma(sum[tile], a0, a1, a2, a3, __ldg(w), __ldg(w + 4));
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < 8; tile++) {
    const int n = n0 + tile * 8 + quad * 2;
    if (n >= outputs) continue;
    for (int side = 0; side < 2; side++) {
      const int m = side ? lower : upper;
      if (m >= rows) continue;
      const size_t at = (size_t)m * outputs + n;
      const float2 start = floats(*(const unsigned*)(base + at));
      *(unsigned*)(y + at) = halves(start.x + sum[tile][side * 2], start.y + sum[tile][side * 2 + 1]);
    }
  }
}
