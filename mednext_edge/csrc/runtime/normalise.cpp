#include "normalise.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace mednext {
namespace {

constexpr double kSmallestSd = 1e-8;  // nnU-Net's guard against a constant image

// One channel with its mask; work is shared out by slices, and sums are taken slice by slice, so that they do not
// depend on the number of threads.
struct Channel {
  float* values;
  const uint8_t* mask;  // null: everything is inside
  int64_t slices, slice;
  int threads;

  template <class Each>
  void each(const Each& each_value) const {
    parallel_for(slices, threads, [&](int64_t z) {
      for (int64_t i = z * slice; i < (z + 1) * slice; ++i) values[i] = each_value(values[i]);
    });
  }

  // f(value) over what is inside, summed in float64.
  template <class F>
  double sum(const F& f) const {
    std::vector<double> parts(static_cast<size_t>(slices));
    parallel_for(slices, threads, [&](int64_t z) {
      double part = 0;
      for (int64_t i = z * slice; i < (z + 1) * slice; ++i)
        if (!mask || mask[i]) part += f(static_cast<double>(values[i]));
      parts[z] = part;
    });
    double total = 0;
    for (const double part : parts) total += part;
    return total;
  }
};

void shift_and_scale(const Channel& channel, float shift, float divisor) {
  channel.each([=](float value) { return (value - shift) / divisor; });
}

void zscore(const Channel& channel, const Normalization&) {
  const double count = channel.sum([](double) { return 1.0; });
  const double mean = channel.sum([](double value) { return value; }) / count;
  const double variance = channel.sum([=](double value) { return (value - mean) * (value - mean); }) / count;
  shift_and_scale(channel, static_cast<float>(mean), static_cast<float>(std::max(std::sqrt(variance), kSmallestSd)));
}

void ct(const Channel& channel, const Normalization& entry) {
  const float low = static_cast<float>(entry.lower), high = static_cast<float>(entry.upper);
  const float mean = static_cast<float>(entry.mean), sd = static_cast<float>(std::max(entry.sd, kSmallestSd));
  channel.each([=](float value) { return (std::min(std::max(value, low), high) - mean) / sd; });
}

void rescale(const Channel& channel, const Normalization&) {
  float low = HUGE_VALF, high = -HUGE_VALF;
  for (int64_t i = 0; i < channel.slices * channel.slice; ++i) {
    if (channel.mask && !channel.mask[i]) continue;
    low = std::min(low, channel.values[i]);
    high = std::max(high, channel.values[i]);
  }
  shift_and_scale(channel, low, static_cast<float>(std::max(double{high} - double{low}, kSmallestSd)));
}

void none(const Channel&, const Normalization&) {}

struct Entry {
  void (*apply)(const Channel&, const Normalization&);
  bool voxelwise;
};
constexpr Entry kSchemes[] = {{zscore, false}, {ct, true}, {rescale, false}, {none, true}};  // in the order of Scheme

const Entry& scheme(const Normalization& entry) { return kSchemes[static_cast<int>(entry.scheme)]; }

}  // namespace

bool is_voxelwise(const std::vector<Normalization>& entries) {
  return std::all_of(entries.begin(), entries.end(), [](const auto& e) { return scheme(e).voxelwise && !e.masked; });
}

Mask brain_mask(const Volume& volume, int threads) {
  const auto [nz, ny, nx] = volume.shape;
  const int64_t slice = ny * nx;
  // Everything is inside but the zeros that can be reached from outside, from one voxel to its six neighbours.
  Mask zero(static_cast<size_t>(voxels(volume.shape)));
  parallel_for(nz, threads, [&](int64_t z) {
    for (int64_t i = z * slice; i < (z + 1) * slice; ++i) {
      bool empty = true;
      for (int64_t c = 0; c < volume.channels; ++c) empty = empty && volume.channel(c)[i] == 0;
      zero[i] = empty;
    }
  });
  Mask inside(zero.size(), 1);
  std::vector<int64_t> front, next;
  const auto reach = [&](int64_t i) {
    if (!zero[i] || !inside[i]) return;
    inside[i] = 0;
    next.push_back(i);
  };
  for (int64_t z = 0; z < nz; ++z)
    for (int64_t y = 0; y < ny; ++y) {
      const int64_t row = z * slice + y * nx;
      const bool whole = z == 0 || z == nz - 1 || y == 0 || y == ny - 1;
      for (int64_t x = 0; x < nx; x += whole || x == nx - 1 ? 1 : nx - 1) reach(row + x);
    }
  while (!next.empty()) {
    front.swap(next);
    next.clear();
    for (const int64_t i : front) {
      const int64_t z = i / slice, y = i % slice / nx, x = i % nx;
      if (z > 0) reach(i - slice);
      if (z + 1 < nz) reach(i + slice);
      if (y > 0) reach(i - nx);
      if (y + 1 < ny) reach(i + nx);
      if (x > 0) reach(i - 1);
      if (x + 1 < nx) reach(i + 1);
    }
  }
  return inside;
}

void normalise(Volume& volume, const std::vector<Normalization>& entries, const Mask& mask, int threads) {
  const bool masked = std::find(mask.begin(), mask.end(), 1) != mask.end();
  for (int64_t c = 0; c < volume.channels; ++c) {
    const uint8_t* inside = masked && entries[c].masked ? mask.data() : nullptr;
    const Channel channel{volume.channel(c), inside, volume.shape[0], volume.shape[1] * volume.shape[2], threads};
    scheme(entries[c]).apply(channel, entries[c]);
    if (!inside) continue;
    for (size_t i = 0; i < mask.size(); ++i)
      if (!mask[i]) channel.values[i] = 0;
  }
}

}  // namespace mednext
