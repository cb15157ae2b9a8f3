// The gradient of rounding to INT8 with a threshold that is learnt.
#pragma once

#include "lanes.h"

namespace mednext::MEDNEXT_ISA {

constexpr float LEVELS = 127;
constexpr float SHIFT = 12582912;  // 1.5 * 2^23: beside it float32 has no fractions left, and rounds half to even
constexpr int64_t SUMMED = 64;     // registers whose sum stays in float32

template <class V>
inline V fake_quantize_step(const float* grad, const float* x, float threshold, float* grad_x) {
  const V value = load<V>(x), slope = load<V>(grad), zero{}, level = value * (LEVELS / threshold);
  const V rounded = (level + SHIFT) - SHIFT - level, last = value > zero ? zero + LEVELS : zero - LEVELS;
  const auto inside = (value <= zero + threshold) & (value >= zero - threshold);
  store<V>(grad_x, inside ? slope : zero);
  return slope * (inside ? rounded : last);
}

inline double fake_quantize_grad(int64_t begin, int64_t end, const float* grad, const float* x, float threshold,
                                 float* grad_x) {
  double sum = 0;
  int64_t i = begin;
  while (i + width<Lanes> <= end) {
    Lanes part{};
    for (int64_t n = 0; n < SUMMED && i + width<Lanes> <= end; ++n, i += width<Lanes>)
      part += fake_quantize_step<Lanes>(grad + i, x + i, threshold, grad_x + i);
    double lanes[width<Lanes>] = {};
    add<Lanes>(lanes, part);
    for (const double lane : lanes) sum += lane;
  }
  for (; i < end; ++i) sum += fake_quantize_step<float>(grad + i, x + i, threshold, grad_x + i);
  return sum / LEVELS;
}

}  // namespace mednext::MEDNEXT_ISA
