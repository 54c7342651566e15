// attention.cu on a CPU, see emulator.h.
//
//     c++ -std=gnu++17 -O1 -fsanitize=address,undefined -I phicli/kernels attention_emulated.cpp && ./a.out SEED RUNS
//
// With -DDRIVER -shared -fPIC -Wl,-soname,libcuda.so.1 it is what gpu.c asks of CUDA's driver instead.
//
// Tensors are exactly as long as they should be, for AddressSanitizer. What is new in the cache is compared with what it
// should hold, and each result with float64's of what the cache holds.
#include "emulator.h"

#include "attention_lines.cu"
#include "attention_rows.cu"
#include "attention.cu"

struct Kind { const char* name; int size, threads; void (*kernel)(const Attending&); };
#define KINDS(SIZE) {"take", SIZE, 256, take<SIZE>}, {"attend_few", SIZE, 128, attend_few<SIZE>}, \
                    {"attend_many", SIZE, 128, attend_many<SIZE>}, {"finish", SIZE, 64, finish<SIZE>}
static const Kind kinds[] = {KINDS(64), KINDS(96), KINDS(128)};
static int shared_of(const Kind& kind) { return strcmp(kind.name, "attend_many") ? 0 : 4 * LINES * (kind.size + 16); }

static void launch(const Kind& kind, Dim grid, const Attending& of) {
  count = kind.threads;
  run_grid(grid, std::max(shared_of(kind), 16), [&] { kind.kernel(of); });
}

#ifdef DRIVER
static const Kind copy_kind = {"copy", 0, 256, nullptr};
DRIVEN cuModuleGetFunction(void** function, void*, const char* name) {
  char own[40];
  if (!strcmp(name, "attention_copy")) return *function = (void*)&copy_kind, 0;
  for (const Kind& kind : kinds) {
    snprintf(own, sizeof own, "attention_%s_%d", kind.name, kind.size);
    if (!strcmp(own, name)) return *function = (void*)&kind, 0;
  }
  return 1;
}
DRIVEN cuFuncSetAttribute(void*, int attribute, int) { return attribute != 8; }
DRIVEN cuLaunchKernelEx(const Launch* launched, void* function, void** arguments, void**) {
  const Kind& kind = *(const Kind*)function;
  const Attending& of = *(const Attending*)arguments[0];
  const Dim grid = {launched->grid[0], launched->grid[1], launched->grid[2]};
  if ((int)launched->block[0] != kind.threads || !starts_early(launched) || (int)launched->shared != shared_of(kind)) return 1;
  count = kind.threads;
  if (kind.kernel) launch(kind, grid, of);
  else run_grid(grid, 16, [&] { copy_past(of, *(int*)arguments[1]); });
  return 0;
}
#else

static int any(int least, int most) { return least + (int)(dice() % (most - least + 1)); }

struct Case {
  int size, batch, kv_heads, group, tokens, turned, interleaved, window, room, splits;
  bool softcap, many;
  std::vector<int> past;  // of rows
};

static std::vector<double> mixed(const std::vector<double>& x) {
  const int size = (int)x.size(), width = size & -size;
  std::vector<double> out(size);
  for (int i = 0; i < size; i++)
    for (int j = i / width * width; j < i / width * width + width; j++)
      out[i] += x[j] * (__builtin_popcount(i & j & (width - 1)) % 2 ? -1 : 1) / std::sqrt(width);
  return out;
}

template <class T> using Numbers = std::unique_ptr<T[], void (*)(void*)>;
static Numbers<half_bits> normal_fp16(size_t count, float size) {
  auto made = numbers<half_bits>(count);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < count; i++) made[i] = narrowed(size * normal(dice));
  return made;
}

