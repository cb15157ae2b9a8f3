// Sixteen numbers at once, from one type to another: the channels of a block.
#pragma once

#include "product.h"

namespace mednext::MEDNEXT_ISA {

// To a whole number, halves to even, as the vector units round; for |value| below 2^22.
inline int32_t nearest(float value) {
  const float shifted = value + LIFT;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - LIFTED;
}

#if defined(__AVX2__)
constexpr bool FUSED = true;
#else
constexpr bool FUSED = false;
#endif

inline float clamped(float value, float low, float high) { return value < low ? low : value > high ? high : value; }

#if defined(__AVX512BW__)
struct Sixteen {
  __m512 value;
};
inline Sixteen zeros() { return {_mm512_setzero_ps()}; }
inline Sixteen load16(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store16(float* to, Sixteen x) { _mm512_storeu_ps(to, x.value); }
inline Sixteen wide(const int16_t* from) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))))};
}
inline Sixteen wide(const uint16_t* bf16) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
}
inline Sixteen scaled(Sixteen x, Sixteen scale, Sixteen bias) {
  return {_mm512_fmadd_ps(x.value, scale.value, bias.value)};
}
inline Sixteen operator+(Sixteen a, Sixteen b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Sixteen operator*(Sixteen a, Sixteen b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Sixteen all(float value) { return {_mm512_set1_ps(value)}; }
inline void store_int16(int16_t* to, Sixteen x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x.value)));
}
// Past the caches; `written` comes behind the last.
inline void store_past(int16_t* to, Sixteen x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x.value)));
}
inline void store_bf16(uint16_t* to, Sixteen x) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(x.value);
  std::memcpy(to, &rounded, sizeof(rounded));
#else
  const __m512i bits = _mm512_castps_si512(x.value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}
