/* The ops LoraDown (h = x A) and LoraUp (y = base + h B) for onnxruntime: fp16 on CUDA, fp32 on a CPU.
 *
 * Inputs   LoraDown: adapters int64 (1,) or (batch,), in CPU memory; x (batch, tokens, inputs); A
 *          LoraUp: adapters; h as LoraDown gave it; base (batch, tokens, outputs); B
 * Attribute ranks: of each adapter, multiples of 16. A is (sum of ranks, inputs). B has as many numbers as
 *          (sum of ranks, outputs), but each adapter's part is (outputs, rank). Adapter 0 is none, 1 the first.
 * h is float, (batch, rows, parts * rank), with the largest rank of the batch.
 *
 * onnxruntime's C API has no header in its wheels. What is used of it is declared here: functions by their place in
 * its table, which never changes (https://onnxruntime.ai/docs/api/c/struct_ort_api.html), and OrtCustomOp up to the
 * fields of version 16. CUDA's driver is found at run time, so that the library also loads where there is none.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_ADAPTERS 1024
#define MAX_DIMS 8
#define MAX_DEVICES 16
#define PART 512  /* inputs that a warp of lora_down_one sums */

typedef void *Status; /* NULL: all is well */
typedef void *Handle;

enum { CREATE_STATUS = 0, CREATE_DOMAIN = 26, DOMAIN_ADD = 27, ADD_DOMAIN = 28, TENSOR_DATA = 51, DIM_COUNT = 61,
       DIMS = 62, TENSOR_SHAPE = 65, GET_INPUT = 90, GET_OUTPUT = 91, RELEASE_SHAPE = 99, ATTRIBUTE_INTS = 163,
       GPU_STREAM = 193 };
enum { FLOAT = 1, INT64 = 7, FLOAT16 = 10, INVALID_ARGUMENT = 2, RUNTIME_EXCEPTION = 6, CPU_INPUT = -2 };

static void *const *ort;
#define ORT(place, ...) ((Status(*)(__VA_ARGS__))ort[place])

static Status failure(int code, const char *message) { return ORT(CREATE_STATUS, int, const char *)(code, message); }

#define TRY(call) do { Status failed = (call); if (failed) return failed; } while (0)

/* ---- tensors of a run ---- */

typedef struct { void *data; int64_t dims[MAX_DIMS]; size_t rank; } Tensor;

static Status read_dims(Handle value, Tensor *tensor) {
  Handle shape;
  TRY(ORT(TENSOR_SHAPE, Handle, Handle *)(value, &shape));
  Status status = ORT(DIM_COUNT, Handle, size_t *)(shape, &tensor->rank);
  if (!status && tensor->rank > MAX_DIMS) status = failure(INVALID_ARGUMENT, "too many dimensions");
  if (!status) status = ORT(DIMS, Handle, int64_t *, size_t)(shape, tensor->dims, tensor->rank);
  ((void (*)(Handle))ort[RELEASE_SHAPE])(shape);
  return status;
}

static Status input(Handle context, size_t index, Tensor *tensor) {
  Handle value;
  TRY(ORT(GET_INPUT, Handle, size_t, Handle *)(context, index, &value));
  TRY(read_dims(value, tensor));
  return ORT(TENSOR_DATA, Handle, void **)(value, &tensor->data);
}

static Status output(Handle context, Tensor *tensor) {
  Handle value;
  TRY(ORT(GET_OUTPUT, Handle, size_t, const int64_t *, size_t, Handle *)(context, 0, tensor->dims, tensor->rank, &value));
  return ORT(TENSOR_DATA, Handle, void **)(value, &tensor->data);
}

/* ---- the two ops, on either device ---- */

typedef struct Op Op;

struct Op { /* onnxruntime's struct, then ours */
  uint32_t version;
  void *(*create)(const Op *, const void *, Handle);
  const char *(*name)(const Op *);
  const char *(*provider)(const Op *);
  int (*input_type)(const Op *, size_t);
  size_t (*input_count)(const Op *);
  int (*output_type)(const Op *, size_t);
  size_t (*output_count)(const Op *);
  void (*compute)(void *, Handle);
  void (*destroy)(void *);
  int (*input_kind)(const Op *, size_t);
  int (*output_kind)(const Op *, size_t);
  int (*input_memory)(const Op *, size_t);
  int (*variadic[4])(const Op *);
  Status (*create_v2)(const Op *, const void *, Handle, void **);
  Status (*compute_v2)(void *, Handle);
  void *infer_shape;
  int up, cuda;
};

