// The stem and the rounding of a stream, in float: the stem is thin, and its numbers are the image's.
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

}  // namespace mednext::MEDNEXT_ISA
