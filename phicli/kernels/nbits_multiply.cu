// What nbits.cu multiplies on the tensor cores: a step's x in shared memory, with weights in registers. Weights are the left
// side, so that 8 rows of x are a whole tile. Hopper's groups of four warps read x without registers; elsewhere each warp does.
//
// A thread's pairs of weights are inputs that are neighbours for it alone: which input is which of a product does not matter,
// as long as both sides agree. 16 inputs of all rows are a slice: two columns of 8 inputs, each the rows of x one after the
// other, 16 bytes long: as matrices of 8 times 8 they are what ldmatrix and wgmma take. Of the 8 inputs that a thread has in a
// word, the first two pairs go into one slice's columns, the others into the next's, at the 4 bytes of the thread's number
// in four. 16 bytes stay free behind a slice, so that threads that write at once fall on different banks.

template <int N> constexpr int SLICE = N * 256 + 16;  // bytes, of 8 N rows
template <int N> constexpr int STEP_OF_X = 8 * SLICE<N>;

#ifndef EMULATED
#define WARPGROUPS __CUDA_ARCH_FEAT_SM90_ALL
typedef unsigned long long Shared;  // counts in 16 bytes, as wgmma's descriptor of a matrix

template <int N>
__device__ __forceinline__ Shared shared_at(const void* x) {  // without swizzling; from column to column; from 8 rows to 8
  return __cvta_generic_to_shared(x) >> 4 & 0x3fff | (Shared)(N * 8) << 16 | (Shared)8 << 32;
}

#if WARPGROUPS
#define SUMS(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define GROUP_MMA(N, ROWS, SUM, A, B, ...)                                                                              \
  __device__ __forceinline__ void group_mma(float (&c)[N][4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,      \
                                            Shared b) {                                                                \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" ROWS "k16.f32.f16.f16 {" SUM "}, {" A "}, " B ", 1, 1, 1, 0;"     \
                 : __VA_ARGS__ : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));                                          \
  }
#define TO_7 "%0,%1,%2,%3,%4,%5,%6,%7"
#define TO_15 TO_7 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define TO_31 TO_15 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
GROUP_MMA(1, "8", "%0,%1,%2,%3", "%4,%5,%6,%7", "%8", SUMS(0))
GROUP_MMA(2, "16", TO_7, "%8,%9,%10,%11", "%12", SUMS(0), SUMS(1))
GROUP_MMA(4, "32", TO_15, "%16,%17,%18,%19", "%20", SUMS(0), SUMS(1), SUMS(2), SUMS(3))
GROUP_MMA(8, "64", TO_31, "%32,%33,%34,%35", "%36", SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7))

__device__ __forceinline__ void begin_groups() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_groups() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
#endif
__device__ __forceinline__ void show_to_groups() {  // what was written to shared memory, before the threads meet
#if WARPGROUPS
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
#endif

// The block's rows of x, of its part of the inputs; zeros where there are none.
template <int BITS, int N>
__device__ __forceinline__ void load_x(const Matrices& of, uint4* x, int row, int first, int count) {
  constexpr int AT_ONCE = 4, CHUNKS = N * 8 * 16;  // of 8 inputs, of a step
  for (int begin = threadIdx.x; begin < count * CHUNKS; begin += AT_ONCE * THREADS) {
    uint4 v[AT_ONCE];
#pragma unroll
    for (int c = 0; c < AT_ONCE; c++) {
      const int i = begin + c * THREADS, k = (first + i / CHUNKS) * STEP + i % 16 * 8, line = row + i / 16 % (8 * N);
      const bool there = i < count * CHUNKS && k < of.inputs && line < of.rows;
      v[c] = there ? *(const uint4*)(of.x + (size_t)line * of.inputs + k) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int c = 0; c < AT_ONCE; c++) {
      const int i = begin + c * THREADS, quad = i % 16 / 4, j = i % 4, line = i / 16 % (8 * N);
      if (i >= count * CHUNKS) break;
      const uint4 pairs = BITS == 8 ? v[c] : uint4{  // in the order of `widen4`
          __byte_perm(v[c].x, v[c].z, 0x5410), __byte_perm(v[c].x, v[c].z, 0x7632),
          __byte_perm(v[c].y, v[c].w, 0x5410), __byte_perm(v[c].y, v[c].w, 0x7632)};
      char* to = (char*)x + i / CHUNKS * STEP_OF_X<N> + j * 2 * SLICE<N> + line * 16 + quad * 4;
      *(unsigned*)to = pairs.x, *(unsigned*)(to + N * 128) = pairs.y;
      *(unsigned*)(to + SLICE<N>) = pairs.z, *(unsigned*)(to + SLICE<N> + N * 128) = pairs.w;
    }
  }
  show_to_groups();
  __syncthreads();
}

#if WARPGROUPS
// Sums are there, and weights may be replaced, when they were waited for: so two sets of weights take turns.
template <int BITS, int N>
struct Product {
  float sum[N][4] = {};
  unsigned pairs[2][2][4];  // set, output, pair

  __device__ __forceinline__ void add(const Weights<BITS>& w, const Scaling (&s)[2], const uint4* x, int step) {
    const Shared slices = shared_at<N>(x) + step * (STEP_OF_X<N> / 16);
#pragma unroll
    for (int j = 0; j < 4; j++) {  // 8 of the thread's 32 inputs
      unsigned (&upper)[4] = pairs[j % 2][0], (&lower)[4] = pairs[j % 2][1];
      wait_for_groups<1>();
      w.widen(0, j, s[0], upper);
      w.widen(1, j, s[1], lower);
      begin_groups();
      group_mma(sum, upper[0], lower[0], upper[1], lower[1], slices + j * 2 * (SLICE<N> / 16));
      group_mma(sum, upper[2], lower[2], upper[3], lower[3], slices + (j * 2 + 1) * (SLICE<N> / 16));
      commit_groups();
    }
  }
  __device__ __forceinline__ void finish() { wait_for_groups<0>(); }
};
#else
template <int BITS, int N>
struct Product {
  float sum[N][4] = {};

  __device__ __forceinline__ void add(const Weights<BITS>& w, const Scaling (&s)[2], const uint4* x, int step) {
    const int lane = threadIdx.x % 32;  // which knows where a row of a matrix is: of two slices two columns each
    const char* own = (const char*)x + step * STEP_OF_X<N> + lane / 16 * SLICE<N> + lane / 8 % 2 * N * 128 + lane % 8 * 16;
#pragma unroll
    for (int j = 0; j < 4; j++) {  // 8 of the thread's 32 inputs
      unsigned b[N][4], upper[4], lower[4];
#pragma unroll
      for (int i = 0; i < N; i++) load_matrices(b[i], own + j * 2 * SLICE<N> + i * 128);
      w.widen(0, j, s[0], upper);
      w.widen(1, j, s[1], lower);
#pragma unroll
      for (int h = 0; h < 4; h += 2)
#pragma unroll
        for (int i = 0; i < N; i++)
          mma(sum[i], upper[h], lower[h], upper[h + 1], lower[h + 1], b[i][h], b[i][h + 1]);
    }
  }
  __device__ __forceinline__ void finish() {}
};
#endif
