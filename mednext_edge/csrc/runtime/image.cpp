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
constexpr float kLuminance[] = {0.299f, 0.587f, 0.114f};  // of red, green and blue (ITU-R BT.601, 2.5.1)

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

void check_geometry(const Image& image, const Manifest& manifest) {
  voxel_bytes(image.dtype);
  if (manifest.preprocessing.colour && image.channels != 1 && image.channels != 3)
    fail(MEDNEXT_E_DATA, "found an image of ", image.channels, " channels; expected a grey one or red, green and blue");
  if (!manifest.preprocessing.colour && image.channels != manifest.channels)
    fail(MEDNEXT_E_DATA, "found an image of ", image.channels, " channels; expected ", manifest.channels,
         ", as many as the bundle has normalisations");
  int64_t count = image.channels;
  for (const int64_t n : image.shape) {
    if (n < 1 || n > kLongest || (count *= n) > kMostVoxels)
      fail(MEDNEXT_E_DATA, "found an image of shape (", image.shape[0], ", ", image.shape[1], ", ", image.shape[2],
           "); expected 1 to ", kLongest, " voxels along each axis and at most ", kMostVoxels, " in all");
  }
  check_affine(image.affine);
}

Image coloured(const Image& image, std::optional<Colour> colour, std::vector<float>& storage) {
  if (!colour) return image;
  const int64_t size = voxels(image.shape), wanted = *colour == Colour::grey ? 1 : 3;
  storage.resize(static_cast<size_t>(wanted * size));
  with_type(image, [&](const auto* from) {
    const auto at = [&](int64_t channel, int64_t i) { return static_cast<float>(from[channel * size + i]); };
    for (int64_t c = 0; c < wanted; ++c) {
      const int64_t source = image.channels == 1 ? 0 : *colour == Colour::bgr ? 2 - c : c;
      float* const to = storage.data() + c * size;
      if (wanted == 1 && image.channels == 3)
        for (int64_t i = 0; i < size; ++i)
          to[i] = kLuminance[0] * at(0, i) + kLuminance[1] * at(1, i) + kLuminance[2] * at(2, i);
      else
        for (int64_t i = 0; i < size; ++i) to[i] = at(source, i);
    }
  });
  return {storage.data(), MEDNEXT_FLOAT32, wanted, image.shape, image.affine};
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
