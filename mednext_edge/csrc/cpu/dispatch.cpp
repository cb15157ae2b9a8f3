// The C functions: arguments are checked, and the kernels of the best instruction set called.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>

#include "ffn_packed.h"
#include "ops.h"

namespace {

struct Set {
  const char* name;
  uint32_t needs;
  const mednext::CpuKernels& kernels;
};

// Best first.
const Set SETS[] = {
#if defined(MEDNEXT_CPU_X86)
    {"avx512_vnni", MEDNEXT_CPU_AVX512 | MEDNEXT_CPU_AVX512_VNNI | MEDNEXT_CPU_AVX512_VBMI, mednext::avx512_vnni::KERNELS},
    {"avx512", MEDNEXT_CPU_AVX512, mednext::avx512::KERNELS},
    {"avx2", MEDNEXT_CPU_AVX2, mednext::avx2::KERNELS},
#endif
    {"plain", 0, mednext::plain::KERNELS},
};

const Set& chosen() {
  static const Set& found = []() -> const Set& {
    const uint32_t features = mednext_cpu_features();
    const char* const most = std::getenv("MEDNEXT_CPU_ISA");
    const Set* first = std::begin(SETS);
    for (const Set& set : SETS)
      if (most && std::strcmp(most, set.name) == 0) first = &set;
    while ((features & first->needs) != first->needs) ++first;
    return *first;
  }();
  return found;
}

const mednext::CpuKernels& kernels() { return chosen().kernels; }

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

const char* mednext_cpu_isa(void) { return chosen().name; }

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

int32_t mednext_cpu_ffn_pack(const mednext_cpu_ffn* layer, mednext_cpu_ffn_packed** packed) {
  const bool good = layer && packed && layer->c_in > 0 && layer->hidden > 0 && layer->c_out > 0 &&
                    all(layer->expand, layer->compress, layer->table, layer->expand_scale, layer->expand_bias,
                        layer->compress_scale, layer->compress_bias);
  return guarded(good, [&] { *packed = new mednext_cpu_ffn_packed(kernels(), *layer); });
}

void mednext_cpu_ffn_free(mednext_cpu_ffn_packed* packed) { delete packed; }

int32_t mednext_cpu_ffn_int8(const mednext_cpu_ffn_packed* packed, int64_t voxels, const int8_t* x,
                             const uint16_t* residual, uint16_t* y, int32_t threads) {
  return guarded(packed && voxels > 0 && all(x, y), [&] { packed->run(voxels, x, residual, y, threads); });
}
