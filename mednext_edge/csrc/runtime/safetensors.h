// Files of safetensors, which come from strangers: a length, a JSON header, and the tensors' bytes. Nothing in them is
// executed, and every size is checked before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "json.h"

namespace mednext {

class Safetensors {
 public:
  using Dimensions = std::vector<int64_t>;

  // Reads the whole file. Throws std::invalid_argument that says what is wrong with it.
  explicit Safetensors(const std::filesystem::path& file);

  // An entry of the metadata. Throws std::invalid_argument where there is none.
  const std::string& metadata(const std::string& key) const;
  bool has(const std::string& name) const { return entries_.count(name) != 0; }
  const Dimensions& shape(const std::string& name) const { return entry(name).shape; }

  // A tensor of that type and shape. Throws std::invalid_argument for another, or none, and for floats that are not finite.
  const float* floats(const std::string& name, const Dimensions& shape) const;
  std::vector<float> bf16(const std::string& name, const Dimensions& shape) const;  // widened
  const int8_t* int8(const std::string& name, const Dimensions& shape) const;
  const uint8_t* uint8(const std::string& name, const Dimensions& shape) const;
  // Throws std::invalid_argument if there is a tensor that none of these has given.
  void all_taken() const;

 private:
  struct Entry {
    std::string type;
    Dimensions shape;
    size_t begin, bytes;
    mutable bool taken = false;
  };
  const Entry& entry(const std::string& name) const;
  const char* data(const std::string& name, const char* type, const Dimensions& shape) const;

  std::vector<char> bytes_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace mednext
