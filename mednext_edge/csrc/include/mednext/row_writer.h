// A thread's outputs: X voxels of one row and T::WIDTH channels, plane after plane, and their moments.
#pragma once

#include "mednext/moments.h"
#include "mednext/tile.h"

namespace mednext {

template <class T, int X>
class RowWriter {
  using Element = typename T::Element;

 public:
  Moments moments[T::WIDTH];

  // `packed`: a lane's channels may be stored as one aligned word.
  MEDNEXT_DEVICE RowWriter(void* y, const Extent& size, int c, int n, int yo, int x0, int channel, bool packed)
      : c_(c), channels_(c - channel), packed_(packed) {
    plane_ = static_cast<int64_t>(size.h) * size.w * c;
    base_ = static_cast<Element*>(y) + n * size.d * plane_ + (static_cast<int64_t>(yo) * size.w + x0) * c + channel;
    columns_ = yo < size.h && channels_ > 0 ? size.w - x0 : 0;
  }

  MEDNEXT_DEVICE void store(int z, const float (&values)[X][T::WIDTH]) const {
    Element* to = base_ + z * plane_;
    if (packed_ && columns_ >= X) {
#pragma unroll
      for (int x = 0; x < X; ++x, to += c_) *reinterpret_cast<uint32_t*>(to) = T::pack(values[x]);
      return;
    }
#pragma unroll
    for (int x = 0; x < X; ++x, to += c_) {
      if (x >= columns_) break;
#pragma unroll
      for (int v = 0; v < T::WIDTH; ++v) {
        if (v < channels_) to[v] = T::narrow(values[x][v]);
      }
    }
  }

  // Two passes over the registers, then one merge: about four instructions a value.
  MEDNEXT_DEVICE void measure(const float (&values)[X][T::WIDTH]) {
    const int count = columns_ < X ? columns_ : X;
    if (count <= 0) return;
#pragma unroll
    for (int v = 0; v < T::WIDTH; ++v) {
      Moments row;
      row.count = static_cast<float>(count);
      // Around the first value: constant rows stay exact.
#pragma unroll
      for (int x = 1; x < X; ++x) row.mean += x < count ? values[x][v] - values[0][v] : 0.0f;
      row.mean = values[0][v] + row.mean / row.count;
#pragma unroll
      for (int x = 0; x < X; ++x) {
        const float centred = x < count ? values[x][v] - row.mean : 0.0f;
        row.moment += centred * centred;
      }
      moments[v].merge(row);
    }
  }

 private:
  Element* base_;
  int64_t plane_;
  int c_, channels_, columns_;
  bool packed_;
};

}  // namespace mednext
