// The kernels for one instruction set: this file is compiled once for each, with its flags.
#include "channel_norm.h"
#include "dwconv3d.h"
#include "fake_quantize.h"
#include "kernels.h"

namespace mednext::MEDNEXT_ISA {
namespace {

// Calls function(kernel size, stride) with both as constants.
template <class Function>
inline void with_constants(const Layer& layer, const Function& function) {
  const auto strided = [&](auto kernel) {
    if (layer.stride == 1) {
      function(kernel, Count<1>{});
    } else {
      function(kernel, Count<2>{});
    }
  };
  if (layer.kernel == 3) strided(Count<3>{});
  if (layer.kernel == 5) strided(Count<5>{});
  if (layer.kernel == 7) strided(Count<7>{});
}

void forward(const Layer& layer, Slab slab, const float* x, const float* weight, const float* bias, float* y,
             float* scratch) {
  with_constants(layer, [&](auto kernel, auto stride) {
    convolve<decltype(kernel)::value, decltype(stride)::value>(layer, slab, x, weight, bias, y, scratch);
  });
}

void adjoint(const Layer& layer, Slab slab, const float* y, const float* weight, const float* bias, float* x,
             float* scratch) {
  with_constants(layer, [&](auto kernel, auto) {
    spread<decltype(kernel)::value>(layer, slab, y, weight, bias, x, scratch);
  });
}

void weight(const Layer& layer, Slab slab, const float* x, const float* y, double* sums, float* scratch) {
  with_constants(layer, [&](auto kernel, auto stride) {
    correlate<decltype(kernel)::value, decltype(stride)::value>(layer, slab, x, y, sums, scratch);
  });
}

}  // namespace

const CpuKernels KERNELS{forward, adjoint, weight, norm_sums, norm_apply, norm_grad_sums, norm_grad_apply,
                         fake_quantize_grad};

}  // namespace mednext::MEDNEXT_ISA
