/* Three ops for onnxruntime, in fp16 on CUDA, in fp16 and fp32 on a CPU:
 *     LoraDown     h = x A
 *     LoraUp       y = base + h B
 *     LoraGatedUp  y = silu(gate + h B) * (up + h B')
 *
 * Inputs   adapters, int64 (1,) or (batch,), in CPU memory: 0 is none, 1 the first
 *          then for LoraDown x (batch, tokens, inputs), A; for LoraUp h, base (batch, tokens, outputs), B;
 *          for LoraGatedUp h, gate, B, up, B'
 * Attribute ranks: of each adapter, multiples of 16, at most 1024. The inputs of A are a multiple of 32, outputs of 8.
 * One more input may say the ranks instead, int64 (ops, adapters) in CPU memory, of which attribute row is this op's: so
 * that adapters, then inputs of the graph too, come and go while a session runs.
 * h is float, (batch, tokens, parts * rank), with the largest rank of the batch.
 * Attribute ends (and ends2, of B') of LoraUp and LoraGatedUp on a CPU: outputs up to the first read the first `rank`
 * columns of h, those up to the second the next, …: updates of their own beside one input. Without it all read all.
 *
 * A and B are in fp16, or in int8 beside activations in fp32. A is (sum of ranks, inputs). B has each adapter's part
 * after the one before, (outputs, rank) beside activations in fp16, (outputs / 8, rank, 8) beside fp32: so a CPU reads
 * all of it in order. In int8 a float comes before each row of A, and 8 floats before each block of B: scales.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ort_api.h"

#define MAX_ADAPTERS 1024
#define MAX_RANK 1024
#define MAX_SEGMENTS 3 /* q, k and v */
#define MAX_WIDTH (1 << 24) /* with these two all sizes fit into 64 bits, and what the kernels count into 32 */
#define MAX_ROWS (1 << 30)
#define PART 8192 /* numbers of a matrix that a thread of a CPU takes at a time, */
#define PART_ROWS 32 /* and the most rows for them */
#define SCALE 4 /* bytes */

enum { DOWN, UP, GATED };

typedef struct { size_t count; int64_t ranks[MAX_ADAPTERS], starts[MAX_ADAPTERS + 1]; } Adapters;

typedef struct {
  const Op *op;
  size_t segments; /* ends of outputs; 1 without */
  int64_t ends[2][MAX_SEGMENTS], row;
  Adapters own; /* of the attribute */
} Kernel;

/* Rows that have the same adapter. width: of x for DOWN, else of the output; stride: of h. numbers: on a CPU, which rows
 * of in, base and out these are; NULL where they follow one another from the first.
 */
typedef struct {
  const void *in, *base[2];
  const char *matrix[2];
  void *out;
  int64_t rows, width, rank, parts, stride;
  const int64_t *numbers;
  const Kernel *kernel;
  const Adapters *adapters;
} Product;

static inline int64_t number_of(const Product *p, int64_t m) { return p->numbers ? p->numbers[m] : m; }

#include "lora_cuda.h"

/* ---- on a CPU; without AVX2 and for activations in fp16 to be right rather than fast ---- */

/* Where a row of A, or the block of B with output n, begins: in int8 with its scales. */
static inline const char *row_of_a(const Product *p, int64_t n, int int8) {
  return p->matrix[0] + n * (int8 ? p->width + SCALE : 2 * p->width);
}
static inline const char *block_of_b(const Product *p, int side, int64_t n, int int8) {
  return p->matrix[side] + n / 8 * 8 * (int8 ? p->rank + SCALE : 2 * p->rank);
}

/* The columns of h in row m that output n reads. */
static inline const float *row_of_h(const Product *p, int side, int64_t m, int64_t n) {
  const int64_t segments = p->kernel->segments, *ends = p->kernel->ends[side];
  int64_t segment = 0;
  while (segment < segments - 1 && n >= ends[segment]) segment++;
  return (const float *)p->in + number_of(p, m) * p->stride + segment * p->rank;
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LORA_AVX2
#include "lora_avx2.h"
#endif

static float widened(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 0) return (sign ? -1.f : 1.f) * fraction * 0x1p-24f;
  const union { uint32_t bits; float number; } wide = {
      sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13};
  return wide.number;
}

