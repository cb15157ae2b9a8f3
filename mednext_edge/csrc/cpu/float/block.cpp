#include "block.h"

namespace mednext {
namespace {

// The weights [columns, rows] as the kernels want them, with zeros up to whole widths.
template <class T>
PackedDense packed(const FloatKernels<T>& kernels, bool hidden, int64_t rows, int64_t columns, int64_t whole_rows,
                   const float* weights, const float* bias) {
  whole_rows = kernels.row_width(whole_rows);
  const int64_t whole = hidden ? kernels.hidden_width(columns) : kernels.result_width(whole_blocks(columns));
  std::vector<float> wider(static_cast<std::size_t>(whole * whole_rows), 0.0f);
  for (int64_t i = 0; i < columns; ++i) std::copy_n(weights + i * rows, rows, wider.data() + i * whole_rows);
  PackedDense result{Lines<uint8_t>(kernels.weight_bytes(whole_rows, whole)), padded(bias, columns, whole)};
  kernels.pack(whole_rows, whole, hidden, wider.data(), result.weights.data());
  return result;
}

// [blocks, taps, BLOCK] of [channels, taps].
Lines<float> by_blocks(const float* weights, int64_t channels, int64_t taps) {
  Lines<float> result(whole_blocks(channels) * taps);
  result.fill(0);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < taps; ++i)
      result.data()[(c / BLOCK * taps + i) * BLOCK + c % BLOCK] = weights[c * taps + i];
  return result;
}

}  // namespace

template <class T>
FloatBlock<T>::FloatBlock(const FloatKernels<T>& kernels, const mednext_cpu_float_block& given)
    : form(static_cast<Form>(given.form)),
      kernel(given.kernel),
      depth(given.depth),
      c_in(whole_blocks(given.c_in)),
      hidden(kernels.hidden_width(given.hidden)),
      c_out(whole_blocks(given.c_out)),
      channels(given.c_in),
      residual(given.residual != 0),
      eps(given.eps),
      depthwise(by_blocks(given.depthwise, given.c_in, depth * kernel * kernel)),
      expand(packed(kernels, true, given.c_in, given.hidden, c_in, given.expand, given.expand_bias)),
      compress(packed(kernels, false, given.hidden, given.c_out, hidden, given.compress, given.compress_bias)) {
  if (form != Form::same && residual)
    shortcut = packed(kernels, false, given.c_in, given.c_out, c_in, given.shortcut, given.shortcut_bias);
}

template class FloatBlock<float>;
template class FloatBlock<Bf16>;

}  // namespace mednext
