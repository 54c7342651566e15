/* CUDA's driver, found at run time, so that the library also loads where there is none. */
#include <dlfcn.h>

#include "gpu.h"

#define MAX_DEVICES 16
#define PLAIN_SHARED 49152 /* bytes that a block has without asking */
enum { COUNT_OF_MULTIPROCESSORS = 16, SHARED_OF_MULTIPROCESSOR = 81, MOST_SHARED_OF_BLOCK = 97, DYNAMIC_SHARED = 8 };

static struct {
  int (*context)(void **), (*load)(void **, const void *), (*function)(void **, void *, const char *),
      (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **),
      (*device)(int *), (*attribute)(int *, int, int), (*set)(void *, int, int);
} driver;
static struct { void *context, *module, *functions[KERNELS]; Gpu gpu; } devices[MAX_DEVICES];

static Status open_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) return failure(RUNTIME_EXCEPTION, "no CUDA driver (libcuda.so.1)");
  const char *const names[] = {"cuCtxGetCurrent", "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel",
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
      driver.attribute(&gpu->shared, SHARED_OF_MULTIPROCESSOR, number) ||
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
    if (shared > PLAIN_SHARED && driver.set(found, DYNAMIC_SHARED, (int)shared))
      return failure(RUNTIME_EXCEPTION, "a kernel needs more shared memory than the GPU has");
    *function = found;
  }
  if (driver.launch(*function, (unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2], threads, 1, 1, shared, stream,
                    arguments, NULL))
    return failure(RUNTIME_EXCEPTION, "a kernel could not be launched");
  return NULL;
}
