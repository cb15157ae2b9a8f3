// What the feed-forward kernel is given.
#pragma once

#include "mednext/divisor.h"

namespace mednext {

struct FfnArgs {
  const void* a;
  const float* mean;
  const float* moment;
  const float* gamma;  // may be null, as may beta, b1, b2 and residual
  const float* beta;
  const void* w1;
  const float* b1;
  const void* w2;
  const float* b2;
  const void* residual;
  void* y;
  float eps;
  int voxels;  // of a sample
  int hidden;
  Divisor width, height;
  int64_t stride_n, stride_d, stride_h, stride_w;  // of residual and y, in elements

  // Where the channels of a voxel of residual and y begin.
  MEDNEXT_DEVICE int64_t offset(int n, int voxel) const {
    const uint32_t row = width.quotient(voxel), plane = height.quotient(row);
    const uint32_t x = voxel - row * width.value, yy = row - plane * height.value;
    return n * stride_n + plane * stride_d + yy * stride_h + x * stride_w;
  }
};

}  // namespace mednext
