// nbits.cu on a CPU: its threads as coroutines of one, tensor cores and asynchronous copies by what the PTX ISA says.
//
//     c++ -std=gnu++17 -O1 -fsanitize=address,undefined -I phicli/kernels nbits_emulated.cpp && ./a.out SEED PRODUCTS
//
// With -DDRIVER -shared -fPIC -Wl,-soname,libcuda.so.1 it is what gpu.c asks of CUDA's driver instead.
//
// Matrices are exactly as long as they should be, for AddressSanitizer. A copy is done when it is waited for ("late"),
// or at once: so what is read too early, or replaced too early, shows in the numbers. Warps run in random order. The
// shared memory begins with NaN. Each product is compared with float64.
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
static unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const unsigned long long both = (unsigned long long)high << 32 | low;
  unsigned found = 0;
  for (int i = 0; i < 4; i++) found |= (unsigned)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return found;
}

// ---- threads ----
constexpr int COUNT = 256, STACK = 1 << 18;
static ucontext_t scheduler, contexts[COUNT];
static std::vector<char> stacks(COUNT * STACK);
static int current;
static std::mt19937 dice;
static bool late, finished[COUNT];
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
static Meeting warps[COUNT / 32], block;
static void __syncthreads() { block.meet(COUNT, [] {}); }

struct Copy { void* to; const void* from; bool there; };
static std::vector<Copy> begun[COUNT];
static void perform(const Copy& copy) {
  if (copy.there) memcpy(copy.to, copy.from, 16);
  else memset(copy.to, 0, 16);
}
static void aligned(const void* place) {
  if ((uintptr_t)place % 16) fprintf(stderr, "16 bytes that are not aligned\n"), exit(1);
}
static void copy16(void* to, const void* from, bool there) {
  aligned(to), aligned(from);
  if (late) begun[threadIdx.x].push_back({to, from, there});
  else perform({to, from, there});
}
static void wait_for_copies() {
  for (const Copy& copy : begun[threadIdx.x]) perform(copy);
  begun[threadIdx.x].clear();
}
static uint4 load16(const void* from) { return aligned(from), *(const uint4*)from; }
template <class T> static T __ldg(const T* from) { return *from; }
static std::function<void()> previous;  // what the kernel before does at its end
static void let_next_start() {}
static void wait_for_previous() {
  if (previous) previous(), previous = nullptr;
}

// mma.sync.aligned.m16n8k16: which thread holds what of A, B and C.
struct Operands { unsigned a[4], b[2]; float* c; };
static Operands operands[COUNT];
static void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  operands[threadIdx.x] = {{a0, a1, a2, a3}, {b0, b1}, c};
  const int first = threadIdx.x / 32 * 32;
  warps[threadIdx.x / 32].meet(32, [first] {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const Operands& own = operands[first + lane];
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 4; i++)
        for (int e = 0; e < 2; e++) a[group + i % 2 * 8][pair + i / 2 * 8 + e] = widened(own.a[i] >> 16 * e);
      for (int i = 0; i < 2; i++)
        for (int e = 0; e < 2; e++) b[pair + i * 8 + e][group] = widened(own.b[i] >> 16 * e);
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        float sum = operands[first + lane].c[i];
        for (int k = 0; k < 16; k++) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
        operands[first + lane].c[i] = sum;
      }
  });
}

#include "nbits_widen.cu"
#include "nbits.cu"

static void enter() {
  body();
  finished[current] = true;
  swapcontext(&contexts[current], &scheduler);
}

