#include "stream.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "resample.h"

namespace mednext {

Stream::Stream(std::shared_ptr<Model> model, const Image& header, const SegmentOptions& options)
    : model_(std::move(model)), header_(header), image_(header), options_(options), computation_(*model_) {
  const Manifest& manifest = model_->manifest();
  model_->need(false);
  check_geometry(header, manifest);
  const Preprocessing& recipe = manifest.preprocessing;
  if (recipe.colour) {
    image_.dtype = MEDNEXT_FLOAT32;
    image_.channels = manifest.channels;
  }
  const Axes axes = network_axes(header.affine, recipe.orientation, recipe.transpose);
  Extent everything{{0, 0, 0}, {}};
  for (int i = 0; i < 3; ++i) everything.last[i] = header.shape[i] - 1;
  grid_ = make_grid(header, recipe, axes, everything);
  check_memory(manifest, header, grid_.shape);
  slice_axis_ = static_cast<int>(std::find(axes.source.begin(), axes.source.end(), 0) - axes.source.begin());
  reason_ = why_not_early();
  bytes_.resize(static_cast<size_t>(image_.channels * voxels(image_.shape) * voxel_bytes(image_.dtype)));
  image_.voxels = bytes_.data();
  here_.resize(static_cast<size_t>(header.shape[0]));
  if (!reason_.empty()) return;
  nearest_ = nearest_slices(grid_.box.shape()[slice_axis_], grid_.shape[slice_axis_]);
  sliding_ = std::make_unique<Sliding>(manifest, grid_.shape, options.step, options.mirror, model_->threads());
  done_.resize(static_cast<size_t>(sliding_->windows()));
}

Stream::~Stream() {
  if (!worker_.joinable()) return;
  // The thread holds this object, so that only the thread itself can be the last to let go of it.
  worker_.detach();
}

void Stream::start() {
  if (sliding_) worker_ = std::thread([self = shared_from_this()] { self->work(); });
}

void Stream::join() {
  const std::lock_guard<std::mutex> lock(joining_);
  if (worker_.joinable() && worker_.get_id() != std::this_thread::get_id()) worker_.join();
}

void Stream::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    if (!failure_) failure_ = std::make_exception_ptr(Error(MEDNEXT_E_CANCELLED, "the stream was closed"));
  }
  changed_.notify_all();
  join();
}

std::string Stream::why_not_early() const {
  const Preprocessing& recipe = model_->manifest().preprocessing;
  if (!is_voxelwise(recipe.normalization)) return "the normalisation takes its statistics from the whole volume";
  if (grid_.resampled() && grid_.apart != slice_axis_) return "the image is resampled across its slices";
  return "";
}

void Stream::push(int64_t first, int64_t count, const void* source) {
  const int64_t slices = image_.shape[0];
  if (first < 0 || count < 1 || first > slices - count)
    fail(MEDNEXT_E_ARGUMENT, "found slices ", first, " to ", first + count - 1, "; expected some of 0 to ", slices - 1);
  const int64_t slice = image_.shape[1] * image_.shape[2] * voxel_bytes(image_.dtype);
  Image given = header_;
  given.voxels = source;
  given.shape[0] = count;
  std::vector<float> colours;
  const Image part = coloured(given, model_->manifest().preprocessing.colour, colours);
  std::unique_lock<std::mutex> lock(mutex_);
  if (finished_) fail(MEDNEXT_E_ARGUMENT, "the stream is finished; open another one for the next volume");
  if (failure_) std::rethrow_exception(failure_);
  computation_.check();
  for (int64_t z = first; z < first + count; ++z)
    if (here_[z]) fail(MEDNEXT_E_ARGUMENT, "slice ", z, " came before");
  for (int64_t c = 0; c < image_.channels; ++c)
    std::memcpy(bytes_.data() + (c * slices + first) * slice,
                static_cast<const unsigned char*>(part.voxels) + c * count * slice, static_cast<size_t>(count * slice));
  const Extent extent = inspect(image_, first, first + count, 1);
  extent_.add(extent);
  std::fill_n(here_.begin() + first, count, true);
  arrived_ += count;
  lock.unlock();
  changed_.notify_all();
}

