// The float kernels of every instruction set.
#pragma once

#include "jobs.h"

namespace mednext {

#define MEDNEXT_SET(name)                         \
  namespace name {                                \
  extern const FloatKernels<float> FP32_KERNELS;  \
  extern const FloatKernels<Bf16> BF16_KERNELS;   \
  }
MEDNEXT_SET(plain)
MEDNEXT_SET(avx2)
MEDNEXT_SET(avx_vnni)
MEDNEXT_SET(avx512)
MEDNEXT_SET(avx512_vnni)
MEDNEXT_SET(avx512_bf16)
#undef MEDNEXT_SET
namespace amx {  // has nothing for float32
extern const FloatKernels<Bf16> BF16_KERNELS;
}

}  // namespace mednext
