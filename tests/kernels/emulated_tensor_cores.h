// Products of matrices that a warp, or four of them, make together, and the loads that they want: a part of emulator.h, which
// has threads, numbers in fp16 and what is late.
#pragma once

// mma.sync.aligned.m16n8k16: which thread holds what of A, B and C.
struct Operands { unsigned a[4], b[2]; float* c; };
static Operands operands[MOST];
static void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  operands[threadIdx.x] = {{a0, a1, a2, a3}, {b0, b1}, c};
  const int first = threadIdx.x / 32 * 32;
  warps[threadIdx.x / 32].meet(32, [first] {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const Operands& own = operands[first + lane];
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 4; i++)
        for (int e = 0; e < 2; e++) a[group + i % 2 * 8][pair + i / 2 * 8 + e] = widened(own.a[i] >> 16 * e);
      for (int i = 0; i < 2; i++)
        for (int e = 0; e < 2; e++) b[pair + i * 8 + e][group] = widened(own.b[i] >> 16 * e);
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        float sum = operands[first + lane].c[i];
        for (int k = 0; k < 16; k++) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
        operands[first + lane].c[i] = sum;
      }
  });
}

// wgmma.mma_async: of each warp of four its own 16 rows. What it reads and writes is late too, until it was waited for.
#ifndef WARPGROUPS
#define WARPGROUPS 0
#endif
typedef const uint4* Shared;
template <int> static Shared shared_at(const uint4* x) { return x; }
struct GroupMma { const unsigned* a[4]; Shared b; float* c; int tiles; };
static std::vector<std::vector<GroupMma>> groups[MOST];  // the last is not committed
static void perform_groups(size_t left) {
  const int first = threadIdx.x / 32 * 32;
  warps[threadIdx.x / 32].meet(32, [=] {
    for (auto& own = groups[first]; own.size() > left;) {
      for (size_t op = 0; op < own[0].size(); op++)
        for (int tile = 0; tile < own[0][op].tiles; tile++)
          for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
              const GroupMma& mine = groups[first + lane][0][op];
              const int column = tile * 8 + lane % 4 * 2 + i % 2;
              for (int k = 0; k < 16; k++) {
                const GroupMma& row = groups[first + lane / 4 * 4 + k % 8 / 2][0][op];
                const half_bits* b = (const half_bits*)row.b + (k / 8 * mine.tiles * 8 + column) * 8 + k % 8;
                mine.c[tile * 4 + i] += widened(*row.a[i / 2 + k / 8 * 2] >> k % 2 * 16) * widened(*b);
              }
            }
      for (int lane = 0; lane < 32; lane++) groups[first + lane].erase(groups[first + lane].begin());
    }
  });
}
template <int N>
static void group_mma(float (&c)[N][4], const unsigned& a0, const unsigned& a1, const unsigned& a2, const unsigned& a3,
                      Shared b) {
  if (groups[threadIdx.x].empty()) groups[threadIdx.x].emplace_back();
  groups[threadIdx.x].back().push_back({{&a0, &a1, &a2, &a3}, b, c[0], N});
}
static void begin_groups() { groups[threadIdx.x].emplace_back(); }
static void commit_groups() {
  if (!late) perform_groups(0);
}
template <int LEFT> static void wait_for_groups() { perform_groups(LEFT); }
static void show_to_groups() {}

static void load_matrices(unsigned (&b)[4], const void* row) {  // ldmatrix.x4
  static const void* rows[MOST];
  aligned(row, 16), rows[threadIdx.x] = row;
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
  warps[threadIdx.x / 32].meet(32, [] {});
  for (int i = 0; i < 4; i++) b[i] = ((const unsigned*)rows[first + i * 8 + lane / 4])[lane % 4];
  warps[threadIdx.x / 32].meet(32, [] {});
}
