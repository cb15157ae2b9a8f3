/* A MedNeXt on the CPU, in INT8, bfloat16 or float32: stem, blocks in their order, head.
 *
 * INT8: depthwise convolutions and products in INT8 with sums in 32 bits, norms in float32, the residual stream in
 * bfloat16. INT8 here is symmetric, -127..127, but for the hidden tensor, which is 0..255. BF16: tensors and the weights
 * of products are bfloat16, everything is summed in float32. FP32: all of it float32. Stem and head are float32 in all
 * of them. All threads together give the same numbers as one. All pointers of a description are read before the call
 * returns, and not kept.
 */
#ifndef MEDNEXT_CPU_NET_H
#define MEDNEXT_CPU_NET_H

#include "mednext_cpu_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MEDNEXT_CPU_INT8 = 0, MEDNEXT_CPU_FP32 = 1, MEDNEXT_CPU_BF16 = 2 };
enum { MEDNEXT_CPU_SAME = 0, MEDNEXT_CPU_DOWN = 1, MEDNEXT_CPU_UP = 2 };

/* weight [c_out, c_in], bias [c_out]. */
typedef struct {
  int64_t c_in, c_out;
  const float *weight, *bias;
} mednext_cpu_dense;

/* One block in INT8: depthwise convolution, norm of each channel, expansion, GELU, compression.
 *
 * `form`     SAME; DOWN halves every side; UP doubles them, and adds what the last block of the new size gave
 * `depth`    the kernel along planes: `kernel`, or 1 in a 2-D network
 * `residual` SAME: the input is added. DOWN and UP: by a 1x1x1 convolution of stride 2, of which there are weights
 *
 * Biases below 2^22 sums are rounded to whole sums, multiples of their scales, as those of ONNX's QLinearConv; the scale
 * that takes a channel of the norm to INT8 is rounded to 15 bits where it is below one half.
 */
typedef struct {
  int32_t form, kernel, depth, residual;
  int64_t c_in, hidden, c_out;
  float in_step;                /* of the INT8 input */
  const int8_t* depthwise;      /* [c_in, depth, kernel, kernel]; UP: as a transposed convolution has them */
  const float* depthwise_scale; /* [parities, c_in], the unit of a sum; UP: of every parity of a voxel, z first */
  float eps, norm_step;         /* of the norm, and of its INT8 result */
  const int8_t* expand;         /* [hidden, c_in] */
  const float *expand_scale, *expand_bias; /* [hidden], from sums to lines -128..127 of the table */
  const uint8_t* table;                    /* [256], what the lines become */
  const int8_t* compress;                  /* [c_out, hidden] */
  const float *compress_scale, *compress_bias; /* [c_out], from sums to the stream */
  const int8_t* shortcut;                      /* [c_out, c_in], of DOWN and UP with `residual` */
  const float *shortcut_scale, *shortcut_bias; /* [c_out] */
} mednext_cpu_block;

/* One block in float; members are those of a block in INT8. The shortcut of UP is added to every second voxel alone: what
 * it adds to all is in `compress_bias`. */
typedef struct {
  int32_t form, kernel, depth, residual;
  int64_t c_in, hidden, c_out;
  const float* depthwise;
  float eps;
  const float *expand, *expand_bias;
  const float *compress, *compress_bias;
  const float *shortcut, *shortcut_bias;
} mednext_cpu_float_block;

typedef struct mednext_cpu_net mednext_cpu_net;

/* A network without blocks, of a precision; to be given to mednext_cpu_net_free. */
MEDNEXT_API int32_t mednext_cpu_net_new(const mednext_cpu_dense* stem, const mednext_cpu_dense* head,
                                        int32_t precision, mednext_cpu_net** net);
MEDNEXT_API void mednext_cpu_net_free(mednext_cpu_net* net);

/* Appends a block, of the network's arithmetic. Its channels must be those that the blocks before it leave. */
MEDNEXT_API int32_t mednext_cpu_net_add(mednext_cpu_net* net, const mednext_cpu_block* block);
MEDNEXT_API int32_t mednext_cpu_net_add_float(mednext_cpu_net* net, const mednext_cpu_float_block* block);

/* x [c_in, d, h, w] -> y [classes, d, h, w]; sides must be divisible as often as the network halves them, but for d = 1
 * of a 2-D network. One call at a time. Memory is kept for the next call. */
MEDNEXT_API int32_t mednext_cpu_net_run(mednext_cpu_net* net, int64_t d, int64_t h, int64_t w, const float* x, float* y,
                                        int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
