/* Int8CacheAttention in fp32 on a CPU: inputs, outputs and attributes are the first ones of onnxruntime's
 * GroupQueryAttention (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), but for the cache,
 * which is int8 (batch, heads, tokens, size + 2): the numbers of a token, see `mix`, then their scale in bfloat16.
 *
 * Queries, and the weights of values, are rounded to int16, so that all products are of whole numbers; what that changes
 * is less than fp32's own rounding of a long sum. Of tokens a tile at a time is read, with a running maximum, after
 * FlashAttention (arXiv:2205.14135); a single query's tokens are split between threads, after Flash-Decoding.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ort_api.h"

#define SCALE 2 /* bytes */
#define MAX_SIZE 512 /* channels of a head: sums of so many products of 15 and 7 bits fit into 32 */
#define MAX_HEADS 65536
#define TILE 64 /* tokens */
#define ROWS 32 /* of queries that read a tile together */
#define SPLIT 512 /* tokens that a thread takes of a single query; a result does not depend on how many threads there are */
#define LARGEST_INT16 32767
#define MAGIC 12582912.f /* 1.5 * 2^23: what is added to it is rounded to a whole number, in the lowest bits */

typedef struct { int64_t heads, kv_heads, window, rotary, interleaved; float scale, softcap; } Kernel;

/* Of one run. x: query, key, value of the first token, with `strides` numbers to the next one. Rows of queries are those
 * of a head of keys, of all tokens: `rows` = tokens * group of them.
 */
typedef struct {
  const Kernel *kernel;
  const float *x[3], *cosines, *sines;
  const int8_t *past[2];
  int8_t *present[2];
  const int32_t *lengths; /* NULL: the first run, nothing is there before */
  int64_t strides[3], batch, tokens, size, turned, past_room, room, group, rows, blocks, splits;
  int16_t *queries; /* (batch, kv_heads, rows, size) */
  float *factors, *out, *parts; /* factors: of queries; parts: sums of a split, then its largest score and total weight */
} Work;

typedef union { float number; uint32_t bits; } Bits;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t past_of(const Work *work, int64_t b) {
  return work->lengths ? (int64_t)work->lengths[b] + 1 - work->tokens : 0;
}

static inline float scale_of(const int8_t *row, int64_t size) {
  uint16_t half;
  memcpy(&half, row + size, SCALE);
  return (Bits){.bits = (uint32_t)half << 16}.number;
}

#if defined(__AVX2__) && defined(__FMA__)
#include "attention_avx2.h"
#else

/* Products of rows of queries with the keys of a tile: dots (rows, TILE). */
static void multiply_keys(const int16_t *queries, int64_t rows, int64_t size, const int8_t *keys, int64_t tokens,
                          int32_t *dots) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < tokens; j++) {
      const int8_t *key = keys + j * (size + SCALE);
      int32_t sum = 0;
      for (int64_t c = 0; c < size; c++) sum += queries[r * size + c] * key[c];
      dots[r * TILE + j] = sum;
    }
}

/* sums[r] = sums[r] * kept[r] + (weights (rows, TILE) times the values of a tile) * factors[r] */
static void add_values(const int16_t *weights, int64_t rows, int64_t size, const int8_t *values, int64_t tokens,
                       const float *kept, const float *factors, float *const *sums) {
  for (int64_t r = 0; r < rows; r++) {
    int32_t found[MAX_SIZE] = {0};
    for (int64_t j = 0; j < tokens; j++)
      for (int64_t c = 0; c < size; c++) found[c] += weights[r * TILE + j] * values[j * (size + SCALE) + c];
    for (int64_t c = 0; c < size; c++) sums[r][c] = sums[r][c] * kept[r] + found[c] * factors[r];
  }
}
#endif

/* ---- what is new: rotated, rounded, stored ---- */

static inline float largest_size(const float *x, int64_t count) {
  uint32_t top = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t size = (Bits){x[i]}.bits & 0x7fffffff;
    top = size > top ? size : top;
  }
  return (Bits){.bits = top}.number;
}

static void store(const float *x, int64_t size, int8_t *row) {
  const uint16_t half = ((Bits){largest_size(x, size) / 127}.bits + 0xffff) >> 16; /* up: nothing is more than 127 */
  memcpy(row + size, &half, SCALE);
  const float scale = scale_of(row, size), inverse = scale > 0 ? 1 / scale : 0;
  for (int64_t c = 0; c < size; c++) row[c] = (int8_t)(Bits){x[c] * inverse + MAGIC}.bits;
}

