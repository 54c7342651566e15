/* MatMulNBits (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md) in fp32 on a CPU, in place
 * of onnxruntime's own: activations are rounded to int8 (its accuracy level 4), weights are read where they are mapped.
 */
#include <stdlib.h>

#include "nbits.h"
#if defined(PLAIN) /* to compare with */
#include "nbits_plain.h"
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "nbits_neon.h"
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define WIDE /* several rows by nbits_avx512.h */
#include "nbits_avx2.h"
#include "nbits_avx512.h"
#else
#include "nbits_avx2.h"
#endif

#define CHUNK 65536 /* bytes of weights that a thread takes at a time */
#define MAX_BLOCK 128

INLINE void product(const Matrix *m, const Rounded *x, int64_t lanes, int64_t rows, int64_t begin, int64_t end, float *out,
                    int block, int bits) {
#if defined(WIDE) && defined(__AMX_INT8__)
  if (by_tiles(rows, bits)) {
    tiled_rows(m, x, rows, begin, end, out, block, bits);
    return;
  }
#endif
  for (int64_t row = 0; row < rows; row += lanes, out += lanes * m->outputs) {
    const Rounded group = group_of(x, row / lanes, lanes, m->blocks, block);
    const int64_t left = rows - row < lanes ? rows - row : lanes;
    if (lanes == 1) one_row(m, &group, begin, end, out, block, bits);
    else many_rows(m, &group, left, begin, end, out, lanes, block, bits);
  }
}

#define PRODUCT(bits, block)                                                                                        \
  static void product_##bits##_##block(const Matrix *m, const Rounded *x, int64_t lanes, int64_t rows,             \
                                       int64_t begin, int64_t end, float *out) {                                   \
    product(m, x, lanes, rows, begin, end, out, block, bits);                                                      \
  }
PRODUCT(4, 32) PRODUCT(4, 64) PRODUCT(4, 128) PRODUCT(8, 16) PRODUCT(8, 32) PRODUCT(8, 64) PRODUCT(8, 128)

