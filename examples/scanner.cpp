// scanner_stream BUNDLE IMAGE.nii LABELS.nii [MILLISECONDS]: slices as a scanner makes them, one every so often, into a
// stream whose patches run as soon as their slices are there.
//
// Research software, not a medical device: not for diagnosis or treatment.
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "mednext_edge.hpp"
extern "C" {
#include "nifti.h"
}

int main(int argc, char** argv) try {
  if (argc < 4 || argc > 5) {
    std::cerr << "usage: " << argv[0] << " BUNDLE IMAGE.nii LABELS.nii [MILLISECONDS]\n";
    return 2;
  }
  nifti file;
  if (const char* problem = nifti_read(argv[2], &file)) {
    std::cerr << argv[2] << " " << problem << "\n";
    return 1;
  }
  const std::unique_ptr<void, void (*)(void*)> owner(const_cast<void*>(file.image.voxels), std::free);
  const std::chrono::milliseconds pause(argc == 5 ? std::stoi(argv[4]) : 0);

  const mednext_edge::Model model(argv[1]);
  mednext_edge::Stream stream(model, file.image);
  const auto* voxels = static_cast<const unsigned char*>(file.image.voxels);
  const int64_t slices = file.image.shape[0], slice = file.image.shape[1] * file.image.shape[2];
  const int64_t bytes = file.image.dtype == MEDNEXT_UINT8 ? 1 : file.image.dtype <= MEDNEXT_UINT16 ? 2
                        : file.image.dtype == MEDNEXT_FLOAT64 ? 8 : 4;
  for (int64_t z = 0; z < slices; ++z) {
    std::this_thread::sleep_for(pause);
    stream.push(z, 1, voxels + z * slice * bytes);
  }
  const auto last = std::chrono::steady_clock::now();
  const std::vector<uint16_t> labels = stream.finish();
  const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - last;
  const mednext_stream_info info = stream.describe();
  std::cerr << "labels " << waited.count() << " s after the last slice; " << info.patches_early << " of "
            << info.patches << " patches ran before it" << (info.reason[0] ? ": " : "") << info.reason << "\n";
  if (!nifti_write_labels(argv[3], &file, labels.data())) {
    std::cerr << argv[3] << " cannot be written\n";
    return 1;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