static float store_query(const float *x, int64_t size, int16_t *row) {
  const float top = largest_size(x, size), inverse = top > 0 ? LARGEST_INT16 / top : 0;
  for (int64_t c = 0; c < size; c++) row[c] = (int16_t)(Bits){x[c] * inverse + MAGIC}.bits;
  return top / LARGEST_INT16;
}

/* Walsh-Hadamard transform of as many channels at a time as the largest power of two that divides their number; it
 * undoes itself. One that is much larger than the others goes into all of them, so that what is rounded by the largest is
 * rounded less, after QuaRot (arXiv:2404.00456); products of queries with keys stay as they are.
 */
static void mix(float *x, int64_t size) {
  const int64_t width = size & -size;
  for (int64_t step = 1; step < width; step *= 2)
    for (int64_t i = 0; i < size; i += 2 * step)
      for (int64_t j = i; j < i + step; j++) {
        const float one = x[j], two = x[j + step];
        x[j] = one + two, x[j + step] = one - two;
      }
  const float norm = 1 / sqrtf((float)width);
  for (int64_t c = 0; c < size; c++) x[c] *= norm;
}

/* A query or key, rotated and mixed. */
static void turn(const Work *work, const float *x, int64_t position, float *place) {
  const int64_t half = work->turned, step = work->kernel->interleaved ? 2 : 1, other = step == 2 ? 1 : half;
  const float *cosines = work->cosines + position * half, *sines = work->sines + position * half;
  memcpy(place + 2 * half, x + 2 * half, (work->size - 2 * half) * sizeof *x);
  for (int64_t i = 0, a = 0; i < half; i++, a += step) {
    place[a] = x[a] * cosines[i] - x[a + other] * sines[i];
    place[a + other] = x[a + other] * cosines[i] + x[a] * sines[i];
  }
  mix(place, work->size);
}

static void take_token(void *self, size_t number) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t b = number / work->tokens, t = number % work->tokens, size = work->size, place = past_of(work, b) + t;
  float x[MAX_SIZE];
  for (int64_t n = 0; n < kernel->heads; n++) {
    turn(work, work->x[0] + (int64_t)number * work->strides[0] + n * size, place, x);
    const int64_t row = (b * kernel->kv_heads + n / work->group) * work->rows + t * work->group + n % work->group;
    work->factors[row] = store_query(x, size, work->queries + row * size);
  }
  for (int64_t h = 0; h < kernel->kv_heads; h++) {
    const int64_t at = ((b * kernel->kv_heads + h) * work->room + place) * (size + SCALE);
    turn(work, work->x[1] + (int64_t)number * work->strides[1] + h * size, place, x);
    store(x, size, work->present[0] + at);
    memcpy(x, work->x[2] + (int64_t)number * work->strides[2] + h * size, size * sizeof *x);
    mix(x, size);
    store(x, size, work->present[1] + at);
  }
}

/* What was there before, of a head, where it does not stay in its place. */
static void copy_head(void *self, size_t head) {
  const Work *work = self;
  const int64_t line = work->size + SCALE, kept = past_of(work, head / work->kernel->kv_heads) * line;
  for (int side = 0; side < 2; side++) {
    int8_t *to = work->present[side] + head * work->room * line;
    if (kept) memcpy(to, work->past[side] + head * work->past_room * line, kept);
    memset(to + kept, 0, work->room * line - kept);
  }
}

/* ---- attention ---- */

static inline float exponential(float x) { /* of what is not above 0; after Cephes: 2^n times a polynomial of the rest */
  x = x > -60 ? x : -60; /* so that products with scales stay normal numbers */
  const Bits n = {x * 1.44269504f + MAGIC};
  const float whole = n.number - MAGIC, rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  float sum = 1.9875691e-4f;
  sum = sum * rest + 1.3981999e-3f;
  sum = sum * rest + 8.3334519e-3f;
  sum = sum * rest + 4.1665796e-2f;
  sum = sum * rest + 0.16666665f;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1;
  sum = sum * rest + 1;
  return sum * (Bits){.bits = (n.bits + 127) << 23}.number; /* of n.bits the lowest 9 stay */
}

