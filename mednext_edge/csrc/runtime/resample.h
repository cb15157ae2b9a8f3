// Resampling as mednext_edge/data/resample.py does it: voxels are boxes, so that the outer borders of both grids
// coincide, and beyond the border the edge voxel goes on.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "volume.h"

namespace mednext {

// The axis to resample apart, with nearest neighbours: the single coarsest of `spacing`, or else of `target`, if it is
// over `threshold` times the finest. Nothing where more than one axis is equally coarse.
std::optional<int> coarse_axis(const std::array<double, 3>& spacing, const std::array<double, 3>& target,
                               double threshold);

// The old slice whose box holds the centre of each new one.
std::vector<int64_t> nearest_slices(int64_t old, int64_t count);

// One channel on another grid. Orders 0 and 2..5 are splines (scipy's, which stay within the range of the input: of
// each slice where an axis is apart), order 1 is linear (PyTorch's).
std::vector<float> resample(const float* source, const Shape& from, const Shape& to, int order,
                            std::optional<int> apart, int threads);

// Linear interpolation along one axis: new[i] = lower[i] * (1 - share[i]) + upper[i] * share[i], in float32.
struct LinearAxis {
  LinearAxis(int64_t from, int64_t to, bool nearest);
  std::vector<int64_t> lower, upper;
  std::vector<float> share;
};

}  // namespace mednext