// Whether the slices so far reach every border of the image that they can reach. Called with the lock held.
bool Stream::guess_holds() const {
  if (!model_->manifest().preprocessing.crop_nonzero) return true;
  if (extent_.empty()) return false;
  for (int axis = 1; axis < 3; ++axis)
    if (extent_.first[axis] != 0 || extent_.last[axis] != image_.shape[axis] - 1) return false;
  return !(here_.front() && extent_.first[0] != 0) && !(here_.back() && extent_.last[0] != image_.shape[0] - 1);
}

// The first window that has not run and whose slices are all there. Called with the lock held.
std::optional<int64_t> Stream::next_window() const {
  if (!guess_holds()) return std::nullopt;
  for (int64_t window = 0; window < sliding_->windows(); ++window) {
    if (done_[window]) continue;
    const Box box = sliding_->reads(window);
    bool ready = true;
    for (int64_t k = box.start[slice_axis_]; k < box.stop[slice_axis_] && ready; ++k) {
      const int64_t at = nearest_[k];
      ready = here_[grid_.axes.flip[slice_axis_] ? image_.shape[0] - 1 - at : at];
    }
    if (ready) return window;
  }
  return std::nullopt;
}

void Stream::run_window(int64_t window) {
  const Box box = sliding_->reads(window);
  const int64_t start = box.start[slice_axis_], stop = box.stop[slice_axis_];
  const Volume part = prepare_part(image_, model_->manifest().preprocessing, grid_, slice_axis_, start, stop,
                                   model_->threads());
  Shape origin{};
  origin[slice_axis_] = start;
  const Computation::Turn turn(*model_);
  computation_.check();
  sliding_->run(window, part, origin, turn.engine());
}

void Stream::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  try {
    for (;;) {
      std::optional<int64_t> window;
      changed_.wait(lock, [&] { return stopping_ || (window = next_window()); });
      if (stopping_) return;
      lock.unlock();
      run_window(*window);
      lock.lock();
      done_[*window] = true;
      ++windows_done_;
      if (arrived_ < image_.shape[0]) ++early_;
      const int64_t done = windows_done_;
      lock.unlock();
      computation_.report(options_, done, sliding_->windows());
      lock.lock();
      if (done == sliding_->windows()) {
        stopping_ = true;
        changed_.notify_all();
      }
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    failure_ = std::current_exception();
    stopping_ = true;
    changed_.notify_all();
  }
}

void Stream::finish(uint16_t* labels, size_t count) {
  if (count != static_cast<size_t>(voxels(image_.shape)))
    fail(MEDNEXT_E_ARGUMENT, "found room for ", count, " labels; expected ", voxels(image_.shape));
  if (worker_.get_id() == std::this_thread::get_id())
    fail(MEDNEXT_E_ARGUMENT, "a progress callback cannot finish its own stream; do so in another thread");
  std::unique_lock<std::mutex> lock(mutex_);
  if (finished_) fail(MEDNEXT_E_ARGUMENT, "the stream is finished; open another one for the next volume");
  if (failure_) std::rethrow_exception(failure_);
  computation_.check();
  if (arrived_ != image_.shape[0]) {
    const auto missing = std::find(here_.begin(), here_.end(), false) - here_.begin();
    fail(MEDNEXT_E_DATA, "found ", arrived_, " of ", image_.shape[0], " slices; slice ", missing, " is missing");
  }
  finished_ = true;
  const bool guessed = sliding_ && guess_holds();
  if (guessed) changed_.wait(lock, [&] { return stopping_; });
  stopping_ = true;
  lock.unlock();
  changed_.notify_all();
  join();
  lock.lock();
  if (failure_) std::rethrow_exception(failure_);
  if (guessed) {
    const Volume scores = sliding_->finish();
    lock.unlock();
    restore(scores, grid_, model_->manifest().paints, labels, model_->threads());
    return;
  }
  undone_ = windows_done_;
  early_ = windows_done_ = 0;
  sliding_.reset();
  lock.unlock();
  computation_.check();
  model_->segment_coloured(image_, options_, labels);
  lock.lock();
  windows_done_ = static_cast<int64_t>(done_.size());
}

mednext_stream_info Stream::describe() const {
  mednext_stream_info info = MEDNEXT_STREAM_INFO_INIT;
  const std::lock_guard<std::mutex> lock(mutex_);
  info.slices = arrived_;
  info.patches = static_cast<int64_t>(done_.size());
  info.patches_done = windows_done_;
  info.patches_early = early_;
  info.patches_undone = undone_;
  reason_.copy(info.reason, sizeof info.reason - 1);
  return info;
}

}  // namespace mednext
