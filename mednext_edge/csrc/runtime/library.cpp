#include "library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "error.h"

namespace fs = std::filesystem;

namespace mednext {
namespace {

// Folder above that of the library this code is in: site-packages/mednext_edge of a wheel.
fs::path own_prefix() {
  Dl_info info{};
  static const char here = 0;
  if (!dladdr(&here, &info) || !info.dli_fname) return {};
  std::error_code none;
  const fs::path file = fs::canonical(info.dli_fname, none);
  return none ? fs::path() : file.parent_path().parent_path();
}

std::vector<fs::path> system_folders() {
  std::vector<fs::path> folders;
  if (const char* listed = std::getenv("LD_LIBRARY_PATH")) {
    std::string rest = listed;
    for (size_t start = 0; start <= rest.size();) {
      const size_t end = std::min(rest.find(':', start), rest.size());
      if (end > start) folders.emplace_back(rest.substr(start, end - start));
      start = end + 1;
    }
  }
  for (const char* folder : {"/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
                             "/usr/lib", "/opt/intel/openvino/runtime/lib/intel64"})
    folders.emplace_back(folder);
  return folders;
}

// Files of a folder whose name is the stem, or the stem and a version, the newest version first.
std::vector<fs::path> matches(const fs::path& folder, const std::string& stem) {
  std::vector<fs::path> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    const std::string name = entry.path().filename().string();
    const bool version = name.size() > stem.size() + 1 && name[stem.size()] == '.' &&
                         std::isdigit(static_cast<unsigned char>(name[stem.size() + 1]));
    if (name.compare(0, stem.size(), stem) == 0 && (name == stem || version)) found.push_back(entry.path());
  }
  // Longer names hold larger numbers where the numbers have no leading zeros.
  const auto newer = [](const fs::path& a, const fs::path& b) {
    const std::string left = a.string(), right = b.string();
    return left.size() != right.size() ? left.size() > right.size() : left > right;
  };
  std::sort(found.begin(), found.end(), newer);
  return found;
}

}  // namespace

Library Library::find(const Wanted& wanted) {
  std::vector<fs::path> candidates;
  const char* named = std::getenv(wanted.variable);
  if (named && *named) {
    candidates = fs::is_directory(named) ? matches(named, wanted.stem) : std::vector<fs::path>{named};
  } else {
    const fs::path prefix = own_prefix();
    std::vector<fs::path> folders;
    if (!prefix.empty())
      for (const fs::path& folder : wanted.beside) folders.push_back(prefix.parent_path() / folder);
    for (const fs::path& folder : system_folders()) folders.push_back(folder);
    for (const fs::path& folder : folders)
      for (const fs::path& file : matches(folder, wanted.stem)) candidates.push_back(file);
    candidates.emplace_back(wanted.stem);  // wherever the system's loader looks besides
  }
  std::string tried;
  for (const fs::path& file : candidates) {
    if (void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return Library(handle, file);
    const char* why = dlerror();
    tried += std::string(tried.empty() ? "" : "; ") + (why ? why : file.u8string());
  }
  fail(MEDNEXT_E_BACKEND, wanted.title, " was not found (", tried.empty() ? "nothing of that name" : tried, "). ",
       wanted.advice, ", or name the library or its folder in ", wanted.variable);
}

void* Library::symbol(const char* name) const {
  if (void* found = dlsym(handle_, name)) return found;
  fail(MEDNEXT_E_BACKEND, path_.u8string(), " has no function ", name, "; another version of it is needed");
}

}  // namespace mednext
