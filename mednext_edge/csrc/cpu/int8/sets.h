// The INT8 kernels of every instruction set.
#pragma once

#include "jobs.h"

namespace mednext {

#define MEDNEXT_SET(name)                  \
  namespace name {                         \
  extern const Int8Kernels INT8_KERNELS;   \
  }
MEDNEXT_SET(plain)
MEDNEXT_SET(avx2)
MEDNEXT_SET(avx_vnni)
MEDNEXT_SET(avx512)
MEDNEXT_SET(avx512_vnni)
MEDNEXT_SET(avx512_bf16)
MEDNEXT_SET(amx)
#undef MEDNEXT_SET

}  // namespace mednext
