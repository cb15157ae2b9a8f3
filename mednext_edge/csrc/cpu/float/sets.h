// The float kernels of every instruction set.
#pragma once

#include "jobs.h"

namespace mednext {

namespace plain {
extern const FloatKernels<float> FP32_KERNELS;
extern const FloatKernels<Bf16> BF16_KERNELS;
}
namespace avx2 {
extern const FloatKernels<float> FP32_KERNELS;
extern const FloatKernels<Bf16> BF16_KERNELS;
}
namespace avx_vnni {
extern const FloatKernels<float> FP32_KERNELS;
extern const FloatKernels<Bf16> BF16_KERNELS;
}
namespace avx512 {
extern const FloatKernels<float> FP32_KERNELS;
extern const FloatKernels<Bf16> BF16_KERNELS;
}
namespace avx512_vnni {
extern const FloatKernels<float> FP32_KERNELS;
extern const FloatKernels<Bf16> BF16_KERNELS;
}
namespace avx512_bf16 {
extern const FloatKernels<float> FP32_KERNELS;
extern const FloatKernels<Bf16> BF16_KERNELS;
}
namespace amx {
extern const FloatKernels<Bf16> BF16_KERNELS;
}

}  // namespace mednext
