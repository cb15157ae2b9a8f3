#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <stdexcept>

namespace mednext {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = parse_value(0);
    skip_space();
    if (at_ != text_.size()) wrong("nothing after the document");
    return value;
  }

 private:
  [[noreturn]] void wrong(const std::string& expected) const {
    throw std::invalid_argument("byte " + std::to_string(at_) + ": expected " + expected);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  bool take(char c) {
    skip_space();
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void expect_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) wrong("a value");
    at_ += word.size();
  }

  Json parse_value(int depth) {
    if (depth > Json::kMaxDepth) wrong("at most " + std::to_string(Json::kMaxDepth) + " levels");
    if (++values_ > Json::kMaxValues) wrong("at most " + std::to_string(Json::kMaxValues) + " values");
    skip_space();
    Json value;
    switch (peek()) {
      case '{': parse_object(value, depth); break;
      case '[': parse_array(value, depth); break;
      case '"':
        value.kind = Json::Kind::string;
        value.string = parse_string();
        break;
      case 't':
      case 'f':
        value.kind = Json::Kind::boolean;
        value.boolean = peek() == 't';
        expect_word(value.boolean ? "true" : "false");
        break;
      case 'n': expect_word("null"); break;
      default: parse_number(value);
    }
    return value;
  }

  void parse_object(Json& value, int depth) {
    value.kind = Json::Kind::object;
    ++at_;
    if (take('}')) return;
    std::set<std::string> seen;
    do {
      skip_space();
      if (peek() != '"') wrong("a key");
      std::string key = parse_string();
      if (!seen.insert(key).second) wrong("each key once, found \"" + key + "\" again");
      if (!take(':')) wrong("a colon");
      value.object.emplace_back(std::move(key), parse_value(depth + 1));
    } while (take(','));
    if (!take('}')) wrong("a comma or }");
  }

  void parse_array(Json& value, int depth) {
    value.kind = Json::Kind::array;
    ++at_;
    if (take(']')) return;
    do {
      value.array.push_back(parse_value(depth + 1));
    } while (take(','));
    if (!take(']')) wrong("a comma or ]");
  }

  void parse_number(Json& value) {
    const size_t start = at_;
    const auto digits = [&] {
      const size_t first = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      if (at_ == first) wrong("a value");
      return at_ - first;
    };
    if (peek() == '-') ++at_;
    const bool zero = peek() == '0';
    if (digits() > 1 && zero) wrong("no leading zero");
    value.integral = true;
    if (peek() == '.') {
      value.integral = false;
      ++at_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      value.integral = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const char *first = text_.data() + start, *last = text_.data() + at_;
    value.kind = Json::Kind::number;
    // Unlike strtod, from_chars does not ask the locale for the decimal point.
    if (std::from_chars(first, last, value.number).ec != std::errc()) wrong("a number that a double can hold");
    if (value.integral) value.integral = std::from_chars(first, last, value.integer).ec == std::errc();
  }

  unsigned parse_hex4() {
    unsigned code = 0;
    const std::string_view four = text_.substr(at_, 4);
    const auto done = std::from_chars(four.data(), four.data() + four.size(), code, 16);
    if (four.size() != 4 || done.ec != std::errc() || done.ptr != four.data() + 4) wrong("four hex digits");
    at_ += 4;
    return code;
  }

  static void append_utf8(std::string& out, unsigned code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
      return;
    }
    static constexpr unsigned kLead[] = {0, 0xC0, 0xE0, 0xF0};
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    out += static_cast<char>(kLead[more] | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80u | (code >> (6 * i) & 0x3Fu));
  }

  void append_escape(std::string& out) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    const char c = peek();
    ++at_;
    if (const size_t i = kFrom.find(c); i != std::string_view::npos) {
      out += kTo[i];
      return;
    }
    if (c != 'u') wrong("an escape");
    unsigned code = parse_hex4();
    if (code >= 0xD800 && code < 0xDC00) {
      if (text_.substr(at_, 2) != "\\u") wrong("the second half of a surrogate pair");
      at_ += 2;
      const unsigned low = parse_hex4();
      if (low < 0xDC00 || low > 0xDFFF) wrong("the second half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
      wrong("a surrogate pair that begins with its first half");
    }
    append_utf8(out, code);
  }

  // One character of two to four bytes; shortest form only, no surrogates (RFC 3629).
  void append_multibyte(std::string& out) {
    const auto byte = [&](size_t i) { return i < text_.size() ? static_cast<unsigned char>(text_[i]) : 0u; };
    const unsigned lead = byte(at_);
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    static constexpr unsigned kSmallest[] = {0, 0x80, 0x800, 0x10000};
    unsigned code = lead & (0x3Fu >> more);
    for (int i = 1; i <= more; ++i) {
      if ((byte(at_ + i) & 0xC0u) != 0x80u) wrong("UTF-8");
      code = code << 6 | (byte(at_ + i) & 0x3Fu);
    }
    if (lead < 0xC2 || lead > 0xF4 || code < kSmallest[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      wrong("UTF-8");
    out.append(text_.substr(at_, more + 1));
    at_ += more + 1;
  }

  std::string parse_string() {
    std::string out;
    ++at_;
    for (;;) {
      if (at_ >= text_.size()) wrong("the end of a string");
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') break;
      if (c < 0x20) wrong("no control character in a string");
      if (c == '\\') {
        ++at_;
        append_escape(out);
      } else if (c < 0x80) {
        out += static_cast<char>(c);
        ++at_;
      } else {
        append_multibyte(out);
      }
    }
    ++at_;
    return out;
  }

  std::string_view text_;
  size_t at_ = 0;
  size_t values_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text) {
  if (text.size() > kMaxText)
    throw std::invalid_argument("found " + std::to_string(text.size()) + " bytes; expected at most " +
                                std::to_string(kMaxText));
  return Parser(text).document();
}

void Field::wrong(const std::string& expected) const {
  throw std::invalid_argument((place_.empty() ? "manifest" : place_) + ": expected " + expected);
}

const Json& Field::checked(Json::Kind kind, const char* name) const {
  if (value_->kind != kind) wrong(name);
  return *value_;
}

const std::string& Field::text() const { return checked(Json::Kind::string, "a string").string; }

bool Field::flag() const { return checked(Json::Kind::boolean, "true or false").boolean; }

int64_t Field::integer(int64_t lowest, int64_t highest) const {
  if (value_->kind != Json::Kind::number || !value_->integral || value_->integer < lowest || value_->integer > highest)
    wrong("a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return value_->integer;
}

double Field::number(bool infinite) const {
  if (infinite && value_->kind == Json::Kind::string) {
    if (value_->string == "Infinity") return HUGE_VAL;
    if (value_->string == "-Infinity") return -HUGE_VAL;
  }
  return checked(Json::Kind::number, "a number").number;
}

std::vector<Field> Field::list(size_t longest) const {
  const Json& value = checked(Json::Kind::array, "a list");
  if (value.array.size() > longest) wrong("a list of at most " + std::to_string(longest));
  std::vector<Field> fields;
  for (size_t i = 0; i < value.array.size(); ++i) fields.emplace_back(value.array[i], place_ + "." + std::to_string(i));
  return fields;
}

std::unique_ptr<Field> Field::find(const char* key) const {
  for (const auto& [name, value] : checked(Json::Kind::object, "an object").object)
    if (name == key) return std::make_unique<Field>(value, place_.empty() ? name : place_ + "." + name);
  return nullptr;
}

Field Field::operator[](const char* key) const {
  const auto field = find(key);
  if (!field) wrong(std::string("a field `") + key + "`");
  return *field;
}

void Field::only(std::initializer_list<const char*> keys) const {
  for (const auto& [name, value] : checked(Json::Kind::object, "an object").object)
    if (std::find(keys.begin(), keys.end(), name) == keys.end()) wrong("no field `" + name + "`");
}

}  // namespace mednext
