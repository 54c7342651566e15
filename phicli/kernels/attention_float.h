/* Keys and values in fp32, for attention_cpu.c. All sums of a row go in an order that other rows do not change. */

#ifdef __AVX512F__
#define WIDTH 16
#define MOST_SUMS 16 /* vectors, which registers hold */
#else
#define WIDTH 8
#define MOST_SUMS 8
#endif
typedef float Vector __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

#define ALWAYS static inline __attribute__((always_inline))

/* c (rows, vectors of WIDTH) = c * kept + a (rows, count) b (count, vectors of WIDTH) */
ALWAYS void outer(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t count, int rows, int vectors,
                  const float *kept, float *const *c, int64_t at) {
  Vector sums[MOST_SUMS];
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) sums[r * vectors + v] = *(const Vector *)(c[r] + at + v * WIDTH) * kept[r];
  for (int64_t k = 0; k < count; k++, b += b_stride)
    for (int v = 0; v < vectors; v++)
      for (int r = 0; r < rows; r++) sums[r * vectors + v] += a[r * a_stride + k] * *(const Vector *)(b + v * WIDTH);
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) *(Vector *)(c[r] + at + v * WIDTH) = sums[r * vectors + v];
}

/* The same for any number of rows and columns, a multiple of WIDTH: of as many sums at once as there are registers. */
static void multiply_floats(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t count, int64_t rows,
                            int64_t columns, const float *kept, float *const *c) {
#define OF(rows, vectors)                                                                                     \
  for (; n + vectors * WIDTH <= columns; n += vectors * WIDTH)                                                \
    outer(a + r * a_stride, a_stride, b + n, b_stride, count, rows, vectors, kept + r, c + r, n)
  for (int64_t r = 0, taken; r < rows; r += taken) {
    const int64_t left = rows - r;
    int64_t n = 0;
    if (MOST_SUMS == 16 && left >= 8) {
      taken = 8;
      OF(8, 2);
      OF(8, 1);
    } else if (left >= 4) {
      taken = 4;
      OF(4, (MOST_SUMS / 4));
      OF(4, 2);
      OF(4, 1);
    } else if (left == 3) {
      taken = 3;
      OF(3, (MOST_SUMS / 4));
      OF(3, 2);
      OF(3, 1);
    } else if (left == 2) {
      taken = 2;
      OF(2, 4);
      OF(2, 2);
      OF(2, 1);
    } else {
      taken = 1;
      OF(1, 6);
      OF(1, 4);
      OF(1, 2);
      OF(1, 1);
    }
  }
#undef OF
}

static inline float total_of(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int i = 0; i < WIDTH; i++) total += v[i];
  return total;
#endif
}

/* Products of some rows of x with y, TILE numbers apart. Each is summed the same whatever rows are beside it. */
ALWAYS void dots_of(const float *x, int rows, const float *y, int64_t size, float *out) {
  Vector sums[4] = {{0}};
  for (int64_t i = 0; i < size; i += WIDTH) {
    const Vector own = *(const Vector *)(y + i);
    for (int r = 0; r < rows; r++) sums[r] += *(const Vector *)(x + r * size + i) * own;
  }
  for (int r = 0; r < rows; r++) out[r * TILE] = total_of(sums[r]);
}

/* Scores of a tile. Of few rows a product is cheaper than turning the keys over would be. */
static void score_floats(const float *queries, int64_t rows, int64_t size, const float *keys, const float *values, int64_t tokens,
                         int few, float *scores) {
  if (few) {
    for (int64_t j = 0; j < tokens; j++) {
      for (int64_t c = 0; c < size; c += WIDTH) __builtin_prefetch(values + j * size + c); /* read next, and as many */
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) dots_of(queries + r * size, 4, keys + j * size, size, scores + r * TILE + j);
      for (; r + 3 <= rows; r += 3) dots_of(queries + r * size, 3, keys + j * size, size, scores + r * TILE + j);
      for (; r < rows; r++) dots_of(queries + r * size, 1, keys + j * size, size, scores + r * TILE + j);
    }
    return;
  }
  float turned[MAX_SIZE * TILE], *places[ROWS], none[ROWS] = {0};
  for (int64_t j = 0; j < TILE; j++)
    for (int64_t c = 0; c < size; c++) turned[c * TILE + j] = j < tokens ? keys[j * size + c] : 0;
  for (int64_t r = 0; r < rows; r++) places[r] = scores + r * TILE;
  multiply_floats(queries, size, turned, TILE, size, rows, TILE, none, places);
}

/* The weights of a tile's values in place of their scores, of which a row sees those from `begin` to `end`. */
static void weigh_floats(const Kernel *kernel, float *x, int begin, int end, Softmax *softmax) {
  float top = softmax->top, total = 0;
  softmax->kept = 1;
  if (begin >= end) {
    memset(x, 0, TILE * sizeof *x);
    return;
  }
  if (kernel->softcap > 0)
    for (int j = 0; j < TILE; j++) x[j] = capped(x[j], kernel->softcap);
#pragma omp simd reduction(max : top)
  for (int j = 0; j < TILE; j++) top = j >= begin && j < end && x[j] > top ? x[j] : top;
#pragma omp simd reduction(+ : total)
  for (int j = 0; j < TILE; j++) {
    const float weight = exponential(x[j] - top);
    x[j] = j >= begin && j < end ? weight : 0;
    total += x[j];
  }
  softmax->kept = exponential(softmax->top - top);
  softmax->total = softmax->total * softmax->kept + total;
  softmax->top = top;
}

/* Up to TILE tokens from number `at` on, for all rows of a block. */
static void tile_floats(const Work *work, Block *block, int64_t at, int64_t tokens) {
  const int64_t size = work->size, begin = block->head * work->room + at;
  const float *keys = (const float *)work->present[0] + begin * size, *values = (const float *)work->present[1] + begin * size;
  float scores[ROWS * TILE] = {0}, kept[ROWS];
  score_floats((const float *)work->queries + block->row * size, block->rows, size, keys, values, tokens,
               work->tokens <= FEW, scores);
  for (int64_t r = 0; r < block->rows; r++) {
    weigh_floats(work->kernel, scores + r * TILE, (int)most(block->begins[r] - at, 0),
                 (int)least(block->ends[r] - at, tokens), &block->softmax[r]);
    kept[r] = block->softmax[r].kept;
  }
  multiply_floats(scores, TILE, values, size, tokens, block->rows, size, kept, block->sums);
}
