/* Products with weights in 4 or 8 bits and their LoRA in one op, in fp32 on a CPU:
 *     LoraMatMulNBits       y = x W + h B          h = x A; up to three W, B and y beside one A
 *     LoraGatedMatMulNBits  y = silu(x W + h B) * (x W' + h B')
 *
 * They give what MatMulNBits, LoraDown, LoraUp and LoraGatedUp give, to the last bit. But for a token all of it is handed
 * to the session's threads once, where those ops take a node and a hand-over each.
 *
 * Inputs   adapters, x and A as LoraDown has them, and its input with ranks, which may be left out,
 *          then for each projection weights, scales and zero points (or none) as MatMulNBits has them, and B
 * Attributes  N: outputs of each projection; K, bits, block_size: of all of them; ranks and row: of A, as LoraDown has
 *          them; ends: those of all projections, as many of each, as LoraUp has them.
 */
#include <sched.h>

#include "lora_cpu.h"
#include "nbits.h"

#define MAX_PROJECTIONS 3 /* q, k and v */
#ifdef __x86_64__
#define PAUSE __builtin_ia32_pause()
#else
#define PAUSE __asm__ volatile("yield")
#endif
#define SPINS 64 /* before a thread that waits lets others run, where there are more of them than cores */

enum { IDS, X, A, RANKS, WEIGHTS, INPUTS_OF_ONE = 4, B = 3, INPUTS = WEIGHTS + MAX_PROJECTIONS * INPUTS_OF_ONE };

static const Op downs[] = {{.kind = DOWN}, {.kind = DOWN, .int8 = 1}};

typedef struct {
  int64_t count, segments; /* projections; ends of each */
  Quantized sizes[MAX_PROJECTIONS];
  Kernel down, up[MAX_PROJECTIONS]; /* `own` of the first up is that of all; there is one up where it is gated */
} Joined;

/* ---- a run: parts of a first kind, which are products and h, and parts of a second, which need all of the first ---- */

typedef struct {
  Work works[MAX_PROJECTIONS];
  CpuWork down, up;
  int64_t count, first;                  /* works; parts of the first kind */
  _Alignas(64) int64_t claimed;          /* parts that a thread has begun, in their order, */
  _Alignas(64) int64_t done;             /* and those of the first kind that are done */
} Run;

/* The next part, whichever number onnxruntime gives it: a thread that waits here waits for parts that others have begun,
 * and which wait for none.
 */
static void next_part(void *self, size_t unused) {
  Run *run = self;
  int64_t part = __atomic_fetch_add(&run->claimed, 1, __ATOMIC_RELAXED);
  (void)unused;
  if (part >= run->first) {
    for (int i = 0; __atomic_load_n(&run->done, __ATOMIC_ACQUIRE) < run->first; i++)
      if (i < SPINS) PAUSE;
      else sched_yield();
    cpu_part(&run->up, part - run->first);
    return;
  }
  int64_t i = 0;
  for (; i < run->count && part >= run->works[i].chunks; i++) part -= run->works[i].chunks;
  if (i < run->count) multiply(&run->works[i], part);
  else cpu_part(&run->down, part);
  __atomic_fetch_add(&run->done, 1, __ATOMIC_RELEASE);
}

/* Ranks of B from those of A, which has some for each segment. */
static Status ranks_of_b(const Adapters *of_a, int64_t segments, Adapters *of_b) {
  of_b->count = of_a->count;
  for (size_t i = 0; i < of_a->count; i++) {
    if (of_a->ranks[i] % segments) return failure(INVALID_ARGUMENT, "ranks that do not fit segments");
    of_b->ranks[i] = of_a->ranks[i] / segments;
  }
  of_b->starts[0] = 0;
  return place_ranks(of_b);
}

/* Of one run: what of the inputs is the same for all projections. */
typedef struct { Tensor ids, x, a; const Adapters *of_a, *of_b; int64_t rows, groups, stride; } Given;

static Product product_with(const Given *given, const Kernel *kernel, int64_t width) {
  return (Product){.rows = given->groups == 1 ? given->rows : given->x.dims[1], .width = width, .parts = 1,
                   .stride = given->stride, .kernel = kernel,
                   .adapters = kernel->op->kind == DOWN ? given->of_a : given->of_b};
}