// The largest difference of a result, or infinity where the cache is not what it should be.
static double difference(const Case& c) {
  const int heads = c.kv_heads * c.group, words = c.size / 4 + 1, stride = (heads + 2 * c.kv_heads) * c.size;
  const size_t lines = (size_t)c.batch * c.kv_heads * c.room;
  auto x = normal_fp16((size_t)c.batch * c.tokens * stride, 1), cosines = normal_fp16(c.room * c.turned, 0),
       sines = normal_fp16(c.room * c.turned, 0), out = normal_fp16((size_t)c.batch * c.tokens * heads * c.size, 0),
       queries = normal_fp16((size_t)c.batch * c.tokens * heads * c.size, 0);
  for (int i = 0; i < c.room * c.turned; i++) {
    const double angle = i / c.turned * std::pow(100., -(double)(i % c.turned) / c.turned);
    cosines[i] = narrowed((float)std::cos(angle)), sines[i] = narrowed((float)std::sin(angle));
  }
  Numbers<unsigned> cache[2] = {numbers<unsigned>(lines * words), numbers<unsigned>(lines * words)};
  for (auto& side : cache)
    for (size_t i = 0; i < lines * words; i++)
      side[i] = i % words == (size_t)c.size / 4 ? 0x3c00 + dice() % 64 : dice();  // scales of about 0.008
  auto parts = numbers<float>((size_t)c.batch * c.tokens * heads * c.splits * (c.size + 4));
  auto lengths = numbers<int>(c.batch);
  for (int b = 0; b < c.batch; b++) lengths[b] = c.past[b] + c.tokens - 1;
  std::vector<unsigned> before[2];
  for (int side = 0; side < 2; side++) before[side].assign(cache[side].get(), cache[side].get() + lines * words);
  const Attending of = {
      {x.get(), x.get() + heads * c.size, x.get() + (heads + c.kv_heads) * c.size}, cosines.get(), sines.get(),
      {cache[0].get(), cache[1].get()}, {cache[0].get(), cache[1].get()}, lengths.get(), queries.get(), out.get(), parts.get(),
      {stride, stride, stride}, c.batch, heads, c.kv_heads, c.group, c.tokens, c.turned, c.interleaved, c.room, c.window, c.room, c.room,
      c.splits, 1 / std::sqrt((float)c.size), c.softcap ? 3.f : 0.f};
  const Kind* kind = kinds + (c.size == 64 ? 0 : c.size == 96 ? 4 : 8);
  const unsigned rows = c.tokens * c.group, all = c.batch * c.kv_heads, queried = c.batch * c.tokens * heads;
  launch(kind[0], {(queried + 2 * all * c.tokens + 7) / 8, 1, 1}, of);
  if (c.many) launch(kind[2], {1, (rows + 63) / 64, all}, of);
  else launch(kind[1], {(unsigned)(c.splits + 3) / 4, (rows + 15) / 16, all}, of);
  launch(kind[3], {(queried + 1) / 2, 1, 1}, of);

  const auto numbers_of = [&](int b, int t, int side, int head) {  // rotated and mixed
    std::vector<double> own(c.size);
    const half_bits* from = &x[(size_t)(b * c.tokens + t) * stride + ((side ? heads + (side - 1) * c.kv_heads : 0) + head) * c.size];
    for (int i = 0; i < c.size; i++) own[i] = widened(from[i]);
    for (int i = 0; side < 2 && i < c.turned; i++) {
      const int one = c.interleaved ? 2 * i : i, two = c.interleaved ? one + 1 : i + c.turned;
      const double cosine = widened(cosines[(c.past[b] + t) * c.turned + i]), sine = widened(sines[(c.past[b] + t) * c.turned + i]);
      const double a = own[one], b = own[two];
      own[one] = a * cosine - b * sine, own[two] = b * cosine + a * sine;
    }
    return mixed(own);
  };
  const auto cached = [&](int side, int b, int head, int j) {
    const unsigned* line = &cache[side][(((size_t)b * c.kv_heads + head) * c.room + j) * words];
    std::vector<double> own(c.size);
    for (int i = 0; i < c.size; i++) own[i] = ((const signed char*)line)[i] * (double)__uint_as_float(line[c.size / 4] << 16);
    return own;
  };
  double worst = 0;
  for (int b = 0; b < c.batch; b++)
    for (int h = 0; h < c.kv_heads; h++) {
      for (int side = 0; side < 2; side++)
        for (int j = 0; j < c.room; j++) {
          const int t = j - c.past[b];
          const size_t at = (((size_t)b * c.kv_heads + h) * c.room + j) * words;
          if (t < 0 || t >= c.tokens) {
            if (memcmp(&cache[side][at], &before[side][at], words * 4)) return INFINITY;
            continue;
          }
          const auto wanted = numbers_of(b, t, 1 + side, h), found = cached(side, b, h, j);
          double top = 0;
          for (double number : wanted) top = std::max(top, std::fabs(number));
          for (int i = 0; i < c.size; i++)
            if (!(std::fabs(found[i] - wanted[i]) <= top / 127 * 0.52)) return INFINITY;
          if (cache[side][at + c.size / 4] >> 16) return INFINITY;
        }
      for (int r = 0; r < (int)rows; r++) {
        const int t = r / c.group, n = h * c.group + r % c.group, end = c.past[b] + t + 1;
        const auto query = numbers_of(b, t, 0, n);
        double total = 0;
        std::vector<double> sum(c.size);
        for (int j = c.window > 0 ? std::max(0, end - c.window) : 0; j < end; j++) {
          const auto key = cached(0, b, h, j), value = cached(1, b, h, j);
          double score = 0;
          for (int i = 0; i < c.size; i++) score += query[i] * key[i] / std::sqrt(c.size);
          if (c.softcap) score = 3 * std::tanh(score / 3);
          total += std::exp(score);
          for (int i = 0; i < c.size; i++) sum[i] += std::exp(score) * value[i];
        }
        for (double& number : sum) number /= total;
        sum = mixed(sum);
        for (int i = 0; i < c.size; i++) {
          const double off = std::fabs(widened(out[((size_t)(b * c.tokens + t) * heads + n) * c.size + i]) - sum[i]);
          worst = off <= worst ? worst : std::isnan(off) ? INFINITY : off;
        }
      }
    }
  return worst;
}

int main(int count, char** arguments) {
  if (count != 3) return 2;
  dice.seed(atoi(arguments[1]));
  for (int i = 0; i < atoi(arguments[2]); i++) {
    Case c = {};
    c.size = 64 + 32 * (i % 3), c.many = i % 2, c.batch = any(1, 3), c.kv_heads = any(1, 2), c.group = any(1, 3);
    c.tokens = c.many ? any(20, 90) : any(0, 2) ? 1 : any(2, 30);
    c.turned = any(0, 2) * c.size / 4, c.interleaved = any(0, 1), c.softcap = !any(0, 3), c.window = any(0, 2) ? -1 : any(1, 100);
    for (int b = 0; b < c.batch; b++) c.past.push_back(any(0, 2) ? any(0, c.many ? 300 : 900) : 0);
    c.room = *std::max_element(c.past.begin(), c.past.end()) + c.tokens + any(0, 40);
    c.splits = c.many ? 1 : any(1, 16);
    late = any(0, 1);
    const double off = difference(c);
    printf("size %d, %d x %d heads of %d, %d tokens after %d, %d turned, window %d, %d splits, %s, %s: %.2e\n", c.size, c.batch,
           c.kv_heads, c.group, c.tokens, c.past[0], c.turned, c.window, c.splits, c.many ? "many" : "few",
           late ? "late" : "at once", off);
    if (!(off < 4e-3)) return 1;
  }
}
#endif
