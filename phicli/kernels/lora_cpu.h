/* Products of LoRA on a CPU, for lora_op.c and lora_matmul_op.c. */
#pragma once
#include "lora.h"

/* A product's share of a work: of `count` ranks or outputs `chunk` at a time, in `chunks`; parts of it end before `end`. */
typedef struct { Product product; int int8; int64_t count, chunk, chunks, end; } Share;
typedef struct { const Op *op; Share *shares; } CpuWork;

/* Rows with the same adapter are brought together, so that each number of a matrix is read once for all of them, after
 * SGMV of Punica (arXiv:2310.18547). Returns how many shares they are, at most one for each adapter and one for none.
 *
 * ids: of all rows, or of each `all->rows` of them. numbers: room for those of all rows, where there are several ids.
 */
int64_t shares_of(const Product *all, const int64_t *ids, int64_t groups, Share *shares, int64_t *numbers);

/* Of several products, how the threads share them; returns how many parts they are for `cpu_part`. */
int64_t shared_parts(Share *shares, int64_t count, const Op *op);

void cpu_part(void *work, size_t part);
