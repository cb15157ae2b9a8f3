// Stem, head and the rounding of a stream, in float: stem and head are thin, and their numbers are the image's and the
// logits.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

inline void stem(const Stem& job, int64_t begin, int64_t end) {
  over_voxels(begin, end, job.h, job.w, [&](int64_t i, int64_t z, int64_t y, int64_t x) {
    uint16_t* const stream = job.stream.at(z, y, x);
    uint8_t* const copy = job.copy.to.data ? job.copy.to.at(z, y, x) : nullptr;
    for (int64_t c = 0; c < job.c_out; c += BLOCK) {
      Sixteen value = load16(job.bias + c);
      for (int64_t k = 0; k < job.c_in; ++k)
        value = scaled(all(job.x[k * job.voxels + begin + i]), load16(job.weight + k * job.c_out + c), value);
      store_bf16(stream + c / BLOCK * job.stream.block, value);
      if (copy) store_int8(copy + c / BLOCK * job.copy.to.block, value * all(job.copy.levels));
    }
  });
}

inline void round_stream(const Rounding& job, int64_t begin, int64_t end) {
  over_voxels(begin, end, job.h, job.w, [&](int64_t, int64_t z, int64_t y, int64_t x) {
    for (int64_t b = 0; b < job.channels / BLOCK; ++b)
      store_int8(job.copy.to.at(z, y, x) + b * job.copy.to.block,
                 wide(job.stream.at(z, y, x) + b * job.stream.block) * all(job.copy.levels));
  });
}

// Lanes are classes: a voxel's channels are broadcast one after the other.
inline void head_of_tile(const Head& job, int64_t begin, int64_t end) {
  constexpr int TOGETHER = 8;
  float channels[TOGETHER][BLOCK], logits[TILE][BLOCK];
  const uint16_t* streams[TILE];
  const int64_t voxels = end - begin;
  over_runs(begin, end, job.h, job.w, [&](int64_t i, int64_t z, int64_t y, int64_t x, int64_t run) {
    lay_out(job.stream.at(z, y, x), job.stream.step, run, streams + i);
    for (int64_t b = 0; b < job.c_in / BLOCK; ++b)
      for (int64_t k = 0; k < run; k += 2)  // a line holds two voxels
        prefetch_later(streams[i] + b * job.stream.block + (2 * TILE + k) * BLOCK);
  });
  for (int64_t k = 0; k < job.classes; k += BLOCK) {
    for (int64_t first = 0; first < voxels; first += TOGETHER) {
      const int64_t several = voxels - first < TOGETHER ? voxels - first : TOGETHER;
      Sixteen sums[TOGETHER];
      for (Sixteen& sum : sums) sum = load16(job.bias + k);
      for (int64_t c = 0; c < job.c_in; c += BLOCK) {
        for (int64_t i = 0; i < TOGETHER; ++i)
          store16(channels[i], wide(streams[first + (i < several ? i : 0)] + c / BLOCK * job.stream.block));
        forget_registers();
        MEDNEXT_UNROLL
        for (int64_t j = 0; j < BLOCK; ++j) {
          const Sixteen weight = load16(job.weight + (k / BLOCK * job.c_in + c + j) * BLOCK);
          MEDNEXT_UNROLL
          for (int i = 0; i < TOGETHER; ++i) sums[i] = scaled(all(channels[i][j]), weight, sums[i]);
        }
      }
      for (int64_t i = 0; i < several; ++i) store16(logits[first + i], sums[i]);
    }
    for (int64_t number = k; number < job.classes && number < k + BLOCK; ++number)
      for (int64_t i = 0; i < voxels; ++i) job.y[number * job.voxels + begin + i] = logits[i][number - k];
  }
}

inline void head(const Head& job, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += TILE)
    head_of_tile(job, first, end - first < TILE ? end : first + TILE);
}

}  // namespace mednext::MEDNEXT_ISA
