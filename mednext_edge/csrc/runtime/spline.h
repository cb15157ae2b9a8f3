// B-spline interpolation of order 0 and 2..5 along one axis after the other.
#pragma once

#include <optional>
#include <vector>

#include "volume.h"

namespace mednext {

// `source` on another grid; an axis that is skipped keeps its size, and may be the slow one of many slices.
// The edge voxel is repeated 12 times before filtering, as scipy.ndimage does for mode "nearest".
std::vector<float> spline_resample(const float* source, const Shape& from, const Shape& to, int order,
                                   std::optional<int> skipped, int threads);

}  // namespace mednext
