// The INT8 kernels for one instruction set: this file is compiled once for each, with its flags.
#include "depthwise.h"
#include "feed_forward.h"
#include "head.h"
#include "sets.h"
#include "stem.h"

namespace mednext::MEDNEXT_ISA {
namespace {

int64_t hidden_width(int64_t hidden) { return rounded_up(hidden, PANEL); }
PanelSizes expand_sizes(int64_t rows, int64_t columns) { return sizes(rows, columns, PANEL); }
PanelSizes compress_sizes(int64_t rows, int64_t columns) { return sizes(rows, columns, OUT_PANEL); }
void pack_expand(int64_t rows, int64_t columns, const int8_t* weights, Panels packed) {
  pack(rows, columns, PANEL, false, weights, packed);
}
void pack_compress(int64_t rows, int64_t columns, bool hidden, const int8_t* weights, Panels packed) {
  pack(rows, columns, OUT_PANEL, hidden, weights, packed);
}

}  // namespace

const Int8Kernels INT8_KERNELS{FUSED,         depthwise_bytes, pack_depthwise, depthwise,     hidden_width,
                               expand_sizes,  compress_sizes,  pack_expand,    pack_compress, scratch_bytes,
                               feed_forward,  pointwise,       round_stream,   stem,          head};

}  // namespace mednext::MEDNEXT_ISA
