#include <algorithm>

#include "launch.h"
#include "mednext/dwconv3d_weight.h"

namespace mednext {
namespace {

template <class F>
int dispatch(const Problem& p, F f) {
  return with_dtype(p.dtype, [&](auto type) {
    return with_strided_kernel(p, [&](auto size) {
      using Size = decltype(size);
      return f(WeightGradient<decltype(type), Size::K, Size::S, Size::KZ>{});
    });
  });
}

}  // namespace

int plan_weight(const Problem& p, Plan* plan) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    if (const int error = plan_tiles<Kernel>(p, Kernel::HEIGHT, plan)) return error;
    int processors = 0;
    if (const int error = multiprocessors(&processors)) return error;
    // Two blocks for each multiprocessor; more would only lengthen the workspace and the second stage.
    const int64_t most = std::max<int64_t>(1, 2 * processors / ceil_div(p.c, Kernel::CHANNELS));
    plan->blocks = std::min(plan->blocks * p.n, most);
    return 0;
  });
}

int run_weight(const Problem& p, const Plan& plan, const WeightTensors& t, void* stream) {
  return dispatch(p, [&](auto kernel) {
    using Kernel = decltype(kernel);
    WeightArgs a;
    a.small = t.small, a.large = t.large, a.partials = t.partials;
    a.small_size = p.out, a.large_size = p.in, a.n = p.n, a.c = p.c;
    a.tiles_x = plan.tiles_x, a.tiles_y = plan.tiles_y, a.chunks = plan.chunks, a.chunk = plan.chunk;
    a.wide_small = wide_rows(t.small, p), a.wide_large = wide_rows(t.large, p);
    return launch_blocks<Kernel>({plan.blocks, ceil_div(p.c, Kernel::CHANNELS), 1}, a, stream);
  });
}

int sum_partials(const float* partials, float* sum, int64_t blocks, int64_t size, void* stream) {
  return launch_blocks<SumPartials>({ceil_div(size, SumPartials::COLUMNS), 1, 1}, {partials, sum, blocks, size},
                                    stream);
}

}  // namespace mednext
