/* The halves of a MedNeXt block on a GPU behind a plain C interface: depthwise convolution in 3-D and 2-D, forward and
 * backward, and forward in int8; and the feed-forward half of a block, forward.
 *
 * Layout. Activations x, y and their gradients are contiguous [N][D][H][W][C] (channels last) in `dtype`.
 * Of a depthwise layer weights, bias, statistics and the weight gradient are always float: weights [KZ][K][K][C]
 * (z, y, x, channel; KZ is K in 3-D and 1 in 2-D), the others [C] or [N][C]. Every sum is accumulated in float,
 * whatever `dtype` is.
 *
 * Sizes. d, h, w are those of the layer's input x; padding is K / 2 on every side. The output has
 *   (d - 1) / stride + 1 voxels along an axis of a convolution,
 *   2 * d - 1            along an axis of a transposed one (stride 2).
 * In PyTorch's terms: conv3d(x, w, bias, stride, padding=K // 2, groups=C) and
 * conv_transpose3d(x, w, bias, stride=2, padding=K // 2, groups=C).
 *
 * In 2-D kernel, padding and stride are those of h and w alone, and an image is a volume with d = 1: conv2d and
 * conv_transpose2d. Other d are taken too; statistics are then over all planes of an n.
 *
 * Pointers are device pointers, aligned to their element; 16-byte aligned rows (pointer and C * element size
 * multiples of 16) take the fast copies, all others are right but slower. `stream` is a cudaStream_t. Calls only
 * enqueue work; the same call on the same kind of GPU gives the same bits every time.
 *
 * Returned value: 0 when the work is enqueued, a cudaError_t (> 0), or one of MEDNEXT_E_* (< 0), in which case
 * nothing was written.
 */
#ifndef MEDNEXT_CUDA_H
#define MEDNEXT_CUDA_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MEDNEXT_CUDA_API __declspec(dllexport)
#else
#define MEDNEXT_CUDA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* MEDNEXT_I8 is for mednext_dwconv3d_forward_int8 alone. */
enum { MEDNEXT_F32 = 0, MEDNEXT_F16 = 1, MEDNEXT_BF16 = 2, MEDNEXT_I8 = 3 };

enum {
  MEDNEXT_E_POINTER = -1,   /* a pointer that must be given is null, or not aligned to its element */
  MEDNEXT_E_SHAPE = -2,     /* a size below 1, or a tensor too large for the grid */
  MEDNEXT_E_KERNEL = -3,    /* kernel is not odd, or not in 1 .. 31 */
  MEDNEXT_E_STRIDE = -4,    /* stride is not 1 or 2, or a transposed convolution of stride 1 */
  MEDNEXT_E_DTYPE = -5,     /* not one of MEDNEXT_F32, F16, BF16; in int8 not MEDNEXT_I8 */
  MEDNEXT_E_WORKSPACE = -6, /* smaller than mednext_dwconv3d_workspace_bytes says */
  MEDNEXT_E_CHANNELS = -7,  /* channels, hidden or out that mednext_ffn_forward has no kernel for */
  MEDNEXT_E_LAYOUT = -8,    /* of mednext_ffn_forward: a tensor or a stride that is no multiple of 16 bytes, or a
                               stride below a voxel */
  MEDNEXT_E_PATH = -9,      /* not one of MEDNEXT_PATH_*, or one that does not compute this layer */
  MEDNEXT_E_DIMS = -10      /* dims is not 2 or 3 */
};

/* How a convolution and its data gradient are computed. The other passes have one path and take no notice.
 *   FMA     multiplications and additions in float; every layer
 *   TENSOR  products of tensor cores: stride 1, kernels 3, 5 and 7 in 3-D, 5 and 7 in 2-D, half and bfloat16. The
 *           weights are rounded to dtype first. A value that is not finite may make outputs not a number up to 3
 *           voxels further along y and x than the kernel reaches.
 *           In int8 there is no rounding, and TENSOR takes kernel 3 in 2-D as well; FMA is right, but slow.
 *   AUTO    TENSOR if it computes the layer and the output fills at least half of its tiles, of 32 x 8 voxels (x, y)
 *           at kernels 3 and 5 and 16 x 8 at kernel 7; FMA otherwise. In int8 TENSOR whatever its tiles hold */
enum { MEDNEXT_PATH_AUTO = 0, MEDNEXT_PATH_FMA = 1, MEDNEXT_PATH_TENSOR = 2 };

/* Passes that need a workspace. */
enum { MEDNEXT_FORWARD_STATS = 0, MEDNEXT_GRAD_WEIGHT = 1 };