typedef struct { const Op *op; size_t adapters; int64_t ranks[MAX_ADAPTERS], starts[MAX_ADAPTERS + 1]; } Kernel;

/* One product: rows that have the same adapter. */
typedef struct { const void *in, *matrix, *base; void *out; int64_t rows, inputs, outputs, rank, parts; } Product;

static void cpu_down(const Product *p) {
  const float *x = p->in, *a = p->matrix;
  float *h = p->out;
  for (int64_t m = 0; m < p->rows; m++)
    for (int64_t r = 0; r < p->rank; r++) {
      float sum = 0;
      for (int64_t k = 0; k < p->inputs; k++) sum += x[m * p->inputs + k] * a[r * p->inputs + k];
      h[m * p->rank + r] = sum;
    }
}

static void cpu_up(const Product *p) {
  const float *h = p->in, *b = p->matrix, *base = p->base;
  float *y = p->out;
  for (int64_t m = 0; m < p->rows; m++)
    for (int64_t n = 0; n < p->outputs; n++) {
      float sum = 0;
      for (int64_t r = 0; r < p->rank; r++) sum += h[m * p->rank + r] * b[n * p->rank + r];
      y[m * p->outputs + n] = base[m * p->outputs + n] + sum;
    }
}

/* ---- CUDA's driver ---- */

extern const unsigned char lora_cubin[];
extern const size_t lora_cubin_size;

enum { DOWN_ONE, UP_ONE, DOWN_MANY, UP_MANY, KERNELS };
static const char *const kernel_names[KERNELS] = {"lora_down_one", "lora_up_one", "lora_down_many", "lora_up_many"};

typedef struct { unsigned grid[3], block[3], shared; void *stream; void *attributes; unsigned count; } Launch;
typedef struct { int id; char pad[4]; union { int value; char space[64]; } of; } Attribute;
enum { PROGRAMMATIC_SERIALIZATION = 6, COMPUTE_CAPABILITY_MAJOR = 75 };

static struct {
  int (*context)(void **), (*device)(int *), (*capability)(int *, int, int), (*load)(void **, const void *),
      (*function)(void **, void *, const char *), (*launch)(const Launch *, void *, void **, void **);
} driver;
static struct { void *context; void *functions[KERNELS]; int early_start; } devices[MAX_DEVICES];

static Status open_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) return failure(RUNTIME_EXCEPTION, "no CUDA driver (libcuda.so.1)");
  const char *const names[] = {"cuCtxGetCurrent", "cuCtxGetDevice", "cuDeviceGetAttribute", "cuModuleLoadData",
                               "cuModuleGetFunction", "cuLaunchKernelEx"};
  void **places = (void **)&driver;
  for (int i = 0; i < 6; i++)
    if (!(places[i] = dlsym(library, names[i]))) return failure(RUNTIME_EXCEPTION, "the CUDA driver is too old");
  return NULL;
}

/* The kernels on the current device, loaded at the first call. */
static Status on_device(int *index) {
  void *context = NULL, *module;
  if (!driver.launch) TRY(open_driver());
  if (driver.context(&context) || !context) return failure(RUNTIME_EXCEPTION, "no CUDA context");
  int i = 0;
  while (i < MAX_DEVICES && devices[i].context && devices[i].context != context) i++;
  if (i == MAX_DEVICES) return failure(RUNTIME_EXCEPTION, "too many GPUs");
  *index = i;
  if (devices[i].context) return NULL;
  if (driver.load(&module, lora_cubin)) return failure(RUNTIME_EXCEPTION, "kernels built for another GPU");
  for (int k = 0; k < KERNELS; k++)
    if (driver.function(&devices[i].functions[k], module, kernel_names[k]))
      return failure(RUNTIME_EXCEPTION, "a kernel is missing");
  int device = 0, major = 0;
  if (driver.device(&device) || driver.capability(&major, COMPUTE_CAPABILITY_MAJOR, device)) major = 0;
  devices[i].early_start = major >= 9;
  devices[i].context = context;
  return NULL;
}

