/* What the ops of lora_op.c and lora_matmul_op.c know of adapters: which there are, and the checks of what a graph says. */
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ort_api.h"

#define MAX_ADAPTERS 1024
#define MAX_RANK 1024
#define MAX_SEGMENTS 3 /* q, k and v */
#define MAX_WIDTH (1 << 24) /* with these two all sizes fit into 64 bits, and what the kernels count into 32 */
#define MAX_ROWS (1 << 30)
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
