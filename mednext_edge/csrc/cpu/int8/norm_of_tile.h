// The norm of y in INT8, for the voxels of a tile.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

#if defined(__AVX512VNNI__)
// A block of channels of two voxels, in whole numbers: half the work of floats.
struct WholeNorm {
  __m512i even, odd, even_offset, odd_offset, shift;

  MEDNEXT_INLINE WholeNorm(const Norm8& norm, int64_t c)
      : even(_mm512_maskz_mov_epi16(0x55555555, twice(norm.factor + c))),
        odd(_mm512_maskz_mov_epi16(0xAAAAAAAA, twice(norm.factor + c))),
        even_offset(twice(norm.offset + c)),
        odd_offset(twice(norm.offset + c + BLOCK / 2)),
        shift(twice(norm.shift + c)) {}

  MEDNEXT_INLINE void operator()(const int16_t* y0, const int16_t* y1, uint8_t* to0, uint8_t* to1) const {
    const __m512i y = _mm512_inserti64x4(_mm512_castsi256_si512(half(y0)), half(y1), 1);
    const __m512i low = _mm512_srli_epi32(_mm512_dpwssds_epi32(even_offset, y, even), 16);
    const __m512i words = _mm512_mask_blend_epi16(0xAAAAAAAA, low, _mm512_dpwssds_epi32(odd_offset, y, odd));
    const __m256i level = _mm512_cvtsepi16_epi8(_mm512_srav_epi16(words, shift));
    const __m256i held = _mm256_xor_si256(level, _mm256_set1_epi8(-128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to0), _mm256_castsi256_si128(held));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to1), _mm256_extracti128_si256(held, 1));
  }

 private:
  static __m256i half(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static __m512i twice(const void* from) { return _mm512_broadcast_i64x4(half(from)); }
};
#endif

// Values of block `block` of `count` voxels, which begin at `y`; for an odd number of them the last stands there twice.
MEDNEXT_INLINE void take_normed(const Norm8& norm, int64_t block, const int16_t* const* y, int64_t apart, int64_t count,
                                int64_t rows, Held* to) {
  const int64_t c = block * BLOCK;
#if defined(__AVX512VNNI__)
  if (norm.whole[block]) {
    const WholeNorm take(norm, c);
    for (int64_t i = 0; i < count; i += 2)
      take(y[i] + apart, y[i + 1] + apart, to + i * rows + c, to + (i + 1) * rows + c);
    return;
  }
#endif
  const Sixteen scale = load16(norm.scale + c), bias = load16(norm.bias + c);
  for (int64_t i = 0; i < count; ++i) store_int8(to + i * rows + c, scaled(wide(y[i] + apart), scale, bias));
}

}  // namespace mednext::MEDNEXT_ISA
