#include "model.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "bundle.h"
#include "error.h"
#include "recipe.h"

namespace mednext {

Model::Model(const std::string& path, const EngineOptions& options)
    : threads_(options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency())) {
  const std::filesystem::path folder = std::filesystem::u8path(path);
  manifest_ = verify_bundle(folder);
  engine_ = open_engine(folder, manifest_, options);
  provider_ = engine_->provider();
}

void Model::segment(const Image& image, const SegmentOptions& options, uint16_t* labels) {
  check_geometry(image, manifest_.channels);
  const Computation computation(*this);
  const Computation::Turn turn(*this);
  computation.check();
  const Preprocessing& recipe = manifest_.preprocessing;
  const Extent extent = inspect(image, 0, image.shape[0], threads_);
  const Axes axes = network_axes(image.affine, recipe.orientation, recipe.transpose);
  const Grid grid = make_grid(image, recipe, axes, extent);
  check_memory(manifest_, image, grid.shape);
  Volume scores;
  {
    const Volume prepared = prepare(image, recipe, grid, threads_);
    Sliding sliding(manifest_, grid.shape, options.step, options.mirror, threads_);
    computation.check();
    for (int64_t window = 0; window < sliding.windows(); ++window) {
      sliding.run(window, prepared, {}, turn.engine());
      computation.report(options, window + 1, sliding.windows());
    }
    scores = sliding.finish();
  }
  restore(scores, grid, labels, threads_);
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
