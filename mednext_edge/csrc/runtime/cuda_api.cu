#include "../kernels/launch.h"

namespace mednext {
namespace {

constexpr int64_t LARGEST_AXIS = int64_t{1} << 29;
constexpr int64_t LARGEST_PLANE = (int64_t{1} << 31) - 1;  // elements: a kernel's offsets within a plane are int
constexpr int LARGEST_KERNEL = 31;
constexpr int64_t LARGEST_SAMPLE = (int64_t{1} << 31) - 64;  // voxels: those of the feed-forward kernel are int

bool axis_fits(int64_t size) { return size >= 1 && size <= LARGEST_AXIS; }

bool plane_fits(const Extent& size, int64_t c) { return static_cast<int64_t>(size.h) * size.w <= LARGEST_PLANE / c; }

// The layer's forward pass, or what is wrong with it.
int forward_problem(const mednext_dwconv3d* layer, Problem* problem, bool integers = false) {
  if (!layer) return MEDNEXT_E_POINTER;
  const mednext_dwconv3d& l = *layer;
  const bool is_float = l.dtype == MEDNEXT_F32 || l.dtype == MEDNEXT_F16 || l.dtype == MEDNEXT_BF16;
  if (integers ? l.dtype != MEDNEXT_I8 : !is_float) return MEDNEXT_E_DTYPE;
  if (l.kernel < 1 || l.kernel > LARGEST_KERNEL || l.kernel % 2 == 0) return MEDNEXT_E_KERNEL;
  if (l.dims != 2 && l.dims != 3) return MEDNEXT_E_DIMS;
  const bool transposed = l.transposed != 0;
  if (l.stride < 1 || l.stride > 2 || (transposed && l.stride == 1)) return MEDNEXT_E_STRIDE;
  if (l.n < 1 || l.n > 65535 || !axis_fits(l.d) || !axis_fits(l.h) || !axis_fits(l.w) || !axis_fits(l.c)) {
    return MEDNEXT_E_SHAPE;
  }
  const auto out = [&](int64_t size) {
    return static_cast<int>(transposed ? 2 * size - 1 : (size - 1) / l.stride + 1);
  };
  const Extent in{static_cast<int>(l.d), static_cast<int>(l.h), static_cast<int>(l.w)};
  *problem = {in,
              {l.dims == 2 ? in.d : out(l.d), out(l.h), out(l.w)},
              static_cast<int>(l.n),
              static_cast<int>(l.c),
              l.dims,
              l.kernel,
              l.stride,
              l.dtype,
              transposed,
              l.path};
  if (!plane_fits(problem->in, l.c) || !plane_fits(problem->out, l.c)) return MEDNEXT_E_SHAPE;
  switch (l.path) {
    case MEDNEXT_PATH_AUTO:
    case MEDNEXT_PATH_FMA:
      return 0;
    case MEDNEXT_PATH_TENSOR:
      return takes_banded(*problem) ? 0 : MEDNEXT_E_PATH;
    default:
      return MEDNEXT_E_PATH;
  }
}

// In 2-D every plane is an image: images become planes of one, whose blocks march through them with the same weights.
Problem flat(const Problem& given) {
  const int64_t planes = static_cast<int64_t>(given.n) * given.in.d;
  if (!given.flat() || planes >= int64_t{1} << 31) return given;
  Problem problem = given;
  problem.in.d = problem.out.d = static_cast<int>(planes);
  problem.n = 1;
  return problem;
}

// The data gradient as a forward pass over dy: a convolution of stride 2 and a transposed one change places.
Problem grad_input_problem(const Problem& forward) {
  Problem problem = forward;
  problem.in = forward.out;
  problem.out = forward.in;
  problem.transposed = forward.stride == 2 && !forward.transposed;
  return problem;
}

// The weight gradient in terms of the smaller and the larger tensor.
Problem grad_weight_problem(const Problem& forward) {
  Problem problem = forward.transposed ? grad_input_problem(forward) : forward;
  problem.transposed = false;
  return problem;
}

bool banded(const Problem& p) {
  if (p.path != MEDNEXT_PATH_AUTO) return p.path == MEDNEXT_PATH_TENSOR;
  return takes_banded(p) && (p.dtype == MEDNEXT_I8 || fills_banded(p));
}

int plan_conv(const Problem& p, Plan* plan) {
  if (!special(p)) return plan_general(p, plan);
  if (banded(p)) return plan_banded(p, plan);
  return p.transposed ? plan_transposed(p, plan) : plan_direct(p, plan);
}

int run_conv(const Problem& p, const Plan& plan, const Tensors& tensors, void* stream) {
  if (!special(p)) return run_general(p, plan, tensors, stream);
  if (banded(p)) return run_banded(p, plan, tensors, stream);
  return p.transposed ? run_transposed(p, plan, tensors, stream) : run_direct(p, plan, tensors, stream);
}

int plan_grad_weight(const Problem& p, Plan* plan) {
  return special(p) ? plan_weight(p, plan) : plan_general_weight(p, plan);
}

int64_t weights(const Problem& p) { return p.taps() * p.c; }

size_t stats_bytes(const Problem& p, const Plan& plan) { return sizeof(float) * 3 * plan.blocks * p.n * p.c; }

size_t grad_weight_bytes(const Problem& p, const Plan& plan) { return sizeof(float) * plan.blocks * weights(p); }

bool usable(const void* pointer, size_t bytes) { return pointer && aligned(pointer, bytes); }

bool usable_tensor(const void* pointer, const Problem& p) { return usable(pointer, element_bytes(p.dtype)); }

bool stride_fits(int64_t size, int64_t stride, int64_t out) { return size == 1 || (stride >= out && stride % 8 == 0); }

int check_ffn(const mednext_ffn* ffn) {
  if (!ffn) return MEDNEXT_E_POINTER;
  const mednext_ffn& f = *ffn;
  if (const int error = find_ffn(f)) return error;
  if (f.n < 1 || f.n > 65535 || !axis_fits(f.d) || !axis_fits(f.h) || !axis_fits(f.w)) return MEDNEXT_E_SHAPE;
  if (f.h * f.w > LARGEST_SAMPLE / f.d) return MEDNEXT_E_SHAPE;
  return stride_fits(f.n, f.stride_n, f.out) && stride_fits(f.d, f.stride_d, f.out) &&
                 stride_fits(f.h, f.stride_h, f.out) && stride_fits(f.w, f.stride_w, f.out)
             ? 0
             : MEDNEXT_E_LAYOUT;
}

}  // namespace
}  // namespace mednext

