// One block of a network as the kernels read it.
#pragma once

#include "../net.h"
#include "jobs.h"

namespace mednext {

// Weights of a 1x1x1 convolution.
struct Packed {
  Lines<int8_t> weights;
  Lines<int32_t> offsets;
  Lines<float> scale, bias;

  Panels panels() const { return {weights.data(), offsets.data()}; }
  Scales scales() const { return {scale.data(), bias.data()}; }
};

class Block8 {
 public:
  Block8(const Int8Kernels& kernels, const mednext_cpu_block& given);

  Form form;
  int64_t kernel, depth, c_in, hidden, c_out;  // padded
  bool residual;
  float in_step, norm_step, eps;
  Lines<int8_t> depthwise;
  Lines<int32_t> depthwise_offsets;
  Lines<float> depthwise_scale;  // from sums to 16 bits
  Lines<float> unit;             // [c_in], of these
  Packed expand, compress, shortcut;
  Lines<uint8_t> table;

  int64_t parities() const { return form != Form::up ? 1 : depth > 1 ? 8 : 4; }

 private:
  void take_depthwise(const Int8Kernels& kernels, const mednext_cpu_block& given);
};

}  // namespace mednext
