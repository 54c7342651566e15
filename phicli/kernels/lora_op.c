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
#include "lora_cpu.h"
#include "lora_cuda.h"

/* ---- a run ---- */

static Status on_cpu(const Product *all, const int64_t *ids, int64_t groups, Handle context) {
  const size_t most = groups == 1 ? 1 : all->adapters->count + 1;
  CpuWork work = {all->kernel->op, malloc(most * sizeof(Share) + (size_t)(groups * all->rows) * sizeof(int64_t))};
  if (!work.shares) return failure(RUNTIME_EXCEPTION, "not enough memory");
  const int64_t count = shares_of(all, ids, groups, work.shares, (int64_t *)(work.shares + most));
  const int64_t parts = shared_parts(work.shares, count, work.op);
  Status status = parts ? parallel(context, cpu_part, parts, &work) : NULL;
  free(work.shares);
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
  TRY(output(context, 0, &out));
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
    if (p.rank || (kind != DOWN && !is_there(&p, kind))) TRY(cuda_product(&p, kind, stream));
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

/* LoraUp and LoraGatedUp may write over their first base. */
static size_t may_inplace(int **inputs, int **outputs) {
  static int of_base = 2, of_y = 0;
  *inputs = &of_base, *outputs = &of_y;
  return 1;
}
static void keep(int *inputs, int *outputs) { (void)inputs, (void)outputs; }

#define IN_PLACE(kind, on_cuda) {NULL, NULL, on_cuda && kind != DOWN ? may_inplace : NULL, keep, NULL, NULL}
#define OP(kind, on_cuda, half, int8) {18, NULL, name, provider, input_type, input_count, output_type, output_count, \
                                       NULL, free, input_kind, required, input_memory, {none, none, none, none}, create, \
                                       compute, NULL, IN_PLACE(kind, on_cuda), kind, on_cuda, half, int8}
#define OPS(on_cuda, half, int8) OP(DOWN, on_cuda, half, int8), OP(UP, on_cuda, half, int8), \
                                 OP(GATED, on_cuda, half, int8)
static const Op with_gpu[] = {OPS(0, 0, 0), OPS(0, 0, 1), OPS(1, 1, 0)};
static const Op without[] = {OPS(0, 0, 0), OPS(0, 0, 1), OPS(0, 1, 0)};

Status register_lora(Handle options) {
  static Handle domain;
  return add_ops(options, "phicli", &domain, lora_cubin_size ? with_gpu : without, 9);
}
