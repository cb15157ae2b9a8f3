#include "ffn_packed.h"

#include <algorithm>

#include "../runtime/parallel.h"

namespace {

// Parts for each thread: so many that none waits long for the last.
constexpr int64_t PARTS = 16;

}  // namespace

mednext_cpu_ffn_packed::mednext_cpu_ffn_packed(const mednext::CpuKernels& kernels, const mednext_cpu_ffn& layer)
    : kernels_(kernels),
      channels_{layer.c_in, layer.hidden, layer.c_out},
      sizes_(kernels.ffn_sizes(channels_)),
      expand_(sizes_.expand),
      compress_(sizes_.compress),
      offsets_(sizes_.hidden + sizes_.out),
      scales_(2 * sizes_.hidden + 2 * sizes_.out),
      table_(256) {
  kernels.ffn_pack(channels_, layer.expand, layer.compress, weights());
  float* const out = scales_.data() + 2 * sizes_.hidden;
  std::copy_n(layer.expand_scale, layer.hidden, scales_.data());
  std::copy_n(layer.expand_bias, layer.hidden, scales_.data() + sizes_.hidden);
  std::copy_n(layer.compress_scale, layer.c_out, out);
  std::copy_n(layer.compress_bias, layer.c_out, out + sizes_.out);
  for (int level = -128; level < 128; ++level)
    table_.data()[static_cast<uint8_t>(level)] = static_cast<uint8_t>(layer.table[level + 128]) ^ 0x80;
}

mednext::FfnWeights mednext_cpu_ffn_packed::weights() const {
  return {expand_.data(), compress_.data(), offsets_.data(), offsets_.data() + sizes_.hidden};
}

void mednext_cpu_ffn_packed::run(int64_t voxels, const int8_t* x, const uint16_t* residual, uint16_t* y,
                                 int threads) const {
  const float *const hidden = scales_.data(), *const out = hidden + 2 * sizes_.hidden;
  const mednext::FfnScales scales{hidden, hidden + sizes_.hidden, out, out + sizes_.out};
  const int64_t parts = std::min(voxels, PARTS * threads);
  mednext::parallel_for(parts, threads, [&](int64_t i) {
    const mednext::Lines<uint8_t> scratch(sizes_.scratch);
    kernels_.ffn_int8(channels_, i * voxels / parts, (i + 1) * voxels / parts, x, weights(), scales, table_.data(),
                      residual, y, scratch.data());
  });
}
