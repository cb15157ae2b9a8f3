// The norm of each channel of a sample, and its gradient, float32, channels-last: one pass for sums, one for values.
#pragma once

#include "lanes.h"

namespace mednext::MEDNEXT_ISA {

constexpr int64_t RUN = 256;  // voxels whose sum stays in float32; sums of runs are in float64

template <class V>
struct Pair {
  V first, second;
};

// Adds to sums [2, c] what terms(lanes, offset, channel) gives as a pair, over voxels begin..end-1.
template <class Terms>
inline void add_two(int64_t begin, int64_t end, int64_t c, double* sums, const Terms& terms) {
  for (int64_t run = begin; run < end; run += RUN) {
    const int64_t stop = run + RUN < end ? run + RUN : end;
    over_channels(c, [&](auto lanes, int64_t channel) {
      using V = decltype(lanes);
      V first{}, second{};
      for (int64_t i = run; i < stop; ++i) {
        const Pair<V> pair = terms(lanes, i * c + channel, channel);
        first += pair.first;
        second += pair.second;
      }
      add<V>(sums + channel, first);
      add<V>(sums + c + channel, second);
    });
  }
}

inline void norm_sums(int64_t begin, int64_t end, int64_t c, const float* x, const float* origin, double* sums) {
  add_two(begin, end, c, sums, [&](auto lanes, int64_t at, int64_t channel) {
    using V = decltype(lanes);
    const V off = load<V>(x + at) - load<V>(origin + channel);
    return Pair<V>{off, off * off};
  });
}

inline void norm_grad_sums(int64_t begin, int64_t end, int64_t c, const float* grad, const float* x, const float* mean,
                           const float* rstd, double* sums) {
  add_two(begin, end, c, sums, [&](auto lanes, int64_t at, int64_t channel) {
    using V = decltype(lanes);
    const V slope = load<V>(grad + at);
    return Pair<V>{slope, slope * ((load<V>(x + at) - load<V>(mean + channel)) * load<V>(rstd + channel))};
  });
}

inline void norm_apply(int64_t begin, int64_t end, int64_t c, const float* x, const float* mean, const float* scale,
                       const float* shift, float* y) {
  for (int64_t i = begin; i < end; ++i) {
    over_channels(c, [&](auto lanes, int64_t k) {
      using V = decltype(lanes);
      store<V>(y + i * c + k,
               (load<V>(x + i * c + k) - load<V>(mean + k)) * load<V>(scale + k) + load<V>(shift + k));
    });
  }
}

inline void norm_grad_apply(int64_t begin, int64_t end, int64_t c, const float* grad, const float* x, const float* mean,
                            const float* level, const float* tilt, const float* scale, float* grad_x) {
  for (int64_t i = begin; i < end; ++i) {
    over_channels(c, [&](auto lanes, int64_t k) {
      using V = decltype(lanes);
      const V off = (load<V>(x + i * c + k) - load<V>(mean + k)) * load<V>(tilt + k);
      store<V>(grad_x + i * c + k, (load<V>(grad + i * c + k) - load<V>(level + k) - off) * load<V>(scale + k));
    });
  }
}

}  // namespace mednext::MEDNEXT_ISA
