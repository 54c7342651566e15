/* FloatCacheAttention and Int8CacheAttention in fp32 on a CPU, Int8CacheAttentionCuda in fp16: inputs, outputs and attributes
 * are the first ones of onnxruntime's GroupQueryAttention
 * (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), but for a cache in int8, (batch, heads,
 * tokens, size + 2): the numbers of a token, see `mix`, then their scale in bfloat16. On CUDA two bytes more, which are 0, and
 * two outputs more, which are memory for the kernels.
 */
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "gpu.h"

#define MAX_HEADS 65536
#define GPU_BEHIND 4 /* bytes, so that words are read */
#define REFUSE(message) return failure(INVALID_ARGUMENT, "attention: " message)

static int type_of(const Kernel *kernel) { return kernel->cuda ? FLOAT16 : FLOAT; }
static int cache_type_of(const Kernel *kernel) { return kernel->behind ? INT8 : FLOAT; }

/* Query, key and value, which may lie in one tensor. */
static Status take_inputs(Handle context, Work *work) {
  Tensor in[3] = {{0}};
  const Kernel *kernel = work->kernel;
  TRY(input(context, 0, type_of(kernel), &in[0]));
  for (int i = 1; i < 3; i++) TRY(optional_input(context, i, type_of(kernel), &in[i]));
  const int64_t kv = kernel->kv_heads * work->size, q = kernel->heads * work->size;
  const int packed = !in[1].data && !in[2].data;
  if (in[0].rank != 3 || in[0].dims[0] != work->batch || in[0].dims[2] != (packed ? q + 2 * kv : q))
    REFUSE("a query of another size than the cache and the numbers of heads say");
  work->tokens = in[0].dims[1];
  for (int i = 1; i < 3 && !packed; i++)
    if (in[i].rank != 3 || in[i].dims[0] != work->batch || in[i].dims[1] != work->tokens || in[i].dims[2] != kv)
      REFUSE("a key or value of another size than the query");
  for (int i = 0; i < 3; i++) {
    work->x[i] = packed ? (const char *)in[0].data + (i ? q + (i - 1) * kv : 0) * (kernel->cuda ? 2 : 4) : in[i].data;
    work->strides[i] = in[packed ? 0 : i].dims[2];
  }
  return NULL;
}

static Status take_cache(Handle context, Work *work) {
  Tensor past[2];
  for (int i = 0; i < 2; i++) TRY(input(context, 3 + i, cache_type_of(work->kernel), &past[i]));
  const int64_t *dims = past[0].dims, size = dims[3] - work->kernel->behind;
  if (past[0].rank != 4 || past[1].rank != 4 || memcmp(dims, past[1].dims, 4 * sizeof *dims) ||
      dims[1] != work->kernel->kv_heads || size < 16 || size > MAX_SIZE || size % 16)
    REFUSE("a cache of another shape, or whose size is no multiple of 16 up to 512");
  work->batch = dims[0], work->past_room = dims[2], work->size = size;
  for (int i = 0; i < 2; i++) work->past[i] = past[i].data;
  return NULL;
}

static Status take_lengths(Handle context, Work *work) {
  Tensor lengths, total;
  TRY(input(context, 5, INT32, &lengths));
  TRY(input(context, 6, INT32, &total));
  if (total.count != 1 || lengths.count != work->batch) REFUSE("a length for each row and one for all are wanted");
  const int64_t all = *(const int32_t *)total.data;
  if (all < work->tokens || all > work->past_room + work->tokens) REFUSE("a length that the cache does not have");
  /* A CUDA graph that is captured now runs again with other lengths. */
  work->lengths = all == work->tokens && !work->kernel->cuda ? NULL : lengths.data;
  work->room = most(work->past_room, all);
  if (work->kernel->cuda) return NULL; /* the kernels keep to the cache */
  for (int64_t b = 0; b < work->batch; b++)
    if (past_of(work, b) < 0 || past_of(work, b) > work->past_room || past_of(work, b) + work->tokens > work->room)
      REFUSE("a row that does not fit into the cache");
  return NULL;
}

static Status take_rotation(Handle context, Work *work) {
  Tensor table[2];
  if (!work->kernel->rotary) return NULL;
  for (int i = 0; i < 2; i++) TRY(input(context, 7 + i, type_of(work->kernel), &table[i]));
  if (table[0].rank != 2 || table[1].rank != 2 || memcmp(table[0].dims, table[1].dims, 2 * sizeof(int64_t)) ||
      table[0].dims[1] > work->size / 2)
    REFUSE("tables of the rotary embedding of another size than a head");
  work->cosines = table[0].data, work->sines = table[1].data, work->turned = table[0].dims[1];
  work->positions = table[0].dims[0];
  if (work->kernel->cuda) return work->positions ? NULL : failure(INVALID_ARGUMENT, "attention: no positions");
  for (int64_t b = 0; b < work->batch; b++)
    if (past_of(work, b) + work->tokens > table[0].dims[0]) REFUSE("a position that the rotary embedding does not have");
  return NULL;
}

