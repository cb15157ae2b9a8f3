#include "launch.h"
#include "mednext/dwconv3d_transposed.h"

namespace mednext {
namespace {

template <class F>
int dispatch(const Problem& p, F f) {
  return with_dtype(p.dtype, [&](auto type) {
    return with_kernel(p, [&](auto size) {
      using Size = decltype(size);
      return f(Transposed<decltype(type), Size::K, Size::KZ>{});
    });
  });
}

}  // namespace

int plan_transposed(const Problem& p, Plan* plan) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    return plan_tiles<Kernel>(p, Kernel::ROWS, plan);
  });
}

int run_transposed(const Problem& p, const Plan& plan, const Tensors& tensors, void* stream) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    const Grid grid{plan.blocks, ceil_div(p.c, Kernel::CHANNELS), p.n};
    return launch_blocks<Kernel>(grid, conv_args(p, plan, tensors), stream);
  });
}

}  // namespace mednext
