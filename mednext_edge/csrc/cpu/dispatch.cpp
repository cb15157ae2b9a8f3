// The C functions: arguments are checked, and the kernels of the best instruction set called.
#include <exception>

#include "ops.h"

namespace {

const mednext::CpuKernels& kernels() {
#if defined(MEDNEXT_CPU_X86)
  static const mednext::CpuKernels& chosen = []() -> const mednext::CpuKernels& {
    const uint32_t features = mednext_cpu_features();
    if (features & MEDNEXT_CPU_AVX512) return mednext::avx512::KERNELS;
    if (features & MEDNEXT_CPU_AVX2) return mednext::avx2::KERNELS;
    return mednext::plain::KERNELS;
  }();
  return chosen;
#else
  return mednext::plain::KERNELS;
#endif
}

template <class... Pointers>
bool all(const Pointers*... pointers) {
  return (... && (pointers != nullptr));
}

bool valid(const mednext_cpu_dwconv3d* l) {
  return l && l->n > 0 && l->d > 0 && l->h > 0 && l->w > 0 && l->c > 0 &&
         (l->kernel == 3 || l->kernel == 5 || l->kernel == 7) && (l->stride == 1 || l->stride == 2);
}

template <class Call>
int32_t guarded(bool good, const Call& call) {
  if (!good) return MEDNEXT_CPU_BAD_ARGUMENT;
  try {
    call();
  } catch (const std::exception&) {
    return MEDNEXT_CPU_NO_MEMORY;
  }
  return MEDNEXT_CPU_OK;
}

}  // namespace

int32_t mednext_cpu_dwconv3d_forward(const mednext_cpu_dwconv3d* layer, const float* x, const float* weight,
                                     const float* bias, float* y, int32_t threads) {
  return guarded(valid(layer) && all(x, weight, y), [&] { mednext::convolve(kernels(), *layer, x, weight, bias, y, threads); });
}

int32_t mednext_cpu_dwconv3d_adjoint(const mednext_cpu_dwconv3d* layer, const float* y, const float* weight,
                                     const float* bias, float* x, int32_t threads) {
  return guarded(valid(layer) && all(y, weight, x), [&] { mednext::adjoint(kernels(), *layer, y, weight, bias, x, threads); });
}

int32_t mednext_cpu_dwconv3d_weight(const mednext_cpu_dwconv3d* layer, const float* x, const float* y, float* grad,
                                    int32_t threads) {
  return guarded(valid(layer) && all(x, y, grad), [&] { mednext::weight_gradient(kernels(), *layer, x, y, grad, threads); });
}

int32_t mednext_cpu_channel_norm(int64_t n, int64_t voxels, int64_t c, const float* x, const float* gamma,
                                 const float* beta, double eps, float* y, float* mean, float* rstd, int32_t threads) {
  return guarded(n > 0 && voxels > 0 && c > 0 && all(x, y, mean, rstd),
                 [&] { mednext::channel_norm(kernels(), {n, voxels, c}, x, gamma, beta, eps, y, mean, rstd, threads); });
}

int32_t mednext_cpu_channel_norm_backward(int64_t n, int64_t voxels, int64_t c, const float* grad, const float* x,
                                          const float* gamma, const float* mean, const float* rstd, float* grad_x,
                                          float* grad_gamma, float* grad_beta, int32_t threads) {
  return guarded(n > 0 && voxels > 0 && c > 0 && all(grad, x, mean, rstd, grad_x, grad_gamma, grad_beta), [&] {
    mednext::channel_norm_backward(kernels(), {n, voxels, c}, grad, x, gamma, mean, rstd, grad_x, grad_gamma, grad_beta, threads);
  });
}

int32_t mednext_cpu_fake_quantize_backward(int64_t count, const float* grad, const float* x, float threshold,
                                           float* grad_x, double* slope, int32_t threads) {
  return guarded(count > 0 && threshold > 0 && all(grad, x, grad_x) && slope != nullptr, [&] {
    *slope = mednext::fake_quantize_backward(kernels(), count, grad, x, threshold, grad_x, threads);
  });
}
