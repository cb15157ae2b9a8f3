#include "resample.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel.h"
#include "spline.h"

namespace mednext {
namespace {

std::vector<float> linear(const float* source, const Shape& from, const Shape& to, std::optional<int> apart,
                          int threads) {
  const LinearAxis zs(from[0], to[0], apart == 0), ys(from[1], to[1], apart == 1), xs(from[2], to[2], apart == 2);
  std::vector<float> out(static_cast<size_t>(voxels(to)));
  parallel_for(to[0], threads, [&](int64_t z) {
    std::vector<float> row(static_cast<size_t>(4 * to[2]));
    for (int64_t y = 0; y < to[1]; ++y) {
      for (int corner = 0; corner < 4; ++corner) {
        const int64_t sz = corner & 2 ? zs.upper[z] : zs.lower[z], sy = corner & 1 ? ys.upper[y] : ys.lower[y];
        const float* line = source + (sz * from[1] + sy) * from[2];
        for (int64_t x = 0; x < to[2]; ++x)
          row[corner * to[2] + x] = line[xs.lower[x]] * (1 - xs.share[x]) + line[xs.upper[x]] * xs.share[x];
      }
      float* target = out.data() + (z * to[1] + y) * to[2];
      const float *a = row.data(), *b = a + to[2], *c = b + to[2], *d = c + to[2];
      const float v = ys.share[y], w = zs.share[z];
      for (int64_t x = 0; x < to[2]; ++x)
        target[x] = (a[x] * (1 - v) + b[x] * v) * (1 - w) + (c[x] * (1 - v) + d[x] * v) * w;
    }
  });
  return out;
}

// Whole slices along one axis, each taken from the old one next to it.
std::vector<float> pick_slices(const std::vector<float>& source, const Shape& from, int axis, int64_t count) {
  const auto nearest = nearest_slices(from[axis], count);
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= from[i];
  for (int i = axis + 1; i < 3; ++i) inner *= from[i];
  std::vector<float> out(static_cast<size_t>(outer * count * inner));
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < count; ++i)
      std::copy_n(source.data() + (o * from[axis] + nearest[i]) * inner, inner, out.data() + (o * count + i) * inner);
  return out;
}

}  // namespace

std::optional<int> coarse_axis(const std::array<double, 3>& spacing, const std::array<double, 3>& target,
                               double threshold) {
  for (const auto& sizes : {spacing, target}) {
    const auto [finest, coarsest] = std::minmax_element(sizes.begin(), sizes.end());
    if (!(*coarsest > threshold * *finest)) continue;
    if (std::count(sizes.begin(), sizes.end(), *coarsest) != 1) return std::nullopt;
    return static_cast<int>(coarsest - sizes.begin());
  }
  return std::nullopt;
}

std::vector<int64_t> nearest_slices(int64_t old, int64_t count) {
  std::vector<int64_t> nearest(static_cast<size_t>(count));
  const double ratio = static_cast<double>(old) / static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * ratio;
    nearest[i] = old == count ? i : std::clamp<int64_t>(static_cast<int64_t>(std::floor(centre)), 0, old - 1);
  }
  return nearest;
}

LinearAxis::LinearAxis(int64_t from, int64_t to, bool nearest) : share(static_cast<size_t>(to)) {
  if (nearest) {
    lower = upper = nearest_slices(from, to);
    return;
  }
  // In float32, as PyTorch computes it.
  const float scale = static_cast<float>(from) / static_cast<float>(to);
  for (int64_t i = 0; i < to; ++i) {
    const float x = std::max(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
    const int64_t below = std::min(static_cast<int64_t>(x), from - 1);
    lower.push_back(below);
    upper.push_back(std::min(below + 1, from - 1));
    share[i] = std::clamp(x - static_cast<float>(below), 0.0f, 1.0f);
  }
}

std::vector<float> resample(const float* source, const Shape& from, const Shape& to, int order,
                            std::optional<int> apart, int threads) {
  if (order == 1) return linear(source, from, to, apart, threads);
  std::vector<float> values = spline_resample(source, from, to, order, apart, threads);
  if (!apart || from[*apart] == to[*apart]) return values;
  Shape shape = to;
  shape[*apart] = from[*apart];
  return pick_slices(values, shape, *apart, to[*apart]);
}

}  // namespace mednext
