// Voxels of a volume one after the other, and what is asked for before they come.
#pragma once

#include "lanes.h"

namespace mednext::MEDNEXT_ISA {

// Asks for a cache line that is wanted soon; beyond the memory of a tensor it does nothing.
inline void prefetch(const void* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at);
#endif
}

// Into the second cache.
inline void prefetch_later(const void* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at, 0, 2);
#endif
}

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Calls part(i, z, y, x, count) for what of each row of `w`, of planes of `h` rows, lies in begin..end-1: voxels
// begin + i and those that follow it.
template <class Part>
MEDNEXT_INLINE void over_runs(int64_t begin, int64_t end, int64_t h, int64_t w, Part part) {
  int64_t x = begin % w, y = begin / w % h, z = begin / w / h;
  for (int64_t i = 0; i < end - begin;) {
    const int64_t left = end - begin - i, count = w - x < left ? w - x : left;
    part(i, z, y, x, count);
    i += count;
    x = 0;
    if (++y < h) continue;
    y = 0;
    ++z;
  }
}

// Calls part(i, z, y, x) for voxels begin + i of rows of `w` and planes of `h` rows.
template <class Part>
MEDNEXT_INLINE void over_voxels(int64_t begin, int64_t end, int64_t h, int64_t w, Part part) {
  over_runs(begin, end, h, w, [&](int64_t i, int64_t z, int64_t y, int64_t x, int64_t count) {
    for (int64_t k = 0; k < count; ++k) part(i + k, z, y, x + k);
  });
}

// Where the voxels of a run lie.
template <class T>
MEDNEXT_INLINE void lay_out(T* at, int64_t step, int64_t run, T** to) {
  for (int64_t k = 0; k < run; ++k) to[k] = at + k * step;
}

}  // namespace mednext::MEDNEXT_ISA