static Status run_parts(const Joined *joined, const Given *given, Run *run, const Tensor *b, const Tensor *out,
                        Handle context) {
  const int gated = joined->up[0].op->kind == GATED;
  const int64_t ups = gated ? 1 : joined->count, rows = given->rows;
  const int64_t most = given->groups == 1 ? 1 : given->of_a->count + 1;
  size_t memory = divide(&run->works[0]);
  const size_t h_at = memory, base_at = h_at + rows * given->stride * sizeof(float);
  const size_t numbers_at = base_at + (gated ? 2 * rows * joined->sizes[0].outputs * sizeof(float) : 0);
  const size_t shares_at = (numbers_at + 7) / 8 * 8 + (1 + ups) * rows * sizeof(int64_t);
  char *scratch = malloc(shares_at + (1 + ups) * most * sizeof(Share));
  if (!scratch) return failure(RUNTIME_EXCEPTION, "not enough memory");
  int64_t *numbers = (int64_t *)(scratch + (numbers_at + 7) / 8 * 8), parts = 0;
  rounded_at(&run->works[0], (float *)scratch);
  for (int64_t i = 0; i < joined->count; i++) {
    Work *work = &run->works[i];
    divide(work);
    work->rounded = run->works[0].rounded;
    work->out = gated ? (float *)(scratch + base_at) + i * rows * work->sizes->outputs : out[i].data;
    run->first += work->chunks;
  }
  run->down.shares = (Share *)(scratch + shares_at);
  run->up.shares = run->down.shares + most;
  Product down = product_with(given, &joined->down, given->x.dims[2]);
  down.in = given->x.data, down.matrix[0] = given->a.data, down.out = scratch + h_at;
  run->first += shared_parts(run->down.shares, shares_of(&down, given->ids.data, given->groups, run->down.shares, numbers),
                             run->down.op);
  for (int64_t i = 0; i < ups; i++) {
    Product up = product_with(given, &joined->up[i], joined->sizes[i].outputs);
    up.in = scratch + h_at, up.out = out[i].data;
    for (int side = 0; side < (gated ? 2 : 1); side++)
      up.base[side] = run->works[i + side].out, up.matrix[side] = b[i + side].data;
    parts += shares_of(&up, given->ids.data, given->groups, run->up.shares + parts, numbers + (i + 1) * rows);
  }
  parts = run->first + shared_parts(run->up.shares, parts, run->up.op);
  Status status = parallel(context, round_row, run->works[0].padded, &run->works[0]);
  if (!status) status = parallel(context, next_part, parts, run);
  free(scratch);
  return status;
}

static Status compute(void *self, Handle context) {
  const Joined *joined = self;
  const Op *op = joined->up[0].op;
  const int matrix_type = op->int8 ? UINT8 : FLOAT16;
  Tensor ranks = {0}, b[MAX_PROJECTIONS], out[MAX_PROJECTIONS];
  Adapters now[2];
  Given given = {.of_a = &joined->down.own, .of_b = &joined->up[0].own};
  Run run = {.down = {joined->down.op}, .up = {op}, .count = joined->count};
  TRY(input(context, IDS, INT64, &given.ids));
  TRY(input(context, X, FLOAT, &given.x));
  TRY(input(context, A, matrix_type, &given.a));
  TRY(optional_input(context, RANKS, INT64, &ranks));
  if (ranks.data) {
    TRY(read_ranks(&ranks, joined->down.row, &now[0]));
    TRY(ranks_of_b(&now[0], joined->segments, &now[1]));
    given.of_a = &now[0], given.of_b = &now[1];
  }
  TRY(check(joined->down.op, given.of_a, &given.x, &given.a, 1));
  const int64_t batch = given.x.dims[0];
  if (given.x.dims[2] != joined->sizes[0].inputs) return failure(INVALID_ARGUMENT, "the last dimension is not K");
  TRY(largest_rank(given.of_b, &given.ids, batch, &given.stride));
  given.stride *= joined->segments;
  given.rows = batch * given.x.dims[1];
  given.groups = given.ids.count;
  for (int64_t i = 0; i < joined->count; i++) {
    const size_t first = WEIGHTS + i * INPUTS_OF_ONE;
    const Quantized *sizes = &joined->sizes[i];
    run.works[i] = (Work){.sizes = sizes, .in = given.x.data, .rows = given.rows};
    TRY(read_weights(sizes, context, first, &run.works[i].matrix));
    TRY(input(context, first + B, matrix_type, &b[i]));
    out[i] = given.x;
    out[i].dims[2] = sizes->outputs;
    TRY(check(&(Op){.kind = UP, .int8 = op->int8}, given.of_b, &out[i], &b[i], 1));
    if (op->kind != GATED || i == 0) TRY(output(context, i, &out[i]));
  }
  return given.rows ? run_parts(joined, &given, &run, b, out, context) : NULL;
}

/* ---- what onnxruntime asks ---- */

