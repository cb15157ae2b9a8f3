// What `manifest.json` says, as far as a device needs it: the twin of mednext_edge/bundle/manifest.py and task.py.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mednext {

using Shape = std::array<int64_t, 3>;  // (z, y, x)

enum class Scheme { zscore, ct, rescale, none };
// How a network takes photographs: red, green and blue, these the other way round, or their luminance.
enum class Colour { rgb, bgr, grey };

struct Normalization {
  Scheme scheme = Scheme::zscore;
  bool masked = false;
  double mean = 0, sd = 1, lower = 0, upper = 0;
};

struct Preprocessing {
  std::optional<Colour> colour;  // none takes the channels as they are
  std::optional<std::string> orientation;  // axis codes of (x, y, z), such as RAS
  std::array<int, 3> transpose{0, 1, 2};
  bool crop_nonzero = true;
  std::vector<Normalization> normalization;  // one a channel
  bool normalize_after_resampling = false;
  std::vector<double> spacing;  // mm, of the last axes; empty keeps the image's own
  std::vector<int64_t> size;    // (y, x) that every slice is stretched to, in place of a spacing; empty for none
  int image_order = 3;
  double anisotropy_threshold = 3;
};

// What a region leaves in a label map: `value` where the logit of channel `output` is above 0.
struct Paint {
  int64_t output;
  uint16_t value;
};

struct Manifest {
  std::string name, target, precision, created;
  int spatial_dims = 3;
  int64_t channels = 1;
  bool classifies = false;          // whole images; or else every voxel
  int64_t outputs = 1;              // channels of the logits; one alone is that of class 1, class 0 being 0
  std::vector<std::string> labels;  // by value
  std::vector<Paint> paints;        // of regions, one over the other; empty for classes
  Preprocessing preprocessing;
  Shape patch{};  // z is 1 for a 2-D network
  double step = 0.5;
  std::vector<int> mirror_axes;  // of (z, y, x)
  bool average_logits = false;   // or else their softmax

  struct Plan {
    std::string arch, file;
  };
  struct Engine {
    std::string file, provider, provider_version, arch;
    bool deferred = false;
    std::vector<Plan> plans;
  } engine;

  struct File {
    std::string path, sha256;
    uint64_t size;
  };
  std::vector<File> files;

  int64_t classes() const { return static_cast<int64_t>(labels.size()); }
  // Channels that decide on a voxel: one a region, or one a class.
  int64_t score_channels() const { return paints.empty() ? classes() : outputs; }
  // How many values the engine answers a patch with.
  int64_t logits() const { return classifies ? outputs : outputs * patch[0] * patch[1] * patch[2]; }
  // Throws Error(INTEGRITY) that names the field, for anything but a manifest that Python would accept.
  static Manifest parse(std::string_view json);
};

// Whether a path can only mean a file below the bundle, on every system.
bool is_inside(std::string_view path);

}  // namespace mednext
