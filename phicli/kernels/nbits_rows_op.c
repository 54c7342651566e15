/* MatMulNBitsRows, on CUDA: what MatMulNBits computes of 4- and 8-bit weights in fp16, fast for 2 to 64 rows.
 *
 * Inputs   x, weights, scales, zero points or none: as MatMulNBits has them
 * Outputs  y, and memory: for sums float (parts, rows, N), or none of it where a product has one part; for W in fp16
 *          (N, K), or none of it
 * Attributes N, K, bits, block_size of MatMulNBits; parts (of K), 0: chosen here
 *
 * K is a multiple of 32, N of 8. For more rows than FEW all of W is widened, and multiplied by cuBLAS.
 */
#include <stdio.h>
#include <stdlib.h>

#include "gpu.h"

enum { THREADS = 512, SUM_THREADS = 256, STEP = 128, OUTPUTS = 256 }; /* as in nbits_weights.cu; outputs of a block */
#define FEW 64
#define MAX_ROWS (1 << 21)
#define SUM_KERNEL (LORA_KERNELS + NBITS_KERNELS - 1)

typedef struct { int64_t outputs, inputs, block, bits, parts; Handle many; } Kernel; /* many: FusedMatMul, or NULL */
typedef struct { /* in nbits_weights.cu: Matrices */
  const void *x, *weights, *scales, *zeros;
  void *y, *sums;
  int rows, outputs, inputs, group_bits, steps;
} Matrices;
typedef struct { int64_t n, shared, grid[3], steps; } Plan;

/* As many blocks as the GPU has multiprocessors, where there is work for them: the more parts, the more sums there are
   to add. A part's x has to lie in shared memory. A block asks for half of it at least: two on one multiprocessor leave
   another without work, when the next product's begin early. */
static Status plan_for(const Kernel *kernel, int64_t rows, Plan *plan) {
  Gpu gpu;
  TRY(gpu_here(&gpu));
  const int64_t n = rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : 8, steps = ceil_div(kernel->inputs, STEP);
  const int64_t x_of_step = 8 * (n * 256 + 16), tiles = ceil_div(kernel->outputs, OUTPUTS), batches = ceil_div(rows, 8 * n);
  int64_t parts = kernel->parts ? kernel->parts : gpu.multiprocessors / (tiles * batches);
  const int64_t most = kernel->parts ? steps : ceil_div(steps, 3), least = ceil_div(steps, gpu.block_shared / x_of_step);
  if (parts > most) parts = most;
  if (parts < least) parts = least;
  const int64_t of_part = ceil_div(steps, parts), shared = of_part * x_of_step, alone = gpu.block_shared / 2 + 1;
  *plan = (Plan){n, shared < alone ? alone : shared, {tiles, ceil_div(steps, of_part), batches}, of_part};
  return NULL;
}

static Status launch(const Kernel *kernel, int number, const char *what, const Plan *plan, Matrices *of, void *stream) {
  char name[32];
  void *arguments[] = {of};
  snprintf(name, sizeof name, "nbits_%d_%s", (int)kernel->bits, what);
  return gpu_launch(LORA_KERNELS + (kernel->bits == 8) * 5 + number, name, plan->grid, THREADS, (unsigned)plan->shared,
                    arguments, stream);
}

static Status multiply(const Kernel *kernel, const Plan *plan, Matrices *of, void *stream) {
  const char what[] = {(char)('0' + plan->n), 0};
  TRY(launch(kernel, __builtin_ctzll(plan->n), what, plan, of, stream));
  if (plan->grid[1] == 1) return NULL;
  int count = of->rows * of->outputs / 4, parts = (int)plan->grid[1];
  const int64_t grid[3] = {ceil_div(count, SUM_THREADS), 1, 1};
  void *of_sum[] = {&of->sums, &of->y, &count, &parts};
  return gpu_launch(SUM_KERNEL, "nbits_sum", grid, SUM_THREADS, 0, of_sum, stream);
}

/* x times what lies in the third output. */
static Status multiply_many(const Kernel *kernel, Handle context, const Tensor *out, const Tensor *wide) {
  Handle in[2], y;
  TRY(ORT(GET_INPUT, Handle, size_t, Handle *)(context, 0, &in[0]));
  TRY(ORT(GET_OUTPUT, Handle, size_t, const int64_t *, size_t, Handle *)(context, 2, wide->dims, wide->rank, &in[1]));
  TRY(ORT(GET_OUTPUT, Handle, size_t, const int64_t *, size_t, Handle *)(context, 0, out->dims, out->rank, &y));
  return ORT(INVOKE_OP, Handle, Handle, Handle const *, int, Handle const *, int)(context, kernel->many, in, 2, &y, 1);
}

