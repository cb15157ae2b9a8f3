#include "launch.h"
#include "mednext/dwconv3d_banded.h"

namespace mednext {
namespace {

template <class F>
int dispatch(const Problem& p, F f) {
  const auto with_half = [&](auto type) {
    return with_kernel(p.kernel, [&](auto kernel) { return f(Banded<decltype(type), decltype(kernel)::value>{}); });
  };
  switch (p.dtype) {
    case MEDNEXT_F16:
      return with_half(F16{});
    case MEDNEXT_BF16:
      return with_half(BF16{});
    default:
      return MEDNEXT_E_DTYPE;
  }
}

}  // namespace

bool takes_banded(const Problem& p) {
  const bool special = p.kernel == 3 || p.kernel == 5 || p.kernel == 7;
  const bool counted = static_cast<int64_t>(p.n) * p.in.d < int64_t{1} << 31;  // planes of all images, in an int
  return p.stride == 1 && !p.transposed && special && counted && p.dtype != MEDNEXT_F32;
}

bool fills_banded(const Problem& p) {
  Extent tile{};
  dispatch(p, [&](auto kernel) {
    tile = {1, decltype(kernel)::ROWS, decltype(kernel)::X};
    return 0;
  });
  const int64_t covered = ceil_div(p.out.h, tile.h) * tile.h * ceil_div(p.out.w, tile.w) * tile.w;
  return 2 * static_cast<int64_t>(p.out.h) * p.out.w >= covered;
}

int plan_banded(const Problem& p, Plan* plan) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    return plan_tiles<Kernel>(p, Kernel::ROWS, plan);
  });
}

int run_banded(const Problem& p, const Plan& plan, const Tensors& tensors, void* stream) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    ConvArgs args = conv_args(p, plan, tensors);
    args.packed = aligned(tensors.y, 8) && static_cast<int64_t>(p.c) * element_bytes(p.dtype) % 8 == 0;
    return launch_blocks<Kernel>({plan.blocks * ceil_div(p.c, Kernel::CHANNELS), 1, p.n}, args, stream);
  });
}

}  // namespace mednext
