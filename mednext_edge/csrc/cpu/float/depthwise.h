// The depthwise convolution of a block in float, with the moments that its norm needs.
//
// Lanes are channels. Some results of a row are summed together: what they read of a row of the input is loaded once,
// and so is every weight. Rows follow one another as they lie in memory: walked downwards in columns, so that a row is
// widened from bfloat16 but once for all the rows it reaches, a plane took longer, for want of what is read ahead.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

// Results of a row at once: with the inputs that they share and a weight, as many as the registers hold.
constexpr int TOGETHER = LANES == 16 ? 8 : 4;

// The distances of a row's results from one of the slice, `pivot`, and their squares: near to the mean, a variance is
// not the small difference of two large numbers. Rows are summed in float64: a long sum in float32 moves the norm.
struct RowMoments {
  Lanes pivot, first{}, second{};

  template <class T>
  MEDNEXT_INLINE void take(T* to, Lanes y) {
    put(to, y);
    const Lanes apart = y - pivot;
    first += apart;
    second += apart * apart;
  }
  void add_to(double* moments) const {
    add(moments + BLOCK, first);
    add(moments + 2 * BLOCK, second);
  }
};

// What one plane and some channels of the result need.
template <class T>
struct Slice {
  const Depthwise<T>& job;
  const T* x;            // voxel (0, 0) of plane 0 of the input, or of the first plane of the kernel
  const float* weights;  // [depth, kernel, kernel, BLOCK]
  T* y;                  // voxel (0, 0) of the plane of the result
  int64_t z;
  double* moments;
  int64_t top, bottom;  // rows of the result
};

// The convolution as it stands, or with a stride.
template <int K, int Step>
struct Whole {
  static constexpr int MOST = Step == 1 ? TOGETHER : TOGETHER / 2, LEAST = 1;

  // Results x..x+T-1 of row y.
  template <int T, class S>
  static MEDNEXT_INLINE void sum(const Slice<S>& slice, int64_t y, int64_t x, Lanes (&sums)[T]) {
    MEDNEXT_UNROLL
    for (int t = 0; t < T; ++t) sums[t] = Lanes{};
    const S* plane = slice.x + (Step * y - K / 2) * slice.job.x.row + (Step * x - K / 2) * BLOCK;
    const float* taps = slice.weights;
    for (int64_t kd = 0; kd < slice.job.depth; ++kd, plane += slice.job.x.plane) {
      const S* row = plane;
      for (int kh = 0; kh < K; ++kh, row += slice.job.x.row, taps += K * BLOCK) {
        Lanes held[Step * (T - 1) + K];
        MEDNEXT_UNROLL
        for (int i = 0; i < Step * (T - 1) + K; ++i) held[i] = take(row + i * BLOCK);
        MEDNEXT_UNROLL
        for (int kw = 0; kw < K; ++kw) {
          const Lanes tap = take(taps + kw * BLOCK);
          MEDNEXT_UNROLL
          for (int t = 0; t < T; ++t) sums[t] += held[Step * t + kw] * tap;
        }
      }
    }
  }
};

// Transposed with stride 2: tap kw gives results of one parity, 2i + parity, out of the input i + reach.
template <int K>
struct Spread {
  static constexpr int MOST = TOGETHER, LEAST = 2;

  static constexpr int parity(int kw) { return (kw + K / 2) & 1; }
  static constexpr int reach(int kw) { return (parity(kw) + K / 2 - kw) / 2; }

