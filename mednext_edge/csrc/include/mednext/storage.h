// Storage types. Arithmetic is float; a 4-byte word holds one float, or two half or bfloat16 numbers.
//
// On the host, half (IEEE 754 binary16) and bfloat16 are converted bit by bit, rounded to nearest even as on a GPU.
#pragma once

#include <cmath>
#include <cstring>

#include "mednext/shim.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mednext {

struct F32 {
  using Element = float;
  static constexpr int WIDTH = 1;  // elements of a word

  MEDNEXT_DEVICE static void unpack(uint32_t word, float (&values)[1]) { memcpy(&values[0], &word, 4); }
  MEDNEXT_DEVICE static uint32_t pack(const float (&values)[1]) {
    uint32_t word;
    memcpy(&word, &values[0], 4);
    return word;
  }
  MEDNEXT_DEVICE static float widen(float value) { return value; }
  MEDNEXT_DEVICE static float narrow(float value) { return value; }
};

namespace bits {

MEDNEXT_DEVICE float as_float(uint32_t word) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}

MEDNEXT_DEVICE uint32_t as_word(float value) {
  uint32_t word;
  memcpy(&word, &value, 4);
  return word;
}

#if !defined(__CUDACC__)

inline uint32_t round_even(uint32_t value, int dropped) {
  const uint32_t half = 1u << (dropped - 1), rest = value & ((1u << dropped) - 1);
  value >>= dropped;
  return value + (rest > half || (rest == half && (value & 1)));
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31, fraction = half & 0x3ff;
  if (exponent == 31) return as_float(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return as_float(sign | ((exponent + 112) << 23) | (fraction << 13));
}

inline uint16_t float_to_half(float value) {
  const uint32_t word = as_word(value), sign = (word >> 16) & 0x8000u, magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7fff);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00);  // 65536 and above, infinity
  if (magnitude >= 0x38800000u) return static_cast<uint16_t>(sign | round_even(magnitude - 0x38000000u, 13));
  const int shift = 126 - static_cast<int>(magnitude >> 23);  // subnormal: fraction in units of 2^-24
  if (shift > 24) return static_cast<uint16_t>(sign);
  return static_cast<uint16_t>(sign | round_even((magnitude & 0x7fffffu) | 0x800000u, shift));
}

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t word = as_word(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>(round_even(word, 16));
}

#endif

}  // namespace bits

struct F16 {
  using Element = uint16_t;
  static constexpr int WIDTH = 2;

#if defined(__CUDACC__)
  MEDNEXT_DEVICE static float widen(uint16_t value) { return __half2float(__ushort_as_half(value)); }
  MEDNEXT_DEVICE static uint16_t narrow(float value) { return __half_as_ushort(__float2half_rn(value)); }
  MEDNEXT_DEVICE static uint32_t pack(const float (&values)[2]) {
    const __half2 pair = __floats2half2_rn(values[0], values[1]);
    uint32_t word;
    memcpy(&word, &pair, 4);
    return word;
  }
#else
  static float widen(uint16_t value) { return bits::half_to_float(value); }
  static uint16_t narrow(float value) { return bits::float_to_half(value); }
  static uint32_t pack(const float (&values)[2]) {
    return narrow(values[0]) | static_cast<uint32_t>(narrow(values[1])) << 16;
  }
#endif
  MEDNEXT_DEVICE static void unpack(uint32_t word, float (&values)[2]) {
    values[0] = widen(static_cast<uint16_t>(word));
    values[1] = widen(static_cast<uint16_t>(word >> 16));
  }
};

struct BF16 {
  using Element = uint16_t;
  static constexpr int WIDTH = 2;

  MEDNEXT_DEVICE static float widen(uint16_t value) { return bits::as_float(static_cast<uint32_t>(value) << 16); }
#if defined(__CUDACC__)
  MEDNEXT_DEVICE static uint16_t narrow(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
  MEDNEXT_DEVICE static uint32_t pack(const float (&values)[2]) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[0], values[1]);
    uint32_t word;
    memcpy(&word, &pair, 4);
    return word;
  }
#else
  static uint16_t narrow(float value) { return bits::float_to_bfloat16(value); }
  static uint32_t pack(const float (&values)[2]) {
    return narrow(values[0]) | static_cast<uint32_t>(narrow(values[1])) << 16;
  }
#endif
  MEDNEXT_DEVICE static void unpack(uint32_t word, float (&values)[2]) {
    values[0] = bits::as_float(word << 16);
    values[1] = bits::as_float(word & 0xffff0000u);
  }
};

// Integers: multiplied as they are, summed in int32, and brought back by a scale for each channel.
struct I8 {
  using Element = int8_t;
  static constexpr int WIDTH = 4;

  // Rounded to nearest even; beyond the type, its ends.
  MEDNEXT_DEVICE static int8_t requantise(int32_t sum, float scale, float bias) {
    const float value = rintf(fmaf(static_cast<float>(sum), scale, bias));
    return static_cast<int8_t>(fminf(fmaxf(value, -128.0f), 127.0f));
  }
};

}  // namespace mednext
