// Errors inside the library; `api.cpp` turns them into a status and a message.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "mednext_edge.h"

namespace mednext {

struct Error : std::runtime_error {
  Error(mednext_status code, const std::string& message) : std::runtime_error(message), status(code) {}
  mednext_status status;
};

// Throws an Error whose message is the parts, one after the other.
template <class... Parts>
[[noreturn]] void fail(mednext_status status, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(status, message.str());
}

}  // namespace mednext