typedef struct {
  int64_t n, d, h, w, c; /* of the layer's input x */
  int32_t dims;          /* 3 or 2 */
  int32_t kernel;        /* 3, 5, 7, and 9 in 2-D at stride 1, have kernels of their own, others take a general one */
  int32_t stride;        /* 1 or 2; 2 when transposed */
  int32_t transposed;    /* 0 or 1 */
  int32_t dtype;         /* MEDNEXT_F32, ... */
  int32_t path;          /* MEDNEXT_PATH_AUTO, ... */
} mednext_dwconv3d;

typedef struct {
  int64_t n, d, h, w;            /* voxels of a */
  int32_t channels, hidden, out; /* of a, between, of y */
  int32_t dtype;                 /* MEDNEXT_F16 or MEDNEXT_BF16 */
  float eps;                     /* of the norm */
  int64_t stride_n, stride_d, stride_h, stride_w; /* of residual and y, in elements; their channels lie side by side */
} mednext_ffn;

/* Changes whenever a function or a struct above does. */
enum { MEDNEXT_CUDA_ABI = 5 };
MEDNEXT_CUDA_API int mednext_cuda_abi(void);

/* What a returned value means, in words; never null. */
MEDNEXT_CUDA_API const char* mednext_cuda_error(int code);

/* Bytes of workspace that `pass` needs on the current device. The content need not be kept between calls. */
MEDNEXT_CUDA_API int mednext_dwconv3d_workspace_bytes(const mednext_dwconv3d* layer, int pass, size_t* bytes);

/* y = conv(x, weight) + bias; bias may be null. */
MEDNEXT_CUDA_API int mednext_dwconv3d_forward(const mednext_dwconv3d* layer, const void* x, const float* weight,
                                              const float* bias, void* y, void* stream);

/* The same, and over the voxels of each (n, c) of y: their mean and sum of (y - mean)^2, both [N][C]. Taken from
 * the float sums before they are rounded to dtype. Variance = moment / voxels. The workspace is 4-byte aligned. */
MEDNEXT_CUDA_API int mednext_dwconv3d_forward_stats(const mednext_dwconv3d* layer, const void* x, const float* weight,
                                                    const float* bias, void* y, float* mean, float* moment,
                                                    void* workspace, size_t workspace_bytes, void* stream);

/* y = conv(x, weight) * scale + bias, rounded to the nearest even integer and kept within -128 .. 127. Layer's dtype is
 * MEDNEXT_I8. weight is int8 [KZ][K][K][C]; products are summed in int32; scale and bias are float [C], and bias, in
 * units of y, may be null. */
MEDNEXT_CUDA_API int mednext_dwconv3d_forward_int8(const mednext_dwconv3d* layer, const int8_t* x, const int8_t* weight,
                                                   const float* scale, const float* bias, int8_t* y, void* stream);

/* dx from dy. */
MEDNEXT_CUDA_API int mednext_dwconv3d_grad_input(const mednext_dwconv3d* layer, const void* dy, const float* weight,
                                                 void* dx, void* stream);

/* dweight, float [KZ][K][K][C], from x and dy. The bias gradient is the sum of dy over n, d, h, w: not computed
 * here. */
MEDNEXT_CUDA_API int mednext_dwconv3d_grad_weight(const mednext_dwconv3d* layer, const void* x, const void* dy,
                                                  float* dweight, void* workspace, size_t workspace_bytes,
                                                  void* stream);

/* y = w2 gelu(w1 norm(a) + b1) + b2 (+ residual) for every voxel by itself, with the exact (erf) GELU and
 * norm(a) = (a - mean) / sqrt(moment / (d h w) + eps) * gamma + beta.
 *
 * a [N][D][H][W][channels] contiguous; mean, moment [N][channels] as mednext_dwconv3d_forward_stats gives them; gamma,
 * beta [channels], b1 [hidden] and b2 [out] float, each may be null; w1 [hidden][channels] and w2 [out][hidden] in
 * dtype; residual may be null, and may be y itself. Sums are float; what enters a product (norm(a), gelu(...)) is
 * rounded to dtype first.
 *
 * Taken are channels of 32, 64 and 128, out of channels / 2, channels and 2 * channels within 32 .. 128, and hidden of
 * any multiple of 32. a, w1, w2, residual and y begin, and their voxels lie, at multiples of 16 bytes; the stride of
 * an axis with one voxel does not matter. */
MEDNEXT_CUDA_API int mednext_ffn_forward(const mednext_ffn* ffn, const void* a, const float* mean, const float* moment,
                                         const float* gamma, const float* beta, const void* w1, const float* b1,
                                         const void* w2, const float* b2, const void* residual, void* y, void* stream);

#ifdef __cplusplus
}
#endif
#endif
