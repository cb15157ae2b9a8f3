// Four taps of a row at once, for the sixteen channels of a block: the inner product of a depthwise convolution in the
// registers of one instruction set.
//
// A window is what four neighbours of a row hold, with the values of a channel side by side: all four where VNNI adds
// four products, pairs of them in 16 bits elsewhere. A voxel's channels lie side by side in memory, so that windows are
// made by interleaving. What fills windows and sums takes them by reference: copies of structs that sit in arrays would
// stay in memory.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

constexpr int64_t WINDOW = 4;
constexpr int64_t TAPS = WINDOW * BLOCK;  // weights of one window

#if defined(MEDNEXT_VNNI)
typedef int8_t Tap;
#elif defined(__AVX2__)
typedef int16_t Tap;
#else
typedef int8_t Tap;
#endif

#if defined(__AVX512VNNI__)
typedef __m512i Window;
typedef __m512i Accumulator;
inline int64_t place_of(int64_t channel, int64_t tap) { return channel * WINDOW + tap; }
inline void begin_sums(Accumulator& sums, const int32_t* offsets) { sums = _mm512_loadu_si512(offsets); }
inline void make_window(const uint8_t* at, Window& x) {
  alignas(64) static constexpr struct Order {
    uint8_t byte[64];
    constexpr Order() : byte{} {
      for (int i = 0; i < 64; ++i) byte[i] = static_cast<uint8_t>(i % 4 * 16 + i / 4);
    }
  } ORDER;
  x = _mm512_permutexvar_epi8(_mm512_load_si512(ORDER.byte), _mm512_loadu_si512(at));
}
inline void dot(Accumulator& sums, const Window& x, const Tap* taps) {
  sums = _mm512_dpbusd_epi32(sums, x, _mm512_loadu_si512(taps));
}
inline Sixteen as_floats(const Accumulator& sums) { return {_mm512_cvtepi32_ps(sums)}; }

#elif defined(__AVX512BW__)
struct Window {
  __m512i pair[2];
};
typedef __m512i Accumulator;
inline int64_t place_of(int64_t channel, int64_t tap) { return tap / 2 * 2 * BLOCK + channel * 2 + tap % 2; }
inline void begin_sums(Accumulator& sums, const int32_t* offsets) { sums = _mm512_loadu_si512(offsets); }
inline void make_window(const uint8_t* at, Window& x) {
  alignas(64) static constexpr struct Order {
    uint16_t word[32];
    constexpr Order() : word{} {
      for (int i = 0; i < 32; ++i) word[i] = static_cast<uint16_t>(i % 2 * 16 + i / 2);
    }
  } ORDER;
  const __m512i order = _mm512_load_si512(ORDER.word);
  MEDNEXT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 2 * i * BLOCK));
    x.pair[i] = _mm512_permutexvar_epi16(order, _mm512_cvtepu8_epi16(two));
  }
}
inline void dot(Accumulator& sums, const Window& x, const Tap* taps) {
  const __m512i first = _mm512_madd_epi16(x.pair[0], _mm512_loadu_si512(taps));
  const __m512i second = _mm512_madd_epi16(x.pair[1], _mm512_loadu_si512(taps + 2 * BLOCK));
  sums = _mm512_add_epi32(_mm512_add_epi32(sums, first), second);
}
inline Sixteen as_floats(const Accumulator& sums) { return {_mm512_cvtepi32_ps(sums)}; }

