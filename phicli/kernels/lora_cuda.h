/* Products on a GPU: the kernels of lora.cu. */
#include "gpu.h"

#define MAX_PARTS 8 /* of the inputs, in sums of many rows */
#define MOST_EACH 64 /* rows of a batch that one launch takes, each with its own adapter, as in lora.cu */

enum { DOWN_ONE, UP_ONE, GATED_ONE, DOWN_MANY_16, DOWN_MANY_64, UP_MANY, GATED_MANY, DOWN_EACH, UP_EACH, GATED_EACH };
static const char *const kernel_names[LORA_KERNELS] = {
    "lora_down_one", "lora_up_one", "lora_gated_up_one", "lora_down_many_16", "lora_down_many_64", "lora_up_many",
    "lora_gated_up_many", "lora_down_each", "lora_up_each", "lora_gated_up_each"};

static int64_t parts_of(int64_t rows) {
  const int64_t parts = rows < 2 ? 1 : 128 / ceil_div(rows, 16);  /* enough blocks for all multiprocessors */
  return parts < 1 ? 1 : parts > MAX_PARTS ? MAX_PARTS : parts;
}

static Status launch(int kernel, const int64_t grid[3], void **arguments, void *stream) {
  return gpu_launch(kernel, kernel_names[kernel], grid, 256, 0, arguments, stream);
}

/* Threads that share an output of one row: the same for all adapters, so that the rows beside it change nothing. */
static int lanes_of(const Adapters *adapters) {
  int lanes = 1;
  for (size_t i = 0; i < adapters->count; i++)
    while (lanes < 32 && lanes * 8 < adapters->ranks[i]) lanes *= 2;
  return lanes;
}

/* Whether y without an adapter, the base, lies where it should. */
static int is_there(const Product *p, int kind) { return kind == UP && p->out == p->base[0]; }

#define PASS(value) arguments[count++] = (void *)&(value)

static Status cuda_product(Product *p, int kind, void *stream) {
  int rows = (int)p->rows, width = (int)p->width, rank = (int)p->rank, parts = (int)p->parts, lanes = lanes_of(p->adapters);
  const int many = rows > 1, wide = rank > 16;
  int kernel;
  int64_t grid[3] = {1, 1, 1};
  void *arguments[10];
  int count = 0;
  PASS(p->in);
  if (kind == DOWN) {
    PASS(p->matrix[0]), PASS(p->out);
    if (many) PASS(rows);
    PASS(width);
    if (many) PASS(rank);
    kernel = !many ? DOWN_ONE : wide ? DOWN_MANY_64 : DOWN_MANY_16;
    grid[0] = many ? ceil_div(rows, 16) : rank;
    if (many) grid[1] = ceil_div(rank, wide ? 64 : 16), grid[2] = parts;
  } else {
    for (int i = 0; i < kind; i++) PASS(p->matrix[i]), PASS(p->base[i]);
    PASS(p->out);
    if (many) PASS(rows);
    PASS(width), PASS(rank);
    if (many) PASS(parts);
    else PASS(lanes);
    kernel = (many ? UP_MANY : UP_ONE) + (kind == GATED);
    grid[0] = many ? ceil_div(rows, 32) : ceil_div((int64_t)width * lanes, 256);
    if (many) grid[1] = ceil_div(width, 256);
  }
  return launch(kernel, grid, arguments, stream);
}

/* One row each of `count` adapters, in one launch: mixed batches while they decode, after BGMV of Punica. */
static Status cuda_each(Product *p, int kind, const int64_t *ids, int64_t rows, void *stream) {
  const Adapters *adapters = p->adapters;
  struct { int starts[MOST_EACH], ranks[MOST_EACH]; } each = {{0}, {0}};
  int width = (int)p->width, stride = (int)p->stride, lanes = lanes_of(p->adapters), count = 0;
  void *arguments[10];
  for (int64_t m = 0; m < rows; m++)
    if (ids[m]) each.starts[m] = (int)adapters->starts[ids[m] - 1], each.ranks[m] = (int)adapters->ranks[ids[m] - 1];
  const int64_t grid[3] = {kind == DOWN ? stride : ceil_div((int64_t)width * lanes, 256), rows, 1};
  if (!stride && (kind == DOWN || is_there(p, kind))) return NULL; /* no row has an adapter */
  PASS(p->in);
  if (kind == DOWN) PASS(p->matrix[0]);
  for (int i = 0; i < kind; i++) PASS(p->matrix[i]), PASS(p->base[i]);
  PASS(p->out), PASS(width), PASS(stride);
  if (kind != DOWN) PASS(lanes);
  PASS(each);
  return launch(DOWN_EACH + kind, grid, arguments, stream);
}
#undef PASS
