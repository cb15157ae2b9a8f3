#include "launch.h"
#include "mednext/dwconv3d_direct.h"

namespace mednext {
namespace {

template <class F>
int dispatch(const Problem& p, F f) {
  return with_dtype(p.dtype, [&](auto type) {
    return with_kernel(p.kernel, [&](auto kernel) {
      return with_stride(p.stride, [&](auto stride) {
        return f(Direct<decltype(type), decltype(kernel)::value, decltype(stride)::value>{});
      });
    });
  });
}

}  // namespace

int plan_direct(const Problem& p, Plan* plan) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    return plan_tiles<Kernel>(p, Kernel::ROWS, plan);
  });
}

int run_direct(const Problem& p, const Plan& plan, const Tensors& tensors, void* stream) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    const Grid grid{plan.blocks, ceil_div(p.c, Kernel::CHANNELS), p.n};
    return launch_blocks<Kernel>(grid, conv_args(p, plan, tensors), stream);
  });
}

}  // namespace mednext
