// Intensity normalisation: the twin of mednext_edge/data/intensity.py.
#pragma once

#include <cstdint>
#include <vector>

#include "volume.h"

namespace mednext {

using Mask = std::vector<uint8_t>;  // 1 inside

// Whether every scheme looks at one voxel at a time, so that a part of a volume can be normalised without the rest.
bool is_voxelwise(const std::vector<Normalization>& entries);

// What is non-zero in any channel, with its holes filled.
Mask brain_mask(const Volume& volume, int threads);

// Normalise in place, one entry a channel; a masked channel becomes 0 outside the mask. An empty mask, or one without
// a voxel inside, stands for the whole volume.
void normalise(Volume& volume, const std::vector<Normalization>& entries, const Mask& mask, int threads);

}  // namespace mednext