static void run_block(size_t shared) {
  std::vector<uint4> memory(shared / 16, uint4{~0u, ~0u, ~0u, ~0u});
  dynamic_shared = memory.data();
  for (int t = 0; t < COUNT; t++) {
    begun[t].clear(), finished[t] = false;
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = &stacks[t * STACK], contexts[t].uc_stack.ss_size = STACK;
    makecontext(&contexts[t], enter, 0);
  }
  for (int left = COUNT; left;) {
    const int warp = dice() % (COUNT / 32);
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

struct Kind { int bits, n; void (*kernel)(const Matrices&), (*widen)(const Matrices&); };
#define KIND(BITS, N) {BITS, N, product<BITS, N, (N < 8 ? 2 : 1)>, widen_all<BITS>}
#define KINDS(BITS) KIND(BITS, 1), KIND(BITS, 2), KIND(BITS, 4), KIND(BITS, 8)
static const Kind kinds[] = {KINDS(4), KINDS(8)};

template <class T> static std::unique_ptr<T[], void (*)(void*)> numbers(size_t count) {
  void* place = nullptr;
  if (posix_memalign(&place, 16, count * sizeof(T))) abort();
  memset(place, 255, count * sizeof(T));
  return {(T*)place, free};
}

static double difference(const Kind& kind, int rows, int outputs, int inputs, int group_bits, bool zeros, int parts) {
  const int groups = inputs >> group_bits, most = (1 << kind.bits) - 1, of_row = inputs * kind.bits / 8;
  const int line = kind.bits == 4 ? (groups + 1) / 2 : groups;
  auto x = numbers<half_bits>(rows * inputs), scales = numbers<half_bits>(outputs * groups);
  auto weights = numbers<unsigned char>(outputs * of_row), points = numbers<unsigned char>(outputs * line);
  auto y = numbers<half_bits>(rows * outputs);
  auto sums = numbers<float>((size_t)parts * rows * outputs);
  std::normal_distribution<float> normal;
  previous = [&] { for (int i = 0; i < rows * inputs; i++) x[i] = narrowed(normal(dice)); };
  for (int i = 0; i < outputs * groups; i++) scales[i] = narrowed(0.002f + 0.01f * (dice() % 1000) / 1000);
  for (int i = 0; i < outputs * of_row; i++) weights[i] = dice() & 255;
  for (int i = 0; i < outputs * line; i++) points[i] = dice() & 255;
  const int steps = (inputs + STEP - 1) / STEP, of_part = (steps + parts - 1) / parts;
  const Matrices of = {x.get(), weights.get(), scales.get(), zeros ? points.get() : nullptr, y.get(), sums.get(),
                       rows, outputs, inputs, group_bits, of_part};
  run_grid({(unsigned)(outputs + 16 * M * WARPS - 1) / (16 * M * WARPS), (unsigned)parts,
            (unsigned)(rows + 8 * kind.n - 1) / (8 * kind.n)}, of_part * kind.n * 8 * STEP * 2, [&] { kind.kernel(of); });
  const int count = rows * outputs / 4;
  if (parts > 1)
    run_grid({(unsigned)(count + THREADS - 1) / THREADS, 1, 1}, 16, [&] {
      nbits_sum((const float4*)sums.get(), (uint2*)y.get(), count, parts);
    });
  const auto number = [&](const unsigned char* line, int i) {
    return kind.bits == 8 ? line[i] : line[i / 2] >> i % 2 * 4 & most;
  };
  auto wide = numbers<half_bits>(outputs * inputs);
  Matrices of_wide = of;
  of_wide.y = wide.get();
  run_grid({(unsigned)(outputs * inputs / 8 + THREADS - 1) / THREADS, 1, 1}, 16, [&] { kind.widen(of_wide); });
  double worst = 0;
  for (int n = 0; n < outputs; n++) {
    std::vector<double> own(inputs);
    for (int k = 0; k < inputs; k++) {
      const int group = k >> group_bits, middle = zeros ? number(&points[n * line], group) : 1 << (kind.bits - 1);
      own[k] = widened(narrowed((number(&weights[n * of_row], k) - middle) * widened(scales[n * groups + group])));
      if (own[k] != widened(wide[n * inputs + k])) worst = INFINITY;
    }
    for (int m = 0; m < rows; m++) {
      double wanted = 0, size = 0;
      for (int k = 0; k < inputs; k++) {
        wanted += own[k] * widened(x[m * inputs + k]);
        size += std::fabs(own[k] * widened(x[m * inputs + k]));
      }
      const double found = widened(y[m * outputs + n]);
      const double off = std::fabs(found - wanted) / (std::fabs(wanted) + 1e-3 * size);
      worst = off <= worst ? worst : std::isnan(off) ? INFINITY : off;
    }
  }
  return worst;
}

#ifdef DRIVER
#define DRIVEN extern "C" __attribute__((visibility("default"))) int
static const Kind sum_kind = {};
static std::map<void*, int> most_shared;  // where it is more than each has
struct Launch { unsigned grid[3], block[3], shared; void* stream; const int* attributes; unsigned attribute_count; };
DRIVEN cuCtxGetCurrent(void** context) { return *context = &scheduler, 0; }
DRIVEN cuModuleLoadData(void** module, const void*) { return *module = &scheduler, 0; }
DRIVEN cuCtxGetDevice(int* device) { return *device = 0; }
DRIVEN cuDeviceGetAttribute(int* value, int attribute, int) {  // an H100's
  return *value = attribute == 16 ? 132 : attribute == 75 ? 9 : attribute == 97 ? 232448 : -1, *value < 0;
}
DRIVEN cuModuleGetFunction(void** function, void*, const char* name) {
  char own[32];
  if (!strcmp(name, "nbits_sum")) return *function = (void*)&sum_kind, 0;
  for (const Kind& kind : kinds) {
    snprintf(own, sizeof own, "nbits_%d_%d", kind.bits, kind.n);
    if (!strcmp(own, name)) return *function = (void*)&kind, 0;
  }
  return 1;
}
DRIVEN cuFuncSetAttribute(void* function, int attribute, int value) {
  return most_shared[function] = value, attribute != 8;
}
DRIVEN cuLaunchKernelEx(const Launch* launch, void* function, void** arguments, void**) {
  const Kind* kind = (const Kind*)function;
  const bool early = launch->attribute_count == 1 && launch->attributes[0] == 6 && launch->attributes[2] == 1;
  const int shared = launch->shared;
  if (launch->block[0] != COUNT || !early || shared > std::max(49152, most_shared[function])) return 1;
  if (kind->kernel && shared != ((const Matrices*)arguments[0])->steps * kind->n * 8 * STEP * 2) return 1;
  run_grid({launch->grid[0], launch->grid[1], launch->grid[2]}, shared ? shared : 16, [=] {
    if (kind->kernel) kind->kernel(*(const Matrices*)arguments[0]);
    else nbits_sum(*(const float4**)arguments[0], *(uint2**)arguments[1], *(int*)arguments[2], *(int*)arguments[3]);
  });
  return 0;
}
#else
int main(int count, char** arguments) {
  if (count != 3) return 2;
  dice.seed(atoi(arguments[1]));
  for (int i = 0; i < atoi(arguments[2]); i++) {
    const Kind& kind = kinds[i % (sizeof kinds / sizeof *kinds)];
    const int group_bits = 5 + dice() % 3, group = 1 << group_bits;
    const int inputs = group * (1 + dice() % (1024 / group)), outputs = 8 * (1 + dice() % 70);
    const int rows = 1 + dice() % (8 * kind.n + 3), steps = (inputs + STEP - 1) / STEP;
    const int parts = 1 + dice() % steps;
    const bool zeros = dice() % 3;
    late = dice() % 2;
    const double off = difference(kind, rows, outputs, inputs, group_bits, zeros, parts);
    printf("%d bits, %d rows at once: %d x %d x %d, group %d, %s, %d parts, %s: %.2e\n", kind.bits, 8 * kind.n, rows,
           outputs, inputs, group, zeros ? "zero points" : "none", parts, late ? "late" : "at once", off);
    if (!(off < 1e-3)) return 1;
  }
}
#endif
