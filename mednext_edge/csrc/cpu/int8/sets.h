// The INT8 kernels of every instruction set.
#pragma once

#include "jobs.h"

namespace mednext {

namespace plain {
extern const Int8Kernels INT8_KERNELS;
}
namespace avx2 {
extern const Int8Kernels INT8_KERNELS;
}
namespace avx_vnni {
extern const Int8Kernels INT8_KERNELS;
}
namespace avx512 {
extern const Int8Kernels INT8_KERNELS;
}
namespace avx512_vnni {
extern const Int8Kernels INT8_KERNELS;
}
namespace avx512_bf16 {
extern const Int8Kernels INT8_KERNELS;
}
namespace amx {
extern const Int8Kernels INT8_KERNELS;
}

}  // namespace mednext
