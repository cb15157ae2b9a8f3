// Stem and head in float32: they are thin, and their numbers are the image's and the logits.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

template <class T>
inline void float_stem(const FloatStem<T>& job, int64_t begin, int64_t end) {
  over_voxels(begin, end, job.h, job.w, [&](int64_t i, int64_t z, int64_t y, int64_t x) {
    T* const stream = job.stream.at(z, y, x);
    for (int64_t c = 0; c < job.c_out; c += LANES) {
      Lanes value{};
      for (int64_t k = 0; k < job.c_in; ++k)
        value += job.x[k * job.voxels + begin + i] * take(job.weight + k * job.c_out + c);
      put(stream + c / BLOCK * job.stream.block + c % BLOCK, value + take(job.bias + c));
    }
  });
}

// Lanes are classes: a voxel's channels are broadcast one after the other.
template <class T>
inline void head_of_some(const FloatHead<T>& job, int64_t begin, int64_t count, const T* const* streams) {
  constexpr int SOME = 4;
  float channels[SOME][BLOCK], logits[SOME][BLOCK];
  for (int64_t k = 0; k < job.classes; k += LANES) {
    const float* const weight = job.weight + k / BLOCK * job.c_in * BLOCK + k % BLOCK;
    Lanes sums[SOME] = {};
    for (int64_t c = 0; c < job.c_in; c += BLOCK) {
      for (int64_t i = 0; i < SOME; ++i)
        for (int64_t lane = 0; lane < BLOCK; lane += LANES)
          put(channels[i] + lane, take(streams[i < count ? i : 0] + c / BLOCK * job.stream.block + lane));
      forget_registers();
      for (int64_t j = 0; j < BLOCK; ++j) {
        const Lanes weights = take(weight + (c + j) * BLOCK);
        MEDNEXT_UNROLL
        for (int i = 0; i < SOME; ++i) sums[i] += channels[i][j] * weights;
      }
    }
    for (int64_t i = 0; i < SOME; ++i) put(logits[i], sums[i] + take(job.bias + k));
    for (int64_t number = k; number < job.classes && number < k + LANES; ++number)
      for (int64_t i = 0; i < count; ++i) job.y[number * job.voxels + begin + i] = logits[i][number - k];
  }
}

template <class T>
inline void float_head(const FloatHead<T>& job, int64_t begin, int64_t end) {
  constexpr int64_t SOME = 4;
  for (int64_t first = begin; first < end; first += SOME) {
    const int64_t count = end - first < SOME ? end - first : SOME;
    const T* streams[SOME];
    over_voxels(first, first + count, job.h, job.w,
                [&](int64_t i, int64_t z, int64_t y, int64_t x) { streams[i] = job.stream.at(z, y, x); });
    head_of_some(job, first, count, streams);
  }
}

}  // namespace mednext::MEDNEXT_ISA
