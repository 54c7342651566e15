/* Products of activations with weights in 4 or 8 bits, for nbits_op.c, where they are, and lora_matmul_op.c. */
#pragma once
#include "ort_api.h"

/* Rounded activations, some rows at a time (lanes): ints (blocks, lanes, block), scales and sums (blocks, lanes). */
typedef struct {
  int8_t *ints;
  float *scales, *sums; /* sums: of a block's integers, times its scale */
} Rounded;

typedef struct { const uint8_t *weights, *zeros; const float *scales, *bias; int64_t outputs, blocks; } Matrix;

typedef void RowsProduct(const Matrix *, const Rounded *, int64_t lanes, int64_t rows, int64_t begin, int64_t end,
                         float *out);

typedef struct { int64_t outputs, inputs, block, bits; RowsProduct *product; } Quantized;

typedef struct { /* of one run; padded: rows, to a multiple of lanes; chunk: outputs, of which there are chunks */
  const Quantized *sizes;
  Matrix matrix;
  Rounded rounded;
  const float *in;
  float *out;
  int64_t rows, lanes, padded, chunk, chunks;
} Work;

/* Whether there is a product for such weights, and which. */
Status find_product(Quantized *sizes);

/* Weights, scales and zero points of an op, from its input `first` on. */
Status read_weights(const Quantized *sizes, Handle context, size_t first, Matrix *matrix);

/* What a product needs of its rows. Returns bytes of memory that `rounded_at` gives their rounded numbers. */
size_t divide(Work *work);
void rounded_at(Work *work, float *memory);

void round_row(void *work, size_t row); /* of `padded` ones, before any chunk */
void multiply(void *work, size_t chunk);
