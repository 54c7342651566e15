/* MatMulNBits (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md) in fp32 on a CPU, in place
 * of onnxruntime's own: activations are rounded to int8 (its accuracy level 4), weights are read where they are mapped.
 */
#include <stdlib.h>

#include "nbits_avx2.h"
#include "ort_api.h"

#define CHUNK 65536 /* bytes of weights that a thread takes at a time */

typedef void Product(const Matrix *, const Rounded *, int64_t lanes, int64_t rows, int64_t begin, int64_t end,
                     float *out);

typedef struct { int64_t outputs, inputs, block, bits; Product *product; } Kernel;

typedef struct { /* of one run; padded: rows, to a multiple of lanes; chunk: outputs */
  const Kernel *kernel;
  Matrix matrix;
  Rounded rounded;
  const float *in;
  float *out;
  int64_t rows, lanes, padded, chunk;
} Work;

#define PRODUCT(bits, block)                                                                                        \
  static void product_##bits##_##block(const Matrix *m, const Rounded *x, int64_t lanes, int64_t rows,             \
                                       int64_t begin, int64_t end, float *out) {                                   \
    if (lanes == 1) one_row(m, x, begin, end, out, block, bits);                                                    \
    else if (lanes == 4) many_rows(m, x, rows, begin, end, out, 4, block, bits);                                    \
    else many_rows(m, x, rows, begin, end, out, 8, block, bits);                                                    \
  }
PRODUCT(4, 32) PRODUCT(4, 64) PRODUCT(4, 128) PRODUCT(8, 16) PRODUCT(8, 32) PRODUCT(8, 64) PRODUCT(8, 128)

static Product *product_of(int64_t bits, int64_t block) {
  if (bits < 1 || bits > 8 || block < 1 || block > 128) return NULL;
  switch (bits * 1000 + block) {
    case 4032: return product_4_32;
    case 4064: return product_4_64;
    case 4128: return product_4_128;
    case 8016: return product_8_16;
    case 8032: return product_8_32;
    case 8064: return product_8_64;
    case 8128: return product_8_128;
    default: return NULL;
  }
}

/* ---- a run ---- */

static void round_row(void *self, size_t row) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t lanes = work->lanes, block = kernel->block;
  int64_t at = row / lanes * lanes * work->matrix.blocks + row % lanes;
  for (int64_t b = 0; b < work->matrix.blocks; b++, at += lanes)
    if ((int64_t)row < work->rows)
      round_block(work->in + row * kernel->inputs + b * block, block, kernel->bits, work->rounded.ints + at * block,
                  work->rounded.scales + at, work->rounded.sums + at);
    else work->rounded.scales[at] = work->rounded.sums[at] = 0;
}

static void multiply(void *self, size_t chunk) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t begin = chunk * work->chunk, lanes = work->lanes;
  const int64_t end = begin + work->chunk < kernel->outputs ? begin + work->chunk : kernel->outputs;
  for (int64_t row = 0; row < work->rows; row += lanes) {
    const int64_t at = row * work->matrix.blocks, left = work->rows - row;
    const Rounded x = {work->rounded.ints + at * kernel->block, work->rounded.scales + at, work->rounded.sums + at};
    kernel->product(&work->matrix, &x, lanes, left < lanes ? left : lanes, begin, end,
                    work->out + row * kernel->outputs);
  }
}

