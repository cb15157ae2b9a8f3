// Where the patches lie, and how much each of their voxels counts: the twin of window_starts and gaussian_map in
// mednext_edge/runtime/predictor.py.
#pragma once

#include <cstdint>
#include <vector>

#include "manifest.h"

namespace mednext {

// First index of every patch along one axis: evenly spaced, at most `step` patches apart, ends covered.
std::vector<int64_t> window_starts(int64_t size, int64_t patch, double step);

// Weight of every voxel of a patch: a Gaussian of sigma patch/8 around patch//2, cut off at four sigma, with the
// smallest weight in place of the zeros beyond.
std::vector<float> gaussian_map(const Shape& patch);

}  // namespace mednext
