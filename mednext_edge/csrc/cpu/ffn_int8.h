// The feed-forward half of a block in INT8: product, GELU out of a table, product, residual sum. The hidden tensor, two
// to eight times as wide as the block, stays in the cache.
//
// Numbers are kept with an offset of 128 where a product takes unsigned ones; the sums begin with what that adds. Without
// VNNI two products are added in 16 bits, so weights must keep to -63..63: 2 * 255 * 63 < 2^15.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "lanes.h"

namespace mednext::MEDNEXT_ISA {

#if defined(__AVX512BW__)
typedef __m512i Sums;
constexpr int ROWS = 6, COLUMNS = 4;
inline Sums repeat(int32_t four) { return _mm512_set1_epi32(four); }
inline Sums add_products(Sums sums, Sums x, const int8_t* weights) {
  const Sums w = _mm512_loadu_si512(weights);
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sums, x, w);
#else
  return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)));
#endif
}
#elif defined(__AVX2__)
typedef __m256i Sums;
constexpr int ROWS = 4, COLUMNS = 2;
inline Sums repeat(int32_t four) { return _mm256_set1_epi32(four); }
inline Sums add_products(Sums sums, Sums x, const int8_t* weights) {
  const Sums w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
}
#else
struct Sums {
  int32_t lane[4];
};
constexpr int ROWS = 2, COLUMNS = 2;
inline Sums add_products(Sums sums, const uint8_t* x, const int8_t* weights) {
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 4; ++k) sums.lane[i] += x[k] * weights[4 * i + k];
  return sums;
}
#endif

// Four channels of a voxel, for every lane.
#if defined(__AVX2__)
inline Sums broadcast(const uint8_t* four) {
  int32_t all;
  std::memcpy(&all, four, sizeof(all));
  return repeat(all);
}
#else
inline const uint8_t* broadcast(const uint8_t* four) { return four; }
#endif

#if defined(__clang__)
#define MEDNEXT_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define MEDNEXT_UNROLL _Pragma("GCC unroll 8")
#else
#define MEDNEXT_UNROLL
#endif
// What a lambda holds is read again after every byte that is stored, unless it is inlined with it.
#if defined(__GNUC__)
#define MEDNEXT_INLINE __attribute__((always_inline)) inline
#define MEDNEXT_APART __attribute__((noinline))
#else
#define MEDNEXT_INLINE inline
#define MEDNEXT_APART
#endif

constexpr int SUMS = sizeof(Sums) / sizeof(int32_t);
constexpr int NARROW = COLUMNS / 2;  // of the second product: blocks are narrower than their hidden tensor
constexpr int PANEL = COLUMNS * SUMS, OUT_PANEL = NARROW * SUMS;
constexpr int64_t FFN_VOXELS = 8 * ROWS;  // taken through both products together

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Where `finish_hidden` leaves channel `i` of a panel.
inline int64_t hidden_place(int64_t i) {
#if defined(__AVX512VBMI__)
  return i % 16 / 4 * 16 + i / 16 * 4 + i % 4;  // as the saturating packs interleave four registers
#else
  return i;
#endif
}

// The weights [rows, k] in panels: [rows / panel, k / 4, panel, 4], and the sums that undo the offset of x. `hidden`: the
// columns are the hidden tensor's, and placed as `finish_hidden` leaves them.
inline void pack(const int8_t* weights, int64_t rows, int64_t k, int64_t panel, bool hidden, int8_t* packed,
                 int32_t* offsets) {
  const int64_t deep = rounded_up(k, hidden ? PANEL : 4), tall = rounded_up(rows, panel);
  std::memset(packed, 0, static_cast<size_t>(tall * deep));
  std::memset(offsets, 0, sizeof(int32_t) * static_cast<size_t>(tall));
  for (int64_t row = 0; row < rows; ++row) {
    int32_t sum = 0;
    int8_t* const start = packed + row / panel * panel * deep + row % panel * 4;
    for (int64_t i = 0; i < k; ++i) {
      const int64_t at = hidden ? i / PANEL * PANEL + hidden_place(i % PANEL) : i;
      start[at / 4 * 4 * panel + at % 4] = weights[row * k + i];
      sum += weights[row * k + i];
    }
    offsets[row] = -128 * sum;
  }
}