static inline float capped(float x, float cap) { /* cap * tanh(x / cap) */
  const float power = exponential(-2 * fabsf(x) / cap);
  return copysignf(cap * (1 - power) / (1 + power), x);
}

typedef struct { float top, total, kept, factor; } Softmax; /* kept, factor: see add_values */

/* The weights of a tile's values, of which a row sees those from `begin` to `end`. */
static void weigh(const Kernel *kernel, const int32_t *dots, float factor, const float *key_scales,
                  const float *value_scales, int begin, int end, Softmax *softmax, int16_t *weights) {
  float x[TILE], top = softmax->top, total = 0, largest = 0;
  softmax->kept = 1, softmax->factor = 0;
  memset(weights, 0, TILE * sizeof *weights);
  if (begin >= end) return;
  for (int j = 0; j < TILE; j++) x[j] = dots[j] * (factor * key_scales[j]);
  if (kernel->softcap > 0)
    for (int j = 0; j < TILE; j++) x[j] = capped(x[j], kernel->softcap);
#pragma omp simd reduction(max : top)
  for (int j = 0; j < TILE; j++) {
    x[j] = j >= begin && j < end ? x[j] : -INFINITY;
    top = x[j] > top ? x[j] : top;
  }
#pragma omp simd reduction(+ : total) reduction(max : largest)
  for (int j = 0; j < TILE; j++) {
    const float weight = exponential(x[j] - top);
    total += weight;
    x[j] = weight * value_scales[j];
    largest = x[j] > largest ? x[j] : largest;
  }
  const float inverse = largest > 0 ? LARGEST_INT16 / largest : 0;
  for (int j = 0; j < TILE; j++) weights[j] = (int16_t)(Bits){x[j] * inverse + MAGIC}.bits;
  softmax->kept = exponential(softmax->top - top);
  softmax->total = softmax->total * softmax->kept + total;
  softmax->top = top;
  softmax->factor = largest / LARGEST_INT16;
}

static void finish(float *sums, int64_t size, float total) {
  for (int64_t c = 0; c < size; c++) sums[c] /= total;
  mix(sums, size);
}

/* Some rows of a head of keys, over one split of the tokens. */
static void attend(void *self, size_t part) {
  const Work *work = self;
  const Kernel *kernel = work->kernel;
  const int64_t size = work->size, line = size + SCALE, group = work->group;
  const int64_t split = part % work->splits, block = part / work->splits % work->blocks;
  const int64_t head = part / work->splits / work->blocks, b = head / kernel->kv_heads, h = head % kernel->kv_heads;
  const int64_t first = block * ROWS, rows = least(ROWS, work->rows - first), past = past_of(work, b);
  const int8_t *keys = work->present[0] + head * work->room * line, *values = work->present[1] + head * work->room * line;
  Softmax softmax[ROWS];
  float *sums[ROWS], kept[ROWS], factors[ROWS];
  int64_t begins[ROWS], ends[ROWS];
  for (int64_t r = 0; r < rows; r++) {
    const int64_t t = (first + r) / group, query = (b * work->tokens + t) * kernel->heads + h * group + (first + r) % group;
    softmax[r] = (Softmax){.top = -INFINITY};
    sums[r] = work->parts ? work->parts + (query * work->splits + split) * (size + 2) : work->out + query * size;
    memset(sums[r], 0, size * sizeof(float));
    ends[r] = past + t + 1;
    begins[r] = kernel->window > 0 ? most(0, ends[r] - kernel->window) : 0;
  }
  const int64_t last = work->parts ? least(ends[rows - 1], (split + 1) * SPLIT) : ends[rows - 1];
  for (int64_t at = most(split * SPLIT, begins[0] / TILE * TILE); at < last; at += TILE) {
    const int64_t tokens = least(TILE, last - at);
    int32_t dots[ROWS * TILE];
    int16_t weights[ROWS * TILE];
    float key_scales[TILE] = {0}, value_scales[TILE] = {0};
    for (int64_t j = 0; j < tokens; j++) {
      key_scales[j] = scale_of(keys + (at + j) * line, size);
      value_scales[j] = scale_of(values + (at + j) * line, size);
    }
    const int64_t row = head * work->rows + first;
    multiply_keys(work->queries + row * size, rows, size, keys + at * line, tokens, dots);
    for (int64_t r = 0; r < rows; r++) {
      memset(dots + r * TILE + tokens, 0, (TILE - tokens) * sizeof *dots);
      weigh(kernel, dots + r * TILE, work->factors[row + r] * kernel->scale, key_scales, value_scales,
            (int)most(begins[r] - at, 0), (int)least(ends[r] - at, tokens), &softmax[r], weights + r * TILE);
      kept[r] = softmax[r].kept, factors[r] = softmax[r].factor;
    }
    add_values(weights, rows, size, values + at * line, tokens, kept, factors, sums);
  }
  for (int64_t r = 0; r < rows; r++) {
    if (work->parts) sums[r][size] = softmax[r].top, sums[r][size + 1] = softmax[r].total;
    else finish(sums[r], size, softmax[r].total);
  }
}

