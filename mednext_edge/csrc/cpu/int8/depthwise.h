// The depthwise convolution of a block in INT8, with the sums that its norm needs.
//
// The taps along a row are multiplied four at a time: a window holds four neighbours of sixteen channels. A column of
// results is walked downwards, so that a window is made once for all the rows of the kernel that it meets.
#pragma once

#include "windows.h"

namespace mednext::MEDNEXT_ISA {

// How many windows a row of taps takes; of the transposed form one for even results and one for odd ones.
inline int64_t windows(Form form, int64_t kernel) { return form == Form::up || kernel > WINDOW ? 2 : 1; }

inline int64_t depthwise_bytes(Form form, int64_t kernel, int64_t depth, int64_t channels) {
  return channels / BLOCK * depth * kernel * windows(form, kernel) * TAPS * static_cast<int64_t>(sizeof(Tap));
}

// Parity of the results that a tap reaches in the transposed form, and the input that it takes for result 2i + parity:
// i + reach.
inline int64_t parity_of(int64_t tap, int64_t kernel) { return (tap + kernel / 2) % 2; }
inline int64_t reach_of(int64_t tap, int64_t kernel) {
  const int64_t twice = parity_of(tap, kernel) + kernel / 2 - tap;
  return (twice - (twice & 1)) / 2;
}

// [blocks, depth, kernel, windows, TAPS]; offsets [parities, channels].
inline void pack_depthwise(Form form, int64_t kernel, int64_t depth, int64_t channels, const int8_t* weights,
                           int8_t* packed, int32_t* offsets) {
  const int64_t each = windows(form, kernel);
  Tap* const taps = reinterpret_cast<Tap*>(packed);
  std::memset(packed, 0, static_cast<size_t>(depthwise_bytes(form, kernel, depth, channels)));
  const int64_t parities = form == Form::up ? (depth > 1 ? 8 : 4) : 1;
  std::memset(offsets, 0, sizeof(int32_t) * static_cast<size_t>(parities * channels));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t kd = 0; kd < depth; ++kd) {
      for (int64_t kh = 0; kh < kernel; ++kh) {
        for (int64_t kw = 0; kw < kernel; ++kw) {
          const int8_t weight = weights[((c * depth + kd) * kernel + kh) * kernel + kw];
          int64_t which = kw / WINDOW, tap = kw % WINDOW, parity = 0;
          if (form == Form::up) {
            which = parity_of(kw, kernel);
            tap = reach_of(kw, kernel) + 1;
            parity = ((depth > 1 ? parity_of(kd, kernel) : 0) * 2 + parity_of(kh, kernel)) * 2 + which;
          }
          Tap* const row = taps + ((c / BLOCK * depth + kd) * kernel + kh) * each * TAPS;
          row[which * TAPS + place_of(c % BLOCK, tap)] = weight;
          offsets[parity * channels + c] -= ZERO * weight;
        }
      }
    }
  }
}

// Sums of results and of their squares.
struct Moments {
  Sixteen first = zeros(), second = zeros();

  MEDNEXT_INLINE void take(int16_t* to, bool past, const Accumulator& sums, const Sixteen& scale) {
    const Sixteen y = as_floats(sums) * scale;
    if (past)
      store_past(to, y);
    else
      store_int16(to, y);
    first = first + y;
    second = scaled(y, y, second);
  }
  void add_to(double* sums) {
    float values[2][BLOCK];
    store16(values[0], first);
    store16(values[1], second);
    for (int64_t i = 0; i < BLOCK; ++i) sums[i] += values[0][i], sums[BLOCK + i] += values[1][i];
  }
};

// What one plane and one block of channels of the result need.
struct Plane {
  const Depthwise8& job;
  const uint8_t* x;  // voxel (0, 0) of the first plane of the kernel
  const Tap* weights;
  const int32_t* offsets;
  const float* scale;
  int16_t* y;
  double* sums;
  int64_t top, bottom;  // rows of the result
};

