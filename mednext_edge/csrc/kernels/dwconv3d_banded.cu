#include "launch.h"
#include "mednext/dwconv3d_banded.h"

namespace mednext {
namespace {

template <class T, class F>
int with_half(const Problem& p, F f) {
  return with_kernel(p, [&](auto size) {
    using Size = decltype(size);
    // 3 x 3 is bound by memory without them (dwconv3d_banded.h).
    if constexpr (Size::K == 3 && Size::KZ == 1) {
      return int{MEDNEXT_E_KERNEL};
    } else {
      return f(Banded<T, Size::K, Size::KZ>{});
    }
  });
}

template <class F>
int dispatch(const Problem& p, F f) {
  switch (p.dtype) {
    case MEDNEXT_F16:
      return with_half<F16>(p, f);
    case MEDNEXT_BF16:
      return with_half<BF16>(p, f);
    default:
      return MEDNEXT_E_DTYPE;
  }
}

}  // namespace

bool takes_banded(const Problem& p) {
  const bool size = p.kernel == 5 || p.kernel == 7 || (p.kernel == 3 && (!p.flat() || p.dtype == MEDNEXT_I8));
  const bool counted = static_cast<int64_t>(p.n) * p.in.d < int64_t{1} << 31;  // planes of all images, in an int
  return p.stride == 1 && !p.transposed && size && counted && p.dtype != MEDNEXT_F32;
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
