/* Sums of the ops in fp32 with matrices in fp16 or int8, in tiles: some rows of activations by some ranks, or by some blocks
 * of 8 outputs. A tile's sums stay in registers, and what it widens is used for all its rows. The sizes of tiles are
 * constants where these functions are called, and so are int8 and gated. lora_avx2.h and lora_neon.h have eights of numbers.
 */
#define ROWS 4 /* of a tile, where there are as many */
#define SPLITS 2 /* sums of an output, whatever the tile: a row's result does not depend on the rows beside it */

/* h of rows from m and ranks from n. */
TILE void down_tile(const Product *p, int64_t m, int64_t n, int rows, int ranks, int int8) {
  const float *x[ROWS];
  const char *a[4];
  Eight sums[ROWS][4];
  for (int i = 0; i < rows; i++) x[i] = (const float *)p->in + number_of(p, m + i) * p->width;
  for (int j = 0; j < ranks; j++) {
    a[j] = row_of_a(p, n + j, int8);
    for (int i = 0; i < rows; i++) sums[i][j] = repeat_8(0);
  }
  for (int64_t k = 0; k < p->width; k += 8) {
    Eight wide[4];
    for (int j = 0; j < ranks && k % 32 == 0; j++) fetch(a[j], ranks * (a[1] - a[0]), k, int8);
    for (int j = 0; j < ranks; j++) wide[j] = widened_8(a[j] + (int8 ? SCALE : 0), k, int8);
    for (int i = 0; i < rows; i++) {
      const Eight part = load_8(x[i] + k);
      for (int j = 0; j < ranks; j++) sums[i][j] = fused_8(part, wide[j], sums[i][j]);
    }
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < ranks; j++)
      ((float *)p->out)[number_of(p, m + i) * p->stride + n + j] = sum_of(sums[i][j]) *
                                                                   (int8 ? *(const float *)a[j] : 1);
}

/* base + h B of rows from m and some blocks of 8 outputs from n. */
TILE void up_sums(const Product *p, int side, int64_t m, int64_t n, int rows, int blocks, int int8, Eight y[ROWS][4]) {
  const char *b[4];
  const float *h[ROWS][4];
  Eight sums[ROWS][4][SPLITS];
  for (int j = 0; j < blocks; j++) {
    b[j] = block_of_b(p, side, n + 8 * j, int8);
    for (int i = 0; i < rows; i++) {
      h[i][j] = row_of_h(p, side, m + i, n + 8 * j);
      for (int s = 0; s < SPLITS; s++) sums[i][j][s] = repeat_8(0);
    }
  }
  for (int64_t r = 0; r < p->rank; r += SPLITS)
    for (int s = 0; s < SPLITS; s++)
      for (int j = 0; j < blocks; j++) {
        if (s == 0) fetch(b[j], blocks * (block_of_b(p, side, 8, int8) - p->matrix[side]), r * 8, int8);
        const Eight wide = widened_8(b[j] + (int8 ? 8 * SCALE : 0), (r + s) * 8, int8);
        for (int i = 0; i < rows; i++)
          sums[i][j][s] = fused_8(repeat_8(h[i][j][r + s]), wide, sums[i][j][s]);
      }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < blocks; j++) {
      const Eight sum = added_8(sums[i][j][0], sums[i][j][1]);
      const Eight base = load_8((const float *)p->base[side] + number_of(p, m + i) * p->width + n + 8 * j);
      y[i][j] = int8 ? fused_8(sum, load_8((const float *)b[j]), base) : added_8(sum, base);
    }
}

TILE void up_tile(const Product *p, int64_t m, int64_t n, int rows, int blocks, int int8, int gated) {
  Eight y[ROWS][4], up[ROWS][4];
  up_sums(p, 0, m, n, rows, blocks, int8, y);
  if (gated) up_sums(p, 1, m, n, rows, blocks, int8, up);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < blocks; j++) {
      if (gated) y[i][j] = gated_8(y[i][j], up[i][j]);
      store_8((float *)p->out + number_of(p, m + i) * p->width + n + 8 * j, y[i][j]);
    }
}

/* Rows from m; ranks, or outputs, begin to end, multiples of 8. What is read of a matrix fills the registers. */
TILE void tiles(const Product *p, int kind, int int8, int64_t m, int rows, int64_t begin, int64_t end) {
  const int ranks = rows == ROWS ? 2 : 4, blocks = ROWS / rows;
  int64_t n = begin;
  if (kind == DOWN) {
    for (; n < end; n += ranks) down_tile(p, m, n, rows, ranks, int8);
    return;
  }
  for (; n + 8 * blocks <= end; n += 8 * blocks) up_tile(p, m, n, rows, blocks, int8, kind == GATED);
  for (; n < end; n += 8) up_tile(p, m, n, rows, 1, int8, kind == GATED);
}

/* Rows from m up to `last`. */
TILE void float_tiles(const Product *p, int kind, int int8, int64_t m, int64_t last, int64_t begin, int64_t end) {
  for (; m + ROWS <= last; m += ROWS) tiles(p, kind, int8, m, ROWS, begin, end);
  for (; m + 2 <= last; m += 2) tiles(p, kind, int8, m, 2, begin, end);
  if (m < last) tiles(p, kind, int8, m, 1, begin, end);
}

static void float_part(const Product *p, int kind, int int8, int64_t m, int64_t last, int64_t begin, int64_t end) {
#define CASE(kind, int8) case kind * 2 + int8: float_tiles(p, kind, int8, m, last, begin, end); break;
  switch (kind * 2 + int8) { CASE(DOWN, 0) CASE(DOWN, 1) CASE(UP, 0) CASE(UP, 1) CASE(GATED, 0) CASE(GATED, 1) }
#undef CASE
}
