// Products of INT8 matrices in the registers of one instruction set: sums of some voxels and one panel of columns.
//
// AMX multiplies sixteen voxels at once. With VNNI four products are added at once. Without it two, as 16-bit numbers:
// exact, where bytes would saturate.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../tiles.h"
#include "../voxels.h"
#include "jobs.h"

namespace mednext::MEDNEXT_ISA {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define MEDNEXT_VNNI
typedef uint8_t Held;    // values with 128 added
typedef int8_t Weight;
#else
typedef int16_t Held;
typedef int16_t Weight;
#endif
constexpr int64_t GROUP = 4 / sizeof(Held);  // rows that are multiplied together

#if defined(__AVX512BW__)
typedef __m512i Sums;
constexpr int ROWS = 6, COLUMNS = 4;
inline Sums repeat(int32_t group) { return _mm512_set1_epi32(group); }
inline Sums add_products(Sums sums, Sums x, const Weight* weights) {
  const Sums w = _mm512_loadu_si512(weights);
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sums, x, w);
#else
  return _mm512_add_epi32(sums, _mm512_madd_epi16(x, w));
#endif
}
#elif defined(__AVX2__)
typedef __m256i Sums;
#if defined(MEDNEXT_VNNI)
constexpr int ROWS = 6, COLUMNS = 2;
#else
constexpr int ROWS = 4, COLUMNS = 2;
#endif
inline Sums repeat(int32_t group) { return _mm256_set1_epi32(group); }
inline Sums add_products(Sums sums, Sums x, const Weight* weights) {
  const Sums w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
#if defined(MEDNEXT_VNNI)
  return _mm256_dpbusd_avx_epi32(sums, x, w);
#else
  return _mm256_add_epi32(sums, _mm256_madd_epi16(x, w));
#endif
}
#else
struct Sums {
  int32_t lane[4];
};
constexpr int ROWS = 2, COLUMNS = 4;
inline Sums add_products(Sums sums, const Held* x, const Weight* weights) {
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < GROUP; ++k) sums.lane[i] += x[k] * weights[GROUP * i + k];
  return sums;
}
#endif

// Rows come in multiples of it; those that only fill up have weights of zero.
#if defined(__AMX_INT8__)
constexpr int64_t ROW_UNIT = 64;
#else
constexpr int64_t ROW_UNIT = 1;
#endif
inline int64_t row_width(int64_t rows) { return rounded_up(rows, ROW_UNIT); }

// One group of a voxel's values, for every lane.
#if defined(__AVX2__)
inline Sums broadcast(const Held* group) {
  int32_t all;
  std::memcpy(&all, group, sizeof(all));
  return repeat(all);
}
#else
inline const Held* broadcast(const Held* group) { return group; }
#endif

constexpr int SUMS = sizeof(Sums) / sizeof(int32_t);
constexpr int NARROW = 2 * BLOCK / SUMS < COLUMNS ? 2 * BLOCK / SUMS : BLOCK / SUMS;  // of products into the stream
constexpr int PANEL = COLUMNS * SUMS, OUT_PANEL = NARROW * SUMS;

// Where `Finish` leaves value `i` of a panel.
inline int64_t hidden_place(int64_t i) {
#if defined(__AVX512VBMI__)
  return i % 16 / 4 * 16 + i / 16 * 4 + i % 4;  // as the saturating packs interleave four registers
#else
  return i;
#endif
}

inline PanelSizes sizes(int64_t rows, int64_t columns, int64_t panel) {
  const int64_t padded = rounded_up(columns, panel);
  return {padded * row_width(rows) * static_cast<int64_t>(sizeof(Weight)), padded};
}

// The weights [columns, rows] in panels: [columns / panel, rows / GROUP, panel, GROUP], and the sums that undo the 128
// of every value.
inline void pack(int64_t rows, int64_t columns, int64_t panel, bool hidden, const int8_t* weights, Panels packed) {
  const int64_t padded = rounded_up(columns, panel), wide = row_width(rows);
  Weight* const to = reinterpret_cast<Weight*>(packed.weights);
  std::memset(packed.weights, 0, static_cast<size_t>(padded * wide) * sizeof(Weight));
  std::memset(packed.offsets, 0, sizeof(int32_t) * static_cast<size_t>(padded));
  for (int64_t column = 0; column < columns; ++column) {
    int32_t sum = 0;
    Weight* const start = to + column / panel * panel * wide + column % panel * GROUP;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = hidden ? i / PANEL * PANEL + hidden_place(i % PANEL) : i;
      start[at / GROUP * GROUP * panel + at % GROUP] = weights[column * rows + i];
      sum += weights[column * rows + i];
    }
    packed.offsets[column] = -ZERO * sum;
  }
}

