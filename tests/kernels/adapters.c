/* Products of LoRA by the code that is compiled in, as floats to stdout: `test_processors.py` compares processors. */
#include <stdio.h>

#include "lora_cpu.c"

void *const *ort;

static uint64_t state = 1;
static uint32_t drawn(void) { return (uint32_t)((state = state * 6364136223846793005 + 1442695040888963407) >> 33); }
static float number(void) { return ((int32_t)(drawn() % 2001) - 1000) * 1e-3f; }

static char *matrix(int64_t rows, int64_t size, int int8, int scales) { /* rows of A, or blocks of B */
  char *bytes = malloc(rows * (int8 ? size + 4 * scales : 2 * size)), *at = bytes;
  for (int64_t row = 0; row < rows; row++) {
    for (int i = 0; i < (int8 ? scales : 0); i++, at += 4) memcpy(at, &(float){number() / 64}, 4);
    for (int64_t i = 0; i < size; i++, at += int8 ? 1 : 2)
      if (int8) *at = (char)drawn();
      else memcpy(at, &(uint16_t){narrowed(number())}, 2);
  }
  return bytes;
}

static float *numbers(int64_t count) {
  float *made = malloc(count * sizeof *made);
  for (int64_t i = 0; i < count; i++) made[i] = number();
  return made;
}

static void one(int kind, int int8, int64_t rows, int64_t width, int64_t rank) {
  Op op = {.kind = kind, .int8 = int8};
  Adapters adapters = {.count = 1, .ranks = {rank}, .starts = {0, rank}};
  Kernel kernel = {.op = &op, .segments = 1};
  const int64_t wide = kind == DOWN ? rank : width;
  Product all = {.rows = rows, .width = width, .parts = 1, .stride = rank, .kernel = &kernel, .adapters = &adapters};
  float *in = numbers(rows * (kind == DOWN ? width : rank)), *base[2] = {numbers(rows * width), numbers(rows * width)};
  char *matrices[2];
  for (int i = 0; i < 2; i++)
    all.matrix[i] = matrices[i] = kind == DOWN ? matrix(rank, width, int8, 1) : matrix(width / 8, 8 * rank, int8, 8);
  all.in = in, all.base[0] = base[0], all.base[1] = base[1], all.out = calloc(rows * wide, sizeof(float));
  Share share;
  CpuWork work = {&op, &share};
  const int64_t parts = shared_parts(&share, shares_of(&all, &(int64_t){1}, 1, &share, NULL), &op);
  for (int64_t part = 0; part < parts; part++) cpu_part(&work, part);
  fwrite(all.out, sizeof(float), rows * wide, stdout);
  free(in), free(base[0]), free(base[1]), free(matrices[0]), free(matrices[1]), free(all.out);
}

int main(void) {
  for (int kind = DOWN; kind <= GATED; kind++)
    for (int int8 = 0; int8 < 2; int8++)
      for (int64_t rows = 1; rows <= 40; rows = rows * 2 + 1) one(kind, int8, rows, 96, 48);
  return 0;
}
