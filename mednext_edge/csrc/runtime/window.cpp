#include "window.h"

#include <algorithm>
#include <cmath>

#include "volume.h"

namespace mednext {
namespace {

constexpr double kSigma = 1.0 / 8, kTruncate = 4.0;  // of the patch; in standard deviations

std::vector<double> gaussian_line(int64_t size) {
  std::vector<double> line(static_cast<size_t>(size));
  const double sigma = static_cast<double>(size) * kSigma;
  for (int64_t i = 0; i < size; ++i) {
    const double distance = static_cast<double>(std::abs(i - size / 2));
    line[i] = distance > std::floor(kTruncate * sigma + 0.5) ? 0 : std::exp(-0.5 * std::pow(distance / sigma, 2));
  }
  return line;
}

}  // namespace

std::vector<int64_t> window_starts(int64_t size, int64_t patch, double step) {
  const double spare = static_cast<double>(size - patch);
  const auto count = static_cast<int64_t>(std::ceil(spare / (static_cast<double>(patch) * step))) + 1;
  const double distance = count > 1 ? spare / static_cast<double>(count - 1) : 0;
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < count; ++i)
    starts.push_back(static_cast<int64_t>(std::nearbyint(distance * static_cast<double>(i))));
  return starts;
}

std::vector<float> gaussian_map(const Shape& patch) {
  const auto zs = gaussian_line(patch[0]), ys = gaussian_line(patch[1]), xs = gaussian_line(patch[2]);
  std::vector<float> weights;
  weights.reserve(static_cast<size_t>(voxels(patch)));
  float smallest = 1;
  for (const double z : zs)
    for (const double y : ys)
      for (const double x : xs) {
        weights.push_back(static_cast<float>(z * y * x));
        if (weights.back() > 0) smallest = std::min(smallest, weights.back());
      }
  for (float& weight : weights) weight = std::max(weight, smallest);
  return weights;
}

}  // namespace mednext
