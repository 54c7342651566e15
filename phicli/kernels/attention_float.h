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

/* Half of the lanes of a and b: of each `2 * half` lanes side by side those from `from` on. */
#define LANE(half, from, i) ((i) % (WIDTH / 2) / (half) * 2 * (half) + (i) % (half) + (from) + ((i) < WIDTH / 2 ? 0 : WIDTH))
#define LANES8(half, from, i)                                                                                      \
  LANE(half, from, i), LANE(half, from, i + 1), LANE(half, from, i + 2), LANE(half, from, i + 3),                  \
  LANE(half, from, i + 4), LANE(half, from, i + 5), LANE(half, from, i + 6), LANE(half, from, i + 7)
#if WIDTH == 16
#define LANES(half, from) LANES8(half, from, 0), LANES8(half, from, 8)
#else
#define LANES(half, from) LANES8(half, from, 0)
#endif
#ifdef __clang__
#define PICKED(a, b, half, from) __builtin_shufflevector(a, b, LANES(half, from))
#else
typedef int32_t Places __attribute__((vector_size(WIDTH * 4)));
#define PICKED(a, b, half, from) __builtin_shuffle(a, b, (Places){LANES(half, from)})
#endif

/* Products of one row of x with some keys, WIDTH at a time and the last one in place of those that are not there. Each is
 * summed the same whatever is beside it: by lanes, whose sums are added by halves. together: keys that are read at once, 4
 * where they are in a cache, 1 where they come from memory. next: what is read afterwards, laid out as the keys, or NULL.
 */
ALWAYS void dots_of(const float *x, const float *keys, int64_t size, int64_t tokens, int together, const float *next,
                    float *out) {
  for (int64_t first = 0; first < tokens; first += WIDTH) {
    Vector sums[WIDTH] = {{0}};
#pragma GCC unroll 16
    for (int j = 0; j < WIDTH; j += together) {
      int64_t at[4];
      for (int i = 0; i < together; i++) at[i] = least(first + j + i, tokens - 1) * size;
      for (int64_t c = 0; c < size; c += WIDTH) {
        const Vector own = *(const Vector *)(x + c);
        for (int i = 0; i < together; i++) {
          sums[j + i] += own * *(const Vector *)(keys + at[i] + c);
          if (next) __builtin_prefetch(next + at[i] + c);
        }
      }
    }
#define HALVED(half)                                                                                              \
  for (int j = 0; j < half; j++)                                                                                   \
    sums[j] = PICKED(sums[2 * j], sums[2 * j + 1], half, 0) + PICKED(sums[2 * j], sums[2 * j + 1], half, half)
#if WIDTH == 16
    HALVED(8);
#endif
    HALVED(4);
    HALVED(2);
    HALVED(1);
#undef HALVED
    *(Vector *)(out + first) = sums[0];
  }
}

/* Scores of a tile. */
static void score_floats(const float *queries, int64_t rows, int64_t size, const float *keys, const float *values,
                         int64_t tokens, float *scores) {
  dots_of(queries, keys, size, tokens, 1, values, scores);
  for (int64_t r = 1; r < rows; r++) dots_of(queries + r * size, keys, size, tokens, 4, NULL, scores + r * TILE);
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
  score_floats((const float *)work->queries + block->row * size, block->rows, size, keys, values, tokens, scores);
  for (int64_t r = 0; r < block->rows; r++) {
    weigh_floats(work->kernel, scores + r * TILE, (int)most(block->begins[r] - at, 0),
                 (int)least(block->ends[r] - at, tokens), &block->softmax[r]);
    kept[r] = block->softmax[r].kept;
  }
  multiply_floats(scores, TILE, values, size, tokens, block->rows, size, kept, block->sums);
}
