// nnU-Net's sliding window over a prepared image: patches through the engine, their Gaussian-weighted mean out. The
// twin of mednext_edge/runtime/predictor.py.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.h"
#include "manifest.h"
#include "volume.h"

namespace mednext {

class Sliding {
 public:
  // shape: of the whole network grid. step: 0 takes the manifest's.
  Sliding(const Manifest& manifest, const Shape& shape, double step, bool mirror, int threads);

  int64_t windows() const { return static_cast<int64_t>(starts_.size()); }
  // What of the grid a window reads.
  Box reads(int64_t window) const;
  // Run one window, once with every combination of flips. `image` holds the grid from `origin` on, at least what the
  // window reads. Throws Error(ENGINE).
  void run(int64_t window, const Volume& image, const Shape& origin, Engine& engine);
  // The mean over all windows: softmax or logits, as the manifest says. The object is of no use afterwards.
  Volume finish();
  // Of a classification, the mean of the classes' probabilities over the whole grid instead.
  std::vector<float> finish_classes();

 private:
  using Flip = std::array<bool, 3>;
  int threads_for_patch() const;
  void gather(const Shape& start, const Flip& flip, const Volume& image, const Shape& origin, float* patch) const;
  void blend(const Shape& start, const Flip& flip, const float* logits, const std::string& provider);

  const Manifest& manifest_;
  Shape shape_;
  int threads_;
  std::vector<Shape> starts_;  // negative where the image is smaller than the patch, and stands in its middle
  std::vector<Flip> flips_;
  std::vector<float> weights_;
  std::vector<float> spread_;  // the logits of a classification, at every voxel of a patch
  Volume scores_;
  std::vector<float> total_;
};

}  // namespace mednext
