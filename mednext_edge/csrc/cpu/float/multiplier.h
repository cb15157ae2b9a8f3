// How tensors of a type are multiplied in one instruction set.
//
// Float tensors are multiplied in float32. Bfloat16 tensors are multiplied by AMX, sixteen voxels at once, or by
// AVX512_BF16, two rows at once: products are exact, and sums in float32. Elsewhere they are multiplied in float32, with
// weights rounded to bfloat16 all the same.
#pragma once

#include "../tiles.h"
#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

// Sums of ROWS x COLUMNS registers stay in registers, with the weights and a value of x: of a product into the hidden
// tensor (wide), and of one into the stream, whose columns are few (thin).
template <int WideRows, int Wide, int ThinRows, int Thin>
struct Registers {
  static constexpr int WIDE_ROWS = WideRows, WIDE = Wide, THIN_ROWS = ThinRows, THIN = Thin;
  static constexpr int64_t HIDDEN_PANEL = WIDE * LANES, RESULT_PANEL = THIN * LANES;
};
#if MEDNEXT_LANES == 16
typedef Registers<6, 4, 12, 2> ByRegisters;
#else
typedef Registers<6, 2, 6, 2> ByRegisters;
#endif

template <class T>
struct Multiplier : ByRegisters {
  typedef float Held;  // what a tile of voxels is held in
  typedef float Weight;
  static constexpr int GROUP = 1;         // rows that are multiplied together
  static constexpr int64_t ROW_UNIT = 1;  // rows come in multiples of it
  static constexpr bool IN_TILES = false;

  static MEDNEXT_INLINE Lanes broadcast(const float* x) { return every(*x); }
  static MEDNEXT_INLINE Lanes add(Lanes sums, Lanes x, const float* weights) { return sums + x * load<Lanes>(weights); }
  static void begin() {}
  static void end() {}
};

#if defined(__AMX_BF16__)
template <>
struct Multiplier<Bf16> : Registers<0, 2, 0, 2> {
  typedef Bf16 Held;
  typedef Bf16 Weight;
  static constexpr int GROUP = 2;
  static constexpr int64_t ROW_UNIT = 32;
  static constexpr bool IN_TILES = true;

  static void begin() { begin_tiles(); }
  static void end() { end_tiles(); }
};
#elif defined(__AVX512BF16__)
template <>
struct Multiplier<Bf16> : ByRegisters {
  typedef Bf16 Held;
  typedef Bf16 Weight;
  static constexpr int GROUP = 2;
  static constexpr int64_t ROW_UNIT = 2;
  static constexpr bool IN_TILES = false;

  static MEDNEXT_INLINE __m512i broadcast(const Bf16* x) {
    int32_t both;
    std::memcpy(&both, x, sizeof(both));
    return _mm512_set1_epi32(both);
  }
  static MEDNEXT_INLINE Lanes add(Lanes sums, __m512i x, const Bf16* weights) {
    return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)_mm512_loadu_si512(weights));
  }
  static void begin() {}
  static void end() {}
};
#endif

}  // namespace mednext::MEDNEXT_ISA
