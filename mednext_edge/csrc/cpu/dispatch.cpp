// The C functions: arguments are checked, and the kernels of the best instruction set called.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>

#include "int8/net.h"
#include "int8/sets.h"
#include "ops.h"

namespace {

struct Set {
  const char* name;
  uint32_t needs;
  const mednext::CpuKernels& kernels;
  const mednext::Int8Kernels& int8;
};

[[maybe_unused]] constexpr uint32_t VNNI = MEDNEXT_CPU_AVX512 | MEDNEXT_CPU_AVX512_VNNI | MEDNEXT_CPU_AVX512_VBMI;

// Best first.
const Set SETS[] = {
#if defined(MEDNEXT_CPU_X86)
    {"avx512_bf16", VNNI | MEDNEXT_CPU_AVX512_BF16, mednext::avx512_bf16::KERNELS, mednext::avx512_bf16::INT8_KERNELS},
    {"avx512_vnni", VNNI, mednext::avx512_vnni::KERNELS, mednext::avx512_vnni::INT8_KERNELS},
    {"avx512", MEDNEXT_CPU_AVX512, mednext::avx512::KERNELS, mednext::avx512::INT8_KERNELS},
    {"avx_vnni", MEDNEXT_CPU_AVX2 | MEDNEXT_CPU_AVX_VNNI, mednext::avx_vnni::KERNELS, mednext::avx_vnni::INT8_KERNELS},
    {"avx2", MEDNEXT_CPU_AVX2, mednext::avx2::KERNELS, mednext::avx2::INT8_KERNELS},
#endif
    {"plain", 0, mednext::plain::KERNELS, mednext::plain::INT8_KERNELS},
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

bool valid(const mednext_cpu_block* b) {
  if (!b || b->c_in < 1 || b->hidden < 1 || b->c_out < 1 || b->form < MEDNEXT_CPU_SAME || b->form > MEDNEXT_CPU_UP)
    return false;
  const bool shortcut = b->form != MEDNEXT_CPU_SAME && b->residual;
  return (b->kernel == 3 || b->kernel == 5 || b->kernel == 7) && (b->depth == 1 || b->depth == b->kernel) &&
         b->in_step > 0 && b->norm_step > 0 && b->eps >= 0 &&
         all(b->depthwise, b->expand, b->compress, b->table, b->depthwise_scale, b->expand_scale, b->expand_bias,
             b->compress_scale, b->compress_bias) &&
         (!shortcut || all(b->shortcut, b->shortcut_scale, b->shortcut_bias));
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

int32_t mednext_cpu_net_new(const mednext_cpu_dense* stem, const mednext_cpu_dense* head, mednext_cpu_net** net) {
  const auto good = [](const mednext_cpu_dense* l) { return l && l->c_in > 0 && l->c_out > 0 && all(l->weight, l->bias); };
  return guarded(net && good(stem) && good(head) && head->c_in == stem->c_out,
                 [&] { *net = new mednext_cpu_net(chosen().int8, *stem, *head); });
}

void mednext_cpu_net_free(mednext_cpu_net* net) { delete net; }

int32_t mednext_cpu_net_add(mednext_cpu_net* net, const mednext_cpu_block* block) {
  return guarded(net && valid(block) && net->fits(*block), [&] { net->add(*block); });
}

int32_t mednext_cpu_net_run(mednext_cpu_net* net, int64_t d, int64_t h, int64_t w, const float* x, float* y,
                            int32_t threads) {
  return guarded(net && all(x, y) && net->takes({d, h, w}), [&] { net->run({d, h, w}, x, y, threads); });
}
