/* Operators of a MedNeXt on a CPU. For training: depthwise 3-D convolution with its gradients, the norm of each channel, and
 * rounding to INT8. A prototype for inference: the feed-forward of a block in INT8.
 *
 * Tensors are float32 and channels-last, [n, d, h, w, c] without gaps; weights are [k, k, k, c]. Results do not depend
 * on the number of threads. Nothing is allocated that a caller must free. All functions return one of the codes below.
 */
#ifndef MEDNEXT_CPU_OPS_H
#define MEDNEXT_CPU_OPS_H

#include <stdint.h>

#include "mednext_cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  MEDNEXT_CPU_OK = 0,
  MEDNEXT_CPU_BAD_ARGUMENT = 1, /* a size below 1, a null pointer, or a kernel or stride that is not listed */
  MEDNEXT_CPU_NO_MEMORY = 2     /* or no more threads */
};

/* The instruction set that the operators use: plain, avx2, avx512 or avx512_vnni. It is the best that the processor has,
 * and that the environment variable MEDNEXT_CPU_ISA, if it names one of them, allows. */
MEDNEXT_API const char* mednext_cpu_isa(void);

/* A depthwise convolution with padding kernel / 2; n, d, h, w, c are those of its input. */
typedef struct {
  int64_t n, d, h, w, c;
  int32_t kernel; /* 3, 5 or 7 */
  int32_t stride; /* 1 or 2; the output has (d - 1) / stride + 1 planes, and so on */
} mednext_cpu_dwconv3d;

/* y = conv(x, weight) + bias; bias [c] may be null. */
MEDNEXT_API int32_t mednext_cpu_dwconv3d_forward(const mednext_cpu_dwconv3d* layer, const float* x, const float* weight,
                                                 const float* bias, float* y, int32_t threads);

/* x = the convolution's transpose on y, plus bias, which may be null: its input gradient, and the transposed
 * convolution of a decoder. */
MEDNEXT_API int32_t mednext_cpu_dwconv3d_adjoint(const mednext_cpu_dwconv3d* layer, const float* y, const float* weight,
                                                 const float* bias, float* x, int32_t threads);

/* grad [k, k, k, c] of the weights; y is the gradient of the output. Sums beyond a row are in float64. */
MEDNEXT_API int32_t mednext_cpu_dwconv3d_weight(const mednext_cpu_dwconv3d* layer, const float* x, const float* y,
                                                float* grad, int32_t threads);

/* y = (x - mean) * rstd * gamma + beta over the `voxels` of each sample and channel; x and y are [n, voxels, c], gamma
 * and beta [c] or null, mean and rstd = 1 / sqrt(biased variance + eps) [n, c] are results. Sums are in float64. */
MEDNEXT_API int32_t mednext_cpu_channel_norm(int64_t n, int64_t voxels, int64_t c, const float* x, const float* gamma,
                                             const float* beta, double eps, float* y, float* mean, float* rstd,
                                             int32_t threads);

/* Gradients of the above: of x, and of gamma and beta, [c], which are written in any case. */
MEDNEXT_API int32_t mednext_cpu_channel_norm_backward(int64_t n, int64_t voxels, int64_t c, const float* grad,
                                                      const float* x, const float* gamma, const float* mean,
                                                      const float* rstd, float* grad_x, float* grad_gamma,
                                                      float* grad_beta, int32_t threads);

/* Gradients of rounding to the levels -127..127 times threshold / 127, `count` values in any order: grad passes where
 * |x| <= threshold and is 0 beyond; `slope` [1] is that of the threshold (Jain et al., arXiv 1903.08066). */
MEDNEXT_API int32_t mednext_cpu_fake_quantize_backward(int64_t count, const float* grad, const float* x, float threshold,
                                                       float* grad_x, double* slope, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
