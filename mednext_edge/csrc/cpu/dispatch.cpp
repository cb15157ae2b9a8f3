// The C functions: arguments are checked, and the kernels of the best instruction set called.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "float/net.h"
#include "float/sets.h"
#include "int8/net.h"
#include "int8/sets.h"
#include "ops.h"

namespace {

struct Set {
  const char* name;
  uint32_t needs;
  const mednext::CpuKernels& kernels;
  const mednext::Int8Kernels& int8;
  const mednext::FloatKernels<float>& fp32;
  const mednext::FloatKernels<mednext::Bf16>& bf16;
};

[[maybe_unused]] constexpr uint32_t VNNI = MEDNEXT_CPU_AVX512 | MEDNEXT_CPU_AVX512_VNNI | MEDNEXT_CPU_AVX512_VBMI;
[[maybe_unused]] constexpr uint32_t BF16 = VNNI | MEDNEXT_CPU_AVX512_BF16;

#define MEDNEXT_SET(name, needs)                                                                               \
  {#name, needs, mednext::name::KERNELS, mednext::name::INT8_KERNELS, mednext::name::FP32_KERNELS, mednext::name::BF16_KERNELS}

// Best first.
const Set SETS[] = {
#if defined(MEDNEXT_CPU_X86)
    {"amx", BF16 | MEDNEXT_CPU_AMX_INT8 | MEDNEXT_CPU_AMX_BF16, mednext::avx512_bf16::KERNELS,
     mednext::amx::INT8_KERNELS, mednext::avx512_bf16::FP32_KERNELS, mednext::amx::BF16_KERNELS},
    MEDNEXT_SET(avx512_bf16, BF16),
    MEDNEXT_SET(avx512_vnni, VNNI),
    MEDNEXT_SET(avx512, MEDNEXT_CPU_AVX512),
    MEDNEXT_SET(avx_vnni, MEDNEXT_CPU_AVX2 | MEDNEXT_CPU_AVX_VNNI),
    MEDNEXT_SET(avx2, MEDNEXT_CPU_AVX2),
#endif
    MEDNEXT_SET(plain, 0),
};

// Tiles are too much to save for every process: Linux wants to be asked first (Documentation/arch/x86/xstate.rst). Other
// systems have not been tried.
bool tiles_are_allowed() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return false;
#endif
}

uint32_t usable_features() {
  const uint32_t features = mednext_cpu_features();
  constexpr uint32_t TILES = MEDNEXT_CPU_AMX_INT8 | MEDNEXT_CPU_AMX_BF16;
  return (features & TILES) && !tiles_are_allowed() ? features & ~TILES : features;
}

// Intel's processors multiply bfloat16 fast in tiles alone: a network on an Emerald Rapids held back to AVX512-BF16 took 1.4
// to 1.6 times as long as with products in float32. An AMD EPYC multiplied bfloat16 at 384 GFLOP/s, float32 at 138.
bool bf16_is_slow() {
#if defined(MEDNEXT_CPU_X86) && defined(__GNUC__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

const Set& chosen() {
  static const Set& found = []() -> const Set& {
    const uint32_t features = usable_features();
    const char* const most = std::getenv("MEDNEXT_CPU_ISA");
    const Set* asked = nullptr;
    for (const Set& set : SETS)
      if (most && std::strcmp(most, set.name) == 0) asked = &set;
    const auto takes = [&](const Set& set) {
      const bool slow = std::strcmp(set.name, "avx512_bf16") == 0 && &set != asked && bf16_is_slow();
      return (features & set.needs) == set.needs && !slow;
    };
    const Set* first = asked ? asked : std::begin(SETS);
    while (!takes(*first)) ++first;
    return *first;
  }();
  return found;
}

const mednext::CpuKernels& kernels() { return chosen().kernels; }

template <class... Pointers>
bool all(const Pointers*... pointers) {
  return (... && (pointers != nullptr));
}

bool valid(const mednext_cpu_dwconv3d* l) {
  return l && l->n > 0 && l->d > 0 && l->h > 0 && l->w > 0 && l->c > 0 &&
         (l->kernel == 3 || l->kernel == 5 || l->kernel == 7) && (l->stride == 1 || l->stride == 2);
}

// What blocks of any arithmetic have.
template <class Block>
bool valid_form(const Block* b) {
  return b && b->c_in > 0 && b->hidden > 0 && b->c_out > 0 && b->form >= MEDNEXT_CPU_SAME &&
         b->form <= MEDNEXT_CPU_UP && (b->kernel == 3 || b->kernel == 5 || b->kernel == 7) &&
         (b->depth == 1 || b->depth == b->kernel) && b->eps >= 0;
}
template <class Block>
bool has_shortcut(const Block* b) {
  return b->form != MEDNEXT_CPU_SAME && b->residual;
}

bool valid(const mednext_cpu_block* b) {
  return valid_form(b) && b->in_step > 0 && b->norm_step > 0 &&
         all(b->depthwise, b->expand, b->compress, b->table, b->depthwise_scale, b->expand_scale, b->expand_bias,
             b->compress_scale, b->compress_bias) &&
         (!has_shortcut(b) || all(b->shortcut, b->shortcut_scale, b->shortcut_bias));
}

bool valid(const mednext_cpu_float_block* b) {
  return valid_form(b) && all(b->depthwise, b->expand, b->expand_bias, b->compress, b->compress_bias) &&
         (!has_shortcut(b) || all(b->shortcut, b->shortcut_bias));
}

mednext_cpu_net* make_net(const mednext_cpu_dense& stem, const mednext_cpu_dense& head, int32_t precision) {
  switch (precision) {
    case MEDNEXT_CPU_FP32: return new mednext::FloatNet<float>(chosen().fp32, stem, head);
    case MEDNEXT_CPU_BF16: return new mednext::FloatNet<mednext::Bf16>(chosen().bf16, stem, head);
    default: return new mednext::Net8(chosen().int8, stem, head);
  }
}

template <class Call>
int32_t guarded(bool good, const Call& call) {
  if (!good) return MEDNEXT_CPU_BAD_ARGUMENT;
  try {
    call();
  } catch (const std::exception&) {
    return MEDNEXT_CPU_NO_MEMORY;
  }
  return MEDNEXT_CPU_OK;
}

// Appends a block to a network of its arithmetic.
template <class Net, class Block>
int32_t add_block(mednext_cpu_net* any, const Block* block) {
  auto* const net = dynamic_cast<Net*>(any);
  return guarded(net && valid(block) && net->fits(static_cast<mednext::Form>(block->form), block->depth, block->c_in,
                                                  block->c_out),
                 [&] { net->add(*block); });
}

}  // namespace

const char* mednext_cpu_isa(void) { return chosen().name; }

int32_t mednext_cpu_dwconv3d_forward(const mednext_cpu_dwconv3d* layer, const float* x, const float* weight,
                                     const float* bias, float* y, int32_t threads) {
  return guarded(valid(layer) && all(x, weight, y), [&] { mednext::convolve(kernels(), *layer, x, weight, bias, y, threads); });
}

int32_t mednext_cpu_dwconv3d_adjoint(const mednext_cpu_dwconv3d* layer, const float* y, const float* weight,
                                     const float* bias, float* x, int32_t threads) {
  return guarded(valid(layer) && all(y, weight, x), [&] { mednext::adjoint(kernels(), *layer, y, weight, bias, x, threads); });
}

int32_t mednext_cpu_dwconv3d_weight(const mednext_cpu_dwconv3d* layer, const float* x, const float* y, float* grad,
                                    int32_t threads) {
  return guarded(valid(layer) && all(x, y, grad), [&] { mednext::weight_gradient(kernels(), *layer, x, y, grad, threads); });
}

int32_t mednext_cpu_channel_norm(int64_t n, int64_t voxels, int64_t c, const float* x, const float* gamma,
                                 const float* beta, double eps, float* y, float* mean, float* rstd, int32_t threads) {
  return guarded(n > 0 && voxels > 0 && c > 0 && all(x, y, mean, rstd),
                 [&] { mednext::channel_norm(kernels(), {n, voxels, c}, x, gamma, beta, eps, y, mean, rstd, threads); });
}

int32_t mednext_cpu_channel_norm_backward(int64_t n, int64_t voxels, int64_t c, const float* grad, const float* x,
                                          const float* gamma, const float* mean, const float* rstd, float* grad_x,
                                          float* grad_gamma, float* grad_beta, int32_t threads) {
  return guarded(n > 0 && voxels > 0 && c > 0 && all(grad, x, mean, rstd, grad_x, grad_gamma, grad_beta), [&] {
    mednext::channel_norm_backward(kernels(), {n, voxels, c}, grad, x, gamma, mean, rstd, grad_x, grad_gamma, grad_beta, threads);
  });
}

int32_t mednext_cpu_fake_quantize_backward(int64_t count, const float* grad, const float* x, float threshold,
                                           float* grad_x, double* slope, int32_t threads) {
  return guarded(count > 0 && threshold > 0 && all(grad, x, grad_x) && slope != nullptr, [&] {
    *slope = mednext::fake_quantize_backward(kernels(), count, grad, x, threshold, grad_x, threads);
  });
}

int32_t mednext_cpu_net_new(const mednext_cpu_dense* stem, const mednext_cpu_dense* head, int32_t precision,
                            mednext_cpu_net** net) {
  const auto good = [](const mednext_cpu_dense* l) { return l && l->c_in > 0 && l->c_out > 0 && all(l->weight, l->bias); };
  const bool known = precision >= MEDNEXT_CPU_INT8 && precision <= MEDNEXT_CPU_BF16;
  return guarded(net && known && good(stem) && good(head) && head->c_in == stem->c_out,
                 [&] { *net = make_net(*stem, *head, precision); });
}

void mednext_cpu_net_free(mednext_cpu_net* net) { delete net; }

int32_t mednext_cpu_net_add(mednext_cpu_net* net, const mednext_cpu_block* block) {
  return add_block<mednext::Net8>(net, block);
}

int32_t mednext_cpu_net_add_float(mednext_cpu_net* net, const mednext_cpu_float_block* block) {
  return add_block<mednext::AnyFloatNet>(net, block);
}

int32_t mednext_cpu_net_run(mednext_cpu_net* net, int64_t d, int64_t h, int64_t w, const float* x, float* y,
                            int32_t threads) {
  return guarded(net && all(x, y) && net->takes({d, h, w}), [&] { net->run({d, h, w}, x, y, threads); });
}