static RowsProduct *product_of(int64_t bits, int64_t block) {
  if (bits < 1 || bits > 8 || block < 1 || block > MAX_BLOCK) return NULL;
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

void round_row(void *self, size_t row) {
  const Work *work = self;
  const Quantized *sizes = work->sizes;
  const int64_t lanes = work->lanes, block = sizes->block, lane = row % lanes;
  const Rounded x = group_of(&work->rounded, row / lanes, lanes, work->matrix.blocks, block);
  for (int64_t b = 0, at = lane; b < work->matrix.blocks; b++, at += lanes)
    if ((int64_t)row < work->rows) {
      int8_t ints[MAX_BLOCK];
      round_block(work->in + row * sizes->inputs + b * block, block, sizes->bits, ints, x.scales + at, x.sums + at);
      place(ints, block, lanes, lane, x.ints + b * lanes * block);
    } else x.scales[at] = 0, x.sums[at] = 0;
}

void multiply(void *self, size_t chunk) {
  const Work *work = self;
  const Quantized *sizes = work->sizes;
  const int64_t begin = chunk * work->chunk;
  const int64_t end = begin + work->chunk < sizes->outputs ? begin + work->chunk : sizes->outputs;
  sizes->product(&work->matrix, &work->rounded, work->lanes, work->rows, begin, end, work->out);
}

Status find_product(Quantized *sizes) {
  sizes->product = product_of(sizes->bits, sizes->block);
  if (sizes->outputs < 1 || sizes->outputs > INT32_MAX || sizes->inputs < 1 || sizes->inputs > INT32_MAX)
    return failure(INVALID_ARGUMENT, "MatMulNBits: N or K that no weights have");
  if (!sizes->product || sizes->inputs % sizes->block)
    return failure(INVALID_ARGUMENT, "MatMulNBits: no product for these bits and blocks");
  return NULL;
}

Status read_weights(const Quantized *sizes, Handle context, size_t first, Matrix *matrix) {
  Tensor weights, scales, zeros = {0};
  TRY(input(context, first, UINT8, &weights));
  TRY(input(context, first + 1, FLOAT, &scales));
  TRY(optional_input(context, first + 2, UINT8, &zeros));
  const int64_t blocks = sizes->inputs / sizes->block;
  if (weights.count != sizes->outputs * (sizes->inputs * sizes->bits / 8) || scales.count != sizes->outputs * blocks ||
      (zeros.data && zeros.count != sizes->outputs * ((blocks * sizes->bits + 7) / 8)))
    return failure(INVALID_ARGUMENT, "MatMulNBits: weights, scales or zero points of another size than N, K, bits and "
                                     "block_size say");
  *matrix = (Matrix){weights.data, zeros.data, scales.data, NULL, sizes->outputs, blocks};
  return NULL;
}

size_t divide(Work *work) {
  const Quantized *sizes = work->sizes;
  const int64_t bytes = sizes->inputs * sizes->bits / 8;
  work->lanes = lanes_of(work->rows, sizes->bits);
  work->padded = (work->rows + work->lanes - 1) / work->lanes * work->lanes;
  work->chunk = (CHUNK / bytes + 16) / 16 * 16;
  work->chunks = (sizes->outputs + work->chunk - 1) / work->chunk;
  return work->padded * (2 * work->matrix.blocks * sizeof(float) + sizes->inputs);
}

void rounded_at(Work *work, float *memory) {
  const int64_t count = work->padded * work->matrix.blocks;
  work->rounded = (Rounded){(int8_t *)(memory + 2 * count), memory, (int32_t *)memory + count};
}

/* ---- a run ---- */

static Status compute(void *self, Handle context) {
  const Quantized *sizes = self;
  Tensor in, order = {0}, bias = {0}, out;
  Work work = {.sizes = sizes};
  TRY(input(context, 0, FLOAT, &in));
  TRY(read_weights(sizes, context, 1, &work.matrix));
  TRY(optional_input(context, 4, INT32, &order));
  TRY(optional_input(context, 5, FLOAT, &bias));
  if (!in.rank || in.dims[in.rank - 1] != sizes->inputs)
    return failure(INVALID_ARGUMENT, "MatMulNBits: the last dimension is not K");
  if (order.data) return failure(INVALID_ARGUMENT, "MatMulNBits: an order of inputs (g_idx) is not for this op");
  if (bias.data && bias.count != sizes->outputs)
    return failure(INVALID_ARGUMENT, "MatMulNBits: a bias of another size than N");
  work.matrix.bias = bias.data;
  out = in;
  out.dims[out.rank - 1] = sizes->outputs;
  TRY(output(context, 0, &out));
  work.in = in.data;
  work.out = out.data;
  work.rows = in.count / sizes->inputs;
  if (!work.rows) return NULL;
  float *memory = malloc(divide(&work));
  if (!memory) return failure(RUNTIME_EXCEPTION, "not enough memory");
  rounded_at(&work, memory);
  Status status = parallel(context, round_row, work.padded, &work);
  if (!status) status = parallel(context, multiply, work.chunks, &work);
  free(memory);
  return status;
}

/* ---- what onnxruntime asks ---- */

static Status create(const Op *op, const void *api, Handle info, void **made) {
  Quantized *sizes = calloc(1, sizeof *sizes);
  (void)op, (void)api;
  if (!sizes) return failure(RUNTIME_EXCEPTION, "not enough memory");
  Status status = integer(info, "N", &sizes->outputs);
  if (!status) status = integer(info, "K", &sizes->inputs);
  if (!status) status = integer(info, "bits", &sizes->bits);
  if (!status) status = integer(info, "block_size", &sizes->block);
  if (!status) status = find_product(sizes);
  if (status) free(sizes);
  else *made = sizes;
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
                         input_kind, required, input_memory, {none, none, none, none}, create, compute, NULL, {0}, 0, 0, 0};

/* An op of the same domain and name as one of onnxruntime's is taken in its place. */
Status register_nbits(Handle options) {
  static Handle domain;
  return add_ops(options, "com.microsoft", &domain, &nbits, 1);
}