  // Results x..x+T-1 of row y; x and T are even.
  template <int T, class S>
  static MEDNEXT_INLINE void sum(const Slice<S>& slice, int64_t y, int64_t x, Lanes (&sums)[T]) {
    constexpr int LOW = -(K / 2 / 2), HIGH = (K / 2 + 1) / 2, HELD = T / 2 + HIGH - LOW;
    MEDNEXT_UNROLL
    for (int t = 0; t < T; ++t) sums[t] = Lanes{};
    const Depthwise<S>& job = slice.job;
    const bool deep = job.depth > 1;
    for (int64_t kd = deep ? (slice.z + K / 2) % 2 : 0; kd < job.depth; kd += 2) {
      const int64_t from = deep ? (slice.z + K / 2 - kd) / 2 : slice.z;
      for (int64_t kh = (y + K / 2) % 2; kh < K; kh += 2) {
        const S* const row = slice.x + from * job.x.plane + (y + K / 2 - kh) / 2 * job.x.row + (x / 2 + LOW) * BLOCK;
        const float* const taps = slice.weights + (kd * K + kh) * K * BLOCK;
        Lanes held[HELD];
        MEDNEXT_UNROLL
        for (int i = 0; i < HELD; ++i) held[i] = take(row + i * BLOCK);
        MEDNEXT_UNROLL
        for (int kw = 0; kw < K; ++kw) {
          const Lanes tap = take(taps + kw * BLOCK);
          MEDNEXT_UNROLL
          for (int t = 0; t < T / 2; ++t) sums[2 * t + parity(kw)] += held[t + reach(kw) - LOW] * tap;
        }
      }
    }
  }
};

// Of the slice, by one of these.
template <class Sums, class S>
MEDNEXT_APART void convolve_slice(const Slice<S>& slice) {
  const int64_t w = slice.job.w;
  Lanes middle[Sums::LEAST];
  Sums::sum(slice, (slice.top + slice.bottom) / 2, w / 4 * 2, middle);
  for (int i = 0; i < 3; ++i) std::memset(slice.moments + i * BLOCK, 0, sizeof(double) * LANES);
  add(slice.moments, middle[0]);
  for (int64_t y = slice.top; y < slice.bottom; ++y) {
    S* const to = slice.y + y * slice.job.y.row;
    RowMoments moments{middle[0]};
    int64_t x = 0;
    for (; x + Sums::MOST <= w; x += Sums::MOST) {
      Lanes sums[Sums::MOST];
      Sums::sum(slice, y, x, sums);
      MEDNEXT_UNROLL
      for (int t = 0; t < Sums::MOST; ++t) moments.take(to + (x + t) * BLOCK, sums[t]);
    }
    for (; x < w; x += Sums::LEAST) {
      Lanes sums[Sums::LEAST];
      Sums::sum(slice, y, x, sums);
      for (int t = 0; t < Sums::LEAST && x + t < w; ++t) moments.take(to + (x + t) * BLOCK, sums[t]);
    }
    moments.add_to(slice.moments);
  }
}

template <int K, class T>
inline void depthwise_of(const Depthwise<T>& job, int64_t z, int64_t part, int64_t b) {
  const int64_t parts = (job.h + job.rows - 1) / job.rows, top = part * job.rows;
  const int64_t blocks = job.channels / BLOCK;
  const int64_t middle = job.form == Form::down && job.depth > 1 ? 2 * z : z;
  const int64_t first = job.form == Form::up ? 0 : middle - job.depth / 2;  // `Spread` finds its planes itself
  for (int64_t c = 0; c < BLOCK; c += LANES) {
    const Slice<T> slice{job,
                         job.x.data + first * job.x.plane + b * job.x.block + c,
                         job.weights + b * job.depth * K * K * BLOCK + c,
                         job.y.data + z * job.y.plane + b * job.y.block + c,
                         z,
                         job.moments + ((z * parts + part) * blocks + b) * 3 * BLOCK + c,
                         top,
                         top + job.rows < job.h ? top + job.rows : job.h};
    switch (job.form) {
      case Form::same: convolve_slice<Whole<K, 1>>(slice); break;
      case Form::down: convolve_slice<Whole<K, 2>>(slice); break;
      case Form::up: convolve_slice<Spread<K>>(slice); break;
    }
  }
}

template <class T>
inline void float_depthwise(const Depthwise<T>& job, int64_t z, int64_t part, int64_t b) {
  if (job.kernel == 3) depthwise_of<3>(job, z, part, b);
  if (job.kernel == 5) depthwise_of<5>(job, z, part, b);
  if (job.kernel == 7) depthwise_of<7>(job, z, part, b);
}

}  // namespace mednext::MEDNEXT_ISA