static Status launch(int index, int kernel, void *stream, int64_t x, int64_t y, void **arguments) {
  Attribute early = {PROGRAMMATIC_SERIALIZATION, {0}, {1}};
  Launch config = {{(unsigned)x, (unsigned)y, 1}, {256, 1, 1}, 0, stream, &early,
                   kernel <= UP_ONE && devices[index].early_start};
  if (driver.launch(&config, devices[index].functions[kernel], arguments, NULL))
    return failure(RUNTIME_EXCEPTION, "a LoRA kernel could not be launched");
  return NULL;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static Status cuda_product(const Product *p, int up, void *stream) {
  int index = 0, rows = (int)p->rows, in = (int)p->inputs, out = (int)p->outputs, rank = (int)p->rank;
  int parts = (int)p->parts, lanes = 1;
  TRY(on_device(&index));
  while (lanes < 32 && lanes * 8 < rank) lanes *= 2;
  if (!up && rows == 1) {
    void *arguments[] = {(void *)&p->in, (void *)&p->matrix, (void *)&p->out, &in, &rank, &parts};
    return launch(index, DOWN_ONE, stream, ceil_div((int64_t)rank * parts, 8), 1, arguments);
  }
  if (!up) {
    void *arguments[] = {(void *)&p->in, (void *)&p->matrix, (void *)&p->out, &rows, &in, &rank};
    return launch(index, DOWN_MANY, stream, ceil_div(rows, 16), ceil_div(rank, 64), arguments);
  }
  if (rows == 1) {
    void *arguments[] = {(void *)&p->in, (void *)&p->matrix, (void *)&p->base, (void *)&p->out, &out, &rank, &parts,
                         &lanes};
    return launch(index, UP_ONE, stream, ceil_div((int64_t)out * lanes, 256), 1, arguments);
  }
  void *arguments[] = {(void *)&p->in, (void *)&p->matrix, (void *)&p->base, (void *)&p->out, &rows, &out, &rank};
  return launch(index, UP_MANY, stream, ceil_div(rows, 16), ceil_div(out, 512), arguments);
}

/* ---- a run ---- */

static Status largest_rank(const Kernel *kernel, const Tensor *ids, int64_t batch, int64_t *rank) {
  const int64_t count = ids->rank == 1 ? ids->dims[0] : 0;
  if (count != 1 && count != batch) return failure(INVALID_ARGUMENT, "one adapter, or one for each row of the batch");
  *rank = 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t id = ((const int64_t *)ids->data)[i];
    if (id < 0 || id > (int64_t)kernel->adapters) return failure(INVALID_ARGUMENT, "no adapter of this number");
    if (id && kernel->ranks[id - 1] > *rank) *rank = kernel->ranks[id - 1];
  }
  return NULL;
}

static Status compute(void *self, Handle context) {
  const Kernel *kernel = self;
  const int up = kernel->op->up, cuda = kernel->op->cuda;
  const size_t size = cuda ? 2 : 4;
  Tensor ids, in, base, matrix, out;
  void *stream = NULL;
  int64_t widest = 0;
  TRY(input(context, 0, &ids));
  TRY(input(context, 1, &in));
  if (up) TRY(input(context, 2, &base));
  TRY(input(context, 2 + up, &matrix));
  if (cuda) TRY(ORT(GPU_STREAM, Handle, void **)(context, &stream));
  const Tensor *like = up ? &base : &in;
  if (like->rank != 3) return failure(INVALID_ARGUMENT, "(batch, tokens, numbers) wanted");
  const int64_t batch = like->dims[0], tokens = like->dims[1], width = like->dims[2];
  TRY(largest_rank(kernel, &ids, batch, &widest));
  const int64_t groups = ids.dims[0], rows = groups == 1 ? batch * tokens : tokens;
  out = *like;
  if (!up) {
    const int64_t parts = cuda && rows == 1 ? ceil_div(width, PART) : 1;
    out.dims[2] = widest * parts;
  }
  TRY(output(context, &out));
  for (int64_t g = 0; g < groups && rows; g++) {
    const int64_t id = ((const int64_t *)ids.data)[g], rank = id ? kernel->ranks[id - 1] : 0;
    const int64_t start = id ? kernel->starts[id - 1] : 0, at = g * rows;
    Product p = {(const char *)in.data + at * in.dims[2] * (up ? 4 : size), (const char *)matrix.data + start * width * size,
                 up ? (const char *)base.data + at * width * size : NULL,
                 (char *)out.data + at * out.dims[2] * (up ? size : 4), rows, width, width, rank, 1};
    if (cuda && rows == 1 && widest) p.parts = up ? in.dims[2] / widest : out.dims[2] / widest;
    if (!up && !rank) continue;
    if (cuda) TRY(cuda_product(&p, up, stream));
    else (up ? cpu_up : cpu_down)(&p);
  }
  return NULL;
}

