// Our own engine, which libmednext_cpu computes: the twin of mednext_edge/runtime/native_file.py.
#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "engine.h"
#include "error.h"
#include "library.h"
#include "native_c.h"
#include "safetensors.h"
#include "volume.h"

namespace mednext {
namespace native {
namespace {

constexpr size_t kMaxBlocks = 1000;

Functions load_functions() {
  const Library library = Library::find({"The native engine", "MEDNEXT_CPU_LIBRARY", "libmednext_cpu.so",
                                         {"mednext_edge/lib"}, "It is installed beside this library"});
  Functions cpu;
#define X(name) library.load(cpu.name, #name);
  MEDNEXT_NATIVE_FUNCTIONS(X)
#undef X
  return cpu;
}

const Functions& functions() {
  static const Functions cpu = load_functions();  // tried again by the next call where it throws
  return cpu;
}

// As the file says, INT8 where it says nothing.
int32_t precision_of(const Field& net) {
  const std::unique_ptr<Field> given = net.find("precision");
  if (!given) return MEDNEXT_CPU_INT8;
  if (given->text() == "fp32") return MEDNEXT_CPU_FP32;
  if (given->text() == "bf16") return MEDNEXT_CPU_BF16;
  given->wrong("fp32 or bf16, or none for INT8");
}

int32_t form_of(const Field& field) {
  const std::string& name = field.text();
  if (name == "same") return MEDNEXT_CPU_SAME;
  if (name == "down") return MEDNEXT_CPU_DOWN;
  if (name == "up") return MEDNEXT_CPU_UP;
  field.wrong("same, down or up");
}

class Native : public Engine {
 public:
  Native(const std::filesystem::path& folder, const Manifest& manifest, const EngineOptions& options)
      : cpu_(functions()), size_(manifest.patch), threads_(options.threads) {
    if (!options.device.empty() && options.device != "CPU")
      fail(MEDNEXT_E_BACKEND, "found the device ", options.device, "; the native engine runs on the CPU alone");
    if (threads_ == 0) threads_ = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    const std::filesystem::path file = folder / std::filesystem::u8path(manifest.engine.file);
    try {
      read(Safetensors(file), manifest);
    } catch (const std::invalid_argument& error) {
      fail(MEDNEXT_E_BACKEND, file.u8string(), " holds no network of the native engine (", error.what(),
           "); export it again");
    }
    input_.resize(static_cast<size_t>(manifest.channels * voxels(size_)));
    output_.resize(static_cast<size_t>(manifest.logits()));
  }

  float* input() override { return input_.data(); }

  const float* run() override {
    const int32_t code = cpu_.mednext_cpu_net_run(net_.get(), size_[0], size_[1], size_[2], input_.data(), output_.data(),
                                                  threads_);
    if (code != MEDNEXT_CPU_OK)
      fail(MEDNEXT_E_ENGINE, "the native engine failed to run a patch: ",
           code == MEDNEXT_CPU_NO_MEMORY ? "there is not enough memory" : "its network does not take this size");
    return output_.data();
  }

  std::string provider() const override {
    return std::string("mednext-edge " MEDNEXT_EDGE_VERSION " (") + cpu_.mednext_cpu_isa() + ")";
  }

 private:
  void read(const Safetensors& file, const Manifest& manifest) {
    const Json described = Json::parse(file.metadata("net"));
    const Field net(described, "net");
    net["version"].integer(1, 1);
    const std::vector<Field> blocks = net["blocks"].list(kMaxBlocks);
    const auto width = [&](const std::string& name) {
      const Safetensors::Dimensions& shape = file.shape(name);
      return shape.empty() ? 0 : shape[0];
    };
    const int64_t channels = width("stem.bias");
    const auto dense = [&](const std::string& name, int64_t c_in, int64_t c_out) {
      return mednext_cpu_dense{c_in, c_out, file.floats(name + ".weight", {c_out, c_in}),
                               file.floats(name + ".bias", {c_out})};
    };
    const mednext_cpu_dense stem = dense("stem", manifest.channels, channels);
    const mednext_cpu_dense head = dense("head", channels, manifest.outputs);
    const int32_t precision = precision_of(net);
    mednext_cpu_net* made = nullptr;
    check(cpu_.mednext_cpu_net_new(&stem, &head, precision, &made), "stem and head");
    net_ = Net(made, cpu_.mednext_cpu_net_free);
    for (size_t i = 0; i < blocks.size(); ++i) {
      const std::string name = "blocks." + std::to_string(i);
      const int32_t code = precision == MEDNEXT_CPU_INT8
                               ? add(file, blocks[i], name, manifest)
                               : add_float(file, blocks[i], name, manifest, precision == MEDNEXT_CPU_BF16);
      check(code, name);
    }
    file.all_taken();
  }

