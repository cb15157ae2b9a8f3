// nnU-Net's preprocessing: from image to network input, and from scores back to labels on the image's grid. The twin
// of mednext_edge/data/recipe.py.
#pragma once

#include <optional>

#include "image.h"
#include "manifest.h"
#include "normalise.h"
#include "volume.h"

namespace mednext {

// How the image's grid becomes the network's.
struct Grid {
  Axes axes;
  Shape image{};          // the image's own shape
  Box box;                // what is kept, on the network's axes
  Shape shape{};          // of the network's grid
  std::optional<int> apart;  // axis that is resampled with nearest neighbours

  bool resampled() const { return shape != box.shape(); }
};

// The image's shape on the network's axes.
Shape turned_shape(const Shape& image, const Axes& axes);

// The grid for what is non-zero in `extent`. Throws Error(DATA) for a network grid beyond all bounds.
Grid make_grid(const Image& image, const Preprocessing& recipe, const Axes& axes, const Extent& extent);

// [channels, *grid.shape], normalised.
Volume prepare(const Image& image, const Preprocessing& recipe, const Grid& grid, int threads);

// The part of it between two positions on `axis`, where the recipe is voxelwise and nothing is resampled along
// `axis` but by nearest slices.
Volume prepare_part(const Image& image, const Preprocessing& recipe, const Grid& grid, int axis, int64_t start,
                    int64_t stop, int threads);

// The label of every voxel of the image, out of scores on the network's grid: the best class, or with `paints` (see
// Manifest) what the last region above 0 leaves. Scores are resampled voxel by voxel, so that no resampled volume is
// ever in memory. What was cropped away is 0.
void restore(const Volume& scores, const Grid& grid, const std::vector<Paint>& paints, uint16_t* labels,
             int threads);

}  // namespace mednext