/* ---- what onnxruntime asks ---- */

static Status create(const Op *op, const void *api, Handle info, void **made) {
  size_t count = 0;
  int64_t total = 0;
  Kernel *kernel = calloc(1, sizeof *kernel);
  (void)api;
  if (!kernel) return failure(RUNTIME_EXCEPTION, "not enough memory");
  kernel->op = op;
  Status status = ORT(ATTRIBUTE_INTS, Handle, const char *, int64_t *, size_t *)(info, "ranks", NULL, &count);
  if (!status && count > MAX_ADAPTERS) status = failure(INVALID_ARGUMENT, "too many adapters");
  if (!status) status = ORT(ATTRIBUTE_INTS, Handle, const char *, int64_t *, size_t *)(info, "ranks", kernel->ranks, &count);
  if (status) {
    free(kernel);
    return status;
  }
  kernel->adapters = count;
  for (size_t i = 0; i < count; i++) kernel->starts[i] = total, total += kernel->ranks[i];
  *made = kernel;
  return NULL;
}

static const char *name(const Op *op) { return op->up ? "LoraUp" : "LoraDown"; }
static const char *provider(const Op *op) { return op->cuda ? "CUDAExecutionProvider" : NULL; }
static int number(const Op *op) { return op->cuda ? FLOAT16 : FLOAT; }
static int input_type(const Op *op, size_t i) { return i == 0 ? INT64 : op->up && i == 1 ? FLOAT : number(op); }
static int output_type(const Op *op, size_t i) { return (void)i, op->up ? number(op) : FLOAT; }
static size_t input_count(const Op *op) { return op->up ? 4 : 3; }
static size_t output_count(const Op *op) { return (void)op, 1; }
static int required(const Op *op, size_t i) { return (void)op, (void)i, 0; }
static int input_memory(const Op *op, size_t i) { return (void)op, i == 0 ? CPU_INPUT : 0; }
static int none(const Op *op) { return (void)op, 0; }

#define OP(is_up, on_cuda) {16, NULL, name, provider, input_type, input_count, output_type, output_count, NULL, free, \
                            required, required, input_memory, {none, none, none, none}, create, compute, NULL, is_up, \
                            on_cuda}
static Op ops[] = {OP(0, 0), OP(1, 0), OP(0, 1), OP(1, 1)};

typedef struct { const void *(*get_api)(uint32_t); const char *(*version)(void); } ApiBase;

/* What onnxruntime calls after it has loaded the library. */
EXPORT Status RegisterCustomOps(Handle options, const ApiBase *base) {
  static Handle domain; /* shared by all sessions, for as long as the process lives */
  ort = base->get_api(16);
  if (!domain) {
    Handle made;
    TRY(ORT(CREATE_DOMAIN, const char *, Handle *)("phicli", &made));
    for (int i = 0; i < (lora_cubin_size ? 4 : 2); i++) TRY(ORT(DOMAIN_ADD, Handle, const Op *)(made, &ops[i]));
    domain = made;
  }
  return ORT(ADD_DOMAIN, Handle, Handle)(options, domain);
}
