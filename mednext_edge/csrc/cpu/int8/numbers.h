// Sixteen numbers at once, from one type to another: the channels of a block.
#pragma once

#include "product.h"

namespace mednext::MEDNEXT_ISA {

// To a whole number, halves to even, as the vector units round; for |value| below 2^22.
inline int32_t nearest(float value) {
  const float shifted = value + 12582912.0f;  // 1.5 * 2^23
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - 0x4B400000;
}

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
  const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(x.value, _mm512_set1_ps(127)));
  return _mm_xor_si128(_mm512_cvtsepi32_epi8(whole), _mm_set1_epi8(-128));
}
inline void store_int8(uint8_t* to, Sixteen x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), levels(x)); }
#if !defined(__AVX512VNNI__)
inline void store_int8(int16_t* to, Sixteen x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(levels(x)));
}
#endif
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
inline void store_bf16(uint16_t* to, const Sixteen& x) {
  for (int i = 0; i < BLOCK; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &x.value[i], 4);
    to[i] = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}
template <class T>
inline void store_int8(T* to, const Sixteen& x) {
  for (int i = 0; i < BLOCK; ++i) to[i] = static_cast<T>(nearest(clamped(x.value[i], -128, 127)) + ZERO);
}
#endif

// Block `b` of the sums of a panel.
inline Sixteen block_of(const Sums* sums, int b) {
  constexpr int EACH = BLOCK / SUMS;
#if defined(__AVX512BW__)
  return {_mm512_cvtepi32_ps(sums[EACH * b])};
#else
  int32_t whole[BLOCK];
  std::memcpy(whole, sums + EACH * b, sizeof(whole));
  Sixteen x;
  for (int i = 0; i < BLOCK; ++i) x.value[i] = static_cast<float>(whole[i]);
  return x;
#endif
}

// Calls part(i, z, y, x) for voxels begin + i of rows of `w` and planes of `h` rows.
template <class Part>
MEDNEXT_INLINE void over_voxels(int64_t begin, int64_t end, int64_t h, int64_t w, Part part) {
  int64_t x = begin % w, y = begin / w % h, z = begin / w / h;
  for (int64_t i = 0; i < end - begin; ++i) {
    part(i, z, y, x);
    if (++x < w) continue;
    x = 0;
    if (++y < h) continue;
    y = 0;
    ++z;
  }
}

}  // namespace mednext::MEDNEXT_ISA