#elif defined(__AVX2__)
struct Accumulator {
  __m256i half[2];
};
MEDNEXT_INLINE __m256i load32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
MEDNEXT_INLINE void begin_sums(Accumulator& sums, const int32_t* offsets) {
  sums.half[0] = load32(offsets);
  sums.half[1] = load32(offsets + 8);
}
MEDNEXT_INLINE Sixteen as_floats(const Accumulator& sums) {
  return halves([&](int i) { return _mm256_cvtepi32_ps(sums.half[i]); });
}
#if defined(MEDNEXT_VNNI)
typedef Accumulator Window;
inline int64_t place_of(int64_t channel, int64_t tap) { return channel * WINDOW + tap; }
// Two windows that begin at neighbours, one in each half of the registers: pairs of taps, then pairs of pairs.
MEDNEXT_INLINE void two_windows(const uint8_t* at, Window& first, Window& second) {
  const __m256i tap[4] = {load32(at), load32(at + BLOCK), load32(at + 2 * BLOCK), load32(at + 3 * BLOCK)};
  const __m256i low01 = _mm256_unpacklo_epi8(tap[0], tap[1]), high01 = _mm256_unpackhi_epi8(tap[0], tap[1]);
  const __m256i low23 = _mm256_unpacklo_epi8(tap[2], tap[3]), high23 = _mm256_unpackhi_epi8(tap[2], tap[3]);
  const __m256i four[4] = {_mm256_unpacklo_epi16(low01, low23), _mm256_unpackhi_epi16(low01, low23),
                           _mm256_unpacklo_epi16(high01, high23), _mm256_unpackhi_epi16(high01, high23)};
  MEDNEXT_UNROLL
  for (int i = 0; i < 2; ++i) {
    first.half[i] = _mm256_permute2x128_si256(four[2 * i], four[2 * i + 1], 0x20);
    second.half[i] = _mm256_permute2x128_si256(four[2 * i], four[2 * i + 1], 0x31);
  }
}
MEDNEXT_INLINE void make_window(const uint8_t* at, Window& x) {
  const __m128i* const tap = reinterpret_cast<const __m128i*>(at);
  const __m128i t0 = _mm_loadu_si128(tap), t1 = _mm_loadu_si128(tap + 1);
  const __m128i t2 = _mm_loadu_si128(tap + 2), t3 = _mm_loadu_si128(tap + 3);
  const __m128i low01 = _mm_unpacklo_epi8(t0, t1), high01 = _mm_unpackhi_epi8(t0, t1);
  const __m128i low23 = _mm_unpacklo_epi8(t2, t3), high23 = _mm_unpackhi_epi8(t2, t3);
  x.half[0] = _mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23));
  x.half[1] = _mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23));
}
MEDNEXT_INLINE void dot(Accumulator& sums, const Window& x, const Tap* taps) {
  sums.half[0] = _mm256_dpbusd_avx_epi32(sums.half[0], x.half[0], load32(taps));
  sums.half[1] = _mm256_dpbusd_avx_epi32(sums.half[1], x.half[1], load32(taps + TAPS / 2));
}
#else
struct Window {
  __m256i pair[2][2];  // [half of the channels, taps 0 and 1 or 2 and 3]
};
inline int64_t place_of(int64_t channel, int64_t tap) {
  return (channel / 8 * 2 + tap / 2) * BLOCK + channel % 8 * 2 + tap % 2;
}
MEDNEXT_INLINE void make_window(const uint8_t* at, Window& x) {
  MEDNEXT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m128i* const tap = reinterpret_cast<const __m128i*>(at) + 2 * i;
    const __m128i first = _mm_loadu_si128(tap), second = _mm_loadu_si128(tap + 1);
    x.pair[0][i] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second));
    x.pair[1][i] = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(first, second));
  }
}
MEDNEXT_INLINE void dot(Accumulator& sums, const Window& x, const Tap* taps) {
  MEDNEXT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const __m256i first = _mm256_madd_epi16(x.pair[h][0], load32(taps + 2 * h * BLOCK));
    const __m256i second = _mm256_madd_epi16(x.pair[h][1], load32(taps + (2 * h + 1) * BLOCK));
    sums.half[h] = _mm256_add_epi32(_mm256_add_epi32(sums.half[h], first), second);
  }
}
#endif

#else
typedef const uint8_t* Window;
struct Accumulator {
  int32_t lane[BLOCK];
};
inline int64_t place_of(int64_t channel, int64_t tap) { return channel * WINDOW + tap; }
inline void begin_sums(Accumulator& sums, const int32_t* offsets) {
  std::memcpy(sums.lane, offsets, sizeof(sums.lane));
}
inline void make_window(const uint8_t* at, Window& x) { x = at; }
inline void dot(Accumulator& sums, const Window& x, const Tap* taps) {
  for (int c = 0; c < BLOCK; ++c)
    for (int t = 0; t < WINDOW; ++t) sums.lane[c] += x[t * BLOCK + c] * taps[c * WINDOW + t];
}
inline Sixteen as_floats(const Accumulator& sums) {
  Sixteen x;
  for (int i = 0; i < BLOCK; ++i) x.value[i] = static_cast<float>(sums.lane[i]);
  return x;
}
#endif

// Windows that begin at neighbours.
template <int W>
MEDNEXT_INLINE void several_windows(const uint8_t* at, Window (&x)[W]) {
  int i = 0;
#if defined(__AVXVNNI__) && !defined(__AVX512VNNI__)
  MEDNEXT_UNROLL
  for (; i + 2 <= W; i += 2) two_windows(at + i * BLOCK, x[i], x[i + 1]);
#endif
  MEDNEXT_UNROLL
  for (; i < W; ++i) make_window(at + i * BLOCK, x[i]);
}

// Results of a row whose sums, for all rows of the kernel that they meet, stay in registers.
template <int K>
#if defined(__AVX512BW__)
constexpr int TOGETHER_IN_ROW = K > 5 ? 2 : 4;
#else
constexpr int TOGETHER_IN_ROW = K > 3 ? 1 : 2;
#endif

}  // namespace mednext::MEDNEXT_ISA
