#include "image.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>

#include "error.h"
#include "parallel.h"

namespace mednext {
namespace {

constexpr int64_t kLongest = 1 << 20, kMostVoxels = int64_t{1} << 36;

// Calls use(pointer) with the voxels as what they are.
template <class Use>
void with_type(const Image& image, const Use& use) {
  switch (image.dtype) {
    case MEDNEXT_UINT8: return use(static_cast<const uint8_t*>(image.voxels));
    case MEDNEXT_INT16: return use(static_cast<const int16_t*>(image.voxels));
    case MEDNEXT_UINT16: return use(static_cast<const uint16_t*>(image.voxels));
    case MEDNEXT_INT32: return use(static_cast<const int32_t*>(image.voxels));
    case MEDNEXT_FLOAT32: return use(static_cast<const float*>(image.voxels));
    case MEDNEXT_FLOAT64: return use(static_cast<const double*>(image.voxels));
  }
}

// One row of voxels: how many are not finite as float32, and from where to where it is non-zero.
template <class T>
int64_t inspect_row(const T* row, int64_t size, int64_t& first, int64_t& last) {
  int64_t bad = 0;
  for (int64_t x = 0; x < size; ++x) bad += !std::isfinite(static_cast<float>(row[x]));
  for (first = 0; first < size && static_cast<float>(row[first]) == 0;) ++first;
  for (last = size - 1; last >= first && static_cast<float>(row[last]) == 0;) --last;
  return bad;
}

}  // namespace

int64_t voxel_bytes(mednext_dtype dtype) {
  switch (dtype) {
    case MEDNEXT_UINT8: return 1;
    case MEDNEXT_INT16:
    case MEDNEXT_UINT16: return 2;
    case MEDNEXT_INT32:
    case MEDNEXT_FLOAT32: return 4;
    case MEDNEXT_FLOAT64: return 8;
  }
  fail(MEDNEXT_E_ARGUMENT, "found dtype ", static_cast<int>(dtype), "; expected one of mednext_dtype");
}

void check_geometry(const Image& image, int64_t channels) {
  voxel_bytes(image.dtype);
  if (image.channels != channels)
    fail(MEDNEXT_E_DATA, "found an image of ", image.channels, " channels; expected ", channels,
         ", as many as the bundle has normalisations");
  int64_t count = channels;
  for (const int64_t n : image.shape) {
    if (n < 1 || n > kLongest || (count *= n) > kMostVoxels)
      fail(MEDNEXT_E_DATA, "found an image of shape (", image.shape[0], ", ", image.shape[1], ", ", image.shape[2],
           "); expected 1 to ", kLongest, " voxels along each axis and at most ", kMostVoxels, " in all");
  }
  check_affine(image.affine);
}

void Extent::add(const Extent& other) {
  for (int i = 0; i < 3; ++i) {
    first[i] = std::min(first[i], other.first[i]);
    last[i] = std::max(last[i], other.last[i]);
  }
}

Extent inspect(const Image& image, int64_t first_slice, int64_t last_slice, int threads) {
  const auto [nz, ny, nx] = image.shape;
  Extent extent;
  std::mutex adding;
  std::atomic<int64_t> bad{0};
  with_type(image, [&, ny = ny, nx = nx, nz = nz](const auto* voxels) {
    parallel_for(last_slice - first_slice, threads, [&](int64_t offset) {
      const int64_t z = first_slice + offset;
      Extent own;
      int64_t odd = 0;
      for (int64_t c = 0; c < image.channels; ++c)
        for (int64_t y = 0; y < ny; ++y) {
          int64_t first, last;
          odd += inspect_row(voxels + ((c * nz + z) * ny + y) * nx, nx, first, last);
          if (first <= last) own.add({{z, y, first}, {z, y, last}});
        }
      bad += odd;
      const std::lock_guard<std::mutex> lock(adding);
      extent.add(own);
    });
  });
  if (bad)
    fail(MEDNEXT_E_DATA, "the image holds ", bad.load(),
         " voxels that are NaN, infinite or beyond float32; replace them (0 or the background value) first");
  return extent;
}

Volume turned(const Image& image, const Axes& axes, const Box& box, int threads) {
  Volume out(image.channels, box.shape());
  const Shape image_strides{image.shape[1] * image.shape[2], image.shape[2], 1};
  Shape strides;
  int64_t origin = 0;
  for (int k = 0; k < 3; ++k) {
    const int axis = axes.source[k];
    strides[k] = axes.flip[k] ? -image_strides[axis] : image_strides[axis];
    origin += (axes.flip[k] ? image.shape[axis] - 1 : 0) * image_strides[axis] + box.start[k] * strides[k];
  }
  const auto [nz, ny, nx] = out.shape;
  with_type(image, [&, ny = ny, nx = nx, nz = nz](const auto* voxels) {
    parallel_for(image.channels * nz, threads, [&](int64_t slice) {
      const auto* from = voxels + slice / nz * mednext::voxels(image.shape) + origin + slice % nz * strides[0];
      float* to = out.data.data() + slice * ny * nx;
      for (int64_t y = 0; y < ny; ++y)
        for (int64_t x = 0; x < nx; ++x) *to++ = static_cast<float>(from[y * strides[1] + x * strides[2]]);
    });
  });
  return out;
}

}  // namespace mednext
