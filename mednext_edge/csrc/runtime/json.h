// A strict JSON reader (RFC 8259) for manifests, which come from strangers: bounded text, depth and number of values,
// UTF-8 checked, no key twice, nothing after the end.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mednext {

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };
  static constexpr size_t kMaxText = size_t{4} << 20;
  static constexpr int kMaxDepth = 32;
  static constexpr size_t kMaxValues = 200000;

  // Throws std::invalid_argument that says what is wrong, and at which byte.
  static Json parse(std::string_view text);

  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;
  bool integral = false;  // written without fraction and exponent, and within int64
  int64_t integer = 0;
  std::string string;
  std::vector<Json> array;
  std::vector<std::pair<std::string, Json>> object;
};

// One JSON value with its place in the document, read by what is expected of it. Every reader throws
// std::invalid_argument that names the place.
class Field {
 public:
  Field(const Json& value, std::string place) : value_(&value), place_(std::move(place)) {}

  const Json& value() const { return *value_; }
  const std::string& place() const { return place_; }
  bool is_null() const { return value_->kind == Json::Kind::null; }

  const std::string& text() const;
  bool flag() const;
  int64_t integer(int64_t lowest, int64_t highest) const;
  // A finite number; `infinite` also takes "Infinity" and "-Infinity", as pydantic writes them.
  double number(bool infinite = false) const;
  std::vector<Field> list(size_t longest) const;
  Field operator[](const char* key) const;
  // The member, or nothing where it is missing.
  std::unique_ptr<Field> find(const char* key) const;
  // Refuses members that are not named: a later recipe must not be half understood.
  void only(std::initializer_list<const char*> keys) const;

  [[noreturn]] void wrong(const std::string& expected) const;

 private:
  const Json& checked(Json::Kind kind, const char* name) const;
  const Json* value_;
  std::string place_;
};

}  // namespace mednext
