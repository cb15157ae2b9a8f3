// Depthwise 3-D convolution and its gradients, float32, channels-last: lanes are channels, and a tile of neighbouring
// outputs in a row shares each weight that is loaded.
#pragma once

#include "kernels.h"
#include "padded.h"

namespace mednext::MEDNEXT_ISA {

using Layer = mednext_cpu_dwconv3d;

inline int64_t out(int64_t n, int64_t stride) { return (n - 1) / stride + 1; }

// `T` outputs of a row and the channels of one register. Offsets are in floats.
//   rows   where the first output's window begins, for each plane of the window; null outside the volume
//   Step   from one output's window to the next
template <class V, int K, int Step, int T>
inline void convolve_tile(const float* const (&rows)[K], int64_t row_stride, int64_t c, const float* weight,
                          const float* bias, float* y) {
  V sum[T];
  for (int t = 0; t < T; ++t) sum[t] = bias ? load<V>(bias) : V{};
  for (int kd = 0; kd < K; ++kd) {
    if (!rows[kd]) continue;
    for (int kh = 0; kh < K; ++kh) {
      const float* const row = rows[kd] + kh * row_stride;
      const float* const taps = weight + (kd * K + kh) * K * c;
#pragma GCC unroll 8
      for (int kw = 0; kw < K; ++kw) {
        const V tap = load<V>(taps + kw * c);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sum[t] += load<V>(row + (t * Step + kw) * c) * tap;
      }
    }
  }
  for (int t = 0; t < T; ++t) store<V>(y + t * c, sum[t]);
}

template <int K, int Step>
void convolve(const Layer& l, Slab slab, const float* x, const float* weight, const float* bias, float* y,
              float* scratch) {
  const int64_t c = l.c, od = out(l.d, Step), oh = out(l.h, Step), ow = out(l.w, Step);
  PaddedPlanes<K> planes(x + slab.sample * l.d * l.h * l.w * c, l.d, l.h, l.w, c, K / 2, scratch);
  const int64_t stride = planes.row_stride();
  for (int64_t z = slab.first; z < slab.last; ++z) {
    const float* corners[K];
    for (int kd = 0; kd < K; ++kd) corners[kd] = planes.plane(z * Step + kd - K / 2);
    for (int64_t v = 0; v < oh; ++v) {
      float* const to = y + ((slab.sample * od + z) * oh + v) * ow * c;
      const auto tile = [&](auto tiles, int64_t u) {
        constexpr int T = decltype(tiles)::value;
        over_channels(c, [&](auto lanes, int64_t first) {
          const float* rows[K];
          for (int kd = 0; kd < K; ++kd)
            rows[kd] = corners[kd] ? corners[kd] + v * Step * stride + u * Step * c + first : nullptr;
          convolve_tile<decltype(lanes), K, Step, T>(rows, stride, c, weight + first, bias ? bias + first : nullptr,
                                                     to + u * c + first);
        });
      };
      int64_t u = 0;
      for (; u + 8 <= ow; u += 8) tile(Count<8>{}, u);
      for (; u + 4 <= ow; u += 4) tile(Count<4>{}, u);
      for (; u < ow; ++u) tile(Count<1>{}, u);
    }
  }
}

// The transpose of stride 2. Voxel i of x takes y[(i + K / 2 - k) / 2] from those taps k for which that is whole: of an
// axis either the even taps or the odd ones, by the parity of i.
template <int K>
void spread(const Layer& l, Slab slab, const float* y, const float* weight, const float* bias, float* x,
            float* scratch) {
  constexpr int64_t pad = K / 2, margin = (pad + 1) / 2;
  const int64_t c = l.c, od = out(l.d, 2), oh = out(l.h, 2), ow = out(l.w, 2);
  PaddedPlanes<K> planes(y + slab.sample * od * oh * ow * c, od, oh, ow, c, margin, scratch);
  const int64_t stride = planes.row_stride();
  for (int64_t z = slab.first; z < slab.last; ++z) {
    const float* corners[K];
    for (int64_t kd = (z + pad) % 2; kd < K; kd += 2) corners[kd] = planes.plane((z + pad - kd) / 2);
    for (int64_t v = 0; v < l.h; ++v) {
      for (int64_t u = 0; u < l.w; ++u) {
        float* const to = x + (((slab.sample * l.d + z) * l.h + v) * l.w + u) * c;
        over_channels(c, [&](auto lanes, int64_t first) {
          using V = decltype(lanes);
          V sum = bias ? load<V>(bias + first) : V{};
          for (int64_t kd = (z + pad) % 2; kd < K; kd += 2) {
            if (!corners[kd]) continue;
            for (int64_t kh = (v + pad) % 2; kh < K; kh += 2) {
              const float* const row = corners[kd] + ((v + pad - kh) / 2 + margin) * stride + margin * c + first;
              const float* const taps = weight + (kd * K + kh) * K * c + first;
              for (int64_t kw = (u + pad) % 2; kw < K; kw += 2)
                sum += load<V>(row + (u + pad - kw) / 2 * c) * load<V>(taps + kw * c);
            }
          }
          store<V>(to + first, sum);
        });
      }
    }
  }
}

// Adds to `sums` [K, K, K, c] what `R` rows of a window of x and one row of y give, the taps (kd, kh.., all kw).
template <class V, int K, int Step, int R>
inline void correlate_rows(const float* x, int64_t row_stride, const float* y, int64_t ow, int64_t c, double* sums) {
  V sum[R][K] = {};
  for (int64_t u = 0; u < ow; ++u) {
    const V slope = load<V>(y + u * c);
    const float* const window = x + u * Step * c;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int kw = 0; kw < K; ++kw) sum[r][kw] += load<V>(window + r * row_stride + kw * c) * slope;
  }
  for (int r = 0; r < R; ++r)
    for (int kw = 0; kw < K; ++kw) add<V>(sums + (r * K + kw) * c, sum[r][kw]);
}

template <int K, int Step>
void correlate(const Layer& l, Slab slab, const float* x, const float* y, double* sums, float* scratch) {
  // As many sums at once as there are registers: 9 of kernel 3, 10 of 5, 7 of 7.
  constexpr int R = K == 3 ? 3 : K == 5 ? 2 : 1;
  const int64_t c = l.c, od = out(l.d, Step), oh = out(l.h, Step), ow = out(l.w, Step);
  PaddedPlanes<K> planes(x + slab.sample * l.d * l.h * l.w * c, l.d, l.h, l.w, c, K / 2, scratch);
  const int64_t stride = planes.row_stride();
  for (int64_t z = slab.first; z < slab.last; ++z) {
    for (int kd = 0; kd < K; ++kd) {
      const float* const corner = planes.plane(z * Step + kd - K / 2);
      if (!corner) continue;
      for (int64_t v = 0; v < oh; ++v) {
        const float* const slope = y + ((slab.sample * od + z) * oh + v) * ow * c;
        over_channels(c, [&](auto lanes, int64_t first) {
          using V = decltype(lanes);
          const float* const window = corner + v * Step * stride + first;
          double* const to = sums + kd * K * K * c + first;
          int kh = 0;
          for (; kh + R <= K; kh += R)
            correlate_rows<V, K, Step, R>(window + kh * stride, stride, slope + first, ow, c, to + kh * K * c);
          for (; kh < K; ++kh)
            correlate_rows<V, K, Step, 1>(window + kh * stride, stride, slope + first, ow, c, to + kh * K * c);
        });
      }
    }
  }
}

}  // namespace mednext::MEDNEXT_ISA
