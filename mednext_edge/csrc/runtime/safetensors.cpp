#include "safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string_view>

namespace mednext {
namespace {

constexpr size_t kMaxTensors = 20000, kMaxAxes = 8;
constexpr const char* kMetadata = "__metadata__";

size_t size_of(const std::string& type) {
  if (type == "F32") return 4;
  if (type == "BF16") return 2;
  if (type == "I8" || type == "U8") return 1;
  return 0;  // none that is read here
}

[[noreturn]] void wrong(const std::string& what) { throw std::invalid_argument(what); }

void check_finite(const std::string& name, const float* begin, const float* end) {
  if (!std::all_of(begin, end, [](float x) { return std::isfinite(x); }))
    wrong(name + " holds numbers that are not finite");
}

std::string text(const Safetensors::Dimensions& shape) {
  std::string result = "[";
  for (const int64_t n : shape) result += (result.size() > 1 ? ", " : "") + std::to_string(n);
  return result + "]";
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  const std::streamoff length = stream ? static_cast<std::streamoff>(stream.tellg()) : -1;
  if (length < 8) wrong("it cannot be read, or is shorter than a header");
  bytes_.resize(static_cast<size_t>(length));
  stream.seekg(0);
  if (!stream.read(bytes_.data(), length)) wrong("it cannot be read");
  uint64_t header = 0;
  for (int i = 7; i >= 0; --i) header = header << 8 | static_cast<unsigned char>(bytes_[static_cast<size_t>(i)]);
  const size_t rest = bytes_.size() - 8;
  if (header > rest || header > Json::kMaxText) wrong("its header is longer than the file, or than 4 MiB");
  const size_t start = 8 + static_cast<size_t>(header), room = bytes_.size() - start;
  const Json root = Json::parse(std::string_view(bytes_.data() + 8, static_cast<size_t>(header)));
  if (root.kind != Json::Kind::object || root.object.size() > kMaxTensors) wrong("its header is no object of tensors");
  for (const auto& [name, value] : root.object) {
    const Field field(value, name);
    if (name == kMetadata) {
      for (const auto& [key, given] : value.object) metadata_[key] = Field(given, key).text();
      continue;
    }
    Entry entry{field["dtype"].text(), {}, 0, 0, false};
    size_t bytes = size_of(entry.type);
    for (const Field& side : field["shape"].list(kMaxAxes)) {
      entry.shape.push_back(side.integer(0, std::numeric_limits<int32_t>::max()));
      const auto n = static_cast<size_t>(entry.shape.back());
      if (n && bytes > room / n) wrong(name + " is larger than the file");
      bytes *= n;
    }
    const std::vector<Field> offsets = field["data_offsets"].list(2);
    if (offsets.size() != 2) wrong(name + " has no begin and end");
    const auto most = static_cast<int64_t>(room);
    const int64_t begin = offsets[0].integer(0, most), end = offsets[1].integer(begin, most);
    entry.begin = start + static_cast<size_t>(begin);
    entry.bytes = static_cast<size_t>(end - begin);
    if (size_of(entry.type) && (entry.bytes != bytes || entry.begin % size_of(entry.type)))
      wrong(name + " does not lie where its type and shape would have it");
    entries_.emplace(name, std::move(entry));
  }
}

const std::string& Safetensors::metadata(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) wrong("it has no metadata " + key);
  return found->second;
}

const Safetensors::Entry& Safetensors::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) wrong("it has no tensor " + name);
  return found->second;
}

const char* Safetensors::data(const std::string& name, const char* type, const Dimensions& shape) const {
  const Entry& found = entry(name);
  if (found.type != type || found.shape != shape)
    wrong(name + " is " + found.type + " " + text(found.shape) + "; expected " + type + " " + text(shape));
  found.taken = true;
  return bytes_.data() + found.begin;
}

const float* Safetensors::floats(const std::string& name, const Dimensions& shape) const {
  const auto* const first = reinterpret_cast<const float*>(data(name, "F32", shape));
  check_finite(name, first, first + entry(name).bytes / sizeof(float));
  return first;
}
std::vector<float> Safetensors::bf16(const std::string& name, const Dimensions& shape) const {
  const char* const from = data(name, "BF16", shape);
  std::vector<float> wide(entry(name).bytes / 2);
  for (size_t i = 0; i < wide.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, from + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(&wide[i], &bits, 4);
  }
  check_finite(name, wide.data(), wide.data() + wide.size());
  return wide;
}
const int8_t* Safetensors::int8(const std::string& name, const Dimensions& shape) const {
  return reinterpret_cast<const int8_t*>(data(name, "I8", shape));
}
const uint8_t* Safetensors::uint8(const std::string& name, const Dimensions& shape) const {
  return reinterpret_cast<const uint8_t*>(data(name, "U8", shape));
}

void Safetensors::all_taken() const {
  for (const auto& [name, found] : entries_)
    if (!found.taken) wrong("its structure does not use the tensor " + name);
}

}  // namespace mednext