// Results x0..x0+W-1 of every row, with stride 1.
template <int K, int W>
inline void column(const Plane& p, int64_t x0) {
  constexpr int TWO = K > WINDOW ? 2 : 1;
  const Depthwise8& job = p.job;
  const int64_t last = p.bottom - p.top + K - 1;
  const Sixteen scale = load16(p.scale);
  Moments moments;
  Accumulator sums[K][W];
  for (auto& row : sums)
    for (auto& sum : row) begin_sums(sum, p.offsets);
  const uint8_t* row = p.x + (x0 - K / 2) * BLOCK + (p.top - K / 2) * job.x.row;
  // Row t of the input, the first of the margin being 0, gives tap kh of result t - kh; results take turns in `sums`.
  const auto step = [&](int64_t t, auto phase) {
    constexpr int P = decltype(phase)::value;
    const uint8_t* plane = row;
    const Tap* taps = p.weights;
    prefetch_later(row + job.depth * job.x.plane + 2 * BLOCK);
    for (int64_t kd = 0; kd < job.depth; ++kd, plane += job.x.plane) {
      prefetch(plane + 2 * job.x.row);
      prefetch(plane + 2 * job.x.row + 64);
      Window x[TWO][W];
      MEDNEXT_UNROLL
      for (int two = 0; two < TWO; ++two) several_windows(plane + two * WINDOW * BLOCK, x[two]);
      MEDNEXT_UNROLL
      for (int kh = 0; kh < K; ++kh, taps += TWO * TAPS) {
        MEDNEXT_UNROLL
        for (int two = 0; two < TWO; ++two) {
          MEDNEXT_UNROLL
          for (int i = 0; i < W; ++i) {
            dot(sums[(P - kh + K) % K][i], x[two][i], taps + two * TAPS);
          }
        }
      }
    }
    constexpr int DONE = (P + 1) % K;
    const int64_t y = t - (K - 1);
    if (y >= 0) {
      int16_t* const to = p.y + (p.top + y) * job.y.row + x0 * BLOCK;
      if (!job.past) {
        prefetch_later(to + W * BLOCK);  // what the next column writes here
        if constexpr (W > 2) prefetch_later(to + W * BLOCK + 2 * BLOCK);
      }
      MEDNEXT_UNROLL
      for (int i = 0; i < W; ++i) moments.take(to + i * BLOCK, job.past, sums[DONE][i], scale);
    }
    MEDNEXT_UNROLL
    for (int i = 0; i < W; ++i) begin_sums(sums[DONE][i], p.offsets);
    row += job.x.row;
  };
  for (int64_t t = 0; t < last;) {
    step(t, Count<0>{});
    if (++t < last) step(t, Count<1>{});
    if (++t < last) step(t, Count<2>{});
    if constexpr (K > 3) {
      if (++t < last) step(t, Count<3>{});
      if (++t < last) step(t, Count<4>{});
    }
    if constexpr (K > 5) {
      if (++t < last) step(t, Count<5>{});
      if (++t < last) step(t, Count<6>{});
    }
    ++t;
  }
  moments.add_to(p.sums);
}

template <int K>
inline void same(const Plane& p) {
  constexpr int W = TOGETHER_IN_ROW<K>;
  int64_t x = 0;
  for (; x + W <= p.job.w; x += W) column<K, W>(p, x);
  for (; x < p.job.w; ++x) column<K, 1>(p, x);
}

// W results of a row, with stride 2.
template <int K, int W>
inline void strided(const Plane& p, const uint8_t* row, int16_t* to, const Sixteen& scale, Moments& moments) {
  constexpr int TWO = K > WINDOW ? 2 : 1;
  Accumulator sums[W];
  for (auto& sum : sums) begin_sums(sum, p.offsets);
  const Tap* taps = p.weights;
  for (int64_t kd = 0; kd < p.job.depth; ++kd) {
    for (int kh = 0; kh < K; ++kh, taps += TWO * TAPS) {
      const uint8_t* const at = row + kd * p.job.x.plane + kh * p.job.x.row;
      for (int two = 0; two < TWO; ++two) {
        MEDNEXT_UNROLL
        for (int i = 0; i < W; ++i) {
          Window four;
          make_window(at + (2 * i + two * WINDOW) * BLOCK, four);
          dot(sums[i], four, taps + two * TAPS);
        }
      }
    }
  }
  MEDNEXT_UNROLL
  for (int i = 0; i < W; ++i) moments.take(to + i * BLOCK, p.job.past, sums[i], scale);
}

template <int K>
inline void down(const Plane& p) {
  const Depthwise8& job = p.job;
  const Sixteen scale = load16(p.scale);
  for (int64_t y = p.top; y < p.bottom; ++y) {
    Moments moments;
    const uint8_t* const row = p.x + (2 * y - K / 2) * job.x.row - K / 2 * BLOCK;
    int16_t* const to = p.y + y * job.y.row;
    int64_t x = 0;
    for (; x + 4 <= job.w; x += 4) strided<K, 4>(p, row + 2 * x * BLOCK, to + x * BLOCK, scale, moments);
    for (; x < job.w; ++x) strided<K, 1>(p, row + 2 * x * BLOCK, to + x * BLOCK, scale, moments);
    moments.add_to(p.sums);
  }
}

