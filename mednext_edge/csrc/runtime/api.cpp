// The C API: handles, the border that no exception crosses, and the structures that may grow.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <unordered_map>

#include "error.h"
#include "model.h"
#include "stream.h"

namespace mednext {
namespace {

thread_local char last_error[4096] = "";

template <class Action>
mednext_status guarded(const Action& action) noexcept {
  const auto failed = [](mednext_status status, const char* message) {
    std::snprintf(last_error, sizeof last_error, "%s", message);
    return status;
  };
  try {
    action();
    return MEDNEXT_OK;
  } catch (const Error& error) {
    return failed(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return failed(MEDNEXT_E_MEMORY, "not enough memory; close other programs or give a smaller image");
  } catch (const std::system_error& error) {
    return failed(MEDNEXT_E_MEMORY, error.what());  // no more threads
  } catch (const std::exception& error) {
    return failed(MEDNEXT_E_INTERNAL, error.what());
  } catch (...) {
    return failed(MEDNEXT_E_INTERNAL, "unknown failure");
  }
}

// Open objects by a token that is never used twice, so that a handle that was closed is known as such.
template <class Token, class Object>
class Handles {
 public:
  Token* add(std::shared_ptr<Object> object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto* token = reinterpret_cast<Token*>(++last_);
    objects_.emplace(token, std::move(object));
    return token;
  }

  std::shared_ptr<Object> get(Token* token) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(token);
    if (found == objects_.end()) fail(MEDNEXT_E_CLOSED, "no such handle: it was never opened, or it was closed");
    return found->second;
  }

  std::shared_ptr<Object> remove(Token* token) {
    auto object = get(token);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (objects_.erase(token) == 0) fail(MEDNEXT_E_CLOSED, "no such handle: another thread has just closed it");
    return object;
  }

 private:
  std::mutex mutex_;
  uintptr_t last_ = 0;
  std::unordered_map<Token*, std::shared_ptr<Object>> objects_;
};

// Never destroyed: engines must not be torn down while the process exits around them.
auto& models() {
  static auto& handles = *new Handles<mednext_model, Model>;
  return handles;
}

auto& streams() {
  static auto& handles = *new Handles<mednext_stream, Stream>;
  return handles;
}

template <class T>
void need(const T* pointer, const char* name) {
  if (!pointer) fail(MEDNEXT_E_ARGUMENT, "found NULL for `", name, "`");
}

// A structure of the caller's, of an older or newer header, over the defaults of this one.
template <class Struct>
Struct read(const Struct* given, Struct values, const char* name) {
  if (!given) return values;
  if (given->size < sizeof(size_t) || given->size > size_t{1} << 16)
    fail(MEDNEXT_E_ARGUMENT, "found size ", given->size, " in `", name, "`; begin with its _INIT");
  std::memcpy(&values, given, std::min(given->size, sizeof values));
  values.size = sizeof values;
  return values;
}

template <class Struct>
void write(Struct* target, Struct values, const char* name) {
  need(target, name);
  read(target, values, name);  // checks its size
  values.size = target->size;
  std::memcpy(target, &values, std::min(target->size, sizeof values));
}

template <size_t size>
void set_text(char (&target)[size], const std::string& text) {
  std::snprintf(target, size, "%s", text.c_str());
}

Image read_image(const mednext_image* given) {
  need(given, "image");
  const mednext_image image = read(given, mednext_image MEDNEXT_IMAGE_INIT, "image");
  Image out{image.voxels, image.dtype, image.channels, {image.shape[0], image.shape[1], image.shape[2]}, {}};
  std::copy_n(image.affine, 16, out.affine.begin());
  return out;
}

SegmentOptions read_options(const mednext_segment_options* given) {
  const auto options = read(given, mednext_segment_options MEDNEXT_SEGMENT_OPTIONS_INIT, "options");
  if (!(options.step >= 0 && options.step <= 1))
    fail(MEDNEXT_E_ARGUMENT, "found a step of ", options.step, "; expected a fraction of the patch, 0 < step <= 1");
  return {options.step, options.mirror != 0, options.progress, options.user};
}

mednext_info describe(const Model& model) {
  mednext_info info = MEDNEXT_INFO_INIT;
  const Manifest& manifest = model.manifest();
  set_text(info.name, manifest.name);
  set_text(info.target, manifest.target);
  set_text(info.precision, manifest.precision);
  set_text(info.provider, model.provider());
  set_text(info.created, manifest.created);
  info.channels = static_cast<int32_t>(manifest.channels);
  info.classes = static_cast<int32_t>(manifest.classes());
  info.spatial_dims = manifest.spatial_dims;
  info.needs_whole_volume = manifest.classifies || !is_voxelwise(manifest.preprocessing.normalization);
  std::copy(manifest.patch.begin(), manifest.patch.end(), info.patch);
  info.step = manifest.step;
  info.mirror_axes = static_cast<int32_t>(manifest.mirror_axes.size());
  info.kind = manifest.classifies ? MEDNEXT_CLASSIFICATION : MEDNEXT_SEGMENTATION;
  if (const auto colour = manifest.preprocessing.colour)
    set_text(info.colour, *colour == Colour::rgb ? "RGB" : *colour == Colour::bgr ? "BGR" : "grey");
  return info;
}

}  // namespace
}  // namespace mednext

