// What every instruction set provides; dispatch.cpp takes the best that the processor has.
#pragma once

#include "mednext_cpu_ops.h"

namespace mednext {

// Planes first..last-1 of the result of one sample: what one thread does at a time.
struct Slab {
  int64_t sample, first, last;
};

// The compiled files hold nothing of the standard library: a linker that merges its functions might take one of another
// instruction set's. Memory and threads are the caller's; `scratch` is 0 at first and holds `planes_floats` floats.
struct CpuKernels {
  void (*forward)(const mednext_cpu_dwconv3d&, Slab, const float* x, const float* weight, const float* bias, float* y,
                  float* scratch);
  // Of stride 2.
  void (*adjoint)(const mednext_cpu_dwconv3d&, Slab, const float* y, const float* weight, const float* bias, float* x,
                  float* scratch);
  // Adds to sums [k, k, k, c]; the slab is of y.
  void (*weight)(const mednext_cpu_dwconv3d&, Slab, const float* x, const float* y, double* sums, float* scratch);

  // Voxels begin..end-1 of one sample [voxels, c]. Adds to sums [2, c]: of the distance from `origin` [c], and of its
  // square.
  void (*norm_sums)(int64_t begin, int64_t end, int64_t c, const float* x, const float* origin, double* sums);
  // y = (x - mean) * scale + shift, all [c].
  void (*norm_apply)(int64_t begin, int64_t end, int64_t c, const float* x, const float* mean, const float* scale,
                     const float* shift, float* y);
  // Adds to sums [2, c]: of the gradient, and of it times the normalised input.
  void (*norm_grad_sums)(int64_t begin, int64_t end, int64_t c, const float* grad, const float* x, const float* mean,
                         const float* rstd, double* sums);
  // grad_x = (grad - level - (x - mean) * tilt) * scale, all [c].
  void (*norm_grad_apply)(int64_t begin, int64_t end, int64_t c, const float* grad, const float* x, const float* mean,
                          const float* level, const float* tilt, const float* scale, float* grad_x);

  // Of values begin..end-1; gives their part of the threshold's gradient.
  double (*fake_quantize_grad)(int64_t begin, int64_t end, const float* grad, const float* x, float threshold,
                               float* grad_x);
};

namespace plain {
extern const CpuKernels KERNELS;
}
namespace avx2 {
extern const CpuKernels KERNELS;
}
namespace avx_vnni {
extern const CpuKernels KERNELS;
}
namespace avx512 {
extern const CpuKernels KERNELS;
}
namespace avx512_vnni {
extern const CpuKernels KERNELS;
}
namespace avx512_bf16 {
extern const CpuKernels KERNELS;
}

}  // namespace mednext
