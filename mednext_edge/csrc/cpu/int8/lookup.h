// A table of 256 bytes, looked up for many bytes at once where there is no instruction for it.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

#if defined(__AVX2__) && !defined(__AVX512VBMI__)
#if defined(__AVX512BW__)
typedef __m512i Bytes;
MEDNEXT_INLINE Bytes sixteen_times(__m128i part) { return _mm512_broadcast_i32x4(part); }
MEDNEXT_INLINE Bytes all_bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
MEDNEXT_INLINE Bytes shuffled(Bytes part, Bytes line) { return _mm512_shuffle_epi8(part, line); }
MEDNEXT_INLINE Bytes less(Bytes line, Bytes step) { return _mm512_subs_epi8(line, step); }
MEDNEXT_INLINE Bytes either(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
MEDNEXT_INLINE Bytes load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
MEDNEXT_INLINE void keep_bytes(uint8_t* to, Bytes x) { _mm512_storeu_si512(to, x); }
MEDNEXT_INLINE void keep_bytes(int16_t* to, Bytes x) {
  _mm512_storeu_si512(to, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(x)));
  _mm512_storeu_si512(to + 32, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(x, 1)));
}
#else
typedef __m256i Bytes;
MEDNEXT_INLINE Bytes sixteen_times(__m128i part) { return _mm256_broadcastsi128_si256(part); }
MEDNEXT_INLINE Bytes all_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
MEDNEXT_INLINE Bytes shuffled(Bytes part, Bytes line) { return _mm256_shuffle_epi8(part, line); }
MEDNEXT_INLINE Bytes less(Bytes line, Bytes step) { return _mm256_subs_epi8(line, step); }
MEDNEXT_INLINE Bytes either(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
MEDNEXT_INLINE Bytes load_bytes(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
MEDNEXT_INLINE void keep_bytes(uint8_t* to, Bytes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
MEDNEXT_INLINE void keep_bytes(int16_t* to, Bytes x) {
  __m256i* const wide = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(wide, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)));
  _mm256_storeu_si256(wide + 1, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1)));
}
#endif
constexpr int64_t AT_ONCE = sizeof(Bytes);

// A shuffle gives the entry of a line 0..127 by its last four bits, and zero for a negative one. So the first shuffle is
// of the first sixteen entries; 16 is taken from all lines, and what the next sixteen entries differ by is added to those
// that have not become negative, until the last sixteen.
class Lookup {
 public:
  // [256], that of line 0 first, those of the lines -128..-1 behind that of line 127.
  explicit Lookup(const uint8_t* table) {
    for (int half = 0; half < 2; ++half) {
      __m128i before = _mm_setzero_si128();
      for (int i = 0; i < 8; ++i) {
        const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 128 * half + 16 * i));
        steps_[half][i] = _mm_xor_si128(part, before);
        before = part;
      }
    }
  }

  MEDNEXT_INLINE Bytes operator()(Bytes line) const {
    const Bytes step = all_bytes(16);
    Bytes positive = line, negative = either(line, all_bytes(128));
    Bytes found = either(shuffled(sixteen_times(steps_[0][0]), positive), shuffled(sixteen_times(steps_[1][0]), negative));
    MEDNEXT_UNROLL
    for (int i = 1; i < 8; ++i) {
      positive = less(positive, step);
      negative = less(negative, step);
      found = either(found, either(shuffled(sixteen_times(steps_[0][i]), positive),
                                   shuffled(sixteen_times(steps_[1][i]), negative)));
    }
    return found;
  }

 private:
  __m128i steps_[2][8];
};

#endif

// The entries of `count` lines. It may go `BEYOND_LINES` further.
constexpr int64_t BEYOND_LINES = 64;
#if !defined(__AVX512VBMI__)
inline void look_up(const uint8_t* table, const uint8_t* lines, int64_t count, Held* to) {
#if defined(__AVX2__)
  const Lookup lookup(table);
  for (int64_t i = 0; i < count; i += AT_ONCE) keep_bytes(to + i, lookup(load_bytes(lines + i)));
#else
  for (int64_t i = 0; i < count; ++i) to[i] = table[lines[i]];
#endif
}
#endif

}  // namespace mednext::MEDNEXT_ISA