static Status compute(void *self, Handle context) {
  const Kernel *kernel = self;
  Tensor in, weights, scales, zeros = {0}, order = {0}, bias = {0}, out;
  TRY(input(context, 0, FLOAT, &in));
  TRY(input(context, 1, UINT8, &weights));
  TRY(input(context, 2, FLOAT, &scales));
  TRY(optional_input(context, 3, UINT8, &zeros));
  TRY(optional_input(context, 4, INT32, &order));
  TRY(optional_input(context, 5, FLOAT, &bias));
  if (!in.rank || in.dims[in.rank - 1] != kernel->inputs)
    return failure(INVALID_ARGUMENT, "MatMulNBits: the last dimension is not K");
  const int64_t blocks = kernel->inputs / kernel->block, bytes = kernel->inputs * kernel->bits / 8;
  if (order.data) return failure(INVALID_ARGUMENT, "MatMulNBits: an order of inputs (g_idx) is not for this op");
  if (weights.count != kernel->outputs * bytes || scales.count != kernel->outputs * blocks ||
      (zeros.data && zeros.count != kernel->outputs * ((blocks * kernel->bits + 7) / 8)) ||
      (bias.data && bias.count != kernel->outputs))
    return failure(INVALID_ARGUMENT, "MatMulNBits: weights, scales, zero points or bias of another size than N, K, bits "
                                     "and block_size say");
  out = in;
  out.dims[out.rank - 1] = kernel->outputs;
  TRY(output(context, &out));
  Work work = {.kernel = kernel, .in = in.data, .out = out.data, .rows = in.count / kernel->inputs};
  if (!work.rows) return NULL;
  work.matrix = (Matrix){weights.data, zeros.data, scales.data, bias.data, kernel->outputs, blocks};
  work.lanes = work.rows == 1 ? 1 : work.rows <= 4 ? 4 : 8;
  work.padded = (work.rows + work.lanes - 1) / work.lanes * work.lanes;
  work.chunk = (CHUNK + bytes - 1) / bytes;
  float *scratch = malloc(work.padded * (2 * blocks * sizeof(float) + kernel->inputs));
  if (!scratch) return failure(RUNTIME_EXCEPTION, "not enough memory");
  work.rounded = (Rounded){(int8_t *)(scratch + 2 * work.padded * blocks), scratch, scratch + work.padded * blocks};
  Status status = parallel(context, round_row, work.padded, &work);
  if (!status) status = parallel(context, multiply, (kernel->outputs + work.chunk - 1) / work.chunk, &work);
  free(scratch);
  return status;
}

/* ---- what onnxruntime asks ---- */

static Status create(const Op *op, const void *api, Handle info, void **made) {
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)op, (void)api;
  if (!kernel) return failure(RUNTIME_EXCEPTION, "not enough memory");
  Status status = integer(info, "N", &kernel->outputs);
  if (!status) status = integer(info, "K", &kernel->inputs);
  if (!status) status = integer(info, "bits", &kernel->bits);
  if (!status) status = integer(info, "block_size", &kernel->block);
  if (!status) kernel->product = product_of(kernel->bits, kernel->block);
  if (!status && (kernel->outputs < 1 || kernel->outputs > INT32_MAX || kernel->inputs < 1 ||
                  kernel->inputs > INT32_MAX))
    status = failure(INVALID_ARGUMENT, "MatMulNBits: N or K that no weights have");
  if (!status && (!kernel->product || kernel->inputs % kernel->block))
    status = failure(INVALID_ARGUMENT, "MatMulNBits: no product for these bits and blocks");
  if (status) free(kernel);
  else *made = kernel;
  return status;
}

static const char *name(const Op *op) { return (void)op, "MatMulNBits"; }
static const char *provider(const Op *op) { return (void)op, NULL; }
static int input_type(const Op *op, size_t i) {
  static const int types[] = {FLOAT, UINT8, FLOAT, UINT8, INT32, FLOAT}; /* the fifth, an order of inputs, is not read */
  return (void)op, types[i];
}
static int output_type(const Op *op, size_t i) { return (void)op, (void)i, FLOAT; }
static size_t input_count(const Op *op) { return (void)op, 6; }
static size_t output_count(const Op *op) { return (void)op, 1; }
static int input_kind(const Op *op, size_t i) { return (void)op, i < 3 ? REQUIRED : OPTIONAL; }
static int input_memory(const Op *op, size_t i) { return (void)op, (void)i, 0; }

static const Op nbits = {16, NULL, name, provider, input_type, input_count, output_type, output_count, NULL, free,
                         input_kind, required, input_memory, {none, none, none, none}, create, compute, NULL, 0, 0, 0};

/* An op of the same domain and name as one of onnxruntime's is taken in its place. */
Status register_nbits(Handle options) {
  static Handle domain;
  return add_ops(options, "com.microsoft", &domain, &nbits, 1);
}
