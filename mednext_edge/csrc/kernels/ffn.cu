#include <algorithm>

#include "launch.h"
#include "mednext/ffn.h"

namespace mednext {
namespace {

template <class Kernel>
int run_kernel(const mednext_ffn& ffn, const FfnTensors& t, void* stream) {
  int processors = 0;
  if (const int error = multiprocessors(&processors)) return error;
  const int64_t voxels = ffn.d * ffn.h * ffn.w;
  const int64_t resident = std::max<int64_t>(1, processors * Kernel::MIN_BLOCKS / ffn.n);
  FfnArgs a;
  a.a = t.a, a.mean = t.mean, a.moment = t.moment, a.gamma = t.gamma, a.beta = t.beta;
  a.w1 = t.w1, a.b1 = t.b1, a.w2 = t.w2, a.b2 = t.b2, a.residual = t.residual, a.y = t.y;
  a.eps = ffn.eps, a.voxels = static_cast<int>(voxels), a.hidden = ffn.hidden;
  a.width = divisor(static_cast<uint32_t>(ffn.w)), a.height = divisor(static_cast<uint32_t>(ffn.h));
  a.stride_n = ffn.stride_n, a.stride_d = ffn.stride_d, a.stride_h = ffn.stride_h, a.stride_w = ffn.stride_w;
  return launch_blocks<Kernel>({std::min(ceil_div(voxels, Kernel::ROWS), resident), 1, ffn.n}, a, stream);
}

template <class T, int C, class F>
int with_out(int out, F f) {
  if constexpr (C > 32) {
    if (2 * out == C) return f(Ffn<T, C, C / 2>{});
  }
  if constexpr (C < 128) {
    if (out == 2 * C) return f(Ffn<T, C, 2 * C>{});
  }
  return out == C ? f(Ffn<T, C, C>{}) : MEDNEXT_E_CHANNELS;
}

template <class T, class F>
int with_channels(const mednext_ffn& ffn, F f) {
  if (ffn.hidden < HIDDEN || ffn.hidden % HIDDEN != 0) return MEDNEXT_E_CHANNELS;
  switch (ffn.channels) {
    case 32:
      return with_out<T, 32>(ffn.out, f);
    case 64:
      return with_out<T, 64>(ffn.out, f);
    case 128:
      return with_out<T, 128>(ffn.out, f);
    default:
      return MEDNEXT_E_CHANNELS;
  }
}

template <class F>
int dispatch(const mednext_ffn& ffn, F f) {
  switch (ffn.dtype) {
    case MEDNEXT_F16:
      return with_channels<F16>(ffn, f);
    case MEDNEXT_BF16:
      return with_channels<BF16>(ffn, f);
    default:
      return MEDNEXT_E_DTYPE;
  }
}

}  // namespace

int find_ffn(const mednext_ffn& ffn) {
  return dispatch(ffn, [](auto) { return 0; });
}

int run_ffn(const mednext_ffn& ffn, const FfnTensors& tensors, void* stream) {
  return dispatch(ffn, [&](auto kernel) { return run_kernel<decltype(kernel)>(ffn, tensors, stream); });
}

}  // namespace mednext
