// Kernels of the op MatMulNBitsRows: y = x W of 4- or 8-bit integers, in the layout of MatMulNBits, for up to 64 rows at
// once near the speed of memory. After Marlin (arXiv:2408.11743), but for weights as they lie in the file.
//
// No header is included, so that NVRTC alone can compile it, behind lora.cu, whose `half_bits`, `pack_fp16` and `mma` it
// takes. Weights are the left side of the tensor cores' m16n8k16, so that 8 rows of x are a whole tile.
//
// A step is 128 inputs. Of an output's 128 weights the thread with number `quad` of four takes 32 neighbours, and of all
// rows of x the same 32: which input is which of a product does not matter, as long as both sides agree. So it loads 16
// bytes at a time, and has one scale and one zero point, as groups are 32 or more. Loads are asynchronous, STAGES - 1
// steps ahead. What a thread loads of W only that thread reads; x is shared by the block.
//
// W is (outputs, inputs), scales (outputs, inputs / group) and zeros (outputs, bytes of a row), or null: the middle.
// inputs is a multiple of 32 and of group, a power of two; outputs of 8; all begin at multiples of 16 bytes.

constexpr int THREADS = 128, STEP = 128, STAGES = 4;

#ifndef EMULATED
__device__ __forceinline__ void copy16(void* shared, const void* from, bool there) {  // zeros where it is not there
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy16(void* shared, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(from) : "memory");
}
__device__ __forceinline__ void copy4(void* shared, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
               :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory"); }

__device__ __forceinline__ unsigned sub2(unsigned a, unsigned b) {
  unsigned d;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ unsigned mul2(unsigned a, unsigned b) {
  unsigned d;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ unsigned fma2(unsigned a, unsigned b, unsigned c) {
  unsigned d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
extern __shared__ uint4 dynamic_shared[];
#endif

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

struct Matrices {
  const half_bits* x;
  const unsigned char* weights;
  const half_bits* scales;
  const unsigned char* zeros;
  half_bits* y;
  float* sums;  // (parts, rows, outputs), where there are several parts
  int rows, outputs, inputs, group_bits, steps;  // group: 1 << group_bits; steps: of 128 inputs, of a part
};

// What a thread loads: lines of W 8 outputs apart, and rows of x 8 apart. Where there are no more, the last ones again:
// what comes of them is not stored.
template <int BITS, int M, int N>
struct Source {
  const unsigned char* weights;  // of its first output, as what follows
  const half_bits* scales;
  const unsigned char* zeros;
  const half_bits* x;
  int inputs, group_bits, groups, line, first, lines[2 * M], rows[N], chunk;  // line: bytes of zero points

  __device__ __forceinline__ Source(const Matrices& of, int n, int row) {
    const int thread = threadIdx.x, group = thread % 32 / 4, last = of.outputs - 8 + group, own = thread / 16;
    const int place = thread % 16 ^ own % 2 * 4;
    inputs = of.inputs, group_bits = of.group_bits, groups = inputs >> group_bits;
    line = BITS == 4 ? (groups + 1) / 2 : groups, first = min(n, last);
    weights = of.weights + (size_t)first * inputs * BITS / 8;
    scales = of.scales + (size_t)first * groups;
    zeros = of.zeros ? of.zeros + (size_t)first * line : nullptr;
    x = of.x, chunk = (place % 4 * 4 + place / 4) * 8;
    for (int i = 0; i < 2 * M; i++) lines[i] = min(i * 8, last - first);
    for (int i = 0; i < N; i++) rows[i] = min(row + i * 8 + own, of.rows - 1);
  }
};

// A block makes 64 M outputs of up to 8 N rows, its 4 warps 16 M each, from one part of the inputs.
template <int BITS, int M, int N>
struct Stage {
  static constexpr int CHUNKS = BITS / 4;  // of 16 bytes: 32 weights
  uint4 weights[2 * M][CHUNKS][THREADS];
  uint2 scaling[2 * M][THREADS];  // words that the scale and the zero point are in
  uint4 x[8 * N][16];

  __device__ __forceinline__ void without_zeros() {
    for (int i = 0; i < 2 * M; i++) scaling[i][threadIdx.x].y = BITS == 4 ? 0x88888888 : 0x80808080;
  }

  // Behind the last inputs W gives any, x zeros. A word begins at a multiple of 4 bytes.
  __device__ __forceinline__ void load(const Source<BITS, M, N>& of, int k) {
    const int thread = threadIdx.x, own = min(k + thread % 4 * 32, of.inputs - 32), group = own >> of.group_bits;
    const unsigned char* from = of.weights + (size_t)own * BITS / 8;
    const char* scale = (const char*)((size_t)(of.scales + group) & ~(size_t)3);
    const char* zero = (const char*)((size_t)(of.zeros + (BITS == 4 ? group / 2 : group)) & ~(size_t)3);
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
#pragma unroll
      for (int c = 0; c < CHUNKS; c++)
        copy16(&weights[i][c][thread], from + (long long)of.lines[i] * (of.inputs * BITS / 8) + c * 16);
      copy4(&scaling[i][thread].x, scale + (long long)of.lines[i] * (of.groups * 2));
      if (of.zeros) copy4(&scaling[i][thread].y, zero + (long long)of.lines[i] * of.line);
    }
    // Chunks of 8 inputs lie so that the threads that read or write at once fall on different banks: see `chunk_of`.
    const bool there = k + of.chunk < of.inputs;
    const half_bits* own_x = of.x + (there ? k + of.chunk : 0);
#pragma unroll
    for (int i = 0; i < N; i++)
      copy16(&x[i * 8 + thread / 16][thread % 16], own_x + (long long)of.rows[i] * of.inputs, there);
  }

  static __device__ __forceinline__ int chunk_of(int row, int quad, int j) { return (j * 4 + quad) ^ row % 2 * 4; }

  __device__ __forceinline__ void multiply(const Source<BITS, M, N>& of, int k, float (&sum)[M][N][4]) {
    const int thread = threadIdx.x, row = thread % 32 / 4, quad = thread % 4;
    const int group = min(k + quad * 32, of.inputs - 32) >> of.group_bits, scale = of.first * of.groups + group;
    const int zero = of.first * of.line + (BITS == 4 ? group / 2 : group);
    // Outputs that are 8 apart have their scale and zero point at the same place of their words.
    const int half = scale % 2 ? 0x3232 : 0x1010, shift = zero % 4 * 8 + (BITS == 4 ? group % 2 * 4 : 0);
    Scaling s[2 * M];
    uint4 w[2 * M][CHUNKS];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
      const uint2 words = scaling[i][thread];
      const unsigned point = (words.y >> shift & ((1 << BITS) - 1)) | 0x6400, points = __byte_perm(point, 0, 0x1010);
      s[i] = {__byte_perm(words.x, 0, half), points, sub2(0x63806380, points)};  // 960 - 1024 - zero point
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) w[i][c] = weights[i][c][thread];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {  // 8 of the thread's 32 inputs
      unsigned b[N][4];
#pragma unroll
      for (int i = 0; i < N; i++) {
        const uint4 v = x[i * 8 + row][chunk_of(row, quad, j)];
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
        if (BITS == 4) {
          widen4(word(w[2 * t][0], j), s[2 * t], upper);
          widen4(word(w[2 * t + 1][0], j), s[2 * t + 1], lower);
        } else {
          const uint4 &u = w[2 * t][j / 2 % CHUNKS], &l = w[2 * t + 1][j / 2 % CHUNKS];
          widen8(word(u, j % 2 * 2), word(u, j % 2 * 2 + 1), s[2 * t], upper);
          widen8(word(l, j % 2 * 2), word(l, j % 2 * 2 + 1), s[2 * t + 1], lower);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
          mma(sum[t][i], upper[0], lower[0], upper[1], lower[1], b[i][0], b[i][1]);
          mma(sum[t][i], upper[2], lower[2], upper[3], lower[3], b[i][2], b[i][3]);
        }
      }
    }
  }

  static __device__ __forceinline__ unsigned word(const uint4& of, int i) {
    return i == 0 ? of.x : i == 1 ? of.y : i == 2 ? of.z : of.w;
  }
};

template <int BITS, int M, int N>
__device__ __forceinline__ void product(const Matrices& of) {
  Stage<BITS, M, N>* stages = (Stage<BITS, M, N>*)dynamic_shared;
  const int warp = threadIdx.x / 32, row = blockIdx.z * N * 8;
  const int n = (blockIdx.x * 4 + warp) * M * 16 + threadIdx.x % 32 / 4;
  const int first = blockIdx.y * of.steps, last = min(first + of.steps, (of.inputs + STEP - 1) / STEP);
  const Source<BITS, M, N> source(of, n, row);
  float sum[M][N][4] = {};
  if (!of.zeros)
    for (int i = 0; i < STAGES; i++) stages[i].without_zeros();
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (first + i < last) stages[i].load(source, (first + i) * STEP);
    commit();
  }
  for (int step = first; step < last; step++) {
    const int ahead = step + STAGES - 1;
    wait<STAGES - 2>();
    __syncthreads();  // all have read what the next load replaces
    if (ahead < last) stages[(ahead - first) % STAGES].load(source, ahead * STEP);
    commit();
    stages[(step - first) % STAGES].multiply(source, step * STEP, sum);
  }
  const int m0 = row + threadIdx.x % 4 * 2;
#pragma unroll
  for (int t = 0; t < M; t++)
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int m = m0 + i * 8 + e % 2, output = n + t * 16 + e / 2 * 8;
        if (m >= of.rows || output >= of.outputs) continue;
        if (gridDim.y == 1) of.y[(size_t)m * of.outputs + output] = (half_bits)pack_fp16(sum[t][i][e], 0.f);
        else of.sums[((size_t)blockIdx.y * of.rows + m) * of.outputs + output] = sum[t][i][e];
      }
}

#ifndef EMULATED
#define KERNEL(BITS, M, N)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS) nbits_##BITS##_##M##_##N(const __grid_constant__ Matrices of) { \
    product<BITS, M, N>(of);                                                                                       \
  }
#define KERNELS(BITS, M) KERNEL(BITS, M, 1) KERNEL(BITS, M, 2) KERNEL(BITS, M, 4)
KERNELS(4, 1) KERNELS(4, 2) KERNELS(4, 4) KERNEL(4, 1, 8) KERNEL(4, 2, 8)
KERNELS(8, 1) KERNELS(8, 2) KERNEL(8, 1, 8) KERNEL(8, 2, 8)
#endif

// The parts of 4 neighbours, in their order, so that the same input always gives the same output.
extern "C" __global__ void __launch_bounds__(THREADS)
nbits_sum(const float4* sums, uint2* y, int count, int parts) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= count) return;
  float4 total = sums[i];
  for (int part = 1; part < parts; part++) {
    const float4 more = sums[(size_t)part * count + i];
    total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
  }
  y[i] = make_uint2(pack_fp16(total.x, total.y), pack_fp16(total.z, total.w));
}
