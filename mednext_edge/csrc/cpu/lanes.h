// Several channels at once, in the widest registers that this file is compiled for.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_BF16__)
#define MEDNEXT_ISA amx
#define MEDNEXT_LANES 16
#elif defined(__AVX512BF16__)
#define MEDNEXT_ISA avx512_bf16
#define MEDNEXT_LANES 16
#elif defined(__AVX512VNNI__)
#define MEDNEXT_ISA avx512_vnni
#define MEDNEXT_LANES 16
#elif defined(__AVX512F__)
#define MEDNEXT_ISA avx512
#define MEDNEXT_LANES 16
#elif defined(__AVXVNNI__)
#define MEDNEXT_ISA avx_vnni
#define MEDNEXT_LANES 8
#elif defined(__AVX2__)
#define MEDNEXT_ISA avx2
#define MEDNEXT_LANES 8
#else
#define MEDNEXT_ISA plain
#define MEDNEXT_LANES 4
#endif

#if defined(__clang__)
#define MEDNEXT_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define MEDNEXT_UNROLL _Pragma("GCC unroll 16")
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

// Every instruction set has functions of its own: the linker must not take one for another's.
namespace mednext::MEDNEXT_ISA {

#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(4 * MEDNEXT_LANES)));
#else
typedef float Lanes;
#endif

template <int N>
struct Count {
  static constexpr int value = N;
};

template <class V>
inline constexpr int64_t width = sizeof(V) / sizeof(float);

template <class V>
inline V load(const float* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V>
inline void store(float* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

// What was stored is read from memory again. A number that every lane takes comes from there for nothing; GCC keeps the
// vector it is in, and shuffles.
MEDNEXT_INLINE void forget_registers() {
#if defined(__GNUC__)
  __asm__ volatile("" ::: "memory");
#endif
}

// Adds each lane to a sum in float64.
template <class V>
inline void add(double* to, V value) {
  float lane[width<V>];
  std::memcpy(lane, &value, sizeof(V));
  for (int64_t i = 0; i < width<V>; ++i) to[i] += lane[i];
}

// Calls part<V>(first channel) for all channels: whole registers first, then what is left, one by one.
template <class Part>
inline void over_channels(int64_t channels, const Part& part) {
  int64_t c = 0;
  for (; c + width<Lanes> <= channels; c += width<Lanes>) part(Lanes{}, c);
  for (; c < channels; ++c) part(float{}, c);
}

}  // namespace mednext::MEDNEXT_ISA
