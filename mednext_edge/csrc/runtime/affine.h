// Which way an image lies in space, and how its axes are turned to the recipe's orientation.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "manifest.h"

namespace mednext {

using Affine = std::array<double, 16>;  // row by row, (x, y, z, 1) -> RAS mm

// Throws Error(DATA) for an affine that has no useful inverse, holds NaN, or whose last row is not 0 0 0 1.
void check_affine(const Affine& affine);

// Voxel size in mm, (z, y, x).
std::array<double, 3> voxel_size(const Affine& affine);

// How the network's axes lie in the image: network axis k runs along the image's axis source[k] of (z, y, x),
// backwards where flip[k].
struct Axes {
  std::array<int, 3> source{0, 1, 2};
  std::array<bool, 3> flip{};
};

// Turn to the orientation, then transpose. Without an orientation the stored axes are kept.
Axes network_axes(const Affine& affine, const std::optional<std::string>& orientation,
                  const std::array<int, 3>& transpose);

}  // namespace mednext
