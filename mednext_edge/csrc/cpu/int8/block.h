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
  bool lifted = false;

  Panels panels() const { return {weights.data(), offsets.data(), lifted}; }
  Scales scales() const { return {scale.data(), bias.data()}; }
  // Puts what biases are in whole sums into the offsets, as INT32. True where no sum of the weights `given`
  // [columns, rows] and values of at most `largest` is too large to be lifted.
  bool settle(const int8_t* given, int64_t columns, int64_t rows, float largest);
  void lift();
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
