/* What is used of onnxruntime's C API.
 *
 * onnxruntime's wheels have no header of it, so it is declared here: functions by their place in its table, which
 * never changes (https://onnxruntime.ai/docs/api/c/struct_ort_api.html), and OrtCustomOp with its fields of
 * version 18; an op of version 16 has none of the last.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_DIMS 8

typedef void *Status; /* NULL: all is well */
typedef void *Handle;

enum { CREATE_STATUS = 0, CREATE_DOMAIN = 26, DOMAIN_ADD = 27, ADD_DOMAIN = 28, TENSOR_DATA = 51, ELEMENT_TYPE = 60,
       DIM_COUNT = 61, DIMS = 62, TENSOR_SHAPE = 65, ATTRIBUTE_FLOAT = 85, ATTRIBUTE_INT = 86, GET_INPUT = 90,
       GET_OUTPUT = 91, RELEASE_STATUS = 93, RELEASE_SHAPE = 99, ATTRIBUTE_INTS = 163, GPU_STREAM = 193,
       CREATE_OP_ATTRIBUTE = 211, RELEASE_OP_ATTRIBUTE = 212, CREATE_OP = 213, INVOKE_OP = 214, RELEASE_OP = 215,
       PARALLEL_FOR = 274 };
enum { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6, INT64 = 7, FLOAT16 = 10, REQUIRED = 0, OPTIONAL = 1,
       INVALID_ARGUMENT = 2, RUNTIME_EXCEPTION = 6, CPU_INPUT = -2, OP_INT = 1 };

extern void *const *ort; /* in ops.c, like the rest of the library hidden from other libraries */
#define ORT(place, ...) ((Status(*)(__VA_ARGS__))ort[place])

static inline Status failure(int code, const char *message) { return ORT(CREATE_STATUS, int, const char *)(code, message); }

#define TRY(call) do { Status failed = (call); if (failed) return failed; } while (0)

/* ---- tensors of a run: a graph is a stranger's, so an op asks for all that it relies on ---- */

typedef struct { void *data; int64_t dims[MAX_DIMS], count; size_t rank; } Tensor; /* count: of all its numbers */

static inline Status read_shape(Handle value, int type, Tensor *tensor) {
  Handle shape;
  int found = 0;
  TRY(ORT(TENSOR_SHAPE, Handle, Handle *)(value, &shape));
  Status status = ORT(ELEMENT_TYPE, Handle, int *)(shape, &found);
  if (!status && found != type) status = failure(INVALID_ARGUMENT, "an input of another type");
  if (!status) status = ORT(DIM_COUNT, Handle, size_t *)(shape, &tensor->rank);
  if (!status && tensor->rank > MAX_DIMS) status = failure(INVALID_ARGUMENT, "too many dimensions");
  if (!status) status = ORT(DIMS, Handle, int64_t *, size_t)(shape, tensor->dims, tensor->rank);
  ((void (*)(Handle))ort[RELEASE_SHAPE])(shape);
  tensor->count = 1;
  for (size_t i = 0; !status && i < tensor->rank; i++)
    if (tensor->dims[i] < 0 || __builtin_mul_overflow(tensor->count, tensor->dims[i], &tensor->count))
      status = failure(INVALID_ARGUMENT, "dimensions that no memory has");
  return status;
}

/* One that is not there leaves `tensor` as it is. */
static inline Status optional_input(Handle context, size_t index, int type, Tensor *tensor) {
  Handle value = NULL;
  TRY(ORT(GET_INPUT, Handle, size_t, Handle *)(context, index, &value));
  if (!value) return NULL;
  TRY(read_shape(value, type, tensor));
  return ORT(TENSOR_DATA, Handle, void **)(value, &tensor->data);
}

static inline Status input(Handle context, size_t index, int type, Tensor *tensor) {
  tensor->rank = SIZE_MAX;
  TRY(optional_input(context, index, type, tensor));
  return tensor->rank == SIZE_MAX ? failure(INVALID_ARGUMENT, "an input is missing") : NULL;
}

static inline Status output(Handle context, size_t index, Tensor *tensor) {
  Handle value = NULL;
  TRY(ORT(GET_OUTPUT, Handle, size_t, const int64_t *, size_t, Handle *)(context, index, tensor->dims, tensor->rank,
                                                                         &value));
  if (!value) return failure(INVALID_ARGUMENT, "the output is missing");
  return ORT(TENSOR_DATA, Handle, void **)(value, &tensor->data);
}

static inline Status ints(Handle info, const char *attribute, int64_t *found, size_t *count) {
  return ORT(ATTRIBUTE_INTS, Handle, const char *, int64_t *, size_t *)(info, attribute, found, count);
}

/* One that is not there, or is no list of so many at most, counts none. */
static inline void optional_ints(Handle info, const char *attribute, int64_t *found, size_t *count) {
  size_t there = 0, most = *count;
  Status status = ints(info, attribute, NULL, &there);
  if (!status && there && there <= most) status = ints(info, attribute, found, &there);
  *count = status || there > most ? 0 : there;
  if (status) ((void (*)(Status))ort[RELEASE_STATUS])(status);
}

static inline Status integer(Handle info, const char *attribute, int64_t *found) {
  return ORT(ATTRIBUTE_INT, Handle, const char *, int64_t *)(info, attribute, found);
}

static inline Status decimal(Handle info, const char *attribute, float *found) {
  return ORT(ATTRIBUTE_FLOAT, Handle, const char *, float *)(info, attribute, found);
}

/* One that is not there leaves `found` as it is. */
static inline void optional_integer(Handle info, const char *attribute, int64_t *found) {
  int64_t there = 0;
  Status status = integer(info, attribute, &there);
  if (status) ((void (*)(Status))ort[RELEASE_STATUS])(status);
  else *found = there;
}

/* Do the parts of a work in the session's threads. */
static inline Status parallel(Handle context, void (*each)(void *, size_t), size_t count, void *work) {
  if (count == 1) return each(work, 0), NULL;
  return ORT(PARALLEL_FOR, Handle, void (*)(void *, size_t), size_t, size_t, void *)(context, each, count, 0, work);
}

/* ---- an op ---- */

typedef struct Op Op;

struct Op { /* OrtCustomOp, then what is ours */
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
  struct { /* version 18 */
    int (*first)(const Op *), (*last)(const Op *);
    size_t (*may_inplace)(int **, int **); /* inputs whose memory an output may take, where nothing else reads them */
    void (*release_may_inplace)(int *, int *);
    size_t (*alias_map)(int **, int **);
    void (*release_alias_map)(int *, int *);
  } later;
  int kind, cuda, half, int8;
};

static inline int required(const Op *op, size_t i) { return (void)op, (void)i, REQUIRED; }
static inline int none(const Op *op) { return (void)op, 0; }

/* Give a session ops of a domain, which all sessions share for as long as the process lives. */
static inline Status add_ops(Handle options, const char *domain, Handle *shared, const Op *ops, int count) {
  if (!*shared) {
    Handle made;
    TRY(ORT(CREATE_DOMAIN, const char *, Handle *)(domain, &made));
    for (int i = 0; i < count; i++) TRY(ORT(DOMAIN_ADD, Handle, const Op *)(made, &ops[i]));
    *shared = made;
  }
  return ORT(ADD_DOMAIN, Handle, Handle)(options, *shared);
}

typedef struct { const void *(*get_api)(uint32_t); const char *(*version)(void); } ApiBase;
