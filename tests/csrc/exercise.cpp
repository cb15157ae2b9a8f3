// Every function of mednext_edge.h from one and from several threads, for sanitizers and valgrind: BUNDLE [ROUNDS].
// The bundle has one channel and patches of at most 16 voxels an axis; it may be one that classifies. Ends with 1 and the
// line of the first check that does not hold.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "mednext_edge.hpp"

#define CHECK(condition)                                                                                \
  do {                                                                                                  \
    if (!(condition)) {                                                                                 \
      std::fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, mednext_last_error());   \
      std::_Exit(1);                                                                                    \
    }                                                                                                   \
  } while (0)

namespace {

constexpr int64_t kZ = 21, kY = 18, kX = 23;
constexpr size_t kVoxels = kZ * kY * kX;

std::vector<float> make_voxels() {
  std::vector<float> voxels(kVoxels);
  for (size_t i = 0; i < kVoxels; ++i) voxels[i] = static_cast<float>(i * 7919 % 31) / 10 + 0.1f;
  return voxels;
}

mednext_image image_of(const float* voxels) {
  mednext_image image = MEDNEXT_IMAGE_INIT;
  image.voxels = voxels;
  image.shape[0] = kZ, image.shape[1] = kY, image.shape[2] = kX;
  image.affine[0] = -1, image.affine[5] = 0.9;
  return image;
}

void one_thread(const char* path, const mednext_image& image) {
  mednext_edge::Model model(path);
  CHECK(model.describe().channels == 1 && !model.labels().empty() && mednext_version()[0] != '\0');
  const auto plain = model.segment(image);
  mednext_edge::SegmentSettings settings;
  settings.mirror = true;
  int64_t calls = 0;
  settings.progress = [&](int64_t done, int64_t total) { return ++calls, done <= total; };
  CHECK(model.segment(image, settings).size() == kVoxels && calls > 0);
  settings.progress = [](int64_t, int64_t) { return false; };
  try {
    model.segment(image, settings);
    CHECK(!"cancelled by the callback");
  } catch (const mednext_edge::Failure& failure) {
    CHECK(failure.status() == MEDNEXT_E_CANCELLED);
  }
  CHECK(model.segment(image) == plain);
}

void bad_arguments(const char* path, const mednext_image& good, const float* voxels) {
  mednext_model* model = nullptr;
  std::vector<uint16_t> labels(kVoxels);
  CHECK(mednext_open(nullptr, nullptr, &model) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_open(path, nullptr, nullptr) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_open("/nonexistent", nullptr, &model) == MEDNEXT_E_BUNDLE && model == nullptr);
  mednext_options options = MEDNEXT_OPTIONS_INIT;
  options.threads = -1;
  CHECK(mednext_open(path, &options, &model) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_open(path, nullptr, &model) == MEDNEXT_OK);
  const auto status = [&](const mednext_image& image, size_t count) {
    return mednext_segment(model, &image, nullptr, labels.data(), count);
  };
  CHECK(status(good, kVoxels) == MEDNEXT_OK);
  CHECK(status(good, kVoxels - 1) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_segment(model, nullptr, nullptr, labels.data(), kVoxels) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_segment(model, &good, nullptr, nullptr, kVoxels) == MEDNEXT_E_ARGUMENT);
  mednext_image image = good;
  image.voxels = nullptr;
  CHECK(status(image, kVoxels) == MEDNEXT_E_ARGUMENT);
  image = good, image.size = 3;
  CHECK(status(image, kVoxels) == MEDNEXT_E_ARGUMENT);
  image = good, image.dtype = static_cast<mednext_dtype>(6);
  CHECK(status(image, kVoxels) == MEDNEXT_E_ARGUMENT);
  image = good, image.channels = 2;
  CHECK(status(image, kVoxels) == MEDNEXT_E_DATA);
  for (const int64_t size : {int64_t{0}, int64_t{-1}, INT64_MAX, int64_t{1} << 20}) {
    image = good, image.shape[0] = image.shape[1] = image.shape[2] = size;
    CHECK(status(image, kVoxels) == MEDNEXT_E_DATA);
  }
  for (const double value : {0.0, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    image = good, image.affine[0] = value;
    CHECK(status(image, kVoxels) == MEDNEXT_E_DATA);
  }
  image = good, image.affine[15] = 2;
  CHECK(status(image, kVoxels) == MEDNEXT_E_DATA);
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF, -HUGE_VALF}) {
    std::vector<float> odd(voxels, voxels + kVoxels);
    odd[kVoxels / 2] = value;
    image = good, image.voxels = odd.data();
    CHECK(status(image, kVoxels) == MEDNEXT_E_DATA && std::strstr(mednext_last_error(), "1 voxels"));
  }
  mednext_segment_options odd_step = MEDNEXT_SEGMENT_OPTIONS_INIT;
  odd_step.step = 1.5;
  CHECK(mednext_segment(model, &good, &odd_step, labels.data(), kVoxels) == MEDNEXT_E_ARGUMENT);
  float one = 0;
  CHECK(mednext_classify(model, &good, nullptr, &one, 1) == MEDNEXT_E_ARGUMENT);
  char name[4];
  CHECK(mednext_label_name(model, -1, name, sizeof name) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_label_name(model, 0, name, 0) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_label_name(model, 0, name, sizeof name) == MEDNEXT_OK && std::strlen(name) == 3);
  CHECK(mednext_close(model) == MEDNEXT_OK);
  CHECK(mednext_close(model) == MEDNEXT_E_CLOSED && mednext_close(nullptr) == MEDNEXT_E_CLOSED);
  mednext_info info = MEDNEXT_INFO_INIT;
  CHECK(mednext_describe(model, &info) == MEDNEXT_E_CLOSED && mednext_cancel(model) == MEDNEXT_E_CLOSED);
  CHECK(status(good, kVoxels) == MEDNEXT_E_CLOSED);
}

