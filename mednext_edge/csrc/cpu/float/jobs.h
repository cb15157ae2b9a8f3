// What the float engine asks of an instruction set, as plain data.
//
// T is how tensors are kept: float, or Bf16. Sums are float32 in both. The residual stream has a margin of zeros, which
// depthwise convolutions read.
#pragma once

#include "../view.h"

namespace mednext {

struct Bf16 {
  uint16_t bits;
};

template <class T>
struct Depthwise {
  Form form;
  int64_t kernel, depth;  // along rows and columns; along planes, the kernel or 1
  int64_t d, h, w;        // of the result
  View<const T> x;        // with margins of kernel / 2
  const float* weights;   // [blocks, depth, kernel, kernel, BLOCK]
  int64_t channels;       // in whole blocks
  View<T> y;
  int64_t rows;     // of a part
  double* moments;  // [d, parts, blocks, 3, BLOCK]: one value of y, sums of the distances from it and of their squares
};

// The weights of a 1x1x1 convolution, as `pack` leaves them, and its bias; both padded.
struct Panels32 {
  const void* weights;
  const float* bias;
};

// The norm of y, expansion, GELU, compression; the result goes into the stream, or is added to it.
template <class T>
struct FeedForward {
  int64_t c_in, hidden, c_out;  // c_in and c_out in whole blocks, hidden in whole panels
  int64_t h, w;                 // of y
  View<const T> y;
  const float *scale, *shift;  // [c_in], the norm
  Panels32 expand, compress;
  View<T> stream;
  bool add;
};

// A 1x1x1 convolution into the stream, or added to it.
template <class T>
struct Pointwise {
  int64_t c_in, c_out;
  int64_t h, w;
  View<const T> x;
  Panels32 panels;
  View<T> stream;
  bool add;
};

// The 1x1x1 convolution of an image [c_in, voxels] into the stream.
template <class T>
struct FloatStem {
  int64_t c_in, c_out, voxels;
  int64_t h, w;
  const float *x, *weight, *bias;  // weight [c_in, c_out], bias [c_out]; padded
  View<T> stream;
};

// The 1x1x1 convolution of the stream into logits [classes, voxels].
template <class T>
struct FloatHead {
  int64_t c_in, classes, voxels;
  int64_t h, w;
  View<const T> stream;
  const float *weight, *bias;  // weight [classes in blocks, c_in, BLOCK], bias [classes]; padded
  float* y;
};

// Voxels are counted row by row; `scratch` holds what `scratch_bytes` says.
template <class T>
struct FloatKernels {
  // Plane z, some rows and channel block b of the result.
  void (*depthwise)(const Depthwise<T>&, int64_t z, int64_t part, int64_t b);

  int64_t (*row_width)(int64_t rows);        // of a product's weights
  int64_t (*hidden_width)(int64_t hidden);   // in whole panels
  int64_t (*result_width)(int64_t columns);  // of a product into the stream, in whole panels
  int64_t (*weight_bytes)(int64_t rows, int64_t columns);
  // weights [columns, rows]; `hidden`: the columns are a hidden tensor's. All widths are whole.
  void (*pack)(int64_t rows, int64_t columns, bool hidden, const float* weights, void* packed);
  int64_t (*scratch_bytes)(int64_t c_in, int64_t hidden);
  void (*feed_forward)(const FeedForward<T>&, int64_t begin, int64_t end, uint8_t* scratch);
  void (*pointwise)(const Pointwise<T>&, int64_t begin, int64_t end, uint8_t* scratch);
  void (*stem)(const FloatStem<T>&, int64_t begin, int64_t end);
  void (*head)(const FloatHead<T>&, int64_t begin, int64_t end);
};

}  // namespace mednext