/* One query's result, of its splits. */
static void gather(void *self, size_t query) {
  const Work *work = self;
  const int64_t size = work->size;
  const float *part = work->parts + (int64_t)query * work->splits * (size + 2);
  float *out = work->out + (int64_t)query * size, top = -INFINITY, total = 0;
  for (int64_t s = 0; s < work->splits; s++) top = part[s * (size + 2) + size] > top ? part[s * (size + 2) + size] : top;
  memset(out, 0, size * sizeof *out);
  for (int64_t s = 0; s < work->splits; s++, part += size + 2) {
    const float share = exponential(part[size] - top);
    total += share * part[size + 1];
    for (int64_t c = 0; c < size; c++) out[c] += share * part[c];
  }
  finish(out, size, total);
}

/* ---- a run ---- */

#define REFUSE(message) return failure(INVALID_ARGUMENT, "Int8CacheAttention: " message)

/* Query, key and value, which may lie in one tensor. */
static Status take_inputs(Handle context, Work *work) {
  Tensor in[3] = {{0}};
  TRY(input(context, 0, FLOAT, &in[0]));
  for (int i = 1; i < 3; i++) TRY(optional_input(context, i, FLOAT, &in[i]));
  const Kernel *kernel = work->kernel;
  const int64_t kv = kernel->kv_heads * work->size, q = kernel->heads * work->size;
  const int packed = !in[1].data && !in[2].data;
  if (in[0].rank != 3 || in[0].dims[0] != work->batch || in[0].dims[2] != (packed ? q + 2 * kv : q))
    REFUSE("a query of another size than the cache and the numbers of heads say");
  work->tokens = in[0].dims[1];
  for (int i = 1; i < 3 && !packed; i++)
    if (in[i].rank != 3 || in[i].dims[0] != work->batch || in[i].dims[1] != work->tokens || in[i].dims[2] != kv)
      REFUSE("a key or value of another size than the query");
  for (int i = 0; i < 3; i++) {
    work->x[i] = packed ? (const float *)in[0].data + (i ? q + (i - 1) * kv : 0) : in[i].data;
    work->strides[i] = in[packed ? 0 : i].dims[2];
  }
  return NULL;
}

static Status take_cache(Handle context, Work *work) {
  Tensor past[2];
  for (int i = 0; i < 2; i++) TRY(input(context, 3 + i, INT8, &past[i]));
  const int64_t *dims = past[0].dims, size = dims[3] - SCALE;
  if (past[0].rank != 4 || past[1].rank != 4 || memcmp(dims, past[1].dims, 4 * sizeof *dims) ||
      dims[1] != work->kernel->kv_heads || size < 16 || size > MAX_SIZE || size % 16)
    REFUSE("a cache that is not (batch, heads, tokens, size + 2), of a size that is a multiple of 16, at most 512");
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
  work->lengths = all == work->tokens ? NULL : lengths.data;
  work->room = most(work->past_room, all);
  for (int64_t b = 0; b < work->batch; b++)
    if (past_of(work, b) < 0 || past_of(work, b) > work->past_room || past_of(work, b) + work->tokens > work->room)
      REFUSE("a row that does not fit into the cache");
  return NULL;
}

static Status take_rotation(Handle context, Work *work) {
  Tensor table[2];
  if (!work->kernel->rotary) return NULL;
  for (int i = 0; i < 2; i++) TRY(input(context, 7 + i, FLOAT, &table[i]));
  if (table[0].rank != 2 || table[1].rank != 2 || memcmp(table[0].dims, table[1].dims, 2 * sizeof(int64_t)) ||
      table[0].dims[1] > work->size / 2)
    REFUSE("tables of the rotary embedding of another size than a head");
  work->cosines = table[0].data, work->sines = table[1].data, work->turned = table[0].dims[1];
  for (int64_t b = 0; b < work->batch; b++)
    if (past_of(work, b) + work->tokens > table[0].dims[0]) REFUSE("a position that the rotary embedding does not have");
  return NULL;
}