  // What blocks of any arithmetic have; returns the shape of the depthwise kernel.
  template <class Block>
  static Safetensors::Dimensions describe(const Safetensors& file, const Field& field, const std::string& name,
                                          const Manifest& manifest, Block& block) {
    block.form = form_of(field["form"]);
    block.residual = field["residual"].flag();
    block.eps = static_cast<float>(field["eps"].number());
    const Safetensors::Dimensions& kernel = file.shape(name + ".depthwise");
    const auto axes = static_cast<size_t>(manifest.spatial_dims);
    if (kernel.size() != axes + 1) throw std::invalid_argument(name + " is of another number of axes");
    const auto other = [&](int64_t side) { return side != kernel[1]; };
    if (kernel[1] > std::numeric_limits<int32_t>::max() || std::any_of(kernel.begin() + 1, kernel.end(), other))
      throw std::invalid_argument(name + " has a kernel of unequal sides");
    block.kernel = static_cast<int32_t>(kernel[1]);
    block.depth = axes == 3 ? block.kernel : 1;
    block.c_in = kernel[0];
    const auto width = [&](const char* bias) {
      const Safetensors::Dimensions& shape = file.shape(name + bias);
      return shape.empty() ? 0 : shape[0];
    };
    block.hidden = width(".expand.bias");
    block.c_out = width(".compress.bias");
    return kernel;
  }

  int32_t add(const Safetensors& file, const Field& field, const std::string& name, const Manifest& manifest) {
    mednext_cpu_block block{};
    const Safetensors::Dimensions kernel = describe(file, field, name, manifest, block);
    block.in_step = static_cast<float>(field["in_step"].number());
    block.norm_step = static_cast<float>(field["norm_step"].number());
    const int64_t parities = block.form == MEDNEXT_CPU_UP ? int64_t{1} << manifest.spatial_dims : 1;
    block.depthwise = file.int8(name + ".depthwise", kernel);
    block.depthwise_scale = file.floats(name + ".depthwise_scale", {parities, block.c_in});
    block.table = file.uint8(name + ".table", {256});
    const auto dense = [&](const char* part, int64_t c_in, int64_t c_out, const int8_t*& weight, const float*& scale,
                           const float*& bias) {
      const std::string whole = name + "." + part;
      weight = file.int8(whole + ".weight", {c_out, c_in});
      scale = file.floats(whole + ".scale", {c_out});
      bias = file.floats(whole + ".bias", {c_out});
    };
    dense("expand", block.c_in, block.hidden, block.expand, block.expand_scale, block.expand_bias);
    dense("compress", block.hidden, block.c_out, block.compress, block.compress_scale, block.compress_bias);
    if (block.form != MEDNEXT_CPU_SAME && block.residual)
      dense("shortcut", block.c_in, block.c_out, block.shortcut, block.shortcut_scale, block.shortcut_bias);
    return cpu_.mednext_cpu_net_add(net_.get(), &block);
  }

  int32_t add_float(const Safetensors& file, const Field& field, const std::string& name, const Manifest& manifest,
                    bool bf16) {
    mednext_cpu_float_block block{};
    block.depthwise = file.floats(name + ".depthwise", describe(file, field, name, manifest, block));
    std::vector<float> wide[3];  // weights that are stored in bfloat16
    const auto dense = [&](const char* part, int64_t c_in, int64_t c_out, std::vector<float>& room,
                           const float*& weight, const float*& bias) {
      const std::string whole = name + "." + part;
      if (bf16) room = file.bf16(whole + ".weight", {c_out, c_in});
      weight = bf16 ? room.data() : file.floats(whole + ".weight", {c_out, c_in});
      bias = file.floats(whole + ".bias", {c_out});
    };
    dense("expand", block.c_in, block.hidden, wide[0], block.expand, block.expand_bias);
    dense("compress", block.hidden, block.c_out, wide[1], block.compress, block.compress_bias);
    if (block.form != MEDNEXT_CPU_SAME && block.residual)
      dense("shortcut", block.c_in, block.c_out, wide[2], block.shortcut, block.shortcut_bias);
    return cpu_.mednext_cpu_net_add_float(net_.get(), &block);
  }

  static void check(int32_t code, const std::string& name) {
    if (code == MEDNEXT_CPU_NO_MEMORY) fail(MEDNEXT_E_BACKEND, "there is not enough memory for the native engine");
    if (code != MEDNEXT_CPU_OK) throw std::invalid_argument(name + " does not fit to what is before it");
  }

  using Net = std::unique_ptr<mednext_cpu_net, void (*)(mednext_cpu_net*)>;

  const Functions& cpu_;
  Shape size_;
  int threads_;
  Net net_{nullptr, nullptr};
  std::vector<float> input_, output_;
};

}  // namespace
}  // namespace native

std::unique_ptr<Engine> open_native(const std::filesystem::path& folder, const Manifest& manifest,
                                    const EngineOptions& options) {
  return std::make_unique<native::Native>(folder, manifest, options);
}

}  // namespace mednext
