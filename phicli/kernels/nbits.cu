// Kernels of the op MatMulNBitsRows: y = x W of 4- or 8-bit integers, in the layout of MatMulNBits, for up to 64 rows at
// once near the speed of memory. After Marlin (arXiv:2408.11743), but for weights as they lie in the file.
//
// It is compiled behind device.cu and nbits_widen.cu. Weights are the left side of the tensor cores' m16n8k16, so that 8
// rows of x are a whole tile. Until it has waited for the kernel before, one may read W, but nothing else.
//
// A step is 128 inputs. Of an output's 128 weights the thread with number `quad` of four takes 32 neighbours, and of all
// rows of x the same 32: which input is which of a product does not matter, as long as both sides agree. So it loads 16
// bytes at a time, and has one scale and one zero point, as groups are 32 or more. What a thread loads of W only that
// thread reads: it goes into registers, AHEAD steps before. x is shared by the block, and lies in shared memory from the
// start, so that no warp waits for another.
//
// W is (outputs, inputs), scales (outputs, inputs / group) and zeros (outputs, bytes of a row), or null: the middle.
// inputs is a multiple of 32 and of group, a power of two; outputs of 8; W and x begin at multiples of 16 bytes.

constexpr int WARPS = 8, THREADS = 32 * WARPS, STEP = 128, M = 2;  // a warp makes 16 M outputs

struct Matrices {
  const half_bits* x;
  const unsigned char* weights;
  const half_bits* scales;
  const unsigned char* zeros;
  half_bits* y;
  float* sums;  // (parts, rows, outputs), where there are several parts
  int rows, outputs, inputs, group_bits, steps;  // group: 1 << group_bits; steps: of 128 inputs, of a part
};

__device__ __forceinline__ unsigned word(const uint4& of, int i) {
  return i == 0 ? of.x : i == 1 ? of.y : i == 2 ? of.z : of.w;
}

// A thread's 32 inputs of a step, of 2 M outputs that are 8 apart.
template <int BITS>
struct Weights {
  uint4 words[2 * M][BITS / 4];
  half_bits scales[2 * M];
  unsigned char zeros[2 * M];  // the byte that the zero point is in

