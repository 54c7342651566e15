/* Three ops for onnxruntime, in fp16 on CUDA, in fp16 and fp32 on a CPU:
 *     LoraDown     h = x A
 *     LoraUp       y = base + h B
 *     LoraGatedUp  y = silu(gate + h B) * (up + h B')
 *
 * Inputs   adapters, int64 (1,) or (batch,), in CPU memory: 0 is none, 1 the first
 *          then for LoraDown x (batch, tokens, inputs), A; for LoraUp h, base (batch, tokens, outputs), B;
 *          for LoraGatedUp h, gate, B, up, B'
 * Attribute ranks: of each adapter, multiples of 16. A is (sum of ranks, inputs). B has as many numbers as
 *          (sum of ranks, outputs), but each adapter's part is (outputs, rank).
 * h is float, (batch, tokens, parts * rank), with the largest rank of the batch.
 */
#include <math.h>
#include <stdlib.h>

#include "ort_api.h"

#define MAX_ADAPTERS 1024
#define PART 16384 /* products that a thread of a CPU takes at a time */

enum { DOWN, UP, GATED };

typedef struct { const Op *op; size_t adapters; int64_t ranks[MAX_ADAPTERS], starts[MAX_ADAPTERS + 1]; } Kernel;

/* Rows that have the same adapter. width: of x for DOWN, else of the output. */
typedef struct { const void *in, *base[2], *matrix[2]; void *out; int64_t rows, width, rank, parts; } Product;

#include "lora_cuda.h"

#if defined(__AVX2__) && defined(__FMA__)
#define LORA_AVX2
#include "lora_avx2.h"
#endif

/* ---- on a CPU; without AVX2 and for halves to be right rather than fast ---- */

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

static inline float at(const void *numbers, int64_t i, int half) {
  return half ? widened(((const uint16_t *)numbers)[i]) : ((const float *)numbers)[i];
}

static inline float dot(const void *a, int64_t a_at, int a_half, const void *b, int64_t b_at, int b_half,
                        int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; i++) sum += at(a, a_at + i, a_half) * at(b, b_at + i, b_half);
  return sum;
}

/* Ranks, or outputs, begin to end of one row. */
static void plain_row(const Product *p, int kind, int half, int64_t m, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n++) {
    if (kind == DOWN) {
      ((float *)p->out)[m * p->rank + n] = dot(p->in, m * p->width, half, p->matrix[0], n * p->width, half, p->width);
      continue;
    }
    const int64_t i = m * p->width + n;
    float sum[2] = {0};
    for (int side = 0; side < kind; side++)
      sum[side] = at(p->base[side], i, half) +
                  dot(p->in, m * p->rank, 0, p->matrix[side], n * p->rank, half, p->rank);
    const float y = kind == GATED ? sum[0] / (1 + expf(-sum[0])) * sum[1] : sum[0];
    if (half) ((uint16_t *)p->out)[i] = narrowed(y);
    else ((float *)p->out)[i] = y;
  }
}

typedef struct { const Product *product; int kind, half; int64_t count, chunk; } CpuWork; /* of ranks, or of outputs */

static void cpu_part(void *self, size_t part) {
  const CpuWork *work = self;
  const Product *p = work->product;
  const int64_t begin = part * work->chunk;
  const int64_t end = begin + work->chunk < work->count ? begin + work->chunk : work->count;
#ifdef LORA_AVX2
  if (!work->half) {
    if (work->kind == DOWN) float_down(p, begin, end);
    else float_up(p, begin, end, work->kind == GATED);
    return;
  }
#endif
  for (int64_t m = 0; m < p->rows; m++) plain_row(p, work->kind, work->half, m, begin, end);
}

static Status cpu_product(const Product *p, int kind, int half, Handle context) {
  const int64_t each = (kind == DOWN ? p->width : p->rank + 1) * p->rows;
  CpuWork work = {p, kind, half, kind == DOWN ? p->rank : p->width, (PART / each + 8) / 8 * 8};
  return parallel(context, cpu_part, (work.count + work.chunk - 1) / work.chunk, &work);
}

/* ---- a run ---- */

static Status largest_rank(const Kernel *kernel, const Tensor *ids, int64_t batch, int64_t *rank) {
  const int64_t count = ids->rank == 1 ? ids->dims[0] : 0;
  if (count != 1 && count != batch) return failure(INVALID_ARGUMENT, "one adapter, or one for each row of the batch");
  *rank = 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t id = ((const int64_t *)ids->data)[i];
    if (id < 0 || id > (int64_t)kernel->adapters) return failure(INVALID_ARGUMENT, "no adapter of this number");
    if (id && kernel->ranks[id - 1] > *rank) *rank = kernel->ranks[id - 1];
  }
  return NULL;
}

