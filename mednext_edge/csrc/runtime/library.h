// Shared libraries that are found and loaded at run time, so that one build serves every version installed later.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace mednext {

class Library {
 public:
  // What to look for, and what to say when it is not there.
  struct Wanted {
    const char* title;     // for messages, such as OpenVINO
    const char* variable;  // environment variable with the file, or the folder it is in
    std::string stem;      // file name up to its version, such as libopenvino_c.so
    std::vector<std::filesystem::path> beside;  // folders relative to the one above this library's own
    const char* advice;
  };

  // The first that loads: named by the variable (and then no other), beside this library, in the system's places. It
  // stays loaded until the process ends, since engines leave threads behind. Throws Error(BACKEND).
  static Library find(const Wanted& wanted);

  const std::filesystem::path& path() const { return path_; }

  // Throws Error(BACKEND) for a name that the library does not have.
  template <class Function>
  void load(Function*& function, const char* name) const {
    function = reinterpret_cast<Function*>(symbol(name));
  }

 private:
  Library(void* handle, std::filesystem::path path) : handle_(handle), path_(std::move(path)) {}
  void* symbol(const char* name) const;
  void* handle_;
  std::filesystem::path path_;
};

}  // namespace mednext
