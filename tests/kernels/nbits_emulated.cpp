// nbits.cu on a CPU, see emulator.h.
//
//     c++ -std=gnu++17 -O1 -fsanitize=address,undefined -I phicli/kernels nbits_emulated.cpp && ./a.out SEED PRODUCTS
//
// -DWARPGROUPS=1 takes what Hopper has. With -DDRIVER -shared -fPIC -Wl,-soname,libcuda.so.1 it is what gpu.c asks of CUDA's driver instead.
//
// Matrices are exactly as long as they should be, for AddressSanitizer. Each product is compared with float64.
#include "emulator.h"

#include "nbits_weights.cu"
#include "nbits_multiply.cu"
#include "nbits.cu"

struct Kind { int bits, n, step_of_x; void (*kernel)(const Matrices&), (*widen)(const Matrices&); };
#define KIND(BITS, N) {BITS, N, STEP_OF_X<N>, product<BITS, N>, widen_all<BITS>}
#define KINDS(BITS) KIND(BITS, 1), KIND(BITS, 2), KIND(BITS, 4), KIND(BITS, 8)
static const Kind kinds[] = {KINDS(4), KINDS(8)};

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
  run_grid({(unsigned)(outputs + 16 * WARPS - 1) / (16 * WARPS), (unsigned)parts,
            (unsigned)(rows + 8 * kind.n - 1) / (8 * kind.n)}, of_part * kind.step_of_x, [&] { kind.kernel(of); });
  const int count = rows * outputs / 4;
  ::count = SUM_THREADS;
  if (parts > 1)
    run_grid({(unsigned)(count + SUM_THREADS - 1) / SUM_THREADS, 1, 1}, 16, [&] {
      nbits_sum((const float4*)sums.get(), (uint2*)y.get(), count, parts);
    });
  ::count = THREADS;
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
static const Kind sum_kind = {};
static std::map<void*, int> most_shared;  // where it is more than each has
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
  const int shared = launch->shared;
  count = kind->kernel ? THREADS : SUM_THREADS;
  if ((int)launch->block[0] != count || !starts_early(launch) || shared > std::max(49152, most_shared[function])) return 1;
  if (kind->kernel && shared < ((const Matrices*)arguments[0])->steps * kind->step_of_x) return 1;
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