static uint16_t narrowed(float number) { /* to nearest, ties to even */
  union { float number; uint32_t bits; } wide = {number};
  const uint16_t sign = wide.bits >> 16 & 0x8000;
  wide.bits &= 0x7fffffff;
  if (wide.bits >= 0x477ff000) return sign | (wide.bits > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (wide.bits < 0x38800000) { /* too small for a leading one: adding 0.5 lines the fraction up and rounds it */
    wide.number += 0.5f;
    return sign | (uint16_t)(wide.bits - 0x3f000000);
  }
  return sign | (uint16_t)((wide.bits - 0x38000000 + 0xfff + (wide.bits >> 13 & 1)) >> 13);
}

enum { FLOATS, HALVES, BYTES };

static inline float at(const void *numbers, int64_t i, int type) {
  return type == HALVES ? widened(((const uint16_t *)numbers)[i])
         : type == BYTES ? ((const int8_t *)numbers)[i] : ((const float *)numbers)[i];
}

static inline float dot(const void *x, int64_t begin, int x_type, const char *matrix, int64_t first, int64_t step,
                        int type, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; i++) sum += at(x, begin + i, x_type) * at(matrix, first + i * step, type);
  return sum;
}

/* Ranks, or outputs, begin to end of one row. */
static void plain_row(const Product *p, int kind, int half, int int8, int64_t m, int64_t begin, int64_t end) {
  const int type = int8 ? BYTES : HALVES;
  const int64_t row = number_of(p, m);
  for (int64_t n = begin; n < end; n++) {
    if (kind == DOWN) {
      const char *a = row_of_a(p, n, int8);
      const float sum = dot(p->in, row * p->width, half, a + (int8 ? SCALE : 0), 0, 1, type, p->width);
      ((float *)p->out)[row * p->stride + n] = int8 ? sum * *(const float *)a : sum;
      continue;
    }
    const int64_t i = row * p->width + n, lane = n % 8;
    float sum[2] = {0};
    for (int side = 0; side < kind; side++) {
      const char *b = block_of_b(p, side, n, int8);
      sum[side] = dot(row_of_h(p, side, m, n), 0, FLOATS, b + (int8 ? 8 * SCALE : 0), half ? lane * p->rank : lane,
                      half ? 1 : 8, type, p->rank);
      sum[side] = at(p->base[side], i, half) + (int8 ? sum[side] * ((const float *)b)[lane] : sum[side]);
    }
    const float y = kind == GATED ? sum[0] / (1 + expf(-sum[0])) * sum[1] : sum[0];
    if (half) ((uint16_t *)p->out)[i] = narrowed(y);
    else ((float *)p->out)[i] = y;
  }
}

/* A product's share of a work: of `count` ranks or outputs `chunk` at a time, in `chunks`; parts of it end before `end`. */
typedef struct { Product product; int int8; int64_t count, chunk, chunks, end; } Share;
typedef struct { const Op *op; Share *shares; } CpuWork;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void cpu_part(void *self, size_t part) {
  const CpuWork *work = self;
  const Share *share = work->shares;
  int64_t own = (int64_t)part;
  for (; (int64_t)part >= share->end; share++) own = (int64_t)part - share->end;
  const Product *p = &share->product;
  const int64_t begin = own % share->chunks * share->chunk, end = least(begin + share->chunk, share->count);
  const int64_t first = own / share->chunks * PART_ROWS, last = least(first + PART_ROWS, p->rows);
#ifdef LORA_AVX2
  if (!work->op->half) {
    float_part(p, work->op->kind, share->int8, first, last, begin, end);
    return;
  }
#endif
  for (int64_t m = first; m < last; m++) plain_row(p, work->op->kind, work->op->half, share->int8, m, begin, end);
}

/* Several products, all of which the threads do at once. */
static Status cpu_products(Share *shares, int64_t count, const Op *op, Handle context) {
  CpuWork work = {op, shares};
  int64_t parts = 0;
  for (int64_t i = 0; i < count; i++) {
    Share *share = &shares[i];
    const Product *p = &share->product;
    share->int8 = op->int8 && p->rank; /* no rank: no scales to read */
    share->count = op->kind == DOWN ? p->rank : p->width;
    share->chunk = (PART / (op->kind == DOWN ? p->width : p->rank + 1) + 8) / 8 * 8;
    share->chunks = (share->count + share->chunk - 1) / share->chunk;
    share->end = parts += share->chunks * ((p->rows + PART_ROWS - 1) / PART_ROWS);
  }
  return parts ? parallel(context, cpu_part, parts, &work) : NULL;
}

