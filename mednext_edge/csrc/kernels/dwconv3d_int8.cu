#include "launch.h"
#include "mednext/dwconv3d_banded.h"
#include "mednext/dwconv3d_int8.h"

namespace mednext {
namespace {

int run_banded_int8(const Problem& p, const Int8Tensors& t, void* stream) {
  return with_kernel(p, [&](auto size) {
    using Size = decltype(size);
    using Kernel = Banded<I8, Size::K, Size::KZ>;
    Plan plan;
    if (const int error = plan_tiles<Kernel>(p, Kernel::ROWS, &plan)) return error;
    Int8Args args;
    static_cast<ConvArgs&>(args) = conv_args(p, plan, {t.x, nullptr, t.bias, t.y, nullptr, false});
    args.taps = t.weight, args.scale = t.scale;
    return launch_blocks<Kernel>({plan.blocks * ceil_div(p.c, Kernel::CHANNELS), 1, p.n}, args, stream);
  });
}

}  // namespace

int run_int8(const Problem& p, const Int8Tensors& t, bool banded, void* stream) {
  if (banded) return run_banded_int8(p, t, stream);
  Plan plan;
  if (const int error = plan_general(p, &plan)) return error;
  const GeneralInt8Args args{t.x,   t.weight, t.scale, t.bias, t.y,         p.in,
                             p.out, p.c,      p.z(),   p.yx(), plan.segment};
  return launch_blocks<GeneralInt8>({plan.blocks, ceil_div(p.c, GeneralInt8::CHANNELS), p.n}, args, stream);
}

}  // namespace mednext
