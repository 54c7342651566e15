/* Products of activations with weights in 4 or 8 bits, for nbits_op.c, where they are, and lora_matmul_op.c. */
#pragma once
#include "ort_api.h"

/* Products are the same to the last bit on every processor, and whatever rows are beside a row. Of block b the sum of
 * (weight - zero point) * activation is a whole number of less than 2^24, so its order is free. Times scale of the weights
 * times scale of the activations, in fp32, it is added, fused, to sum b % 8 of eight, which are added as below, then the bias.
 */
#define SUM_OF_EIGHT(add, s) add(add(add(s[0], s[4]), add(s[2], s[6])), add(add(s[1], s[5]), add(s[3], s[7])))

/* Rounded activations, some rows at a time (lanes): ints, and for each block and lane a scale and the sum of its integers. */
typedef struct {
  int8_t *ints;
  float *scales;
  int32_t *sums;
} Rounded;

typedef struct { const uint8_t *weights, *zeros; const float *scales, *bias; int64_t outputs, blocks; } Matrix;

/* Those of a group of rows, as many as there are lanes. */
static inline Rounded group_of(const Rounded *x, int64_t group, int64_t lanes, int64_t blocks, int64_t block) {
  const int64_t at = group * lanes * blocks;
  return (Rounded){x->ints + at * block, x->scales + at, x->sums + at};
}

/* All rows of x, some outputs of them. */
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
