// What the INT8 engine asks of an instruction set, as plain data.
//
// Channels lie in blocks of 16, those of one voxel side by side and the voxels of a row one after the other. INT8
// values are kept with 128 added, as VNNI wants them. The residual stream is bfloat16, and beside it lies a copy in INT8
// with a margin of zeros, which the next depthwise convolution reads.
#pragma once

#include "../view.h"

namespace mednext {

constexpr uint8_t ZERO = 128;  // of INT8

struct Depthwise8 {
  Form form;
  int64_t kernel, depth;   // along rows and columns; along planes, the kernel or 1
  int64_t d, h, w;         // of the result
  View<const uint8_t> x;   // with margins of kernel / 2
  const int8_t* weights;   // as `pack_depthwise` leaves them
  const int32_t* offsets;  // [parities, channels]: what sums begin with
  const float* scale;      // [parities, channels]: from sums to y
  int64_t channels;        // padded to whole blocks
  View<int16_t> y;
  bool past;     // y is stored past the caches, into memory
  int64_t rows;  // of a part
  double* sums;  // [d, parts, blocks, 2, BLOCK] of y and of its square; takes them
};

// Bytes and values of packed weights, for one instruction set.
struct PanelSizes {
  int64_t weights, columns;
};
// The bits of 1.5 * 2^23 as a float, and this number. A whole number below 2^22 that is added to the bits is added to
// the number: a sum that begins with them need not be converted.
constexpr int32_t LIFTED = 0x4B400000;
constexpr float LIFT = 12582912.0f;

// Weights [columns, rows] as `multiply` reads them, and what sums begin with. Columns are padded with zeros.
struct Panels {
  int8_t* weights;
  int32_t* offsets;
  bool lifted;  // sums begin with LIFTED; their scales undo it
};
// From sums to the result, padded as the columns.
struct Scales {
  const float *scale, *bias;
};

struct Copy8 {
  View<uint8_t> to;  // data is null where nobody reads it
  float levels;      // in a unit of the stream
};

// A product that goes into the stream, or is added to it.
struct IntoStream8 {
  int64_t c_out;  // in whole blocks
  Panels panels;
  Scales scales;
  View<uint16_t> stream;
  bool add;
  Copy8 copy;
};

// From y to the levels of its norm: y * scale + bias, or (y * factor + offset) >> 16 >> shift where a block of channels
// is `whole`.
struct Norm8 {
  const float *scale, *bias;      // [c_in]
  const int16_t *factor, *shift;  // [c_in]
  const int32_t* offset;          // [c_in], of each block those of the even channels first
  const bool* whole;              // [c_in / BLOCK]
};

// The norm of y, expansion, GELU, compression.
struct FeedForward8 {
  int64_t c_in, hidden;  // c_in in whole blocks, hidden in whole panels
  int64_t h, w;          // of y
  View<const int16_t> y;
  Norm8 norm;
  Panels expand;
  Scales expand_scales;
  const uint8_t* table;  // [256]: a line, less 128 as int8, to hidden's INT8 with 128 added
  IntoStream8 compress;
};

// A 1x1x1 convolution of the copy.
struct Pointwise8 {
  int64_t c_in;
  int64_t h, w;
  View<const uint8_t> x;
  IntoStream8 result;
};

// The copy of a stream.
struct Rounding {
  int64_t channels;
  int64_t h, w;
  View<const uint16_t> stream;
  Copy8 copy;
};

// The 1x1x1 convolution of an image [c_in, voxels] into the stream.
struct Stem {
  int64_t c_in, c_out, voxels;
  int64_t h, w;
  const float *x, *weight, *bias;  // weight [c_in, c_out], bias [c_out]; padded
  View<uint16_t> stream;
  Copy8 copy;
};

// The 1x1x1 convolution of the stream into logits [classes, voxels].
struct Head {
  int64_t c_in, classes, voxels;
  int64_t h, w;
  View<const uint16_t> stream;
  const float *weight, *bias;  // weight [classes in blocks, c_in, BLOCK], bias [classes]; padded
  float* y;
};

// Voxels are counted row by row; `scratch` holds what the `scratch_bytes` say.
struct Int8Kernels {
  bool fused;  // a sum is scaled and its bias added in one rounding, as lifted sums need
  int64_t (*depthwise_bytes)(Form, int64_t kernel, int64_t depth, int64_t channels);
  // weights [channels, depth, kernel, kernel], channels already padded.
  void (*pack_depthwise)(Form, int64_t kernel, int64_t depth, int64_t channels, const int8_t* weights, int8_t* packed,
                         int32_t* offsets);
  // Plane z, some rows and channel block b of the result.
  void (*depthwise)(const Depthwise8&, int64_t z, int64_t part, int64_t b);

  int64_t (*hidden_width)(int64_t hidden);
  PanelSizes (*expand_sizes)(int64_t rows, int64_t columns);
  PanelSizes (*compress_sizes)(int64_t rows, int64_t columns);
  void (*pack_expand)(int64_t rows, int64_t columns, const int8_t* weights, Panels);
  // `hidden`: the rows are a hidden tensor's, and lie as the expansion leaves them.
  void (*pack_compress)(int64_t rows, int64_t columns, bool hidden, const int8_t* weights, Panels);
  int64_t (*scratch_bytes)(int64_t c_in, int64_t hidden);
  void (*feed_forward)(const FeedForward8&, int64_t begin, int64_t end, uint8_t* scratch);
  void (*pointwise)(const Pointwise8&, int64_t begin, int64_t end, uint8_t* scratch);
  void (*round_stream)(const Rounding&, int64_t begin, int64_t end);
  void (*stem)(const Stem&, int64_t begin, int64_t end);
  void (*head)(const Head&, int64_t begin, int64_t end, uint8_t* scratch);
};

}  // namespace mednext
