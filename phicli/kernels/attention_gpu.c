/* Attention over a cache in int8 on CUDA, see attention_op.c: launches the kernels of attention.cu. */
#include <stdio.h>

#include "attention.h"
#include "gpu.h"

enum { TAKE, ATTEND_FEW, ATTEND_MANY, FINISH, OF_SIZE }; /* kernels for a size of heads */
enum { WARPS = 4, TAKE_WARPS = 8, FINISH_WARPS = 2, TILE = 16, LINES = 32, SPLIT = 64 }; /* as in attention.cu; TILE: rows of a warp */
#define FEW 64 /* rows of a head of keys whose tokens are shared out to warps; more, where blocks of all their rows are few */
#define WARPS_OF_SM 12 /* whose registers it has */
#define COPY_KERNEL (KERNELS - 1)
#define MOST_OF_GRID 65535

static const char *const names[] = {"take", "attend_few", "attend_many", "finish"};
static const int sizes[] = {64, 96, 128};

typedef struct { /* in attention.cu */
  const void *x[3], *cosines, *sines, *past[2];
  void *present[2];
  const int32_t *lengths;
  void *queries, *out, *parts;
  long long strides[3];
  int batch, heads, kv_heads, group, tokens, turned, interleaved, positions, window, past_room, room, splits;
  float scale, softcap;
} Attending;

static Status launch(const Work *work, int kernel, int64_t x, int64_t y, int64_t z, Attending *of, void *stream) {
  int at = 0;
  char name[40];
  while (sizes[at] != work->size) at++;
  snprintf(name, sizeof name, "attention_%s_%d", names[kernel], (int)work->size);
  const int64_t grid[3] = {x, y, z};
  const unsigned threads = 32 * (kernel == TAKE ? TAKE_WARPS : kernel == FINISH ? FINISH_WARPS : WARPS);
  const unsigned shared = kernel == ATTEND_MANY ? 4 * LINES * ((unsigned)work->size + 16) : 0; /* two of keys and values */
  void *arguments[] = {of};
  return gpu_launch(LORA_KERNELS + NBITS_KERNELS + at * OF_SIZE + kernel, name, grid, threads, shared, arguments, stream);
}

static Status copy_past(const Work *work, Attending *of, void *stream) {
  int words = (int)(work->size + work->kernel->behind) / 4;
  const int64_t grid[3] = {least(ceil_div(work->room * words, 256), 256), work->batch * work->kernel->kv_heads, 2};
  void *arguments[] = {of, &words};
  return gpu_launch(COPY_KERNEL, "attention_copy", grid, 256, 0, arguments, stream);
}

/* Whether rows share their tokens out, and then so many splits of them that all multiprocessors have work; of many warps
   twice as many, so that the last ones are not waited for long. */
static Status plan_splits(Work *work, int64_t heads, int *few) {
  Gpu gpu;
  TRY(gpu_here(&gpu));
  *few = work->rows <= FEW || heads * ceil_div(work->rows, TILE * WARPS) < gpu.multiprocessors;
  const int64_t tiles = heads * ceil_div(work->rows, TILE), rounds = tiles < gpu.multiprocessors ? 1 : 2;
  const int64_t wanted = ceil_div(rounds * gpu.multiprocessors * WARPS_OF_SM, tiles);
  work->splits = *few ? least(wanted, ceil_div(work->room, SPLIT)) : 1;
  return NULL;
}

Status attend_on_gpu(Handle context, Work *work) {
  const Kernel *kernel = work->kernel;
  const int64_t heads = work->batch * kernel->kv_heads, queries = work->batch * work->tokens * kernel->heads;
  void *stream = NULL;
  if (work->size != 64 && work->size != 96 && work->size != 128)
    return failure(INVALID_ARGUMENT, "attention: on CUDA heads have 64, 96 or 128 channels");
  if (heads > MOST_OF_GRID || work->rows > MOST_OF_GRID * TILE * WARPS || work->room > INT32_MAX ||
      queries + 2 * heads * work->tokens > INT32_MAX || work->positions > INT32_MAX / most(work->turned, 1))
    return failure(INVALID_ARGUMENT, "attention: more than it can take at once");
  const int there = heads && work->tokens;
  int few = 0;
  if (there) TRY(plan_splits(work, heads, &few));
  Tensor rows = {.dims = {work->batch, kernel->kv_heads, work->rows, work->size}, .rank = 4};
  Tensor parts = {.dims = {queries, work->splits, work->size + 4}, .rank = 3};
  TRY(output(context, 3, &rows));
  TRY(output(context, 4, &parts));
  if (!there) return NULL;
  TRY(ORT(GPU_STREAM, Handle, void **)(context, &stream));
  Attending of = {
      .x = {work->x[0], work->x[1], work->x[2]}, .cosines = work->cosines, .sines = work->sines,
      .past = {work->past[0], work->past[1]}, .present = {work->present[0], work->present[1]}, .lengths = work->lengths,
      .queries = rows.data, .out = work->out, .parts = parts.data,
      .strides = {work->strides[0], work->strides[1], work->strides[2]}, .batch = (int)work->batch,
      .heads = (int)kernel->heads, .kv_heads = (int)kernel->kv_heads, .group = (int)work->group, .tokens = (int)work->tokens,
      .turned = (int)work->turned, .interleaved = (int)kernel->interleaved, .positions = (int)work->positions,
      .window = (int)kernel->window, .past_room = (int)work->past_room, .room = (int)work->room,
      .splits = (int)work->splits, .scale = kernel->scale, .softcap = kernel->softcap};
  if (work->past[0] != work->present[0]) TRY(copy_past(work, &of, stream));
  TRY(launch(work, TAKE, ceil_div(queries + 2 * heads * work->tokens, TAKE_WARPS), 1, 1, &of, stream));
  TRY(few
          ? launch(work, ATTEND_FEW, ceil_div(work->splits, WARPS), ceil_div(work->rows, TILE), heads, &of, stream)
          : launch(work, ATTEND_MANY, 1, ceil_div(work->rows, TILE * WARPS), heads, &of, stream));
  return launch(work, FINISH, ceil_div(queries, FINISH_WARPS), 1, 1, &of, stream);
}
