// Arrays of floats on a grid, and boxes in them.
#pragma once

#include <cstdint>
#include <vector>

#include "manifest.h"

namespace mednext {

inline int64_t voxels(const Shape& shape) { return shape[0] * shape[1] * shape[2]; }

struct Box {
  Shape start{}, stop{};
  Shape shape() const { return {stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]}; }
  bool operator==(const Box& other) const { return start == other.start && stop == other.stop; }
};

// [channels, *shape], the last axis in one piece.
struct Volume {
  Volume() = default;
  Volume(int64_t channels, const Shape& shape)
      : channels(channels), shape(shape), data(static_cast<size_t>(channels * voxels(shape))) {}

  float* channel(int64_t c) { return data.data() + c * voxels(shape); }
  const float* channel(int64_t c) const { return data.data() + c * voxels(shape); }

  int64_t channels = 0;
  Shape shape{};
  std::vector<float> data;
};

}  // namespace mednext
