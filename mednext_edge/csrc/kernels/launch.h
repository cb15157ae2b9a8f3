// Which kernel serves a layer, and how it is cut into blocks.
#pragma once

#include <type_traits>

#include "mednext/dwconv3d_args.h"
#include "mednext/dwconv3d_general.h"
#include "mednext_cuda.h"

namespace mednext {

// A pass over a layer: its input and output may be those of the layer or their gradients.
struct Problem {
  Extent in, out;
  int n, c, dims, kernel, stride, dtype;
  bool transposed;
  int path;

  bool flat() const { return dims == 2; }
  Axis yx() const { return {kernel, stride, transposed}; }
  Axis z() const { return flat() ? Axis{1, 1, false} : yx(); }
  int64_t taps() const { return static_cast<int64_t>(z().taps) * kernel * kernel; }
};

struct Plan {
  int tiles_x = 0, tiles_y = 0;
  int chunk = 0, chunks = 0;  // planes of a piece, pieces along z
  int64_t segment = 0;        // voxels of a block, general kernels only
  int64_t blocks = 0;         // along the grid's x
};

struct Tensors {
  const void* x;
  const float* weight;
  const float* bias;
  void* y;
  float* partials;
  bool flip;
};

struct WeightTensors {
  const void* small;
  const void* large;
  float* partials;
};

struct Int8Tensors {
  const int8_t* x;
  const int8_t* weight;
  const float* scale;
  const float* bias;
  int8_t* y;
};

struct FfnTensors {
  const void* a;
  const float* mean;
  const float* moment;
  const float* gamma;
  const float* beta;
  const void* w1;
  const float* b1;
  const void* w2;
  const float* b2;
  const void* residual;
  void* y;
};

// Every function returns 0, a cudaError_t or MEDNEXT_E_*. For a weight gradient, `in` is the larger tensor of the
// pair and `out` the smaller.
int plan_direct(const Problem& problem, Plan* plan);
int plan_banded(const Problem& problem, Plan* plan);
int plan_transposed(const Problem& problem, Plan* plan);
int plan_general(const Problem& problem, Plan* plan);
int plan_weight(const Problem& problem, Plan* plan);
int plan_general_weight(const Problem& problem, Plan* plan);

int run_direct(const Problem& problem, const Plan& plan, const Tensors& tensors, void* stream);
int run_banded(const Problem& problem, const Plan& plan, const Tensors& tensors, void* stream);
int run_transposed(const Problem& problem, const Plan& plan, const Tensors& tensors, void* stream);
int run_general(const Problem& problem, const Plan& plan, const Tensors& tensors, void* stream);
int run_weight(const Problem& problem, const Plan& plan, const WeightTensors& tensors, void* stream);
int run_general_weight(const Problem& problem, const Plan& plan, const WeightTensors& tensors, void* stream);

int merge_moments(const Problem& problem, const Plan& plan, const float* partials, float* mean, float* moment,
                  void* stream);
int sum_partials(const float* partials, float* sum, int64_t blocks, int64_t size, void* stream);

// Whether tensor cores compute this layer, and whether its output fills at least half of their tiles.
bool takes_banded(const Problem& problem);
bool fills_banded(const Problem& problem);

// `banded`: on tensor cores.
int run_int8(const Problem& problem, const Int8Tensors& tensors, bool banded, void* stream);

// 0 when there is a kernel for these channels and this type.
int find_ffn(const mednext_ffn& ffn);
int run_ffn(const mednext_ffn& ffn, const FfnTensors& tensors, void* stream);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

inline int element_bytes(int dtype) { return dtype == MEDNEXT_F32 ? 4 : dtype == MEDNEXT_I8 ? 1 : 2; }

// Whether every voxel's channels start at 16 bytes.
inline bool wide_rows(const void* x, const Problem& p) {
  return aligned(x, 16) && static_cast<int64_t>(p.c) * element_bytes(p.dtype) % 16 == 0;
}

// Whether a lane's word of channels may be stored at once.
inline bool packed_words(const void* y, const Problem& p) {
  return aligned(y, 4) && static_cast<int64_t>(p.c) * element_bytes(p.dtype) % 4 == 0;
}

inline ConvArgs conv_args(const Problem& p, const Plan& plan, const Tensors& t) {
  ConvArgs a;
  a.x = t.x, a.weight = t.weight, a.bias = t.bias, a.y = t.y, a.partials = t.partials;
  a.in = p.in, a.out = p.out, a.c = p.c;
  a.tiles_x = plan.tiles_x, a.tiles_y = plan.tiles_y, a.chunk = plan.chunk;
  a.flip = t.flip, a.wide = wide_rows(t.x, p), a.packed = packed_words(t.y, p);
  return a;
}

// Cuts `depth` planes into chunks: of all counts the one that keeps `slots` resident blocks busy for the least
// time, counted in waves of blocks times the planes a block goes through, `overhead` of which it repeats. Of thousands
// of planes, which only batches of images have, no more than 1024 chunks are made.
inline void choose_chunks(int depth, int overhead, int64_t tiles, int64_t slots, Plan* plan) {
  int64_t best = 0;
  for (int count = 1; count <= depth && count <= 1024; ++count) {
    const int chunk = static_cast<int>(ceil_div(depth, count));
    const int64_t cost = ceil_div(tiles * ceil_div(depth, chunk), slots) * (chunk + overhead);
    if (best && cost >= best) continue;
    best = cost;
    plan->chunk = chunk;
  }
  plan->chunks = static_cast<int>(ceil_div(depth, plan->chunk));
}

template <class Kernel>
int plan_tiles(const Problem& p, int height, Plan* plan) {
  int processors = 0;
  if (const int error = multiprocessors(&processors)) return error;
  plan->tiles_x = static_cast<int>(ceil_div(p.out.w, Kernel::X));
  plan->tiles_y = static_cast<int>(ceil_div(p.out.h, height));
  const int64_t channel_tiles = ceil_div(p.c, Kernel::CHANNELS);
  const int64_t tiles = static_cast<int64_t>(plan->tiles_x) * plan->tiles_y;
  choose_chunks(p.out.d, Kernel::OVERHEAD, tiles * channel_tiles * p.n, processors * Kernel::MIN_BLOCKS, plan);
  plan->blocks = tiles * plan->chunks;
  return 0;
}

template <class Kernel>
int launch_blocks(const Grid& grid, const typename Kernel::Args& args, void* stream) {
  return grid.fits() ? launch<Kernel>(grid, args, stream) : MEDNEXT_E_SHAPE;
}

template <class F>
int with_dtype(int dtype, F f) {
  switch (dtype) {
    case MEDNEXT_F32:
      return f(F32{});
    case MEDNEXT_F16:
      return f(F16{});
    case MEDNEXT_BF16:
      return f(BF16{});
    default:
      return MEDNEXT_E_DTYPE;
  }
}

// Taps along x and y, and along z.
template <int K_, int KZ_>
struct KernelSize {
  static constexpr int K = K_, KZ = KZ_;
};

template <int K, class F>
int with_depth(const Problem& p, F f) {
  return p.flat() ? f(KernelSize<K, 1>{}) : f(KernelSize<K, K>{});
}

template <class F>
int with_kernel(const Problem& p, F f) {
  switch (p.kernel) {
    case 3:
      return with_depth<3>(p, f);
    case 5:
      return with_depth<5>(p, f);
    case 7:
      return with_depth<7>(p, f);
    default:
      return MEDNEXT_E_KERNEL;
  }
}

template <class Size_, int S_>
struct StridedSize : Size_ {
  static constexpr int S = S_;
};

// The same at both strides, and 9 x 9 at stride 1.
template <class F>
int with_strided_kernel(const Problem& p, F f) {
  if (p.kernel == 9) return p.flat() && p.stride == 1 ? f(StridedSize<KernelSize<9, 1>, 1>{}) : MEDNEXT_E_KERNEL;
  return with_kernel(p, [&](auto size) {
    using Size = decltype(size);
    return p.stride == 1 ? f(StridedSize<Size, 1>{}) : f(StridedSize<Size, 2>{});
  });
}

// Whether there is a kernel for this size; others take the general one.
inline bool special(const Problem& p) {
  if (p.kernel == 9) return p.flat() && p.stride == 1;
  return p.kernel == 3 || p.kernel == 5 || p.kernel == 7;
}

}  // namespace mednext