// Results 2x and 2x + 1, the latter where `odd` is set, for W inputs of a row. `p.x` is plane 0 of the input, of which
// the kernel's taps take those that `z` and `y`, the result's plane and row, reach.
template <int K, int W>
inline void spread(const Plane& p, int64_t z, int64_t y, int64_t x, bool odd, const Sixteen (&scale)[2],
                   const int32_t* const (&offsets)[2], Moments& moments) {
  const Depthwise8& job = p.job;
  Accumulator sums[2][W];
  for (int parity = 0; parity < 2; ++parity)
    for (auto& sum : sums[parity]) begin_sums(sum, offsets[parity]);
  const bool deep = job.depth > 1;
  for (int64_t kd = deep ? (z + K / 2) % 2 : 0; kd < job.depth; kd += 2) {
    const int64_t from_z = deep ? (z + K / 2 - kd) / 2 : z;
    for (int64_t kh = (y + K / 2) % 2; kh < K; kh += 2) {
      const uint8_t* const at = p.x + from_z * job.x.plane + (y + K / 2 - kh) / 2 * job.x.row + (x - 1) * BLOCK;
      const Tap* const taps = p.weights + (kd * K + kh) * 2 * TAPS;
      MEDNEXT_UNROLL
      for (int i = 0; i < W; ++i) {
        Window four;
        make_window(at + i * BLOCK, four);
        dot(sums[0][i], four, taps);
        dot(sums[1][i], four, taps + TAPS);
      }
    }
  }
  int16_t* const to = p.y + y * job.y.row + 2 * x * BLOCK;
  for (int i = 0; i < W; ++i) {
    moments.take(to + 2 * i * BLOCK, job.past, sums[0][i], scale[0]);
    if (odd || i + 1 < W) moments.take(to + (2 * i + 1) * BLOCK, job.past, sums[1][i], scale[1]);
  }
}

template <int K>
inline void up(const Plane& p, int64_t z) {
  const Depthwise8& job = p.job;
  const int64_t inputs = (job.w + 1) / 2;
  for (int64_t y = p.top; y < p.bottom; ++y) {
    Moments moments;
    const int64_t parity = ((job.depth > 1 ? z % 2 : 0) * 2 + y % 2) * 2;
    const Sixteen scale[2] = {load16(p.scale + parity * job.channels), load16(p.scale + (parity + 1) * job.channels)};
    const int32_t* const offsets[2] = {p.offsets + parity * job.channels, p.offsets + (parity + 1) * job.channels};
    int64_t x = 0;
    for (; x + 4 <= inputs; x += 4) spread<K, 4>(p, z, y, x, x + 4 < inputs, scale, offsets, moments);
    for (; x < inputs; ++x) spread<K, 1>(p, z, y, x, x + 1 < inputs, scale, offsets, moments);
    moments.add_to(p.sums);
  }
}

template <int K>
inline void depthwise_of(const Depthwise8& job, int64_t z, int64_t part, int64_t b) {
  const int64_t parts = (job.h + job.rows - 1) / job.rows, top = part * job.rows;
  const int64_t blocks = job.channels / BLOCK, each = windows(job.form, K) * TAPS;
  const int64_t middle = job.form == Form::down && job.depth > 1 ? 2 * z : z;
  const int64_t first = job.form == Form::up ? 0 : middle - job.depth / 2;  // `spread` finds its planes itself
  const Plane plane{job,
                    job.x.data + first * job.x.plane + b * job.x.block,
                    reinterpret_cast<const Tap*>(job.weights) + b * job.depth * K * each,
                    job.offsets + b * BLOCK,
                    job.scale + b * BLOCK,
                    job.y.data + z * job.y.plane + b * job.y.block,
                    job.sums + ((z * parts + part) * blocks + b) * 2 * BLOCK,
                    top,
                    top + job.rows < job.h ? top + job.rows : job.h};
  std::memset(plane.sums, 0, sizeof(double) * 2 * BLOCK);
  switch (job.form) {
    case Form::same: same<K>(plane); break;
    case Form::down: down<K>(plane); break;
    case Form::up: up<K>(plane, z); break;
  }
  written();
}

inline void depthwise(const Depthwise8& job, int64_t z, int64_t part, int64_t b) {
  if (job.kernel == 3) depthwise_of<3>(job, z, part, b);
  if (job.kernel == 5) depthwise_of<5>(job, z, part, b);
  if (job.kernel == 7) depthwise_of<7>(job, z, part, b);
}

}  // namespace mednext::MEDNEXT_ISA
