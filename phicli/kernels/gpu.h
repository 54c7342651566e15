/* Kernels on a GPU, launched through CUDA's driver: gpu.c. */
#pragma once
#include "ort_api.h"

enum { LORA_KERNELS = 10, NBITS_KERNELS = 11, ATTENTION_KERNELS = 13,
       KERNELS = LORA_KERNELS + NBITS_KERNELS + ATTENTION_KERNELS };

extern const unsigned char lora_cubin[];
extern const size_t lora_cubin_size;

typedef struct { int multiprocessors, block_shared, major; } Gpu; /* bytes of shared memory that a block has at most */

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* The current device, and its kernels at the first call. */
Status gpu_here(Gpu *gpu);

/* kernel: below KERNELS, always for the same name. shared: bytes that the launch adds. It waits itself for the kernel
   before, and may start while that one runs. */
Status gpu_launch(int kernel, const char *name, const int64_t grid[3], unsigned threads, unsigned shared,
                  void **arguments, void *stream);
