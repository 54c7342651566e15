/* Products of 16 rows by tiles, for x86 with AMX: 16 outputs' weights times the activations as nbits_avx512.h has them.
 * A block's sums are whole numbers in a tile; what follows, in fp32, takes longer than they do.
 */
#include <sys/syscall.h>
#include <unistd.h>

#define GROUPS 4 /* of 16 rows, for which weights are unpacked once */

#define FOUND 0 /* numbers of tiles, which gcc wants as text */
#define WEIGHTS_TILE 1
#define ROWS_TILE 2

static int granted;

__attribute__((constructor)) static void ask(void) { /* the system gives tiles to processes that ask for them */
  granted = !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* their data */);
}

/* Whether rows are multiplied by tiles, which for a few rows of 8-bit weights are slower than vectors. */
static int by_tiles(int64_t rows, int64_t bits) { return granted && rows > (bits == 4 ? 4 : 8); }

static void set_tiles(int bytes) { /* of a block that a tile takes */
  struct { uint8_t palette, start, none[14]; uint16_t columns[16]; uint8_t rows[16]; } sizes = {.palette = 1};
  sizes.rows[FOUND] = sizes.rows[WEIGHTS_TILE] = 16, sizes.rows[ROWS_TILE] = bytes / 4;
  sizes.columns[FOUND] = sizes.columns[ROWS_TILE] = 64, sizes.columns[WEIGHTS_TILE] = bytes;
  _tile_loadconfig(&sizes);
}

/* Sums of 16 outputs' blocks, `stride` bytes after one another, and of 16 rows: found (outputs, rows). */
INLINE void tile_product(const uint8_t *weights, int64_t stride, const int8_t *ints, int block, int32_t *found) {
  _tile_zero(FOUND);
  for (int i = 0; i < block; i += 64) {
    _tile_loadd(WEIGHTS_TILE, weights + i, stride);
    _tile_loadd(ROWS_TILE, ints + i * 16, 64);
    _tile_dpbusd(FOUND, WEIGHTS_TILE, ROWS_TILE);
  }
  _tile_stored(FOUND, found, 64);
}