using namespace mednext;

int mednext_cuda_abi(void) { return MEDNEXT_CUDA_ABI; }

const char* mednext_cuda_error(int code) {
  switch (code) {
    case 0:
      return "no error";
    case MEDNEXT_E_POINTER:
      return "a pointer is null, or not aligned to its element";
    case MEDNEXT_E_SHAPE:
      return "a size is below 1, or a tensor is too large (65535 images, 2^31 - 1 elements in a plane)";
    case MEDNEXT_E_KERNEL:
      return "the kernel size is not odd, or not in 1 .. 31";
    case MEDNEXT_E_STRIDE:
      return "the stride is not 1 or 2, or not 2 in a transposed convolution";
    case MEDNEXT_E_DTYPE:
      return "the data type is not one of half, bfloat16 and, for depthwise layers alone, float; int8 has its own "
             "function";
    case MEDNEXT_E_WORKSPACE:
      return "the workspace is too small; ask mednext_dwconv3d_workspace_bytes on the same device";
    case MEDNEXT_E_CHANNELS:
      return "there is no feed-forward kernel for these channels: 32, 64 or 128 in, half, as many or twice as many of "
             "these out, a multiple of 32 between";
    case MEDNEXT_E_LAYOUT:
      return "a tensor or a stride of the feed-forward kernel is not a multiple of 16 bytes, or voxels overlap";
    case MEDNEXT_E_PATH:
      return "the path is unknown, or does not compute this layer: tensor cores take stride 1, half and bfloat16, "
             "kernels 3, 5 and 7 in 3-D, 5 and 7 in 2-D";
    case MEDNEXT_E_DIMS:
      return "dims is not 2 or 3";
    default:
      return machine_error(code);
  }
}

int mednext_dwconv3d_workspace_bytes(const mednext_dwconv3d* layer, int pass, size_t* bytes) {
  Problem problem;
  if (const int error = forward_problem(layer, &problem)) return error;
  if (!bytes) return MEDNEXT_E_POINTER;
  Plan plan;
  if (pass == MEDNEXT_FORWARD_STATS) {
    if (const int error = plan_conv(problem, &plan)) return error;
    *bytes = stats_bytes(problem, plan);
    return 0;
  }
  if (pass != MEDNEXT_GRAD_WEIGHT) return MEDNEXT_E_WORKSPACE;
  problem = flat(grad_weight_problem(problem));
  if (const int error = plan_grad_weight(problem, &plan)) return error;
  *bytes = grad_weight_bytes(problem, plan);
  return 0;
}

