#include "block.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace mednext {
namespace {

constexpr float LARGEST = 128, LARGEST16 = 32767, LARGEST_HIDDEN = 255;

// [columns, rows] with zeros up to [columns, padded].
std::vector<int8_t> wider(const int8_t* weights, int64_t columns, int64_t rows, int64_t padded) {
  std::vector<int8_t> result(static_cast<std::size_t>(columns * padded), 0);
  for (int64_t i = 0; i < columns; ++i) std::copy_n(weights + i * rows, rows, result.data() + i * padded);
  return result;
}

Packed packed(PanelSizes sizes, const float* scale, const float* bias, int64_t columns) {
  return {Lines<int8_t>(sizes.weights), Lines<int32_t>(sizes.columns), padded(scale, columns, sizes.columns),
          padded(bias, columns, sizes.columns), false};
}

// Without the last two bits: three times it is a float too, and so is LIFT times it.
float shortened(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= ~uint32_t{3};
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

}  // namespace

bool Packed::settle(const int8_t* given, int64_t columns, int64_t rows, float largest) {
  constexpr float MANTISSA = 1 << 22, WHOLE = 1 << 30;  // of a lifted sum, and what an INT32 can be rounded to
  bool fits = true;
  for (int64_t i = 0; i < columns; ++i) {
    const float factor = scale.data()[i];
    float& rest = bias.data()[i];
    const double whole = rest == 0 ? 0 : std::nearbyint(static_cast<double>(rest) / factor);
    if (std::abs(whole) < MANTISSA) {
      offsets.data()[i] += static_cast<int32_t>(whole);
      rest = 0;
    }
    double sum = std::abs(whole) + 1;
    for (int64_t k = i * rows; k < (i + 1) * rows; ++k) sum += largest * std::abs(static_cast<float>(given[k]));
    fits = fits && rest == 0 && sum < MANTISSA && 2 * MANTISSA * std::abs(factor) < WHOLE;
  }
  return fits;
}

void Packed::lift() {
  lifted = true;
  for (int64_t i = 0; i < offsets.size(); ++i) {
    float& factor = scale.data()[i];
    factor = shortened(factor);
    offsets.data()[i] += LIFTED;
    bias.data()[i] = -LIFT * factor;
  }
}

Block8::Block8(const Int8Kernels& kernels, const mednext_cpu_block& given)
    : form(static_cast<Form>(given.form)),
      kernel(given.kernel),
      depth(given.depth),
      c_in(whole_blocks(given.c_in)),
      hidden(kernels.hidden_width(given.hidden)),
      c_out(whole_blocks(given.c_out)),
      residual(given.residual != 0),
      in_step(given.in_step),
      norm_step(given.norm_step),
      eps(given.eps),
      table(256) {
  take_depthwise(kernels, given);
  const int64_t inner = given.hidden, out = given.c_out;
  expand = packed(kernels.expand_sizes(c_in, inner), given.expand_scale, given.expand_bias, inner);
  kernels.pack_expand(c_in, inner, wider(given.expand, inner, given.c_in, c_in).data(), expand.panels());
  compress = packed(kernels.compress_sizes(hidden, out), given.compress_scale, given.compress_bias, out);
  kernels.pack_compress(hidden, out, true, wider(given.compress, out, inner, hidden).data(), compress.panels());
  // The kernels take 128 off every value; a hidden tensor has no such offset.
  int32_t* const offsets = compress.offsets.data();
  std::fill_n(offsets, compress.offsets.size(), 0);
  const auto settle = [&](Packed& product, const int8_t* weights, int64_t columns, int64_t rows, float largest) {
    if (product.settle(weights, columns, rows, largest) && kernels.fused) product.lift();
  };
  settle(expand, given.expand, inner, given.c_in, LARGEST);
  settle(compress, given.compress, out, inner, LARGEST_HIDDEN);
  if (form != Form::same && residual) {
    shortcut = packed(kernels.compress_sizes(c_in, out), given.shortcut_scale, given.shortcut_bias, out);
    kernels.pack_compress(c_in, out, false, wider(given.shortcut, out, given.c_in, c_in).data(), shortcut.panels());
    settle(shortcut, given.shortcut, out, given.c_in, LARGEST);
  }
  for (int line = -128; line < 128; ++line) table.data()[static_cast<uint8_t>(line)] = given.table[line + 128];
}

void Block8::take_depthwise(const Int8Kernels& kernels, const mednext_cpu_block& given) {
  const int64_t taps = depth * kernel * kernel;
  std::vector<int8_t> weights(static_cast<std::size_t>(c_in * taps), 0);
  std::copy_n(given.depthwise, given.c_in * taps, weights.data());
  depthwise = Lines<int8_t>(kernels.depthwise_bytes(form, kernel, depth, c_in));
  depthwise_offsets = Lines<int32_t>(parities() * c_in);
  kernels.pack_depthwise(form, kernel, depth, c_in, weights.data(), depthwise.data(), depthwise_offsets.data());
  depthwise_scale = Lines<float>(parities() * c_in);
  depthwise_scale.fill(0);
  unit = Lines<float>(c_in);
  std::fill_n(unit.data(), c_in, 1.0f);
  for (int64_t c = 0; c < given.c_in; ++c) {
    // Every parity's sums are bounded by all of the weights: one bit is given away where there are several.
    float largest = 0;
    for (int64_t p = 0; p < parities(); ++p) largest = std::max(largest, given.depthwise_scale[p * given.c_in + c]);
    float sum = 0;
    for (int64_t i = c * taps; i < (c + 1) * taps; ++i)
      sum += std::abs(static_cast<float>(weights[static_cast<std::size_t>(i)]));
    if (sum > 0) unit.data()[c] = largest * LARGEST * sum / LARGEST16;
    for (int64_t p = 0; p < parities(); ++p)
      depthwise_scale.data()[p * c_in + c] = given.depthwise_scale[p * given.c_in + c] / unit.data()[c];
  }
}

}  // namespace mednext