/* ---- a run ---- */

static Status place_ranks(Adapters *adapters) {
  for (size_t i = 0; i < adapters->count; i++) {
    const int64_t rank = adapters->ranks[i];
    if (rank < 16 || rank > MAX_RANK || rank % 16)
      return failure(INVALID_ARGUMENT, "ranks of adapters are multiples of 16, at most 1024");
    adapters->starts[i + 1] = adapters->starts[i] + rank;
  }
  return NULL;
}

/* This op's line of the input with ranks. */
static Status read_ranks(const Tensor *ranks, int64_t row, Adapters *adapters) {
  if (ranks->rank != 2 || row < 0 || row >= ranks->dims[0] || ranks->dims[1] > MAX_ADAPTERS)
    return failure(INVALID_ARGUMENT, "ranks are (ops, adapters), of at most 1024 adapters");
  adapters->count = (size_t)ranks->dims[1];
  memcpy(adapters->ranks, (const int64_t *)ranks->data + row * ranks->dims[1], adapters->count * sizeof(int64_t));
  adapters->starts[0] = 0;
  return place_ranks(adapters);
}

static Status largest_rank(const Adapters *adapters, const Tensor *ids, int64_t batch, int64_t *rank) {
  const int64_t count = ids->count;
  if (ids->rank != 1 || (count != 1 && count != batch))
    return failure(INVALID_ARGUMENT, "one adapter, or one for each row of the batch");
  *rank = 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t id = ((const int64_t *)ids->data)[i];
    if (id < 0 || id > (int64_t)adapters->count) return failure(INVALID_ARGUMENT, "no adapter of this number");
    if (id && adapters->ranks[id - 1] > *rank) *rank = adapters->ranks[id - 1];
  }
  return NULL;
}

/* Numbers of a matrix with all adapters; the scales count in bytes, as the matrix does then. */
static int64_t matrix_size(const Op *op, const Adapters *adapters, int64_t width) {
  const int64_t total = adapters->starts[adapters->count];
  return total * width + (op->int8 ? SCALE * (op->kind == DOWN ? total : width * (int64_t)adapters->count) : 0);
}

static int aligned(const Tensor *tensor, const Op *op, size_t size) {
  return (uintptr_t)tensor->data % (op->cuda ? 16 : size) == 0;
}

/* All that the kernels believe of x, A and of each base and B. */
static Status check(const Op *op, const Adapters *adapters, const Tensor *wide, const Tensor *matrix, int sides) {
  if (wide[0].rank != 3) return failure(INVALID_ARGUMENT, "(batch, tokens, numbers) wanted");
  const int64_t *dims = wide[0].dims, width = dims[2];
  if (width < 1 || width > MAX_WIDTH || width % (op->kind == DOWN ? 32 : 8) || dims[0] * dims[1] > MAX_ROWS)
    return failure(INVALID_ARGUMENT, "a size that the kernels of adapters cannot take");
  for (int i = 0; i < sides; i++) {
    if (wide[i].rank != 3 || memcmp(wide[i].dims, dims, 3 * sizeof *dims))
      return failure(INVALID_ARGUMENT, "bases of different sizes");
    if (matrix[i].count != matrix_size(op, adapters, width))
      return failure(INVALID_ARGUMENT, "a matrix of another size than that of all adapters' ranks");
    if (!aligned(&wide[i], op, op->half ? 2 : 4) || !aligned(&matrix[i], op, op->int8 ? 4 : 2))
      return failure(INVALID_ARGUMENT, "numbers at a place that cannot be read");
  }
  return NULL;
}

/* The product with the matrices of one adapter. */
static Product of_adapter(const Product *all, int64_t id) {
  const Op *op = all->kernel->op;
  const int64_t start = id ? all->adapters->starts[id - 1] : 0;
  Product p = *all;
  p.rank = id ? all->adapters->ranks[id - 1] : 0;
  for (int i = 0; i < (op->kind == GATED ? 2 : 1); i++) {
    p.matrix[i] += start * p.width * (op->int8 ? 1 : 2);
    if (op->int8 && id) p.matrix[i] += SCALE * (op->kind == DOWN ? start : (id - 1) * p.width);
  }
  return p;
}