static Status run(Handle context, Work *work) {
  const int64_t heads = work->batch * work->kernel->kv_heads, queries = work->batch * work->tokens * work->kernel->heads;
  work->group = work->kernel->heads / work->kernel->kv_heads;
  work->rows = work->tokens * work->group;
  work->blocks = (work->rows + ROWS - 1) / ROWS;
  work->splits = work->tokens == 1 ? (work->room + SPLIT - 1) / SPLIT : 1;
  const int64_t parts = work->splits > 1 ? queries * work->splits * (work->size + 2) : 0;
  float *scratch = malloc((queries + parts) * sizeof(float) + queries * work->size * sizeof(int16_t));
  if (!scratch) return failure(RUNTIME_EXCEPTION, "not enough memory");
  work->factors = scratch;
  work->parts = parts ? scratch + queries : NULL;
  work->queries = (int16_t *)(scratch + queries + parts);
  Status status = NULL;
  if (work->past[0] != work->present[0]) status = parallel(context, copy_head, heads, work);
  if (!status) status = parallel(context, take_token, work->batch * work->tokens, work);
  if (!status) status = parallel(context, attend, heads * work->blocks * work->splits, work);
  if (!status && parts) status = parallel(context, gather, queries, work);
  free(scratch);
  return status;
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
    Tensor present = {.dims = {work.batch, work.kernel->kv_heads, work.room, work.size + SCALE}, .rank = 4};
    TRY(output(context, 1 + i, &present));
    work.present[i] = present.data;
  }
  if ((work.past[0] == work.present[0]) != (work.past[1] == work.present[1]))
    REFUSE("keys stay in their place and values do not, or the other way round");
  return work.batch && work.tokens ? run(context, &work) : NULL;
}

/* ---- what onnxruntime asks ---- */

static Status create(const Op *op, const void *api, Handle info, void **made) {
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)op, (void)api;
  if (!kernel) return failure(RUNTIME_EXCEPTION, "not enough memory");
  kernel->window = -1;
  optional_integer(info, "local_window_size", &kernel->window);
  optional_integer(info, "do_rotary", &kernel->rotary);
  optional_integer(info, "rotary_interleaved", &kernel->interleaved);
  Status status = integer(info, "num_heads", &kernel->heads);
  if (!status) status = integer(info, "kv_num_heads", &kernel->kv_heads);
  if (!status) status = decimal(info, "scale", &kernel->scale);
  if (!status) status = decimal(info, "softcap", &kernel->softcap);
  if (!status && (kernel->kv_heads < 1 || kernel->heads < 1 || kernel->heads > MAX_HEADS ||
                  kernel->heads % kernel->kv_heads || kernel->window > INT32_MAX))
    status = failure(INVALID_ARGUMENT, "Int8CacheAttention: heads or a window that no model has");
  if (status) free(kernel);
  else *made = kernel;
  return status;
}

static const char *name(const Op *op) { return (void)op, "Int8CacheAttention"; }
static const char *provider(const Op *op) { return (void)op, NULL; }
static int input_type(const Op *op, size_t i) {
  static const int types[] = {FLOAT, FLOAT, FLOAT, INT8, INT8, INT32, INT32, FLOAT, FLOAT};
  return (void)op, types[i];
}
static int output_type(const Op *op, size_t i) { return (void)op, i ? INT8 : FLOAT; }
static size_t input_count(const Op *op) { return (void)op, 9; }
static size_t output_count(const Op *op) { return (void)op, 3; }
static int input_kind(const Op *op, size_t i) { return (void)op, i == 1 || i == 2 || i > 6 ? OPTIONAL : REQUIRED; }
static int input_memory(const Op *op, size_t i) { return (void)op, (void)i, 0; }

static const Op attention = {16, NULL, name, provider, input_type, input_count, output_type, output_count, NULL, free,
                             input_kind, required, input_memory, {none, none, none, none}, create, compute, NULL, 0, 0,
                             0, 0};

Status register_attention(Handle options) {
  static Handle domain;
  return add_ops(options, "phicli.cache", &domain, &attention, 1);
}