// Sums of `Rows` voxels of x, `rows` values each, with one panel of `Columns` registers. All of them stay in registers:
// the loops over them must be gone, and inlined beside other code they were spilled.
template <int Rows, int Columns>
MEDNEXT_APART void multiply(const Held* x, int64_t rows, const Weight* panel, const int32_t* offsets,
                            Sums (&sums)[Rows][Columns]) {
  Sums local[Rows][Columns];
  for (int c = 0; c < Columns; ++c) std::memcpy(&local[0][c], offsets + c * SUMS, sizeof(Sums));
  MEDNEXT_UNROLL
  for (int r = 1; r < Rows; ++r) {
    MEDNEXT_UNROLL
    for (int c = 0; c < Columns; ++c) local[r][c] = local[0][c];
  }
  for (int64_t k = 0; k < rows; k += GROUP, panel += GROUP * Columns * SUMS) {
    MEDNEXT_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const auto group = broadcast(x + r * rows + k);
      MEDNEXT_UNROLL
      for (int c = 0; c < Columns; ++c) local[r][c] = add_products(local[r][c], group, panel + c * GROUP * SUMS);
    }
  }
  MEDNEXT_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MEDNEXT_UNROLL
    for (int c = 0; c < Columns; ++c) sums[r][c] = local[r][c];
  }
}

// Calls part(voxel, sums) for every voxel, a tile's at most, and one panel, that of the columns from `first` on.
template <int Columns, class Part>
MEDNEXT_INLINE void over_rows(const Held* x, int64_t rows, int64_t voxels, const Panels& panels, int64_t first,
                              Part part) {
  const Weight* const panel = reinterpret_cast<const Weight*>(panels.weights) + first * rows;
  const int32_t* const offsets = panels.offsets + first;
#if defined(__AMX_INT8__)
  // Tiles are multiplied while the sixteen voxels before them are taken. Weights that the first cache does not hold are
  // read once for all voxels instead.
  constexpr int64_t HELD_WEIGHTS = 16384, SIXTEEN = 16;
  alignas(64) int32_t sums_of[TILE * Columns * SUMS];
  const bool at_once = rows * Columns * SUMS > HELD_WEIGHTS;
  const auto multiply_next = [&](int64_t v) {
    multiply_sixteen<TileKind::bytes, Columns>(x + v * rows, rows, panel, offsets, sums_of + v * Columns * SUMS);
  };
  if (at_once)
    multiply_tiles<TileKind::bytes, Columns / 2>(x, rows, panel, offsets, sums_of);
  else
    multiply_next(0);
  for (int64_t begin = 0; begin < voxels; begin += SIXTEEN) {
    if (!at_once && begin + SIXTEEN < voxels) multiply_next(begin + SIXTEEN);
    const int64_t end = voxels < begin + SIXTEEN ? voxels : begin + SIXTEEN;
    for (int64_t v = begin; v < end; ++v) {
      Sums sums[Columns];
      MEDNEXT_UNROLL
      for (int c = 0; c < Columns; ++c) sums[c] = _mm512_load_si512(sums_of + (v * Columns + c) * SUMS);
      part(v, sums);
    }
  }
#else
  int64_t v = 0;
  for (; v + ROWS <= voxels; v += ROWS) {
    Sums sums[ROWS][Columns];
    multiply<ROWS, Columns>(x + v * rows, rows, panel, offsets, sums);
    MEDNEXT_UNROLL
    for (int r = 0; r < ROWS; ++r) part(v + r, sums[r]);
  }
  for (; v < voxels; ++v) {
    Sums sums[1][Columns];
    multiply<1, Columns>(x + v * rows, rows, panel, offsets, sums);
    part(v, sums[0]);
  }
#endif
}

}  // namespace mednext::MEDNEXT_ISA
