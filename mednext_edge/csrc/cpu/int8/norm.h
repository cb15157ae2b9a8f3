// What takes the result of a depthwise convolution to the levels of its norm, found anew in every run.
#pragma once

#include <algorithm>
#include <cmath>

#include "../lines.h"
#include "jobs.h"

namespace mednext {

class Norm {
 public:
  Norm() = default;
  explicit Norm(int64_t channels)
      : scale_(channels),
        bias_(channels),
        factor_(channels),
        shift_(channels),
        offset_(channels),
        whole_(channels / BLOCK) {}

  // level = (y - mean) * scale of channel c, for y of 16 bits; where it can, the scale has 15 bits. Channels come one
  // after the other.
  void set(int64_t c, double scale, double mean) {
    bool& whole = whole_.data()[c / BLOCK];
    // A level has at least 16 bits behind the point, and 24 at most: beyond +-128 then is what saturates in 32 bits.
    const bool fits = scale < 0.5 && std::abs(mean) <= 32768;
    whole = fits && (c % BLOCK == 0 || whole);
    if (fits) {
      int exponent;
      std::frexp(scale, &exponent);
      const int shift = std::clamp(-1 - exponent, 0, 8);
      const double factor = std::min(std::nearbyint(std::ldexp(scale, 16 + shift)), 32767.0);
      const int64_t place = c / BLOCK * BLOCK + c % 2 * (BLOCK / 2) + c % BLOCK / 2;
      factor_.data()[c] = static_cast<int16_t>(factor);
      shift_.data()[c] = static_cast<int16_t>(shift);
      offset_.data()[place] = static_cast<int32_t>(std::nearbyint(std::ldexp(0.5, 16 + shift) - mean * factor));
      scale = std::ldexp(factor, -16 - shift);
    }
    scale_.data()[c] = static_cast<float>(scale);
    bias_.data()[c] = static_cast<float>(-mean * scale);
  }

  Norm8 numbers() const {
    return {scale_.data(), bias_.data(), factor_.data(), shift_.data(), offset_.data(), whole_.data()};
  }

 private:
  Lines<float> scale_, bias_;
  Lines<int16_t> factor_, shift_;
  Lines<int32_t> offset_;
  Lines<bool> whole_;
};

}  // namespace mednext