void classes(const char* path, const mednext_image& image) {
  mednext_edge::Model model(path);
  const std::vector<float> expected = model.classify(image);
  float sum = 0;
  for (const float probability : expected) sum += probability;
  CHECK(expected.size() == model.labels().size() && std::fabs(sum - 1) < 1e-5f);
  std::vector<float> room(expected.size());
  std::vector<uint16_t> labels(kVoxels);
  mednext_stream* stream = nullptr;
  CHECK(mednext_classify(model.handle(), &image, nullptr, room.data(), room.size() + 1) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_classify(model.handle(), &image, nullptr, nullptr, room.size()) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_segment(model.handle(), &image, nullptr, labels.data(), kVoxels) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_open(model.handle(), &image, nullptr, &stream) == MEDNEXT_E_ARGUMENT && !stream);
  std::thread other([&] { CHECK(model.classify(image) == expected); });
  CHECK(model.classify(image) == expected);
  other.join();
}

void many_threads(const char* path, const mednext_image& image) {
  mednext_edge::Model model(path);
  const auto expected = model.segment(image);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      CHECK(model.segment(image) == expected);
      CHECK(model.describe().classes > 0);
    });
  threads.emplace_back([&] {
    mednext_edge::Model other(path, "", 1);
    CHECK(other.segment(image) == expected);
  });
  for (std::thread& thread : threads) thread.join();
}

void cancel_and_close(const char* path, const mednext_image& image) {
  for (const bool close : {false, true}) {
    mednext_model* model = nullptr;
    CHECK(mednext_open(path, nullptr, &model) == MEDNEXT_OK);
    std::atomic<bool> begun{false};
    mednext_segment_options options = MEDNEXT_SEGMENT_OPTIONS_INIT;
    options.mirror = 1;
    options.user = &begun;
    options.progress = [](int64_t, int64_t, void* user) {
      *static_cast<std::atomic<bool>*>(user) = true;
      std::this_thread::yield();
      return 0;
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i)
      threads.emplace_back([&] {
        std::vector<uint16_t> labels(kVoxels);
        const mednext_status status = mednext_segment(model, &image, &options, labels.data(), kVoxels);
        CHECK(status == MEDNEXT_OK || status == MEDNEXT_E_CANCELLED || (close && status == MEDNEXT_E_CLOSED));
      });
    while (!begun) std::this_thread::yield();
    CHECK((close ? mednext_close(model) : mednext_cancel(model)) == MEDNEXT_OK);
    for (std::thread& thread : threads) thread.join();
    if (close) continue;
    std::vector<uint16_t> labels(kVoxels);
    CHECK(mednext_segment(model, &image, nullptr, labels.data(), kVoxels) == MEDNEXT_OK);
    CHECK(mednext_close(model) == MEDNEXT_OK);
  }
}

// A callback that closes, cancels and describes its own handle; only computing on it is refused.
void callbacks(const char* path, const mednext_image& image) {
  static mednext_model* model;
  CHECK(mednext_open(path, nullptr, &model) == MEDNEXT_OK);
  mednext_segment_options options = MEDNEXT_SEGMENT_OPTIONS_INIT;
  options.user = const_cast<mednext_image*>(&image);
  options.progress = [](int64_t, int64_t, void* user) {
    std::vector<uint16_t> labels(kVoxels);
    mednext_info info = MEDNEXT_INFO_INIT;
    const auto* own = static_cast<mednext_image*>(user);
    CHECK(mednext_segment(model, own, nullptr, labels.data(), kVoxels) == MEDNEXT_E_ARGUMENT);
    CHECK(mednext_describe(model, &info) == MEDNEXT_OK && mednext_close(model) == MEDNEXT_OK);
    return 0;
  };
  std::vector<uint16_t> labels(kVoxels);
  CHECK(mednext_segment(model, &image, &options, labels.data(), kVoxels) == MEDNEXT_E_CANCELLED);
}

