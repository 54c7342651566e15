/* CUDA's driver, found at run time, so that the library also loads where there is none. */
#include <dlfcn.h>

#include "gpu.h"

#define MAX_DEVICES 16
enum { COUNT_OF_MULTIPROCESSORS = 16, MAJOR = 75, MOST_SHARED_OF_BLOCK = 97, DYNAMIC_SHARED = 8, STARTS_EARLY = 6 };

typedef struct { int kind, padding; union { int value; char bytes[64]; } of; } Attribute; /* CUlaunchAttribute */
typedef struct {                                                                         /* CUlaunchConfig */
  unsigned grid[3], block[3], shared;
  void *stream;
  const Attribute *attributes;
  unsigned attribute_count;
} Launch;

static struct {
  int (*context)(void **), (*load)(void **, const void *), (*function)(void **, void *, const char *),
      (*launch)(const Launch *, void *, void **, void **),
      (*device)(int *), (*attribute)(int *, int, int), (*set)(void *, int, int);
} driver;
static struct { void *context, *module, *functions[KERNELS]; Gpu gpu; } devices[MAX_DEVICES];

static Status open_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) return failure(RUNTIME_EXCEPTION, "no CUDA driver (libcuda.so.1)");
  const char *const names[] = {"cuCtxGetCurrent", "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernelEx",
                               "cuCtxGetDevice", "cuDeviceGetAttribute", "cuFuncSetAttribute"};
  void **places = (void **)&driver;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!(places[i] = dlsym(library, names[i]))) return failure(RUNTIME_EXCEPTION, "the CUDA driver is too old");
  return NULL;
}

static Status device_here(int *place) {
  void *context = NULL;
  if (!driver.set) TRY(open_driver());
  if (driver.context(&context) || !context) return failure(RUNTIME_EXCEPTION, "no CUDA context");
  int i = 0, number;
  while (i < MAX_DEVICES && devices[i].context && devices[i].context != context) i++;
  if (i == MAX_DEVICES) return failure(RUNTIME_EXCEPTION, "too many GPUs");
  *place = i;
  if (devices[i].context) return NULL;
  Gpu *gpu = &devices[i].gpu;
  if (driver.device(&number) || driver.attribute(&gpu->multiprocessors, COUNT_OF_MULTIPROCESSORS, number) ||
      driver.attribute(&gpu->major, MAJOR, number) ||
      driver.attribute(&gpu->block_shared, MOST_SHARED_OF_BLOCK, number))
    return failure(RUNTIME_EXCEPTION, "the GPU does not say how large it is");
  if (driver.load(&devices[i].module, lora_cubin)) return failure(RUNTIME_EXCEPTION, "kernels built for another GPU");
  devices[i].context = context;
  return NULL;
}

Status gpu_here(Gpu *gpu) {
  int place = 0;
  TRY(device_here(&place));
  *gpu = devices[place].gpu;
  return NULL;
}

Status gpu_launch(int kernel, const char *name, const int64_t grid[3], unsigned threads, unsigned shared,
                  void **arguments, void *stream) {
  int place = 0;
  TRY(device_here(&place));
  void **function = &devices[place].functions[kernel];
  if (!*function) {
    void *found;
    if (driver.function(&found, devices[place].module, name)) return failure(RUNTIME_EXCEPTION, "a kernel is missing");
    if (shared && driver.set(found, DYNAMIC_SHARED, devices[place].gpu.block_shared))
      return failure(RUNTIME_EXCEPTION, "a kernel needs more shared memory than the GPU has");
    *function = found;
  }
  const Attribute attribute = {STARTS_EARLY, 0, {1}}; /* programmatic stream serialization, see CUDA's guide */
  const Launch launch = {{(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]}, {threads, 1, 1}, shared, stream,
                         &attribute, devices[place].gpu.major >= 9};
  if (driver.launch(&launch, *function, arguments, NULL))
    return failure(RUNTIME_EXCEPTION, "a kernel could not be launched");
  return NULL;
}