// Sums of `Rows` voxels of x, `deep` bytes each and `stride` apart, with one panel of `Columns` registers. All of them
// stay in registers: the loops over them must be gone, and inlined beside other code they were spilled.
template <int Rows, int Columns>
MEDNEXT_APART void multiply(const uint8_t* x, int64_t stride, int64_t deep, const int8_t* panel, const int32_t* offsets,
                     Sums (&sums)[Rows][Columns]) {
  Sums local[Rows][Columns];
  for (int c = 0; c < Columns; ++c) std::memcpy(&local[0][c], offsets + c * SUMS, sizeof(Sums));
  MEDNEXT_UNROLL
  for (int r = 1; r < Rows; ++r) {
    MEDNEXT_UNROLL
    for (int c = 0; c < Columns; ++c) local[r][c] = local[0][c];
  }
  for (int64_t k = 0; k < deep; k += 4, panel += 4 * Columns * SUMS) {
    MEDNEXT_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const auto four = broadcast(x + r * stride + k);
      MEDNEXT_UNROLL
      for (int c = 0; c < Columns; ++c) local[r][c] = add_products(local[r][c], four, panel + c * sizeof(Sums));
    }
  }
  MEDNEXT_UNROLL
  for (int r = 0; r < Rows; ++r) {
    MEDNEXT_UNROLL
    for (int c = 0; c < Columns; ++c) sums[r][c] = local[r][c];
  }
}

// To a whole number, halves to even, as the vector units round.
inline int32_t nearest(float value) {
  const float shifted = value + 12582912.0f;  // 1.5 * 2^23
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - 0x4B400000;
}

// One voxel's panel of the hidden tensor: scaled, rounded to a line of the table, looked up.
MEDNEXT_INLINE void finish_hidden(const Sums (&sums)[COLUMNS], const float* scale, const float* bias, const uint8_t* table,
                          uint8_t* to) {
#if defined(__AVX512VBMI__)
  __m512i level[4];
  for (int c = 0; c < 4; ++c) {
    const __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[c]), _mm512_loadu_ps(scale + 16 * c),
                                         _mm512_loadu_ps(bias + 16 * c));
    level[c] = _mm512_cvtps_epi32(_mm512_min_ps(value, _mm512_set1_ps(127)));  // what is too large would wrap around
  }
  const __m512i line = _mm512_packs_epi16(_mm512_packs_epi32(level[0], level[1]), _mm512_packs_epi32(level[2], level[3]));
  // Lines 0..127 are those of the levels that are not negative.
  const __m512i positive = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), line, _mm512_loadu_si512(table + 64));
  const __m512i negative = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), line, _mm512_loadu_si512(table + 192));
  _mm512_storeu_si512(to, _mm512_mask_blend_epi8(_mm512_movepi8_mask(line), positive, negative));
#else
  int32_t sum[PANEL];
  uint8_t line[PANEL];
  std::memcpy(sum, sums, sizeof(sum));
  for (int i = 0; i < PANEL; ++i) {
    float value = static_cast<float>(sum[i]) * scale[i] + bias[i];
    value = value < -128.0f ? -128.0f : value > 127.0f ? 127.0f : value;
    line[i] = static_cast<uint8_t>(nearest(value));
  }
  for (int i = 0; i < PANEL; ++i) to[i] = table[line[i]];
#endif
}

inline float from_bf16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The first `channels` of one voxel's panel of the result.
MEDNEXT_INLINE void finish_output(const Sums (&sums)[NARROW], const float* scale, const float* bias,
                                  const uint16_t* residual, int64_t channels, uint16_t* to) {
  int64_t i = 0;
#if defined(__AVX512BW__)
  MEDNEXT_UNROLL
  for (int c = 0; c < NARROW; ++c, i += 16) {
    if (i + 16 > channels) break;
    __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[c]), _mm512_loadu_ps(scale + i), _mm512_loadu_ps(bias + i));
    if (residual) {
      const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(residual + i)));
      value = _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
    }
    const __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  if (i == channels) return;
