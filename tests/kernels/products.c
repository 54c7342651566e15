/* Products of all kinds by the code that is compiled in, as bytes to stdout: `test_processors.py` compares processors. */
#include <stdio.h>

#include "nbits_op.c"

void *const *ort;

static uint64_t state = 1;
static uint32_t drawn(void) { return (uint32_t)((state = state * 6364136223846793005 + 1442695040888963407) >> 33); }

static void *numbers(size_t count, int floats) { /* exactly as many: what reads on meets a wall of the sanitizer */
  uint8_t *bytes = malloc(count * (floats ? 4 : 1));
  for (size_t i = 0; i < count; i++)
    if (floats) ((float *)bytes)[i] = ((int32_t)drawn() % 2001 - 1000) * 1e-3f;
    else bytes[i] = (uint8_t)drawn();
  return bytes;
}

static void one(int64_t bits, int64_t block, int64_t blocks, int64_t outputs, int64_t rows, int more) {
  Quantized sizes = {.outputs = outputs, .inputs = block * blocks, .block = block, .bits = bits};
  if (find_product(&sizes)) exit(1);
  uint8_t *weights = numbers(outputs * blocks * block * bits / 8, 0), *zeros = numbers(outputs * ((blocks * bits + 7) / 8), 0);
  float *scales = numbers(outputs * blocks, 1), *bias = numbers(outputs, 1), *in = numbers(rows * sizes.inputs, 1);
  float *out = malloc(rows * outputs * sizeof *out);
  for (int64_t i = 0; i < block; i++) in[i] = 0; /* a block of nothing */
  Work work = {.sizes = &sizes, .matrix = {weights, more ? zeros : NULL, scales, more ? bias : NULL, outputs, blocks},
               .in = in, .out = out, .rows = rows};
  float *memory = malloc(divide(&work));
  rounded_at(&work, memory);
  for (int64_t row = 0; row < work.padded; row++) round_row(&work, row);
  for (int64_t chunk = 0; chunk < work.chunks; chunk++) multiply(&work, chunk);
  fwrite(out, sizeof *out, rows * outputs, stdout);
  free(weights), free(zeros), free(scales), free(bias), free(in), free(out), free(memory);
}

int main(void) {
  static const int64_t kinds[][2] = {{4, 32}, {4, 64}, {4, 128}, {8, 16}, {8, 32}, {8, 64}, {8, 128}};
  static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {9, 33}, {13, 17}, {16, 290}}; /* blocks, outputs */
  static const int64_t rows[] = {1, 2, 5, 9, 68};
  for (int k = 0; k < 7; k++)
    for (int s = 0; s < 5; s++)
      for (int r = 0; r < 5; r++) one(kinds[k][0], kinds[k][1], shapes[s][0], shapes[s][1], rows[r], (s + r) % 2);
  return 0;
}
