// Kernels in CUDA on a CPU: a block's threads as coroutines of one thread; what device.cu has, by what the PTX ISA says.
//
// A copy is done when it is waited for ("late"), or at once: so what is read too early, or replaced too early, shows in the
// numbers. Warps run in random order. The shared memory begins with NaN.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>
#include <ucontext.h>

#define EMULATED
#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(n)
#define __grid_constant__
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct float2 { float x, y; };
struct Dim { unsigned x, y, z; };
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
using std::min;
typedef unsigned short half_bits;

static Dim threadIdx, blockIdx, gridDim;
static uint4* dynamic_shared;

// ---- fp16 ----
static float widened(unsigned bits) {
  const unsigned short half = (unsigned short)bits;
  _Float16 number;
  memcpy(&number, &half, 2);
  return (float)number;
}
static unsigned narrowed(float number) {
  const _Float16 half = (_Float16)number;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}
static float2 floats(unsigned pair) { return {widened(pair), widened(pair >> 16)}; }
static unsigned pack_fp16(float low, float high) { return narrowed(low) | narrowed(high) << 16; }
template <class F> static unsigned each_half(F f) { return f(0) | f(16) << 16; }
static unsigned sub2(unsigned a, unsigned b) {
  return each_half([=](int s) { return narrowed(widened(a >> s) - widened(b >> s)); });
}
static unsigned mul2(unsigned a, unsigned b) {
  return each_half([=](int s) { return narrowed(widened(a >> s) * widened(b >> s)); });
}
static unsigned fma2(unsigned a, unsigned b, unsigned c) {
  return each_half([=](int s) { return narrowed(std::fma(widened(a >> s), widened(b >> s), widened(c >> s))); });
}
template <unsigned MASK> static unsigned masked_or(unsigned word, unsigned bits) { return word & MASK | bits; }
static unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const unsigned long long both = (unsigned long long)high << 32 | low;
  unsigned found = 0;
  for (int i = 0; i < 4; i++) found |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return found;
}

// ---- single precision ----
using std::max;
template <class To, class From> static To same_bits(From from) {
  To to;
  return memcpy(&to, &from, 4), to;
}
static float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static float __int_as_float(int bits) { return same_bits<float>(bits); }
static unsigned __float_as_uint(float number) { return same_bits<unsigned>(number); }
static int __float2int_rn(float number) { return std::isnan(number) ? 0 : (int)std::nearbyint(number); }
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
static float exp2_of(float x) { return std::exp2(x); }

// ---- threads ----
constexpr int MOST = 512, STACK = 1 << 18;
static int count = MOST;  // of a block's threads
static ucontext_t scheduler, contexts[MOST];
static std::vector<char> stacks(MOST * STACK);
static int current;
static std::mt19937 dice;
static bool late, finished[MOST];
static std::function<void()> body;

struct Meeting {  // of a warp's threads, or a block's
  int arrived = 0;
  unsigned round = 0;
  void meet(int size, const std::function<void()>& together) {
    const unsigned mine = round;
    if (++arrived == size) {
      together();
      arrived = 0, round++;
    }
    while (round == mine) {
      swapcontext(&contexts[current], &scheduler);
    }
  }
};
static Meeting warps[MOST / 32], block;
static void __syncthreads() { block.meet(count, [] {}); }

struct Copy { void* to; const void* from; int size; bool there; };
static std::vector<Copy> begun[MOST];
static void perform(const Copy& copy) {
  if (copy.there) memcpy(copy.to, copy.from, copy.size);
  else memset(copy.to, 0, copy.size);
}
static void aligned(const void* place, int size) {
  if ((uintptr_t)place % size) fprintf(stderr, "%d bytes that are not aligned\n", size), exit(1);
}
static void copy(void* to, const void* from, int size, bool there) {
  aligned(to, size), aligned(from, size);
  if (late) begun[threadIdx.x].push_back({to, from, size, there});
  else perform({to, from, size, there});
}
static void copy16(void* to, const void* from, bool there) { copy(to, from, 16, there); }
static void copy4(void* to, const void* from, bool there) { copy(to, from, 4, there); }
static void wait_for_copies() {
  for (const Copy& copy : begun[threadIdx.x]) perform(copy);
  begun[threadIdx.x].clear();
}
static uint4 load16(const void* from) { return aligned(from, 16), *(const uint4*)from; }
static uint4 load16_early(const void* from) { return load16(from); }
template <class T> static T __ldg(const T* from) { return *from; }
static std::function<void()> previous;  // what the kernel before does at its end
static void let_next_start() {}
static void wait_for_previous() {
  if (previous) previous(), previous = nullptr;
}

static float of_lane(float x, int other) {
  static float given[MOST], found[MOST];
  const int own = threadIdx.x, first = own / 32 * 32;
  given[own] = x;
  warps[own / 32].meet(32, [=] {
    for (int lane = 0; lane < 32; lane++) found[first + lane] = given[first + (lane ^ other)];
  });
  return found[own];
}

#include "emulated_tensor_cores.h"

static void enter() {
  body();
  finished[current] = true;
  swapcontext(&contexts[current], &scheduler);
}

static void run_block(size_t shared) {
  std::vector<uint4> memory(shared / 16, uint4{~0u, ~0u, ~0u, ~0u});
  dynamic_shared = memory.data();
  for (int t = 0; t < count; t++) {
    begun[t].clear(), groups[t].clear(), finished[t] = false;
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = &stacks[t * STACK], contexts[t].uc_stack.ss_size = STACK;
    makecontext(&contexts[t], enter, 0);
  }
  for (int left = count; left;) {
    const int warp = dice() % (count / 32);
    for (int t = warp * 32; t < warp * 32 + 32; t++) {
      if (finished[t]) continue;
      current = t, threadIdx = {(unsigned)t, 0, 0};
      swapcontext(&scheduler, &contexts[t]);
      left -= finished[t];
    }
  }
}

static void run_grid(Dim grid, size_t shared, std::function<void()> kernel) {
  body = std::move(kernel), gridDim = grid;
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(shared);
}

template <class T> static std::unique_ptr<T[], void (*)(void*)> numbers(size_t count) {
  void* place = nullptr;
  if (posix_memalign(&place, 16, count * sizeof(T))) abort();
  memset(place, 255, count * sizeof(T));
  return {(T*)place, free};
}

#ifdef DRIVER  // what gpu.c asks of CUDA's driver, where it is the same for all kernels
#define DRIVEN extern "C" __attribute__((visibility("default"))) int
struct Launch { unsigned grid[3], block[3], shared; void* stream; const int* attributes; unsigned attribute_count; };
static bool starts_early(const Launch* launch) {
  return launch->attribute_count == 1 && launch->attributes[0] == 6 && launch->attributes[2] == 1;
}
DRIVEN cuCtxGetCurrent(void** context) { return *context = &scheduler, 0; }
DRIVEN cuModuleLoadData(void** module, const void*) { return *module = &scheduler, 0; }
DRIVEN cuCtxGetDevice(int* device) { return *device = 0; }
DRIVEN cuDeviceGetAttribute(int* value, int attribute, int) {  // an H100's
  return *value = attribute == 16 ? 132 : attribute == 75 ? 9 : attribute == 97 ? 232448 : -1, *value < 0;
}
#endif