// What is too large would wrap around on its way to 32 bits.
inline __m128i levels(Sixteen x) {
  return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_min_ps(x.value, _mm512_set1_ps(127))));
}
#elif defined(__AVX2__)
struct Sixteen {
  __m256 half[2];
};
// Sixteen of what `part` gives for each half.
template <class Part>
MEDNEXT_INLINE Sixteen halves(Part part) {
  return {{part(0), part(1)}};
}
MEDNEXT_INLINE Sixteen zeros() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
MEDNEXT_INLINE Sixteen load16(const float* from) { return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}}; }
MEDNEXT_INLINE void store16(float* to, const Sixteen& x) {
  _mm256_storeu_ps(to, x.half[0]);
  _mm256_storeu_ps(to + 8, x.half[1]);
}
MEDNEXT_INLINE __m128i eight(const void* from, int half) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from) + half);
}
MEDNEXT_INLINE Sixteen wide(const int16_t* from) {
  return halves([&](int i) { return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight(from, i))); });
}
MEDNEXT_INLINE Sixteen wide(const uint16_t* bf16) {
  return halves([&](int i) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight(bf16, i)), 16));
  });
}
MEDNEXT_INLINE Sixteen scaled(const Sixteen& x, const Sixteen& scale, const Sixteen& bias) {
  return halves([&](int i) { return _mm256_fmadd_ps(x.half[i], scale.half[i], bias.half[i]); });
}
MEDNEXT_INLINE Sixteen operator+(const Sixteen& a, const Sixteen& b) {
  return halves([&](int i) { return _mm256_add_ps(a.half[i], b.half[i]); });
}
MEDNEXT_INLINE Sixteen operator*(const Sixteen& a, const Sixteen& b) {
  return halves([&](int i) { return _mm256_mul_ps(a.half[i], b.half[i]); });
}
MEDNEXT_INLINE Sixteen all(float value) { return {{_mm256_set1_ps(value), _mm256_set1_ps(value)}}; }
// Two registers of 32 bits to one of 16, in their order.
MEDNEXT_INLINE __m256i in_order(__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xD8); }
MEDNEXT_INLINE __m256i whole16(const Sixteen& x) {
  return in_order(_mm256_packs_epi32(_mm256_cvtps_epi32(x.half[0]), _mm256_cvtps_epi32(x.half[1])));
}
MEDNEXT_INLINE void store_int16(int16_t* to, const Sixteen& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), whole16(x));
}
// Past the caches; `written` comes behind the last.
MEDNEXT_INLINE void store_past(int16_t* to, const Sixteen& x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), whole16(x));
}
MEDNEXT_INLINE void store_bf16(uint16_t* to, const Sixteen& x) {
  __m256i rounded[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i bits = _mm256_castps_si256(x.half[i]);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF));
    rounded[i] = _mm256_srli_epi32(sum, 16);
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), in_order(_mm256_packus_epi32(rounded[0], rounded[1])));
}
// What is too large would wrap around on its way to 32 bits.
MEDNEXT_INLINE __m128i levels(const Sixteen& x) {
  const __m256 most = _mm256_set1_ps(127);
  const __m256i whole = whole16(halves([&](int i) { return _mm256_min_ps(x.half[i], most); }));
  return _mm_packs_epi16(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}
#else
struct Sixteen {
  float value[BLOCK];
};
inline Sixteen zeros() { return {}; }
inline Sixteen load16(const float* from) {
  Sixteen x;
  std::memcpy(x.value, from, sizeof(x.value));
  return x;
}
inline void store16(float* to, const Sixteen& x) { std::memcpy(to, x.value, sizeof(x.value)); }
inline Sixteen wide(const int16_t* from) {
  Sixteen x;
  for (int i = 0; i < BLOCK; ++i) x.value[i] = from[i];
  return x;
}
inline Sixteen wide(const uint16_t* bf16) {
  Sixteen x;
  for (int i = 0; i < BLOCK; ++i) {
    const uint32_t bits = static_cast<uint32_t>(bf16[i]) << 16;
    std::memcpy(&x.value[i], &bits, 4);
  }
  return x;
}
inline Sixteen scaled(const Sixteen& x, const Sixteen& scale, const Sixteen& bias) {
  Sixteen y;
  for (int i = 0; i < BLOCK; ++i) y.value[i] = x.value[i] * scale.value[i] + bias.value[i];
  return y;
}
inline Sixteen operator+(const Sixteen& a, const Sixteen& b) {
  Sixteen y;
  for (int i = 0; i < BLOCK; ++i) y.value[i] = a.value[i] + b.value[i];
  return y;
}
inline Sixteen operator*(const Sixteen& a, const Sixteen& b) {
  Sixteen y;
  for (int i = 0; i < BLOCK; ++i) y.value[i] = a.value[i] * b.value[i];
  return y;
}
inline Sixteen all(float value) {
  Sixteen y;
  for (int i = 0; i < BLOCK; ++i) y.value[i] = value;
  return y;
}
inline void store_int16(int16_t* to, const Sixteen& x) {
  for (int i = 0; i < BLOCK; ++i) to[i] = static_cast<int16_t>(nearest(clamped(x.value[i], -32768, 32767)));
}
inline void store_past(int16_t* to, const Sixteen& x) { store_int16(to, x); }
inline void store_bf16(uint16_t* to, const Sixteen& x) {
  for (int i = 0; i < BLOCK; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &x.value[i], 4);
    to[i] = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}
inline void store_signed(uint8_t* to, const Sixteen& x) {
  for (int i = 0; i < BLOCK; ++i) to[i] = static_cast<uint8_t>(nearest(clamped(x.value[i], -128, 127)));
}
template <class T>
inline void store_int8(T* to, const Sixteen& x) {
  for (int i = 0; i < BLOCK; ++i) to[i] = static_cast<T>(nearest(clamped(x.value[i], -128, 127)) + ZERO);
}
#endif

#if defined(__AVX2__)
inline void written() { _mm_sfence(); }
#else
inline void written() {}
#endif

#if defined(__AVX2__)
// The levels with 128 added, 255 at most.
MEDNEXT_INLINE __m128i with_zero(__m128i level) { return _mm_xor_si128(level, _mm_set1_epi8(-128)); }
MEDNEXT_INLINE void store_int8(uint8_t* to, const Sixteen& x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), with_zero(levels(x)));
}
// The levels as they are.
MEDNEXT_INLINE void store_signed(uint8_t* to, const Sixteen& x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), levels(x));
}
#if !defined(MEDNEXT_VNNI)
MEDNEXT_INLINE void store_int8(int16_t* to, const Sixteen& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(with_zero(levels(x))));
}
#endif
#endif

// Sums as floats, with LIFT added if they are lifted.
#if defined(__AVX512BW__)
template <bool Lifted>
MEDNEXT_INLINE __m512 float_of(Sums sums) {
  return Lifted ? _mm512_castsi512_ps(sums) : _mm512_cvtepi32_ps(sums);
}
#elif defined(__AVX2__)
template <bool Lifted>
MEDNEXT_INLINE __m256 float_of(Sums sums) {
  return Lifted ? _mm256_castsi256_ps(sums) : _mm256_cvtepi32_ps(sums);
}
#endif

// Block `b` of the sums of a panel.
template <bool Lifted>
MEDNEXT_INLINE Sixteen block_of(const Sums* sums, int b) {
  constexpr int EACH = BLOCK / SUMS;
#if defined(__AVX512BW__)
  return {float_of<Lifted>(sums[EACH * b])};
#elif defined(__AVX2__)
  return halves([&](int i) { return float_of<Lifted>(sums[EACH * b + i]); });
#else
  int32_t whole[BLOCK];
  std::memcpy(whole, sums + EACH * b, sizeof(whole));
  Sixteen x;
  if (Lifted) {
    std::memcpy(x.value, whole, sizeof(whole));
  } else {
    for (int i = 0; i < BLOCK; ++i) x.value[i] = static_cast<float>(whole[i]);
  }
  return x;
#endif
}

}  // namespace mednext::MEDNEXT_ISA
