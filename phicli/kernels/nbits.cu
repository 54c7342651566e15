// Kernels of the op MatMulNBitsRows: y = x W of 4- or 8-bit integers, in the layout of MatMulNBits, for up to 64 rows at
// once near the speed of memory. After Marlin (arXiv:2408.11743), but for weights as they lie in the file.
//
// It is compiled behind device.cu, nbits_weights.cu and nbits_multiply.cu. Until it has waited for the kernel before, one may read
// W, but nothing else.
//
// A step is 128 inputs. Of an output's 128 weights the thread with number `quad` of four takes 32 neighbours. So it loads 16
// bytes at a time, and has one scale and one zero point, as groups are 32 or more. What a thread loads of W only that thread
// reads: it goes into registers, a step before. x is shared by the block, and lies in shared memory from the start, so that
// no warp waits for another.
//
// W is (outputs, inputs), scales (outputs, inputs / group) and zeros (outputs, bytes of a row), or null: the middle.
// inputs is a multiple of 32 and of group, a power of two; outputs of 8; W and x begin at multiples of 16 bytes.

// A block makes 16 WARPS outputs of up to 8 N rows, from one part of the inputs.
template <int BITS, int N>
__device__ __forceinline__ void product(const Matrices& of) {
  const int quad = threadIdx.x % 4, row = blockIdx.z * N * 8;
  const int n = (blockIdx.x * WARPS + threadIdx.x / 32) * 16 + threadIdx.x % 32 / 4;
  const int first = blockIdx.y * of.steps, count = min(of.steps, (of.inputs + STEP - 1) / STEP - first);
  const int outputs[2] = {min(n, of.outputs - 8 + n % 8), min(n + 8, of.outputs - 8 + n % 8)};
  const auto input_of = [&](int step) { return min((first + step) * STEP + quad * 32, of.inputs - 32); };
  Weights<BITS> next;
  let_next_start();
  if (count > 0) next.load(of, outputs, input_of(0));  // always: but past a branch it is not moved behind the waiting
  wait_for_previous();
  load_x<BITS, N>(of, dynamic_shared, row, first, count);
  Product<BITS, N> own;
  for (int step = 0; step < count; step++) {
    const Weights<BITS> w = next;
    if (step + 1 < count) next.load(of, outputs, input_of(step + 1));  // before anything waits for w
    Scaling s[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
      s[i] = scaling<BITS>(w.scales[i], of.zeros, w.zeros[i], input_of(step) >> of.group_bits);
    own.add(w, s, dynamic_shared, step);
  }
  own.finish();
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int m = row + quad * 2 + i * 8 + e % 2, output = n + e / 2 * 8;
      if (m >= of.rows || output >= of.outputs) continue;
      if (gridDim.y == 1) of.y[(size_t)m * of.outputs + output] = (half_bits)pack_fp16(own.sum[i][e], 0.f);
      else of.sums[((size_t)blockIdx.y * of.rows + m) * of.outputs + output] = own.sum[i][e];
    }
}

// All weights in fp16, for a product of more rows: `y` is (outputs, inputs). A thread makes 8 neighbours.
template <int BITS>
__device__ __forceinline__ void widen_all(const Matrices& of) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x, of_row = of.inputs / 8, n = i / of_row, k = i % of_row * 8;
  if (n >= of.outputs) return;
  const unsigned* words = (const unsigned*)of.weights + (size_t)i * (BITS / 4);
  const unsigned low = __ldg(words), high = BITS == 8 ? __ldg(words + 1) : 0;
  const int groups = of.inputs >> of.group_bits, group = k >> of.group_bits;
  const Scaling s = scaling<BITS>(__ldg(of.scales + (size_t)n * groups + group), of.zeros,
                                  of.zeros ? __ldg(of.zeros + point_at<BITS>(n, group, groups)) : 0, group);
  unsigned p[4];
  if (BITS == 4) widen4(low, s, p);
  else widen8(low, high, s, p);
  wait_for_previous();
  ((uint4*)of.y)[i] = BITS == 8 ? uint4{p[0], p[1], p[2], p[3]} : uint4{
      __byte_perm(p[0], p[1], 0x5410), __byte_perm(p[2], p[3], 0x5410), __byte_perm(p[0], p[1], 0x7632),
      __byte_perm(p[2], p[3], 0x7632)};
}

#ifndef EMULATED
#define KERNEL(BITS, N)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS) nbits_##BITS##_##N(const __grid_constant__ Matrices of) {   \
    product<BITS, N>(of);                                                                                           \
  }
#define KERNELS(BITS)                                                                                                  \
  KERNEL(BITS, 1) KERNEL(BITS, 2) KERNEL(BITS, 4) KERNEL(BITS, 8)                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS) nbits_##BITS##_widen(const __grid_constant__ Matrices of) {    \
    widen_all<BITS>(of);                                                                                               \
  }
KERNELS(4) KERNELS(8)
#endif

constexpr int SUM_THREADS = 256;

// The parts of 4 neighbours, in their order, so that the same input always gives the same output.
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
nbits_sum(const float4* sums, uint2* y, int count, int parts) {
  const int i = blockIdx.x * SUM_THREADS + threadIdx.x;
  let_next_start();
  wait_for_previous();
  if (i >= count) return;
  constexpr int AT_ONCE = 4;
  float4 total = {0, 0, 0, 0};
  for (int first = 0; first < parts; first += AT_ONCE) {
    float4 more[AT_ONCE];  // the last part again where there is none: without conditions all are on the way at once
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) more[j] = sums[(size_t)min(first + j, parts - 1) * count + i];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++)
      if (first + j < parts)
        total.x += more[j].x, total.y += more[j].y, total.z += more[j].z, total.w += more[j].w;
  }
  y[i] = make_uint2(pack_fp16(total.x, total.y), pack_fp16(total.z, total.w));
}