static Status compute(void *self, Handle context) {
  Work work = {.kernel = self};
  TRY(take_cache(context, &work));
  TRY(take_inputs(context, &work));
  TRY(take_lengths(context, &work));
  TRY(take_rotation(context, &work));
  Tensor out = {.dims = {work.batch, work.tokens, work.kernel->heads * work.size}, .rank = 3};
  TRY(output(context, 0, &out));
  work.out = out.data;
  for (int i = 0; i < 2; i++) {
    Tensor present = {.dims = {work.batch, work.kernel->kv_heads, work.room, work.size + work.kernel->behind}, .rank = 4};
    TRY(output(context, 1 + i, &present));
    work.present[i] = present.data;
  }
  if ((work.past[0] == work.present[0]) != (work.past[1] == work.present[1]))
    REFUSE("keys stay in their place and values do not, or the other way round");
  work.group = work.kernel->heads / work.kernel->kv_heads;
  work.rows = work.tokens * work.group;
  return work.kernel->cuda ? attend_on_gpu(context, &work)
                           : work.batch && work.tokens ? attend_on_cpu(context, &work) : NULL;
}

/* ---- what onnxruntime asks ---- */

static Status create(const Op *op, const void *api, Handle info, void **made) {
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)api;
  if (!kernel) return failure(RUNTIME_EXCEPTION, "not enough memory");
  *kernel = (Kernel){.window = -1, .cuda = op->cuda, .behind = !op->int8 ? 0 : op->cuda ? GPU_BEHIND : SCALE};
  optional_integer(info, "local_window_size", &kernel->window);
  optional_integer(info, "do_rotary", &kernel->rotary);
  optional_integer(info, "rotary_interleaved", &kernel->interleaved);
  Status status = integer(info, "num_heads", &kernel->heads);
  if (!status) status = integer(info, "kv_num_heads", &kernel->kv_heads);
  if (!status) status = decimal(info, "scale", &kernel->scale);
  if (!status) status = decimal(info, "softcap", &kernel->softcap);
  if (!status && (kernel->kv_heads < 1 || kernel->heads < 1 || kernel->heads > MAX_HEADS ||
                  kernel->heads % kernel->kv_heads || kernel->window > INT32_MAX))
    status = failure(INVALID_ARGUMENT, "attention: heads or a window that no model has");
  if (status) free(kernel);
  else *made = kernel;
  return status;
}

static const char *name(const Op *op) { /* onnxruntime wants ops of a name to have the same outputs */
  return op->cuda ? "Int8CacheAttentionCuda" : op->int8 ? "Int8CacheAttention" : "FloatCacheAttention";
}
static const char *provider(const Op *op) { return op->cuda ? "CUDAExecutionProvider" : NULL; }
static int input_type(const Op *op, size_t i) {
  static const int types[] = {FLOAT, FLOAT, FLOAT, INT8, INT8, INT32, INT32, FLOAT, FLOAT};
  return types[i] == FLOAT && op->cuda ? FLOAT16 : types[i] == INT8 && !op->int8 ? FLOAT : types[i];
}
static int output_type(const Op *op, size_t i) {
  static const int types[] = {FLOAT16, INT8, INT8, FLOAT16, FLOAT};
  return op->int8 && (i || op->cuda) ? types[i] : FLOAT;
}
static size_t input_count(const Op *op) { return (void)op, 9; }
static size_t output_count(const Op *op) { return op->cuda ? 5 : 3; }
static int input_kind(const Op *op, size_t i) { return (void)op, i == 1 || i == 2 || i > 6 ? OPTIONAL : REQUIRED; }
static int input_memory(const Op *op, size_t i) { return op->cuda && i == 6 ? CPU_INPUT : 0; }

#define OP(cuda, int8) {16, NULL, name, provider, input_type, input_count, output_type, output_count, NULL, free, input_kind, \
                  required, input_memory, {none, none, none, none}, create, compute, NULL, {0}, 0, cuda, 0, int8}
static const Op attention[] = {OP(0, 0), OP(0, 1), OP(1, 1)};

Status register_attention(Handle options) {
  static Handle domain;
  return add_ops(options, "phicli.cache", &domain, attention, lora_cubin_size ? 3 : 2);
}