/* Rows with the same adapter are brought together, so that each number of a matrix is read once for all of them, after
 * SGMV of Punica (arXiv:2310.18547). ids: of all rows, or of each `all->rows` of them.
 */
static Status on_cpu(const Product *all, const int64_t *ids, int64_t groups, Handle context) {
  const Op *op = all->kernel->op;
  int64_t ends[MAX_ADAPTERS + 1] = {0}, shares = 0, placed = 0;
  if (groups == 1) {
    Share one = {.product = of_adapter(all, ids[0])};
    return cpu_products(&one, 1, op, context);
  }
  const size_t adapters = all->adapters->count + 1;
  Share *found = malloc(adapters * sizeof *found + (size_t)(groups * all->rows) * sizeof(int64_t));
  if (!found) return failure(RUNTIME_EXCEPTION, "not enough memory");
  int64_t *numbers = (int64_t *)(found + adapters);
  for (int64_t g = 0; g < groups; g++) ends[ids[g]] += all->rows;
  for (size_t id = 0; id < adapters; id++) {
    if (ends[id] && (id || op->kind != DOWN)) {
      Product *p = &found[shares++].product;
      *p = of_adapter(all, (int64_t)id);
      p->rows = ends[id];
      p->numbers = numbers + placed;
    }
    placed += ends[id];
    ends[id] = placed - ends[id]; /* where its rows begin, then where the next one goes */
  }
  for (int64_t g = 0; g < groups; g++)
    for (int64_t m = 0; m < all->rows; m++) numbers[ends[ids[g]]++] = g * all->rows + m;
  Status status = cpu_products(found, shares, op, context);
  free(found);
  return status;
}

static Status compute(void *self, Handle context) {
  const Kernel *kernel = self;
  const Op *op = kernel->op;
  const int kind = op->kind, cuda = op->cuda, half = op->half;
  const int64_t number = half ? 2 : 4, in_size = kind == DOWN ? number : 4, out_size = kind == DOWN ? 4 : number;
  Tensor ids, in, base[2], matrix[2], out, ranks = {0};
  Adapters given;
  const Adapters *adapters = &kernel->own;
#define INPUT(index, tensor) TRY(input(context, index, op->input_type(op, index), tensor))
  void *stream = NULL;
  int64_t widest = 0;
  INPUT(0, &ids);
  INPUT(1, &in);
  if (kind == DOWN) INPUT(2, &matrix[0]);
  for (int i = 0; i < kind; i++) {
    INPUT(2 + i * 2, &base[i]);
    INPUT(3 + i * 2, &matrix[i]);
  }
#undef INPUT
  TRY(optional_input(context, op->input_count(op) - 1, INT64, &ranks));
  if (ranks.data) {
    TRY(read_ranks(&ranks, kernel->row, &given));
    adapters = &given;
  }
  TRY(check(op, adapters, kind == DOWN ? &in : base, matrix, kind == GATED ? 2 : 1));
  if (cuda) TRY(ORT(GPU_STREAM, Handle, void **)(context, &stream));
  out = kind == DOWN ? in : base[0];
  const int64_t batch = out.dims[0], tokens = out.dims[1], width = out.dims[2], groups = ids.count;
  TRY(largest_rank(adapters, &ids, batch, &widest));
  const int64_t rows = groups == 1 ? batch * tokens : tokens, parts = cuda ? parts_of(rows) : 1;
  if (kind == DOWN) out.dims[2] = widest * parts;
  else if (in.rank != 3 || in.dims[0] != batch || in.dims[1] != tokens ||
           in.dims[2] != widest * parts * (int64_t)kernel->segments || !aligned(&in, op, 4))
    return failure(INVALID_ARGUMENT, "h is not what LoraDown makes with these adapters");
  TRY(output(context, &out));
  Product all = {.in = in.data, .base = {base[0].data, base[1].data}, .matrix = {matrix[0].data, matrix[1].data},
                       .out = out.data, .rows = rows, .width = width, .parts = parts, .kernel = kernel, .adapters = adapters,
                       .stride = kind == DOWN ? out.dims[2] : in.dims[2]};
  if (!cuda) return on_cpu(&all, ids.data, groups, context);
  if (groups > 1 && tokens == 1 && groups <= MOST_EACH) return cuda_each(&all, kind, ids.data, groups, stream);
  for (int64_t g = 0; g < groups && rows; g++) {
    Product p = of_adapter(&all, ((const int64_t *)ids.data)[g]);
    const int64_t at = g * rows;
    p.in = (const char *)p.in + at * in.dims[2] * in_size;
    p.out = (char *)p.out + at * out.dims[2] * out_size;
    for (int i = 0; i < kind; i++) p.base[i] = (const char *)p.base[i] + at * width * number;
    if (kind != DOWN || p.rank) TRY(cuda_product(&p, kind, stream));
  }
  return NULL;
}

