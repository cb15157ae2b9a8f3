#include "model.h"

#include <unistd.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cmath>
#include <thread>

#include "bundle.h"
#include "error.h"
#include "recipe.h"

namespace mednext {
namespace {

// Reading and compiling a graph takes, and frees, many times what the engine keeps. glibc would hold those pages, and
// hold others after the next opening.
void return_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace

Model::Model(const std::string& path, const EngineOptions& options)
    : threads_(options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency())) {
  const std::filesystem::path folder = std::filesystem::u8path(path);
  manifest_ = verify_bundle(folder);
  engine_ = open_engine(folder, manifest_, options);
  provider_ = engine_->provider();
  return_freed_memory();
}

void Model::need(bool classification) const {
  if (classification == manifest_.classifies) return;
  if (classification)
    fail(MEDNEXT_E_ARGUMENT, "this bundle makes label maps; call mednext_segment or open a stream");
  fail(MEDNEXT_E_ARGUMENT, "this bundle classifies whole images; call mednext_classify");
}

// The sliding window over a whole image; `use` gets it and the grid that it ran on, still in its turn at the engine.
template <class Use>
void Model::run(const Image& given, std::optional<Colour> colour, const SegmentOptions& options, const Use& use) {
  const Computation computation(*this);
  const Computation::Turn turn(*this);
  computation.check();
  const Preprocessing& recipe = manifest_.preprocessing;
  std::vector<float> colours;
  const Image image = coloured(given, colour, colours);
  const Extent extent = inspect(image, 0, image.shape[0], threads_);
  const Axes axes = network_axes(image.affine, recipe.orientation, recipe.transpose);
  const Grid grid = make_grid(image, recipe, axes, extent);
  check_memory(manifest_, image, grid.shape);
  Sliding sliding(manifest_, grid.shape, options.step, options.mirror, threads_);
  {
    const Volume prepared = prepare(image, recipe, grid, threads_);
    computation.check();
    for (int64_t window = 0; window < sliding.windows(); ++window) {
      sliding.run(window, prepared, {}, turn.engine());
      computation.report(options, window + 1, sliding.windows());
    }
  }
  use(sliding, grid);
}

void Model::segment(const Image& image, const SegmentOptions& options, uint16_t* labels) {
  need(false);
  run(image, manifest_.preprocessing.colour, options, [&](Sliding& sliding, const Grid& grid) {
    restore(sliding.finish(), grid, manifest_.paints, labels, threads_);
  });
}

void Model::segment_coloured(const Image& image, const SegmentOptions& options, uint16_t* labels) {
  need(false);
  run(image, std::nullopt, options, [&](Sliding& sliding, const Grid& grid) {
    restore(sliding.finish(), grid, manifest_.paints, labels, threads_);
  });
}

void Model::classify(const Image& image, const SegmentOptions& options, float* probabilities) {
  need(true);
  run(image, manifest_.preprocessing.colour, options, [&](Sliding& sliding, const Grid&) {
    const std::vector<float> found = sliding.finish_classes();
    std::copy(found.begin(), found.end(), probabilities);
  });
}

void Computation::check() const {
  if (model_.cancels_ != began_) fail(MEDNEXT_E_CANCELLED, "cancelled");
}

void Computation::report(const SegmentOptions& options, int64_t done, int64_t total) const {
  if (options.progress && options.progress(done, total, options.user) != 0)
    fail(MEDNEXT_E_CANCELLED, "cancelled by the progress callback after ", done, " of ", total, " patches");
  check();
}

Computation::Turn::Turn(Model& model) : model_(model), lock_(model.computing_, std::defer_lock) {
  if (model.owner_ == std::this_thread::get_id())
    fail(MEDNEXT_E_ARGUMENT, "a progress callback cannot compute on its own handle; open a second one");
  lock_.lock();
  model.owner_ = std::this_thread::get_id();
}

Computation::Turn::~Turn() { model_.owner_ = std::thread::id(); }

void check_memory(const Manifest& manifest, const Image& image, const Shape& grid) {
  const double own = static_cast<double>(voxels(image.shape)), network = static_cast<double>(voxels(grid));
  const auto channels = static_cast<double>(manifest.channels), classes = static_cast<double>(manifest.classes());
  // Turned and prepared image in float32, one channel being resampled in float64; scores, weights.
  const double resampling = network == own ? 0 : 8 * std::max(own, network);
  const double bytes = 4 * channels * own + resampling + 4 * (channels + classes + 1) * network;
  const double here = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (here > 0 && bytes > here)
    fail(MEDNEXT_E_MEMORY, "this image needs about ", std::ceil(bytes / 1e9), " GB on the network's grid of (", grid[0],
         ", ", grid[1], ", ", grid[2], ") voxels; this machine has ", std::floor(here / 1e9),
         " GB. Check the affine, which must be in millimetres, or crop the image");
}

}  // namespace mednext