using namespace mednext;

const char* mednext_version(void) { return MEDNEXT_EDGE_VERSION; }

const char* mednext_last_error(void) { return last_error; }

mednext_status mednext_open(const char* path, const mednext_options* options, mednext_model** model) {
  return guarded([&] {
    need(model, "model");
    *model = nullptr;
    need(path, "path");
    const auto given = read(options, mednext_options MEDNEXT_OPTIONS_INIT, "options");
    if (given.threads < 0 || given.threads > 4096)
      fail(MEDNEXT_E_ARGUMENT, "found ", given.threads, " threads; expected 0 (the engine chooses) to 4096");
    const EngineOptions chosen{given.device ? given.device : "", given.threads};
    *model = models().add(std::make_shared<Model>(path, chosen));
  });
}

mednext_status mednext_describe(mednext_model* model, mednext_info* info) {
  return guarded([&] { write(info, describe(*models().get(model)), "info"); });
}

mednext_status mednext_label_name(mednext_model* model, int32_t value, char* name, size_t capacity) {
  return guarded([&] {
    const auto held = models().get(model);
    need(name, "name");
    const auto& labels = held->manifest().labels;
    if (capacity == 0 || value < 0 || static_cast<size_t>(value) >= labels.size())
      fail(MEDNEXT_E_ARGUMENT, "found label ", value, " and room for ", capacity, " bytes; expected 0 to ",
           labels.size() - 1, " and some room");
    std::snprintf(name, capacity, "%s", labels[value].c_str());
  });
}

mednext_status mednext_segment(mednext_model* model, const mednext_image* image,
                               const mednext_segment_options* options, uint16_t* labels, size_t count) {
  return guarded([&] {
    const auto held = models().get(model);
    const Image voxels = read_image(image);
    const SegmentOptions chosen = read_options(options);
    need(voxels.voxels, "image.voxels");
    need(labels, "labels");
    held->need(false);
    check_geometry(voxels, held->manifest());
    if (count != static_cast<size_t>(mednext::voxels(voxels.shape)))
      fail(MEDNEXT_E_ARGUMENT, "found room for ", count, " labels; expected ", mednext::voxels(voxels.shape));
    held->segment(voxels, chosen, labels);
  });
}

mednext_status mednext_classify(mednext_model* model, const mednext_image* image,
                                const mednext_segment_options* options, float* probabilities, size_t count) {
  return guarded([&] {
    const auto held = models().get(model);
    const Image voxels = read_image(image);
    const SegmentOptions chosen = read_options(options);
    need(voxels.voxels, "image.voxels");
    need(probabilities, "probabilities");
    held->need(true);
    check_geometry(voxels, held->manifest());
    if (count != static_cast<size_t>(held->manifest().classes()))
      fail(MEDNEXT_E_ARGUMENT, "found room for ", count, " probabilities; expected ", held->manifest().classes());
    held->classify(voxels, chosen, probabilities);
  });
}

mednext_status mednext_cancel(mednext_model* model) {
  return guarded([&] { models().get(model)->cancel(); });
}

mednext_status mednext_close(mednext_model* model) {
  return guarded([&] { models().remove(model)->cancel(); });
}

mednext_status mednext_stream_open(mednext_model* model, const mednext_image* header,
                                   const mednext_segment_options* options, mednext_stream** stream) {
  return guarded([&] {
    need(stream, "stream");
    *stream = nullptr;
    auto opened = std::make_shared<Stream>(models().get(model), read_image(header), read_options(options));
    opened->start();
    *stream = streams().add(std::move(opened));
  });
}

mednext_status mednext_stream_push(mednext_stream* stream, int64_t first, int64_t count, const void* voxels) {
  return guarded([&] {
    const auto held = streams().get(stream);
    need(voxels, "voxels");
    held->push(first, count, voxels);
  });
}

mednext_status mednext_stream_describe(mednext_stream* stream, mednext_stream_info* info) {
  return guarded([&] { write(info, streams().get(stream)->describe(), "info"); });
}

mednext_status mednext_stream_finish(mednext_stream* stream, uint16_t* labels, size_t count) {
  return guarded([&] {
    const auto held = streams().get(stream);
    need(labels, "labels");
    held->finish(labels, count);
  });
}

mednext_status mednext_stream_close(mednext_stream* stream) {
  return guarded([&] { streams().remove(stream)->close(); });
}
