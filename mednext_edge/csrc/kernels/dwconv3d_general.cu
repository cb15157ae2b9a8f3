#include <algorithm>

#include "launch.h"
#include "mednext/dwconv3d_general.h"

namespace mednext {
namespace {

int64_t voxels(const Extent& size) { return static_cast<int64_t>(size.d) * size.h * size.w; }

// Segments of voxels: a few blocks for each multiprocessor, none with less than `least` voxels.
int plan_segments(int64_t count, int64_t least, Plan* plan) {
  int processors = 0;
  if (const int error = multiprocessors(&processors)) return error;
  plan->segment = std::max(ceil_div(count, 8 * processors), least);
  plan->blocks = ceil_div(count, plan->segment);
  return 0;
}

}  // namespace

int plan_general(const Problem& p, Plan* plan) { return plan_segments(voxels(p.out), 64, plan); }

int run_general(const Problem& p, const Plan& plan, const Tensors& t, void* stream) {
  return with_dtype(p.dtype, [&](auto type) {
    using Kernel = General<decltype(type)>;
    const GeneralArgs args{t.x, t.weight, t.bias, t.y,          t.partials, p.in, p.out,
                           p.c, p.z(),    p.yx(), plan.segment, t.flip};
    return launch_blocks<Kernel>({plan.blocks, ceil_div(p.c, Kernel::CHANNELS), p.n}, args, stream);
  });
}

int plan_general_weight(const Problem& p, Plan* plan) { return plan_segments(p.n * voxels(p.out), 512, plan); }

int run_general_weight(const Problem& p, const Plan& plan, const WeightTensors& t, void* stream) {
  return with_dtype(p.dtype, [&](auto type) {
    using Kernel = GeneralWeightGradient<decltype(type)>;
    const GeneralWeightArgs args{t.small, t.large, t.partials, p.out,    p.in,
                                 p.c,     p.z(),   p.yx(),     p.n * voxels(p.out), plan.segment};
    return launch_blocks<Kernel>({plan.blocks, ceil_div(p.c, Kernel::CHANNELS), p.taps()}, args, stream);
  });
}

int merge_moments(const Problem& p, const Plan& plan, const float* partials, float* mean, float* moment, void* stream) {
  return launch_blocks<MergeMoments>({ceil_div(p.c, MergeMoments::CHANNELS), 1, p.n},
                                     {partials, mean, moment, plan.blocks, p.c}, stream);
}

}  // namespace mednext