int mednext_dwconv3d_forward(const mednext_dwconv3d* layer, const void* x, const float* weight, const float* bias,
                             void* y, void* stream) {
  Problem problem;
  if (const int error = forward_problem(layer, &problem)) return error;
  if (!usable_tensor(x, problem) || !usable(weight, 4) || !aligned(bias, 4) || !usable_tensor(y, problem)) {
    return MEDNEXT_E_POINTER;
  }
  problem = flat(problem);
  Plan plan;
  if (const int error = plan_conv(problem, &plan)) return error;
  return run_conv(problem, plan, {x, weight, bias, y, nullptr, false}, stream);
}

int mednext_dwconv3d_forward_stats(const mednext_dwconv3d* layer, const void* x, const float* weight, const float* bias,
                                   void* y, float* mean, float* moment, void* workspace, size_t workspace_bytes,
                                   void* stream) {
  Problem problem;
  if (const int error = forward_problem(layer, &problem)) return error;
  if (!usable_tensor(x, problem) || !usable(weight, 4) || !aligned(bias, 4) || !usable_tensor(y, problem) ||
      !usable(mean, 4) || !usable(moment, 4) || !usable(workspace, 4)) {
    return MEDNEXT_E_POINTER;
  }
  Plan plan;
  if (const int error = plan_conv(problem, &plan)) return error;
  if (workspace_bytes < stats_bytes(problem, plan)) return MEDNEXT_E_WORKSPACE;
  float* partials = static_cast<float*>(workspace);
  if (const int error = run_conv(problem, plan, {x, weight, bias, y, partials, false}, stream)) return error;
  return merge_moments(problem, plan, partials, mean, moment, stream);
}

int mednext_dwconv3d_forward_int8(const mednext_dwconv3d* layer, const int8_t* x, const int8_t* weight,
                                  const float* scale, const float* bias, int8_t* y, void* stream) {
  Problem problem;
  if (const int error = forward_problem(layer, &problem, true)) return error;
  if (!x || !weight || !usable(scale, 4) || !aligned(bias, 4) || !y) return MEDNEXT_E_POINTER;
  problem = flat(problem);
  return run_int8(problem, {x, weight, scale, bias, y}, banded(problem), stream);
}

int mednext_dwconv3d_grad_input(const mednext_dwconv3d* layer, const void* dy, const float* weight, void* dx,
                                void* stream) {
  Problem problem;
  if (const int error = forward_problem(layer, &problem)) return error;
  if (!usable_tensor(dy, problem) || !usable(weight, 4) || !usable_tensor(dx, problem)) return MEDNEXT_E_POINTER;
  problem = flat(grad_input_problem(problem));
  Plan plan;
  if (const int error = plan_conv(problem, &plan)) return error;
  return run_conv(problem, plan, {dy, weight, nullptr, dx, nullptr, problem.stride == 1}, stream);
}

int mednext_dwconv3d_grad_weight(const mednext_dwconv3d* layer, const void* x, const void* dy, float* dweight,
                                 void* workspace, size_t workspace_bytes, void* stream) {
  Problem problem;
  if (const int error = forward_problem(layer, &problem)) return error;
  if (!usable_tensor(x, problem) || !usable_tensor(dy, problem) || !usable(dweight, 4) || !usable(workspace, 4)) {
    return MEDNEXT_E_POINTER;
  }
  const bool swap = problem.transposed;
  problem = flat(grad_weight_problem(problem));
  Plan plan;
  if (const int error = plan_grad_weight(problem, &plan)) return error;
  if (workspace_bytes < grad_weight_bytes(problem, plan)) return MEDNEXT_E_WORKSPACE;
  float* partials = static_cast<float*>(workspace);
  const WeightTensors tensors{swap ? x : dy, swap ? dy : x, partials};
  const int error = special(problem) ? run_weight(problem, plan, tensors, stream)
                                            : run_general_weight(problem, plan, tensors, stream);
  if (error) return error;
  return sum_partials(partials, dweight, plan.blocks, weights(problem), stream);
}

int mednext_ffn_forward(const mednext_ffn* ffn, const void* a, const float* mean, const float* moment,
                        const float* gamma, const float* beta, const void* w1, const float* b1, const void* w2,
                        const float* b2, const void* residual, void* y, void* stream) {
  if (const int error = check_ffn(ffn)) return error;
  if (!a || !usable(mean, 4) || !usable(moment, 4) || !w1 || !w2 || !y) return MEDNEXT_E_POINTER;
  for (const float* pointer : {gamma, beta, b1, b2}) {
    if (!aligned(pointer, 4)) return MEDNEXT_E_POINTER;
  }
  for (const void* pointer : {a, w1, w2, residual, static_cast<const void*>(y)}) {
    if (!aligned(pointer, 16)) return MEDNEXT_E_LAYOUT;
  }
  return run_ffn(*ffn, {a, mean, moment, gamma, beta, w1, b1, w2, b2, residual, y}, stream);
}