#endif
  int32_t sum[OUT_PANEL];
  std::memcpy(sum, sums, sizeof(sum));
  for (; i < channels; ++i)
    to[i] = to_bf16(static_cast<float>(sum[i]) * scale[i] + bias[i] + (residual ? from_bf16(residual[i]) : 0.0f));
}

// Calls part(voxel, sums) for every voxel of the block and one panel.
template <int Columns, class Part>
MEDNEXT_INLINE void over_rows(const uint8_t* x, int64_t deep, int64_t voxels, const int8_t* panel, const int32_t* offsets,
                              Part part) {
  int64_t row = 0;
  for (; row + ROWS <= voxels; row += ROWS) {
    Sums sums[ROWS][Columns];
    multiply<ROWS, Columns>(x + row * deep, deep, deep, panel, offsets, sums);
    MEDNEXT_UNROLL
    for (int r = 0; r < ROWS; ++r) part(row + r, sums[r]);
  }
  for (; row < voxels; ++row) {
    Sums sums[1][Columns];
    multiply<1, Columns>(x + row * deep, deep, deep, panel, offsets, sums);
    part(row, sums[0]);
  }
}

MEDNEXT_INLINE void offset(const int8_t* __restrict from, int64_t count, uint8_t* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(from[i]) ^ 0x80;
}

inline FfnSizes ffn_sizes(FfnChannels l) {
  const int64_t deep = rounded_up(l.c_in, 4), hidden = rounded_up(l.hidden, PANEL), out = rounded_up(l.c_out, OUT_PANEL);
  return {hidden * deep, out * hidden, hidden, out, FFN_VOXELS * (deep + hidden)};
}

inline void ffn_pack(FfnChannels l, const int8_t* expand, const int8_t* compress, FfnWeights packed) {
  pack(expand, l.hidden, l.c_in, PANEL, false, packed.expand, packed.expand_offsets);
  pack(compress, l.c_out, l.hidden, OUT_PANEL, true, packed.compress, packed.compress_offsets);
}

// Voxels begin..end-1; scales and biases reach to whole panels, `table` has the offset of 128.
inline void ffn_int8(FfnChannels l, int64_t begin, int64_t end, const int8_t* x, FfnWeights packed,
                     FfnScales scales, const uint8_t* table, const uint16_t* residual, uint16_t* y, uint8_t* scratch) {
  const int64_t deep = rounded_up(l.c_in, 4), hidden = rounded_up(l.hidden, PANEL);
  uint8_t* const taken = scratch;
  uint8_t* const kept = scratch + FFN_VOXELS * deep;
  for (int64_t first = begin; first < end; first += FFN_VOXELS) {
    const int64_t voxels = end - first < FFN_VOXELS ? end - first : FFN_VOXELS;
    const int8_t* const from = x + first * l.c_in;
    if (deep == l.c_in) {
      offset(from, voxels * deep, taken);
    } else {
      for (int64_t v = 0; v < voxels; ++v) offset(from + v * l.c_in, l.c_in, taken + v * deep);
    }
    for (int64_t n = 0; n < hidden; n += PANEL)
      over_rows<COLUMNS>(taken, deep, voxels, packed.expand + n * deep, packed.expand_offsets + n,
                         [=](int64_t v, const Sums (&sums)[COLUMNS]) {
                           finish_hidden(sums, scales.expand + n, scales.expand_bias + n, table, kept + v * hidden + n);
                         });
    for (int64_t n = 0; n < l.c_out; n += OUT_PANEL) {
      const int64_t channels = l.c_out - n < OUT_PANEL ? l.c_out - n : OUT_PANEL, at = first * l.c_out + n;
      const int64_t c_out = l.c_out;
      over_rows<NARROW>(kept, hidden, voxels, packed.compress + n * hidden, packed.compress_offsets + n,
                        [=](int64_t v, const Sums (&sums)[NARROW]) {
                          const int64_t place = at + v * c_out;
                          finish_output(sums, scales.compress + n, scales.compress_bias + n,
                                        residual ? residual + place : nullptr, channels, y + place);
                        });
    }
  }
}

}  // namespace mednext::MEDNEXT_ISA
