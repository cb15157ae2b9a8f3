// The functions of libmednext_cpu that are looked up in it; its own header describes them.
#pragma once

#include "mednext_cpu_net.h"

#define MEDNEXT_NATIVE_FUNCTIONS(X) \
  X(mednext_cpu_isa)                \
  X(mednext_cpu_net_new)            \
  X(mednext_cpu_net_add)            \
  X(mednext_cpu_net_add_float)      \
  X(mednext_cpu_net_run)            \
  X(mednext_cpu_net_free)

namespace mednext::native {

struct Functions {
#define X(name) decltype(&::name) name = nullptr;
  MEDNEXT_NATIVE_FUNCTIONS(X)
#undef X
};

}  // namespace mednext::native