static Status compute(void *self, Handle context) {
  const Kernel *kernel = self;
  const int kind = kernel->op->kind, cuda = kernel->op->cuda, half = kernel->op->half;
  const int64_t number = half ? 2 : 4, in_size = kind == DOWN ? number : 4, out_size = kind == DOWN ? 4 : number;
  Tensor ids, in, base[2], matrix[2], out;
  void *stream = NULL;
  int64_t widest = 0;
  TRY(input(context, 0, &ids));
  TRY(input(context, 1, &in));
  if (kind == DOWN) TRY(input(context, 2, &matrix[0]));
  for (int i = 0; i < kind; i++) {
    TRY(input(context, 2 + i * 2, &base[i]));
    TRY(input(context, 3 + i * 2, &matrix[i]));
  }
  if (cuda) TRY(ORT(GPU_STREAM, Handle, void **)(context, &stream));
  out = kind == DOWN ? in : base[0];
  if (out.rank != 3) return failure(INVALID_ARGUMENT, "(batch, tokens, numbers) wanted");
  const int64_t batch = out.dims[0], tokens = out.dims[1], width = out.dims[2], groups = ids.dims[0];
  TRY(largest_rank(kernel, &ids, batch, &widest));
  const int64_t rows = groups == 1 ? batch * tokens : tokens, parts = cuda ? parts_of(rows) : 1;
  if (kind == DOWN) out.dims[2] = widest * parts;
  TRY(output(context, &out));
  for (int64_t g = 0; g < groups && rows; g++) {
    const int64_t id = ((const int64_t *)ids.data)[g], at = g * rows, start = id ? kernel->starts[id - 1] : 0;
    Product p = {.in = (char *)in.data + at * in.dims[2] * in_size,
                 .out = (char *)out.data + at * out.dims[2] * out_size,
                 .rows = rows, .width = width, .rank = id ? kernel->ranks[id - 1] : 0, .parts = parts};
    for (int i = 0; i < (kind == GATED ? 2 : 1); i++) {
      p.matrix[i] = (char *)matrix[i].data + start * width * number;
      if (kind != DOWN) p.base[i] = (char *)base[i].data + at * width * number;
    }
    if (kind == DOWN && !p.rank) continue;
    if (cuda) TRY(cuda_product(&p, kind, stream));
    else TRY(cpu_product(&p, kind, half, context));
  }
  return NULL;
}

/* ---- what onnxruntime asks ---- */

static Status create(const Op *op, const void *api, Handle info, void **made) {
  size_t count = 0;
  int64_t total = 0;
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)api;
  if (!kernel) return failure(RUNTIME_EXCEPTION, "not enough memory");
  kernel->op = op;
  Status status = ints(info, "ranks", NULL, &count);
  if (!status && count > MAX_ADAPTERS) status = failure(INVALID_ARGUMENT, "too many adapters");
  if (!status) status = ints(info, "ranks", kernel->ranks, &count);
  if (status) {
    free(kernel);
    return status;
  }
  kernel->adapters = count;
  for (size_t i = 0; i < count; i++) kernel->starts[i] = total, total += kernel->ranks[i];
  *made = kernel;
  return NULL;
}

static const char *name(const Op *op) {
  static const char *const names[] = {"LoraDown", "LoraUp", "LoraGatedUp"};
  return names[op->kind];
}
static const char *provider(const Op *op) { return op->cuda ? "CUDAExecutionProvider" : NULL; }
static int number(const Op *op) { return op->half ? FLOAT16 : FLOAT; }
static int input_type(const Op *op, size_t i) {
  return i == 0 ? INT64 : op->kind != DOWN && i == 1 ? FLOAT : number(op);
}
static int output_type(const Op *op, size_t i) { return (void)i, op->kind == DOWN ? FLOAT : number(op); }
static size_t input_count(const Op *op) { return op->kind == DOWN ? 3 : 2 + 2 * op->kind; }
static size_t output_count(const Op *op) { return (void)op, 1; }
static int input_memory(const Op *op, size_t i) { return (void)op, i == 0 ? CPU_INPUT : 0; }

#define OP(kind, on_cuda, half) {16, NULL, name, provider, input_type, input_count, output_type, output_count, NULL, \
                                 free, required, required, input_memory, {none, none, none, none}, create, compute, \
                                 NULL, kind, on_cuda, half}
#define OPS(on_cuda, half) OP(DOWN, on_cuda, half), OP(UP, on_cuda, half), OP(GATED, on_cuda, half)
static const Op with_gpu[] = {OPS(0, 0), OPS(1, 1)}, without[] = {OPS(0, 0), OPS(0, 1)};

Status register_lora(Handle options) {
  static Handle domain;
  return add_ops(options, "phicli", &domain, lora_cubin_size ? with_gpu : without, 6);
}