static Status read_ends(Joined *joined, Handle info) {
  int64_t ends[MAX_PROJECTIONS * MAX_SEGMENTS];
  size_t count = MAX_PROJECTIONS * MAX_SEGMENTS;
  optional_ints(info, "ends", ends, &count);
  joined->segments = count ? count / joined->count : 1;
  if (count % joined->count || joined->segments < 1 || joined->segments > MAX_SEGMENTS)
    return failure(INVALID_ARGUMENT, "one to three ends for each projection");
  for (size_t i = 0; i < count; i++) {
    if (ends[i] % 8) return failure(INVALID_ARGUMENT, "outputs with h of their own end at multiples of 8");
    const int64_t projection = i / joined->segments, gated = joined->up[0].op->kind == GATED;
    joined->up[gated ? 0 : projection].ends[gated ? projection : 0][i % joined->segments] = ends[i];
  }
  for (int i = 0; i < MAX_PROJECTIONS; i++) joined->up[i].segments = joined->segments;
  return NULL;
}

static Status read_sizes(Joined *joined, Handle info) {
  int64_t outputs[MAX_PROJECTIONS], gated = joined->up[0].op->kind == GATED;
  size_t count = 0, ranks = 0;
  TRY(ints(info, "N", NULL, &count));
  if (count < 1 || count > MAX_PROJECTIONS || (gated && count != 2))
    return failure(INVALID_ARGUMENT, "one to three projections, two where they are gated");
  TRY(ints(info, "N", outputs, &count));
  joined->count = count;
  for (size_t i = 0; i < count; i++) {
    Quantized *sizes = &joined->sizes[i];
    sizes->outputs = outputs[i];
    TRY(integer(info, "K", &sizes->inputs));
    TRY(integer(info, "bits", &sizes->bits));
    TRY(integer(info, "block_size", &sizes->block));
    TRY(find_product(sizes));
  }
  if (gated && outputs[0] != outputs[1]) return failure(INVALID_ARGUMENT, "bases of different sizes");
  TRY(ints(info, "ranks", NULL, &ranks));
  if (ranks > MAX_ADAPTERS) return failure(INVALID_ARGUMENT, "too many adapters");
  TRY(ints(info, "ranks", joined->down.own.ranks, &ranks));
  joined->down.own.count = ranks;
  optional_integer(info, "row", &joined->down.row);
  TRY(read_ends(joined, info));
  TRY(place_ranks(&joined->down.own));
  return ranks_of_b(&joined->down.own, joined->segments, &joined->up[0].own);
}

static Status create(const Op *op, const void *api, Handle info, void **made) {
  Joined *joined = calloc(1, sizeof *joined);
  (void)api;
  if (!joined) return failure(RUNTIME_EXCEPTION, "not enough memory");
  joined->down.op = &downs[op->int8];
  joined->down.segments = 1;
  for (int i = 0; i < MAX_PROJECTIONS; i++) joined->up[i].op = op;
  Status status = read_sizes(joined, info);
  if (status) free(joined);
  else *made = joined;
  return status;
}

static const char *name(const Op *op) { return op->kind == GATED ? "LoraGatedMatMulNBits" : "LoraMatMulNBits"; }
static const char *provider(const Op *op) { return (void)op, NULL; }
static int input_type(const Op *op, size_t i) {
  static const int types[] = {UINT8, FLOAT, UINT8}; /* weights, scales, zero points */
  const int matrix = op->int8 ? UINT8 : FLOAT16;
  if (i < WEIGHTS) return i == X ? FLOAT : i == A ? matrix : INT64;
  return (i - WEIGHTS) % INPUTS_OF_ONE == B ? matrix : types[(i - WEIGHTS) % INPUTS_OF_ONE];
}
static int output_type(const Op *op, size_t i) { return (void)op, (void)i, FLOAT; }
static size_t input_count(const Op *op) { return (void)op, INPUTS; }
static size_t output_count(const Op *op) { return op->kind == GATED ? 1 : MAX_PROJECTIONS; }
static int input_kind(const Op *op, size_t i) { return (void)op, i < RANKS ? REQUIRED : OPTIONAL; }
static int output_kind(const Op *op, size_t i) { return (void)op, i ? OPTIONAL : REQUIRED; }
static int input_memory(const Op *op, size_t i) { return (void)op, i == IDS || i == RANKS ? CPU_INPUT : 0; }

#define OP(kind, int8) {16, NULL, name, provider, input_type, input_count, output_type, output_count, NULL, free, \
                        input_kind, output_kind, input_memory, {none, none, none, none}, create, compute, NULL, {0}, kind, 0, \
                        0, int8}
static const Op joins[] = {OP(UP, 0), OP(UP, 1), OP(GATED, 0), OP(GATED, 1)};

Status register_lora_matmul(Handle options) {
  static Handle domain;
  return add_ops(options, "phicli.cpu", &domain, joins, 4);
}
