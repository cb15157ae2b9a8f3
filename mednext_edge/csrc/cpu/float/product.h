// Products of matrices in float in the registers of one instruction set: sums of some voxels and one panel of columns.
#pragma once

#include "multiplier.h"

namespace mednext::MEDNEXT_ISA {

inline void round_to(float value, float* to) { *to = value; }
inline void round_to(float value, Bf16* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  to->bits = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
// A weight as tensors of type T have it.
template <class T, class Weight>
inline void keep_weight(float value, Weight* to) {
  T rounded;
  round_to(value, &rounded);
  if constexpr (sizeof(T) == sizeof(Weight)) {
    std::memcpy(to, &rounded, sizeof(T));
  } else {
    const uint32_t bits = static_cast<uint32_t>(rounded.bits) << 16;
    std::memcpy(to, &bits, 4);
  }
}

template <class T>
inline int64_t row_width(int64_t rows) {
  return rounded_up(rows, Multiplier<T>::ROW_UNIT);
}
template <class T>
inline int64_t hidden_width(int64_t hidden) {
  return rounded_up(hidden, Multiplier<T>::HIDDEN_PANEL);
}
template <class T>
inline int64_t result_width(int64_t columns) {
  return rounded_up(columns, Multiplier<T>::RESULT_PANEL);
}
template <class T>
inline int64_t weight_bytes(int64_t rows, int64_t columns) {
  return rows * columns * static_cast<int64_t>(sizeof(typename Multiplier<T>::Weight));
}

// The weights [columns, rows] in panels: [columns / panel, rows / GROUP, panel, GROUP].
template <class T>
inline void pack_panels(int64_t rows, int64_t columns, bool hidden, const float* weights, void* packed) {
  typedef Multiplier<T> M;
  const int64_t panel = hidden ? M::HIDDEN_PANEL : M::RESULT_PANEL;
  for (int64_t column = 0; column < columns; ++column) {
    typename M::Weight* const start =
        static_cast<typename M::Weight*>(packed) + column / panel * panel * rows + column % panel * M::GROUP;
    for (int64_t i = 0; i < rows; ++i)
      keep_weight<T>(weights[column * rows + i], start + i / M::GROUP * M::GROUP * panel + i % M::GROUP);
  }
}

// Rows that are summed one after the other. The longer a sum in float32, the larger what it is rounded at.
constexpr int64_t RUN = 128;

// Sums of `Rows` voxels of x, `rows` values each, with one panel of `Columns` registers. Those of a run stay in
// registers: inlined beside other code they were spilled. They begin at zero: with the bias in them, all would be
// rounded at its size.
template <class M, int Rows, int Columns>
MEDNEXT_APART void multiply32(const typename M::Held* x, int64_t rows, const typename M::Weight* panel,
                              const float* bias, Lanes (&sums)[Rows][Columns]) {
  MEDNEXT_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MEDNEXT_UNROLL
    for (int c = 0; c < Columns; ++c) sums[r][c] = load<Lanes>(bias + c * LANES);
  }
  for (int64_t k = 0; k < rows;) {
    Lanes run[Rows][Columns];
    MEDNEXT_UNROLL
    for (int r = 0; r < Rows; ++r) {
      MEDNEXT_UNROLL
      for (int c = 0; c < Columns; ++c) run[r][c] = Lanes{};
    }
    for (const int64_t end = k + RUN < rows ? k + RUN : rows; k < end; k += M::GROUP, panel += M::GROUP * Columns * LANES) {
      MEDNEXT_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const auto value = M::broadcast(x + r * rows + k);
        MEDNEXT_UNROLL
        for (int c = 0; c < Columns; ++c) run[r][c] = M::add(run[r][c], value, panel + c * M::GROUP * LANES);
      }
    }
    MEDNEXT_UNROLL
    for (int r = 0; r < Rows; ++r) {
      MEDNEXT_UNROLL
      for (int c = 0; c < Columns; ++c) sums[r][c] += run[r][c];
    }
  }
}

// Calls part(voxel, sums) for every voxel, a tile's at most, and one panel, that of the columns from `first` on.
template <class M, int Rows, int Columns, class Part>
MEDNEXT_INLINE void over_products(const typename M::Held* x, int64_t rows, int64_t voxels, const Panels32& panels,
                                  int64_t first, Part part) {
  const auto* const panel = static_cast<const typename M::Weight*>(panels.weights) + first * rows;
  if constexpr (M::IN_TILES) {
    alignas(64) float sums[TILE * Columns * LANES];
    multiply_tiles<TileKind::bf16, Columns / 2>(x, rows * static_cast<int64_t>(sizeof(*x)), panel, panels.bias + first,
                                                sums);
    for (int64_t v = 0; v < voxels; ++v) {
      Lanes voxel[Columns];
      MEDNEXT_UNROLL
      for (int c = 0; c < Columns; ++c)
        voxel[c] = take(sums + (v * Columns + c) * LANES);
      part(v, voxel);
    }
  } else {
    int64_t v = 0;
    for (; v + Rows <= voxels; v += Rows) {
      Lanes sums[Rows][Columns];
      multiply32<M, Rows, Columns>(x + v * rows, rows, panel, panels.bias + first, sums);
      MEDNEXT_UNROLL
      for (int r = 0; r < Rows; ++r) part(v + r, sums[r]);
    }
    for (; v < voxels; ++v) {
      Lanes sums[1][Columns];
      multiply32<M, 1, Columns>(x + v * rows, rows, panel, panels.bias + first, sums);
      part(v, sums[0]);
    }
  }
}

}  // namespace mednext::MEDNEXT_ISA