void streams(const char* path, const mednext_image& image, const float* voxels) {
  mednext_edge::Model model(path);
  const auto expected = model.segment(image);
  constexpr int64_t kSlice = kY * kX;
  mednext_edge::Stream forward(model, image), backward(model, image);
  std::thread pushing([&] {
    for (int64_t z = kZ - 1; z >= 0; --z) backward.push(z, 1, voxels + z * kSlice);
  });
  for (int64_t z = 0; z < kZ; z += 3) {
    forward.push(z, 3, voxels + z * kSlice);
    CHECK(forward.describe().slices == z + 3);
  }
  CHECK(forward.finish() == expected);
  pushing.join();
  size_t different = 0;  // sums in another order may round a tie the other way
  const auto labels = backward.finish();
  for (size_t i = 0; i < kVoxels; ++i) different += labels[i] != expected[i];
  CHECK(different * 10000 <= kVoxels);

  mednext_stream* stream = nullptr;
  CHECK(mednext_stream_open(model.handle(), &image, nullptr, &stream) == MEDNEXT_OK);
  std::vector<uint16_t> room(kVoxels);
  CHECK(mednext_stream_push(stream, kZ - 1, 2, voxels) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_push(stream, -1, 1, voxels) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_push(stream, 0, INT64_MAX, voxels) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_push(stream, 0, 1, nullptr) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_push(stream, 0, kZ - 1, voxels) == MEDNEXT_OK);
  CHECK(mednext_stream_push(stream, 0, 1, voxels) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_finish(stream, room.data(), kVoxels) == MEDNEXT_E_DATA);
  std::vector<float> odd(kSlice, std::numeric_limits<float>::quiet_NaN());
  CHECK(mednext_stream_push(stream, kZ - 1, 1, odd.data()) == MEDNEXT_E_DATA);
  CHECK(mednext_stream_push(stream, kZ - 1, 1, voxels + (kZ - 1) * kSlice) == MEDNEXT_OK);
  CHECK(mednext_stream_finish(stream, room.data(), kVoxels - 1) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_finish(stream, room.data(), kVoxels) == MEDNEXT_OK && room == expected);
  CHECK(mednext_stream_finish(stream, room.data(), kVoxels) == MEDNEXT_E_ARGUMENT);
  CHECK(mednext_stream_close(stream) == MEDNEXT_OK && mednext_stream_close(stream) == MEDNEXT_E_CLOSED);

  // A callback may close its own stream, and not finish it.
  static mednext_stream* own;
  static std::atomic<bool> called;
  called = false;
  mednext_segment_options options = MEDNEXT_SEGMENT_OPTIONS_INIT;
  options.progress = [](int64_t, int64_t, void*) {
    std::vector<uint16_t> labels(kVoxels);
    if (mednext_stream_finish(own, labels.data(), kVoxels) == MEDNEXT_E_ARGUMENT) mednext_stream_close(own);
    called = true;
    return 0;
  };
  mednext_stream_info info = MEDNEXT_STREAM_INFO_INIT;
  CHECK(mednext_stream_open(model.handle(), &image, &options, &own) == MEDNEXT_OK);
  CHECK(mednext_stream_describe(own, &info) == MEDNEXT_OK);
  CHECK(mednext_stream_push(own, 0, kZ, voxels) == MEDNEXT_OK);
  while (!info.reason[0] && !called) std::this_thread::yield();
  CHECK(mednext_stream_close(own) == (info.reason[0] ? MEDNEXT_OK : MEDNEXT_E_CLOSED));

  // Left in the middle, by its owner or because the model went.
  for (const bool whole : {false, true}) {
    mednext_model* short_lived = nullptr;
    CHECK(mednext_open(path, nullptr, &short_lived) == MEDNEXT_OK);
    CHECK(mednext_stream_open(short_lived, &image, nullptr, &stream) == MEDNEXT_OK);
    CHECK(mednext_stream_push(stream, 0, kZ - 2, voxels) == MEDNEXT_OK);
    if (whole) {
      CHECK(mednext_close(short_lived) == MEDNEXT_OK);
      CHECK(mednext_stream_push(stream, kZ - 2, 2, voxels) == MEDNEXT_E_CANCELLED);
      CHECK(mednext_stream_finish(stream, room.data(), kVoxels) == MEDNEXT_E_CANCELLED);
    }
    CHECK(mednext_stream_close(stream) == MEDNEXT_OK);
    if (!whole) CHECK(mednext_close(short_lived) == MEDNEXT_OK);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::vector<float> voxels = make_voxels();
  const mednext_image image = image_of(voxels.data());
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 1;
  if (mednext_edge::Model(argv[1]).describe().kind == MEDNEXT_CLASSIFICATION) {
    classes(argv[1], image);
    return 0;
  }
  for (int round = 0; round < rounds; ++round) {
    one_thread(argv[1], image);
    bad_arguments(argv[1], image, voxels.data());
    many_threads(argv[1], image);
    cancel_and_close(argv[1], image);
    callbacks(argv[1], image);
    streams(argv[1], image, voxels.data());
  }
  return 0;
}
