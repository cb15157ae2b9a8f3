// The operators on whole tensors: cut into parts for the threads, with the memory that those need.
#pragma once

#include "kernels.h"

namespace mednext {

void convolve(const CpuKernels&, const mednext_cpu_dwconv3d&, const float* x, const float* weight, const float* bias,
              float* y, int threads);
void adjoint(const CpuKernels&, const mednext_cpu_dwconv3d&, const float* y, const float* weight, const float* bias,
             float* x, int threads);
void weight_gradient(const CpuKernels&, const mednext_cpu_dwconv3d&, const float* x, const float* y, float* grad,
                     int threads);

struct Normed {
  int64_t n, voxels, c;
};
void channel_norm(const CpuKernels&, Normed, const float* x, const float* gamma, const float* beta, double eps, float* y,
                  float* mean, float* rstd, int threads);
void channel_norm_backward(const CpuKernels&, Normed, const float* grad, const float* x, const float* gamma,
                           const float* mean, const float* rstd, float* grad_x, float* grad_gamma, float* grad_beta,
                           int threads);
double fake_quantize_backward(const CpuKernels&, int64_t count, const float* grad, const float* x, float threshold,
                              float* grad_x, int threads);

}  // namespace mednext
