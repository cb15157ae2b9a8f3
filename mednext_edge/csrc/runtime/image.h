// The caller's voxels: checked, and turned into floats on the network's axes.
#pragma once

#include "affine.h"
#include "mednext_edge.h"
#include "volume.h"

namespace mednext {

struct Image {
  const void* voxels;  // [channels, *shape] of `dtype`
  mednext_dtype dtype;
  int64_t channels;
  Shape shape;
  Affine affine;
};

// Bytes of one voxel.
int64_t voxel_bytes(mednext_dtype dtype);

// Throws Error(DATA) for sizes that no image has, channels that the network does not take, or a singular affine;
// Error(ARGUMENT) for an unknown dtype.
void check_geometry(const Image& image, const Manifest& manifest);

// A photograph of one or three channels as the network takes it: float32 in `storage`, which must outlive the answer.
// Where the network takes channels as they are, the image itself. The twin of mednext_edge/data/colour.py.
Image coloured(const Image& image, std::optional<Colour> colour, std::vector<float>& storage);

// Bounding box, on the image's axes, of what is non-zero in any channel.
struct Extent {
  Shape first{INT64_MAX, INT64_MAX, INT64_MAX}, last{-1, -1, -1};
  bool empty() const { return last[0] < 0; }
  void add(const Extent& other);
};

// The extent of some slices. Throws Error(DATA) where they hold NaN, infinity, or what float32 cannot hold.
Extent inspect(const Image& image, int64_t first_slice, int64_t last_slice, int threads);

// A box of the image, given on the network's axes, as float32 on those axes.
Volume turned(const Image& image, const Axes& axes, const Box& box, int threads);

}  // namespace mednext
