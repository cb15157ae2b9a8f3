// One block of a float network as the kernels read it.
#pragma once

#include "../net.h"
#include "jobs.h"

namespace mednext {

// Weights of a 1x1x1 convolution.
struct PackedDense {
  Lines<uint8_t> weights;
  Lines<float> bias;

  Panels32 panels() const { return {weights.data(), bias.data()}; }
};

template <class T>
class FloatBlock {
 public:
  FloatBlock(const FloatKernels<T>& kernels, const mednext_cpu_float_block& given);

  Form form;
  int64_t kernel, depth, c_in, hidden, c_out;  // padded
  int64_t channels;                            // of the input, as given
  bool residual;
  float eps;
  Lines<float> depthwise;
  PackedDense expand, compress, shortcut;
};

extern template class FloatBlock<float>;
extern template class FloatBlock<Bf16>;

}  // namespace mednext
