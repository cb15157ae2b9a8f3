#include "recipe.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "parallel.h"
#include "resample.h"

namespace mednext {
namespace {

constexpr double kLongestGrid = 1 << 20, kLargestGrid = 68719476736.0;  // 2^36

Box nonzero_box(const Image& image, const Axes& axes, const Extent& extent) {
  Box box{{}, turned_shape(image.shape, axes)};
  for (int k = 0; k < 3 && !extent.empty(); ++k) {
    const int axis = axes.source[k];
    box.start[k] = axes.flip[k] ? image.shape[axis] - 1 - extent.last[axis] : extent.first[axis];
    box.stop[k] = axes.flip[k] ? image.shape[axis] - extent.first[axis] : extent.last[axis] + 1;
  }
  return box;
}

void resample_all(Volume& volume, const Shape& to, int order, std::optional<int> apart, int threads) {
  if (volume.shape == to) return;
  Volume out(volume.channels, to);
  for (int64_t c = 0; c < volume.channels; ++c) {
    const auto channel = resample(volume.channel(c), volume.shape, to, order, apart, threads);
    std::copy(channel.begin(), channel.end(), out.channel(c));
  }
  volume = std::move(out);
}

// A mask as a label map: inside where its linear interpolation reaches one half.
Mask resample_mask(const Mask& mask, const Shape& from, const Shape& to, std::optional<int> apart, int threads) {
  if (from == to) return mask;
  const std::vector<float> values(mask.begin(), mask.end());
  const auto resampled = resample(values.data(), from, to, 1, apart, threads);
  Mask out(resampled.size());
  std::transform(resampled.begin(), resampled.end(), out.begin(), [](float value) { return value >= 0.5f; });
  return out;
}

void normalise_and_resample(Volume& volume, const Preprocessing& recipe, const Shape& to, std::optional<int> apart,
                            int threads) {
  Mask mask;
  if (std::any_of(recipe.normalization.begin(), recipe.normalization.end(), [](const auto& e) { return e.masked; }))
    mask = brain_mask(volume, threads);
  if (!recipe.normalize_after_resampling) {
    normalise(volume, recipe.normalization, mask, threads);
    resample_all(volume, to, recipe.image_order, apart, threads);
    return;
  }
  if (!mask.empty()) mask = resample_mask(mask, volume.shape, to, apart, threads);
  resample_all(volume, to, recipe.image_order, apart, threads);
  normalise(volume, recipe.normalization, mask, threads);
}

}  // namespace

Shape turned_shape(const Shape& image, const Axes& axes) {
  return {image[axes.source[0]], image[axes.source[1]], image[axes.source[2]]};
}

Grid make_grid(const Image& image, const Preprocessing& recipe, const Axes& axes, const Extent& extent) {
  Grid grid;
  grid.axes = axes;
  grid.image = image.shape;
  grid.box = recipe.crop_nonzero ? nonzero_box(image, axes, extent) : Box{{}, turned_shape(image.shape, axes)};
  const auto own = voxel_size(image.affine);
  std::array<double, 3> spacing, target;
  for (int k = 0; k < 3; ++k) target[k] = spacing[k] = own[axes.source[k]];
  // The recipe of a 2-D network has no spacing for the axis across its slices.
  std::copy_backward(recipe.spacing.begin(), recipe.spacing.end(), target.end());
  const Shape cropped = grid.box.shape();
  if (!recipe.size.empty()) {
    // Every slice is stretched by itself, whatever its pixels measure.
    grid.shape = {cropped[0], recipe.size[0], recipe.size[1]};
    grid.apart = 0;
    return grid;
  }
  double count = 1;
  for (int k = 0; k < 3; ++k) {
    // To the nearest even where it is between two, as Python's round.
    const double n = std::max(1.0, std::nearbyint(static_cast<double>(cropped[k]) * spacing[k] / target[k]));
    if (!(n <= kLongestGrid) || !((count *= n) <= kLargestGrid))
      fail(MEDNEXT_E_DATA, "a voxel size of ", spacing[k], " mm resampled to ", target[k],
           " mm gives a network grid of ", n, " voxels along one axis; check the affine, which must be in millimetres");
    grid.shape[k] = static_cast<int64_t>(n);
  }
  grid.apart = coarse_axis(spacing, target, recipe.anisotropy_threshold);
  return grid;
}

Volume prepare(const Image& image, const Preprocessing& recipe, const Grid& grid, int threads) {
  Volume volume = turned(image, grid.axes, grid.box, threads);
  normalise_and_resample(volume, recipe, grid.shape, grid.apart, threads);
  return volume;
}

Volume prepare_part(const Image& image, const Preprocessing& recipe, const Grid& grid, int axis, int64_t start,
                    int64_t stop, int threads) {
  const auto slices = nearest_slices(grid.box.shape()[axis], grid.shape[axis]);
  Box box = grid.box;
  box.start[axis] = grid.box.start[axis] + slices[start];
  box.stop[axis] = grid.box.start[axis] + slices[stop - 1] + 1;
  Volume volume = turned(image, grid.axes, box, threads);
  Shape to = grid.shape;
  to[axis] = volume.shape[axis];
  normalise_and_resample(volume, recipe, to, axis, threads);
  if (slices.size() == static_cast<size_t>(grid.box.shape()[axis])) return volume;
  to[axis] = stop - start;
  Volume out(volume.channels, to);
  const auto strides = [](const Shape& s) { return Shape{s[1] * s[2], s[2], 1}; };
  const Shape from_strides = strides(volume.shape);
  for (int64_t c = 0; c < out.channels; ++c) {
    float* target = out.channel(c);
    Shape at;
    for (at[0] = 0; at[0] < to[0]; ++at[0])
      for (at[1] = 0; at[1] < to[1]; ++at[1])
        for (at[2] = 0; at[2] < to[2]; ++at[2]) {
          Shape from = at;
          from[axis] = slices[start + at[axis]] - slices[start];
          *target++ = volume.channel(c)[from[0] * from_strides[0] + from[1] * from_strides[1] + from[2]];
        }
  }
  return out;
}

void restore(const Volume& scores, const Grid& grid, const std::vector<Paint>& paints, uint16_t* labels,
             int threads) {
  const Shape cropped = grid.box.shape();
  const auto nearest = [&](int k) { return grid.apart == k && grid.resampled(); };
  const LinearAxis zs(scores.shape[0], cropped[0], nearest(0)), ys(scores.shape[1], cropped[1], nearest(1)),
      xs(scores.shape[2], cropped[2], nearest(2));
  std::fill_n(labels, voxels(grid.image), uint16_t{0});
  const Shape image_strides{grid.image[1] * grid.image[2], grid.image[2], 1};
  Shape strides;
  int64_t origin = 0;
  for (int k = 0; k < 3; ++k) {
    const int axis = grid.axes.source[k];
    strides[k] = grid.axes.flip[k] ? -image_strides[axis] : image_strides[axis];
    origin += (grid.axes.flip[k] ? grid.image[axis] - 1 : 0) * image_strides[axis] + grid.box.start[k] * strides[k];
  }
  const int64_t width = cropped[2], line = scores.shape[2];
  const bool plain = !grid.resampled();
  parallel_for(cropped[0], threads, [&](int64_t z) {
    std::vector<float> best(static_cast<size_t>(width)), rival(best);
    std::vector<uint16_t> winner(static_cast<size_t>(width));
    // One class along one row of the cropped grid.
    const auto row = [&](int64_t c, int64_t y, float* out) {
      const float* source = scores.channel(c);
      const auto at = [&](int64_t sz, int64_t sy) { return source + (sz * scores.shape[1] + sy) * line; };
      if (plain) {
        std::copy_n(at(z, y), width, out);
        return;
      }
      const float *a = at(zs.lower[z], ys.lower[y]), *b = at(zs.lower[z], ys.upper[y]);
      const float *e = at(zs.upper[z], ys.lower[y]), *f = at(zs.upper[z], ys.upper[y]);
      const float v = ys.share[y], w = zs.share[z];
      for (int64_t x = 0; x < width; ++x) {
        const int64_t i = xs.lower[x], j = xs.upper[x];
        const float u = xs.share[x], t = 1 - u;
        const float lower = (a[i] * t + a[j] * u) * (1 - v) + (b[i] * t + b[j] * u) * v;
        const float upper = (e[i] * t + e[j] * u) * (1 - v) + (f[i] * t + f[j] * u) * v;
        out[x] = lower * (1 - w) + upper * w;
      }
    };
    const auto best_class = [&](int64_t y) {
      row(0, y, best.data());
      for (int64_t c = 1; c < scores.channels; ++c) {
        row(c, y, rival.data());
        for (int64_t x = 0; x < width; ++x) {
          winner[x] = rival[x] > best[x] ? static_cast<uint16_t>(c) : winner[x];
          best[x] = std::max(best[x], rival[x]);
        }
      }
    };
    const auto painted = [&](int64_t y) {
      for (const Paint& paint : paints) {
        row(paint.output, y, rival.data());
        for (int64_t x = 0; x < width; ++x) winner[x] = rival[x] > 0 ? paint.value : winner[x];
      }
    };
    for (int64_t y = 0; y < cropped[1]; ++y) {
      std::fill(winner.begin(), winner.end(), uint16_t{0});
      if (paints.empty())
        best_class(y);
      else
        painted(y);
      uint16_t* target = labels + origin + z * strides[0] + y * strides[1];
      for (int64_t x = 0; x < width; ++x) target[x * strides[2]] = winner[x];
    }
  });
}

}  // namespace mednext
