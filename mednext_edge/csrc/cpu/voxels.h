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

inline void prefetch_to_write(const void* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at, 1);
#endif
}
// Into the second cache.
inline void prefetch_later(const void* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at, 0, 2);
#endif
}

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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