/* ---- what onnxruntime asks ---- */

static Status read_ends(Kernel *kernel, Handle info) {
  for (int side = 0; side < kernel->op->kind; side++) {
    size_t count = MAX_SEGMENTS;
    optional_ints(info, side ? "ends2" : "ends", kernel->ends[side], &count);
    for (size_t i = 0; i < count; i++)
      if (kernel->ends[side][i] % 8) return failure(INVALID_ARGUMENT, "outputs with h of their own end at multiples of 8");
    if (side && kernel->segments != (count ? count : 1))
      return failure(INVALID_ARGUMENT, "ends and ends2 are as many");
    kernel->segments = count ? count : 1;
  }
  return kernel->op->cuda && kernel->segments > 1 ? failure(INVALID_ARGUMENT, "outputs with h of their own, on CUDA")
                                                  : NULL;
}

static Status create(const Op *op, const void *api, Handle info, void **made) {
  size_t count = 0;
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)api;
  if (!kernel) return failure(RUNTIME_EXCEPTION, "not enough memory");
  kernel->op = op;
  kernel->segments = 1;
  Status status = ints(info, "ranks", NULL, &count);
  if (!status && count > MAX_ADAPTERS) status = failure(INVALID_ARGUMENT, "too many adapters");
  if (!status) status = ints(info, "ranks", kernel->own.ranks, &count);
  kernel->own.count = count;
  if (!status) status = place_ranks(&kernel->own);
  optional_integer(info, "row", &kernel->row);
  if (!status) status = read_ends(kernel, info);
  if (status) free(kernel);
  else *made = kernel;
  return status;
}

static const char *name(const Op *op) {
  static const char *const names[] = {"LoraDown", "LoraUp", "LoraGatedUp"};
  return names[op->kind];
}
static const char *provider(const Op *op) { return op->cuda ? "CUDAExecutionProvider" : NULL; }
static int number(const Op *op) { return op->half ? FLOAT16 : FLOAT; }
static int input_type(const Op *op, size_t i) {
  if (i == 0) return INT64;
  if (i == 1) return op->kind == DOWN ? number(op) : FLOAT;
  if (i == op->input_count(op) - 1) return INT64;
  return op->kind != DOWN && i % 2 == 0 ? number(op) : op->int8 ? UINT8 : FLOAT16; /* base, matrix */
}
static int output_type(const Op *op, size_t i) { return (void)i, op->kind == DOWN ? FLOAT : number(op); }
static size_t input_count(const Op *op) { return op->kind == DOWN ? 4 : 3 + 2 * op->kind; }
static size_t output_count(const Op *op) { return (void)op, 1; }
static int input_kind(const Op *op, size_t i) { return i == op->input_count(op) - 1 ? OPTIONAL : REQUIRED; }
static int input_memory(const Op *op, size_t i) { return i == 0 || i == op->input_count(op) - 1 ? CPU_INPUT : 0; }

#define OP(kind, on_cuda, half, int8) {16, NULL, name, provider, input_type, input_count, output_type, output_count, \
                                       NULL, free, input_kind, required, input_memory, {none, none, none, none}, create, \
                                       compute, NULL, kind, on_cuda, half, int8}
#define OPS(on_cuda, half, int8) OP(DOWN, on_cuda, half, int8), OP(UP, on_cuda, half, int8), \
                                 OP(GATED, on_cuda, half, int8)
static const Op with_gpu[] = {OPS(0, 0, 0), OPS(0, 0, 1), OPS(1, 1, 0)};
static const Op without[] = {OPS(0, 0, 0), OPS(0, 0, 1), OPS(0, 1, 0)};

Status register_lora(Handle options) {
  static Handle domain;
  return add_ops(options, "phicli", &domain, lora_cubin_size ? with_gpu : without, 9);
}
