// Several channels at once, to and from the two types that tensors are kept in.
#pragma once

#include "../voxels.h"
#include "jobs.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mednext::MEDNEXT_ISA {

constexpr int LANES = static_cast<int>(width<Lanes>);

MEDNEXT_INLINE Lanes take(const float* from) { return load<Lanes>(from); }
MEDNEXT_INLINE void put(float* to, Lanes x) { store(to, x); }

#if defined(__AVX512BW__)
MEDNEXT_INLINE Lanes every(float value) { return _mm512_set1_ps(value); }
MEDNEXT_INLINE Lanes take(const Bf16* from) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
MEDNEXT_INLINE void put(Bf16* to, Lanes x) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(x);
  std::memcpy(to, &rounded, sizeof(rounded));
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}
MEDNEXT_INLINE Lanes at_least(Lanes x, Lanes low) { return _mm512_max_ps(x, low); }
MEDNEXT_INLINE Lanes at_most(Lanes x, Lanes high) { return _mm512_min_ps(x, high); }
#elif defined(__AVX2__)
MEDNEXT_INLINE Lanes every(float value) { return _mm256_set1_ps(value); }
MEDNEXT_INLINE Lanes take(const Bf16* from) {
  const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}
MEDNEXT_INLINE void put(Bf16* to, Lanes x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF));
  const __m256i rounded = _mm256_srli_epi32(sum, 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}
MEDNEXT_INLINE Lanes at_least(Lanes x, Lanes low) { return _mm256_max_ps(x, low); }
MEDNEXT_INLINE Lanes at_most(Lanes x, Lanes high) { return _mm256_min_ps(x, high); }
#else
MEDNEXT_INLINE Lanes every(float value) { return Lanes{} + value; }
MEDNEXT_INLINE Lanes take(const Bf16* from) {
  float lane[LANES];
  for (int i = 0; i < LANES; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i].bits) << 16;
    std::memcpy(lane + i, &bits, 4);
  }
  return load<Lanes>(lane);
}
MEDNEXT_INLINE void put(Bf16* to, Lanes x) {
  uint32_t bits[LANES];
  std::memcpy(bits, &x, sizeof(bits));
  for (int i = 0; i < LANES; ++i) to[i].bits = static_cast<uint16_t>((bits[i] + 0x7FFF + (bits[i] >> 16 & 1)) >> 16);
}
// As the vector instructions: the bound, where x is no number.
template <class Choose>
MEDNEXT_INLINE Lanes each_lane(Lanes x, Lanes bound, Choose choose) {
  float lane[LANES], other[LANES];
  store(lane, x);
  store(other, bound);
  for (int i = 0; i < LANES; ++i) lane[i] = choose(lane[i], other[i]);
  return load<Lanes>(lane);
}
MEDNEXT_INLINE Lanes at_least(Lanes x, Lanes low) {
  return each_lane(x, low, [](float a, float b) { return a > b ? a : b; });
}
MEDNEXT_INLINE Lanes at_most(Lanes x, Lanes high) {
  return each_lane(x, high, [](float a, float b) { return a < b ? a : b; });
}
#endif

}  // namespace mednext::MEDNEXT_ISA
