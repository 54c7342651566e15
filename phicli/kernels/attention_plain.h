/* Products of queries with keys, and of weights with values, in plain C: what attention_avx2.h has by hand. */

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
