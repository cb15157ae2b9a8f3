// Open a bundle, segment one volume and stream it, close, and open it anew: BUNDLE. For valgrind around a real engine,
// under which `exercise.cpp` would take an hour. Ends with 1 where the labels differ.
#include <cstdio>
#include <exception>
#include <vector>

#include "mednext_edge.hpp"

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  constexpr int64_t kZ = 9, kY = 17, kX = 14;
  std::vector<float> voxels(kZ * kY * kX);
  for (size_t i = 0; i < voxels.size(); ++i) voxels[i] = static_cast<float>(i * 7919 % 31) / 10 + 0.1f;
  mednext_image image = MEDNEXT_IMAGE_INIT;
  image.voxels = voxels.data();
  image.shape[0] = kZ, image.shape[1] = kY, image.shape[2] = kX;
  std::vector<uint16_t> labels;
  for (int opened = 0; opened < 2; ++opened) {
    const mednext_edge::Model model(argv[1], "", 2);
    if (opened == 0) {
      labels = model.segment(image);
      continue;
    }
    mednext_edge::Stream stream(model, image);
    stream.push(0, kZ, voxels.data());
    if (stream.finish() != labels) return 1;
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