  // Behind the last inputs the last ones again, and behind the last outputs: x is zero there, y not stored.
  __device__ __forceinline__ void load(const Matrices& of, const int (&outputs)[2 * M], int k) {
    const int groups = of.inputs >> of.group_bits, group = k >> of.group_bits;
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
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

// Chunks of 8 inputs lie so that the threads that read or write at once fall on different banks.
__device__ __forceinline__ int place_of(int row, int quad, int j) { return row * 16 + ((j * 4 + quad) ^ row % 2 * 4); }

// The block's rows of x, of its part of the inputs; zeros where there are none.
template <int N>
__device__ __forceinline__ void load_x(const Matrices& of, uint4* x, int row, int first, int count) {
  for (int i = threadIdx.x; i < count * N * 8 * 16; i += THREADS) {
    const int chunk = i % 16, line = i / 16 % (8 * N), step = i / (128 * N), k = (first + step) * STEP + chunk * 8;
    const bool there = k < of.inputs && row + line < of.rows;
    copy16(x + step * N * 128 + place_of(line, chunk / 4, chunk % 4),
           of.x + (there ? (size_t)(row + line) * of.inputs + k : 0), there);
  }
  wait_for_copies();
  __syncthreads();
}

template <int BITS, int N>
__device__ __forceinline__ void multiply(const Matrices& of, const Weights<BITS>& w, const uint4* x, int k,
                                         float (&sum)[M][N][4]) {
  const int row = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  Scaling s[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; i++) s[i] = scaling<BITS>(w.scales[i], of.zeros, w.zeros[i], k >> of.group_bits);
#pragma unroll
  for (int j = 0; j < 4; j++) {  // 8 of the thread's 32 inputs
    unsigned b[N][4];
#pragma unroll
    for (int i = 0; i < N; i++) {
      const uint4 v = x[place_of(i * 8 + row, quad, j)];
      if (BITS == 4) {  // in the order of `widen4`
        b[i][0] = __byte_perm(v.x, v.z, 0x5410), b[i][1] = __byte_perm(v.x, v.z, 0x7632);
        b[i][2] = __byte_perm(v.y, v.w, 0x5410), b[i][3] = __byte_perm(v.y, v.w, 0x7632);
      } else {
        b[i][0] = v.x, b[i][1] = v.y, b[i][2] = v.z, b[i][3] = v.w;
      }
    }
#pragma unroll
    for (int t = 0; t < M; t++) {
      unsigned upper[4], lower[4];
      w.widen(2 * t, j, s[2 * t], upper);
      w.widen(2 * t + 1, j, s[2 * t + 1], lower);
#pragma unroll
      for (int i = 0; i < N; i++) {
        mma(sum[t][i], upper[0], lower[0], upper[1], lower[1], b[i][0], b[i][1]);
        mma(sum[t][i], upper[2], lower[2], upper[3], lower[3], b[i][2], b[i][3]);
      }
    }
  }
}

// A block makes 16 M WARPS outputs of up to 8 N rows, from one part of the inputs.
template <int BITS, int N, int AHEAD>
__device__ __forceinline__ void product(const Matrices& of) {
  const int quad = threadIdx.x % 4, row = blockIdx.z * N * 8;
  const int n = (blockIdx.x * WARPS + threadIdx.x / 32) * M * 16 + threadIdx.x % 32 / 4;
  const int first = blockIdx.y * of.steps, count = min(of.steps, (of.inputs + STEP - 1) / STEP - first);
  int outputs[2 * M];
  for (int i = 0; i < 2 * M; i++) outputs[i] = min(n + i * 8, of.outputs - 8 + n % 8);
  const auto input_of = [&](int step) { return min((first + step) * STEP + quad * 32, of.inputs - 32); };
  Weights<BITS> ahead[AHEAD];
  let_next_start();
#pragma unroll
  for (int i = 0; i < AHEAD; i++)
    if (i < count) ahead[i].load(of, outputs, input_of(i));
  wait_for_previous();
  load_x<N>(of, dynamic_shared, row, first, count);
  float sum[M][N][4] = {};
  for (int begin = 0; begin < count; begin += AHEAD)
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int step = begin + i;
      if (step >= count) break;
      const Weights<BITS> w = ahead[i];
      if (step + AHEAD < count) ahead[i].load(of, outputs, input_of(step + AHEAD));
      multiply<BITS, N>(of, w, dynamic_shared + step * N * 128, input_of(step), sum);
    }
#pragma unroll
  for (int t = 0; t < M; t++)
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int m = row + quad * 2 + i * 8 + e % 2, output = n + t * 16 + e / 2 * 8;
        if (m >= of.rows || output >= of.outputs) continue;
        if (gridDim.y == 1) of.y[(size_t)m * of.outputs + output] = (half_bits)pack_fp16(sum[t][i][e], 0.f);
        else of.sums[((size_t)blockIdx.y * of.rows + m) * of.outputs + output] = sum[t][i][e];
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
    product<BITS, N, (N < 8 ? 2 : 1)>(of);                                                                          \
  }
#define KERNELS(BITS)                                                                                                  \
  KERNEL(BITS, 1) KERNEL(BITS, 2) KERNEL(BITS, 4) KERNEL(BITS, 8)                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS) nbits_##BITS##_widen(const __grid_constant__ Matrices of) {    \
    widen_all<BITS>(of);                                                                                               \
  }
KERNELS(4) KERNELS(8)
#endif

// The parts of 4 neighbours, in their order, so that the same input always gives the same output.
extern "C" __global__ void __launch_bounds__(THREADS)
nbits_sum(const float4* sums, uint2* y, int count, int parts) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  let_next_start();
  wait_for_previous();
  if (i >= count) return;
  float4 total = sums[i];
  for (int part = 1; part < parts; part++) {
    const float4 more = sums[(size_t)part * count + i];
    total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
  }
  y[i] = make_uint2(pack_fp16(total.x, total.y), pack_fp16(total.z, total.w));
}