INLINE void transpose_16(__m512 *v) {
  __m512 w[16];
  for (int i = 0; i < 16; i += 2) {
    w[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    w[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      v[i + 2 * j] = _mm512_shuffle_ps(w[i + j], w[i + j + 2], 0x44);
      v[i + 2 * j + 1] = _mm512_shuffle_ps(w[i + j], w[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      w[i + 8 * j] = _mm512_shuffle_f32x4(v[i + 8 * j], v[i + 8 * j + 4], 0x88);
      w[i + 8 * j + 4] = _mm512_shuffle_f32x4(v[i + 8 * j], v[i + 8 * j + 4], 0xdd);
    }
  for (int i = 0; i < 8; i++) {
    v[i] = _mm512_shuffle_f32x4(w[i], w[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(w[i], w[i + 8], 0xdd);
  }
}

/* Up to 16 outputs from n and up to 16 rows. */
INLINE void store_tile(const Matrix *m, const __m512 sums[SUMS][16], int64_t n, int64_t outputs, int64_t rows, float *out) {
  __m512 found[16];
  const __mmask16 mask = (__mmask16)((1 << outputs) - 1);
  const __m512 bias = m->bias ? _mm512_maskz_loadu_ps(mask, m->bias + n) : _mm512_setzero_ps();
  for (int o = 0; o < 16; o++) {
    const __m512 of_output[SUMS] = {sums[0][o], sums[1][o], sums[2][o], sums[3][o],
                                    sums[4][o], sums[5][o], sums[6][o], sums[7][o]};
    found[o] = SUM_OF_EIGHT(_mm512_add_ps, of_output);
  }
  transpose_16(found);
  for (int64_t i = 0; i < rows; i++)
    _mm512_mask_storeu_ps(out + i * m->outputs + n, mask, _mm512_add_ps(found[i], bias));
}

/* Of 16 outputs from n (or fewer) 8 blocks from b (or fewer) as bytes. What comes next is fetched: a processor does not
 * see by itself that lines of so many outputs follow.
 */
INLINE void tile_weights(const Matrix *m, int64_t n, int64_t outputs, int64_t b, int64_t count, int block, int bits,
                         uint8_t *bytes) {
  const int64_t size = block * bits / 8, line = m->blocks * size;
  const int64_t ahead = b + SUMS < m->blocks ? SUMS * size : 16 * line - b * size;
  for (int64_t o = 0; o < outputs; o++) {
    const uint8_t *from = m->weights + (n + o) * line + b * size;
    for (int64_t i = 0; i < count * size; i += 64) _mm_prefetch((const char *)from + i + ahead, _MM_HINT_T0);
    if (bits == 8) memcpy(bytes + o * SUMS * block, from, count * block);
    else for (int64_t i = 0; i < count; i++) unpack_64(from + i * size, block, bytes + (o * SUMS + i) * block);
  }
}

/* Blocks from b, up to 8, of 16 rows, whose activations are x. */
INLINE void tile_blocks(const Rounded *x, int64_t b, int64_t count, const uint8_t *weights, int64_t stride,
                        const Eight *eight, int block, __m512 sums[SUMS][16]) {
  _Alignas(64) int32_t found[2][16][16];
  tile_product(weights, stride, x->ints + b * 16 * block, block, found[0][0]);
  for (int64_t i = 0; i < count; i++, b++) {
    if (i + 1 < count) /* meanwhile */
      tile_product(weights + (i + 1) * block, stride, x->ints + (b + 1) * 16 * block, block, found[(i + 1) % 2][0]);
    const __m512 scales = _mm512_loadu_ps(x->scales + b * 16);
    const __m512i ints = _mm512_loadu_si512(x->sums + b * 16);
    for (int o = 0; o < 16; o++)
      sums[i][o] = scaled_64(_mm512_load_si512(found[i % 2][o]), &eight[o], (int)i, ints, scales, sums[i][o]);
  }
}

/* All rows, 16 of which are a group. */
static void tiled_rows(const Matrix *m, const Rounded *x, int64_t rows, int64_t begin, int64_t end, float *out,
                       int block, int bits) {
  uint8_t bytes[16 * SUMS * 128];
  __m512 sums[GROUPS][SUMS][16];
  Eight eight[16];
  memset(bytes, 0, sizeof bytes), memset(eight, 0, sizeof eight);
  set_tiles(block < 64 ? block : 64);
  for (int64_t row = 0; row < rows; row += 16 * GROUPS)
    for (int64_t n = begin; n < end; n += 16) {
      const int64_t outputs = end - n < 16 ? end - n : 16, left = (rows - row + 15) / 16;
      const int groups = left < GROUPS ? (int)left : GROUPS;
      memset(sums, 0, groups * sizeof *sums);
      for (int64_t b = 0; b < m->blocks; b += SUMS) {
        const int64_t count = m->blocks - b < SUMS ? m->blocks - b : SUMS;
        const int there = bits == 8 && outputs == 16;
        if (!there) tile_weights(m, n, outputs, b, count, block, bits, bytes);
        for (int64_t o = 0; o < outputs; o++) read_eight(m, n + o, b, bits, &eight[o]);
        for (int g = 0; g < groups; g++) {
          const Rounded of_group = group_of(x, row / 16 + g, 16, m->blocks, block);
          tile_blocks(&of_group, b, count, there ? m->weights + (n * m->blocks + b) * block : bytes,
                      there ? m->blocks * block : SUMS * block, eight, block, sums[g]);
        }
      }
      for (int g = 0; g < groups; g++) {
        const int64_t first = row + 16 * g;
        store_tile(m, sums[g], n, outputs, rows - first < 16 ? rows - first : 16, out + first * m->outputs);
      }
    }
  _tile_release();
}
