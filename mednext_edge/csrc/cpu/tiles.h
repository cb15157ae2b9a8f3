// Products of matrices in AMX's tiles of 16 rows of 64 bytes (Intel 64 and IA-32 Architectures Software Developer's
// Manual, volume 1, "Programming with Intel AMX").
#pragma once

#include "view.h"
#include "voxels.h"

#if defined(__AMX_TILE__)
#include <immintrin.h>
#endif

namespace mednext::MEDNEXT_ISA {

// What is multiplied: unsigned bytes by signed ones, or bfloat16.
enum class TileKind { bytes, bf16 };

// sums [TILE, 32 * Pairs] of x [TILE, row_bytes] and a panel of so many columns, of whose rows four bytes lie together;
// they begin with those in `first` [32 * Pairs]. Rows are whole tiles. Between `begin_tiles` and `end_tiles`.
template <TileKind Kind, int Pairs>
void multiply_tiles(const void* x, int64_t row_bytes, const void* panel, const void* first, void* sums);

#if defined(__AMX_TILE__)

inline void begin_tiles() {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  __asm__ volatile("" ::: "memory");  // the intrinsics do not say that they read memory
  _tile_loadconfig(&config);
}

// Tiles in use would be saved with every change of threads.
inline void end_tiles() { _tile_release(); }

// A product that nobody reads. Tiles that rest for some 300 ns take about as long to start again (Xeon of the fourth
// generation and later, measured): between products, something must be multiplied now and then.
MEDNEXT_INLINE void keep_tiles_awake() { _tile_dpbusd(0, 6, 7); }

// The intrinsics take the numbers of tiles only as they are written.
#define MEDNEXT_DOT(sums, x, weights)    \
  if constexpr (Kind == TileKind::bytes) \
    _tile_dpbusd(sums, x, weights);      \
  else                                   \
    _tile_dpbf16ps(sums, x, weights)

// Three tiles of voxels by two of columns at once.
template <TileKind Kind, int Pairs>
MEDNEXT_APART void multiply_tiles(const void* x, int64_t row_bytes, const void* panel, const void* first, void* sums) {
  static_assert(TILE == 48, "three tiles of 16 voxels");
  constexpr int64_t ROW = 128 * Pairs;  // bytes of a group of the panel's rows, and of a row of the sums
  __asm__ volatile("" ::: "memory");
  for (int pair = 0; pair < Pairs; ++pair) {
    const char* weights = static_cast<const char*>(panel) + 128 * pair;
    const char* at = static_cast<const char*>(x);
    const char* const begin = static_cast<const char*>(first) + 128 * pair;
    _tile_loadd(0, begin, 0);  // every row the same
    _tile_loadd(1, begin, 0);
    _tile_loadd(2, begin, 0);
    _tile_loadd(3, begin + 64, 0);
    _tile_loadd(4, begin + 64, 0);
    _tile_loadd(5, begin + 64, 0);
    for (int64_t k = 0; k < row_bytes; k += 64, at += 64, weights += 16 * ROW) {
      _tile_loadd(7, weights, ROW);
      _tile_loadd(6, at, row_bytes);
      MEDNEXT_DOT(0, 6, 7);
      _tile_loadd(6, at + 16 * row_bytes, row_bytes);
      MEDNEXT_DOT(1, 6, 7);
      _tile_loadd(6, at + 32 * row_bytes, row_bytes);
      MEDNEXT_DOT(2, 6, 7);
      _tile_loadd(7, weights + 64, ROW);
      MEDNEXT_DOT(5, 6, 7);
      _tile_loadd(6, at + 16 * row_bytes, row_bytes);
      MEDNEXT_DOT(4, 6, 7);
      _tile_loadd(6, at, row_bytes);
      MEDNEXT_DOT(3, 6, 7);
    }
    char* const to = static_cast<char*>(sums) + 128 * pair;
    _tile_stored(0, to, ROW);
    _tile_stored(1, to + 16 * ROW, ROW);
    _tile_stored(2, to + 32 * ROW, ROW);
    _tile_stored(3, to + 64, ROW);
    _tile_stored(4, to + 16 * ROW + 64, ROW);
    _tile_stored(5, to + 32 * ROW + 64, ROW);
  }
}

// Sixteen voxels by up to four tiles of columns.
template <TileKind Kind, int Columns>
MEDNEXT_INLINE void multiply_sixteen(const void* x, int64_t row_bytes, const void* panel, const void* first,
                                     void* sums) {
  static_assert(Columns == 2 || Columns == 4, "tiles of columns");
  constexpr int64_t ROW = 64 * Columns;
  const char* weights = static_cast<const char*>(panel);
  const char* at = static_cast<const char*>(x);
  const char* const begin = static_cast<const char*>(first);
  char* const to = static_cast<char*>(sums);
  __asm__ volatile("" ::: "memory");
  _tile_loadd(0, begin, 0);
  _tile_loadd(1, begin + 64, 0);
  if constexpr (Columns > 2) {
    _tile_loadd(2, begin + 128, 0);
    _tile_loadd(3, begin + 192, 0);
  }
  for (int64_t k = 0; k < row_bytes; k += 64, at += 64, weights += 16 * ROW) {
    _tile_loadd(4, at, row_bytes);
    _tile_loadd(5, weights, ROW);
    MEDNEXT_DOT(0, 4, 5);
    _tile_loadd(6, weights + 64, ROW);
    MEDNEXT_DOT(1, 4, 6);
    if constexpr (Columns > 2) {
      _tile_loadd(7, weights + 128, ROW);
      MEDNEXT_DOT(2, 4, 7);
      _tile_loadd(5, weights + 192, ROW);
      MEDNEXT_DOT(3, 4, 5);
    }
  }
  _tile_stored(0, to, ROW);
  _tile_stored(1, to + 64, ROW);
  if constexpr (Columns > 2) {
    _tile_stored(2, to + 128, ROW);
    _tile_stored(3, to + 192, ROW);
  }
}

#undef MEDNEXT_DOT

#else
inline void begin_tiles() {}
inline void end_tiles() {}
inline void keep_tiles_awake() {}
#endif

}  // namespace mednext::MEDNEXT_ISA