static Status compute(void *self, Handle context) {
  const Kernel *kernel = self;
  Tensor in, weights, scales, zeros = {0}, out, sums = {.dims = {0}, .rank = 1}, wide = sums;
  void *stream = NULL;
  TRY(input(context, 0, FLOAT16, &in));
  TRY(input(context, 1, UINT8, &weights));
  TRY(input(context, 2, FLOAT16, &scales));
  TRY(optional_input(context, 3, UINT8, &zeros));
  const int64_t groups = kernel->inputs / kernel->block, rows = in.count / kernel->inputs;
  if (!in.rank || in.dims[in.rank - 1] != kernel->inputs)
    return failure(INVALID_ARGUMENT, "MatMulNBitsRows: the last dimension is not K");
  if (weights.count != kernel->outputs * kernel->inputs * kernel->bits / 8 || scales.count != kernel->outputs * groups ||
      (zeros.data && zeros.count != kernel->outputs * ceil_div(groups * kernel->bits, 8)))
    return failure(INVALID_ARGUMENT, "MatMulNBitsRows: weights, scales or zero points of another size than N, K, bits "
                                     "and block_size say");
  if (((uintptr_t)in.data | (uintptr_t)weights.data | (uintptr_t)scales.data | (uintptr_t)zeros.data) % 16)
    return failure(INVALID_ARGUMENT, "MatMulNBitsRows: numbers at a place that cannot be read");
  if (rows > MAX_ROWS || rows * kernel->outputs > INT32_MAX || rows * kernel->inputs > INT32_MAX)
    return failure(INVALID_ARGUMENT, "MatMulNBitsRows: more rows than it can take at once");
  out = in;
  out.dims[out.rank - 1] = kernel->outputs;
  TRY(output(context, 0, &out));
  Plan plan = {0};
  const int many = rows > FEW && kernel->many;
  if (rows && !many) TRY(plan_for(kernel, rows, &plan));
  if (plan.grid[1] > 1) sums = (Tensor){.dims = {plan.grid[1], rows, kernel->outputs}, .rank = 3};
  if (many) wide = (Tensor){.dims = {kernel->outputs, kernel->inputs}, .rank = 2};
  TRY(output(context, 1, &sums));
  TRY(output(context, 2, &wide));
  if (!rows) return NULL;
  TRY(ORT(GPU_STREAM, Handle, void **)(context, &stream));
  Matrices of = {in.data, weights.data, scales.data, zeros.data, out.data, sums.data, (int)rows, (int)kernel->outputs,
                 (int)kernel->inputs, __builtin_ctzll(kernel->block), (int)plan.steps};
  if (!many) return multiply(kernel, &plan, &of, stream);
  plan = (Plan){.grid = {ceil_div(kernel->outputs * kernel->inputs / 8, THREADS), 1, 1}};
  of.y = wide.data;
  TRY(launch(kernel, 4, "widen", &plan, &of, stream));
  return multiply_many(kernel, context, &out, &wide);
}

/* ---- what onnxruntime asks ---- */

/* y = x W with W transposed, as cuBLAS multiplies it; without it our kernel takes any number of rows. */
static void create_many(Handle info, Kernel *kernel) {
  static const int64_t yes = 1;
  static const char *const type = "T";
  static const int half = FLOAT16;
  Handle transposed = NULL;
  Status status = ORT(CREATE_OP_ATTRIBUTE, const char *, const void *, int, int, Handle *)(
      "transB", &yes, sizeof yes, OP_INT, &transposed);
  if (!status)
    status = ORT(CREATE_OP, Handle, const char *, const char *, int, const char *const *, const int *, int, Handle const *,
                 int, int, int, Handle *)(info, "FusedMatMul", "com.microsoft", 1, &type, &half, 1, &transposed, 1, 2, 1,
                                          &kernel->many);
  if (transposed) ((void (*)(Handle))ort[RELEASE_OP_ATTRIBUTE])(transposed);
  if (status) ((void (*)(Status))ort[RELEASE_STATUS])(status);
}

static void destroy(void *self) {
  Kernel *kernel = self;
  if (kernel->many) ((void (*)(Handle))ort[RELEASE_OP])(kernel->many);
  free(kernel);
}

static Status create(const Op *op, const void *api, Handle info, void **made) {
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)op, (void)api;
  if (!kernel) return failure(RUNTIME_EXCEPTION, "not enough memory");
  Status status = integer(info, "N", &kernel->outputs);
  if (!status) status = integer(info, "K", &kernel->inputs);
  if (!status) status = integer(info, "bits", &kernel->bits);
  if (!status) status = integer(info, "block_size", &kernel->block);
  optional_integer(info, "parts", &kernel->parts);
  const int64_t n = kernel->outputs, k = kernel->inputs, block = kernel->block;
  if (!status && (n < 8 || n % 8 || n > 1 << 24 || (block != 32 && block != 64 && block != 128) || k < block ||
                  k % block || k > 1 << 24 || (kernel->bits != 4 && kernel->bits != 8) ||
                  kernel->parts < 0 || n * (k / block) > INT32_MAX / 2))
    status = failure(INVALID_ARGUMENT, "MatMulNBitsRows: no product for these sizes");
  if (status) return free(kernel), status;
  create_many(info, kernel);
  *made = kernel;
  return status;
}

static const char *name(const Op *op) { return (void)op, "MatMulNBitsRows"; }
static const char *provider(const Op *op) { return (void)op, "CUDAExecutionProvider"; }
static int input_type(const Op *op, size_t i) { return (void)op, i % 2 ? UINT8 : FLOAT16; }
static int output_type(const Op *op, size_t i) { return (void)op, i == 1 ? FLOAT : FLOAT16; }
static size_t input_count(const Op *op) { return (void)op, 4; }
static size_t output_count(const Op *op) { return (void)op, 3; }
static int input_kind(const Op *op, size_t i) { return (void)op, i < 3 ? REQUIRED : OPTIONAL; }
static int input_memory(const Op *op, size_t i) { return (void)op, (void)i, 0; }

static const Op rows_op = {16, NULL, name, provider, input_type, input_count, output_type, output_count, NULL, destroy,
                           input_kind, required, input_memory, {none, none, none, none}, create, compute, NULL, {0}, 0, 1, 1, 0};

Status register_nbits_rows(Handle options) {
  static Handle domain;
  return add_ops(options, "phicli.products", &domain, &rows_op, 1);
}
