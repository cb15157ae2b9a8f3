// Planes of a channels-last volume with a margin of zeros, so that no loop behind them asks where the volume ends.
#pragma once

#include "lanes.h"

namespace mednext::MEDNEXT_ISA {

// The last `Kept` planes of one sample that were asked for, in a ring: a convolution goes through them in order.
template <int Kept>
class PaddedPlanes {
 public:
  // `volume` is [planes, h, w, c]; `margin` voxels are added on all sides of a plane. The ring takes Kept * (h + 2 margin)
  // * (w + 2 margin) * c floats of `memory`, which are 0 at first.
  PaddedPlanes(const float* volume, int64_t planes, int64_t h, int64_t w, int64_t c, int64_t margin, float* memory)
      : volume_(volume), planes_(planes), h_(h), row_(w * c), margin_(margin * c), memory_(memory) {
    stride_ = row_ + 2 * margin_;
    size_ = stride_ * (h + 2 * margin);
    first_ = margin * stride_ + margin_;
    for (int64_t& plane : held_) plane = -1;
  }

  int64_t row_stride() const { return stride_; }

  // The corner of a plane's margin; null where the volume has no such plane.
  const float* plane(int64_t index) {
    if (index < 0 || index >= planes_) return nullptr;
    const int64_t slot = index % Kept;
    float* const corner = memory_ + size_ * slot;
    if (held_[slot] != index) {
      const float* from = volume_ + index * h_ * row_;
      float* to = corner + first_;
      for (int64_t y = 0; y < h_; ++y, from += row_, to += stride_)
        std::memcpy(to, from, sizeof(float) * static_cast<size_t>(row_));
      held_[slot] = index;
    }
    return corner;
  }

 private:
  const float* volume_;
  int64_t planes_, h_, row_, margin_, stride_, size_, first_;
  float* memory_;
  int64_t held_[Kept];
};

}  // namespace mednext::MEDNEXT_ISA
