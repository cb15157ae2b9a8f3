// The float kernels for one instruction set: this file is compiled once for each, with its flags.
#include "depthwise.h"
#include "ends.h"
#include "feed_forward.h"
#include "sets.h"

namespace mednext::MEDNEXT_ISA {
namespace {

template <class T>
constexpr FloatKernels<T> SET{float_depthwise<T>, row_width<T>,   hidden_width<T>,        result_width<T>,
                              weight_bytes<T>,    pack_panels<T>, float_scratch_bytes<T>, float_feed_forward<T>,
                              float_pointwise<T>, float_stem<T>,  float_head<T>};

}  // namespace

#if !defined(__AMX_BF16__)  // which has nothing for float32
const FloatKernels<float> FP32_KERNELS = SET<float>;
#endif
const FloatKernels<Bf16> BF16_KERNELS = SET<Bf16>;

}  // namespace mednext::MEDNEXT_ISA
