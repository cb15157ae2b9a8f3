#include "bundle.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <set>
#include <system_error>
#include <vector>

#include "error.h"
#include "json.h"
#include "sha256.h"

namespace fs = std::filesystem;

namespace mednext {
namespace {

// Kinds of files that a runtime could pick up and execute or take for weights.
const std::set<std::string> kEngineSuffixes = {".xml", ".bin",  ".onnx", ".data", ".plan", ".engine",
                                               ".trt", ".blob", ".mlmodel", ".pt", ".pt2", ".pth",
                                               ".pkl", ".safetensors", ".so", ".dll", ".dylib"};
constexpr size_t kMostEntries = 65536;  // in the folder

std::string read_text(const fs::path& file, size_t longest) {
  std::ifstream in(file, std::ios::binary);
  std::string text(longest + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad() || (!in && !in.eof())) fail(MEDNEXT_E_INTEGRITY, file.u8string(), " cannot be read");
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > longest)
    fail(MEDNEXT_E_INTEGRITY, file.u8string(), " has more than ", longest, " bytes; this is no manifest");
  return text;
}

std::string sha256(const void* data, size_t size) {
  Sha256 hash;
  hash.update(data, size);
  return hash.hex();
}

// Digest of a file and how many bytes were read for it.
std::pair<std::string, uint64_t> digest(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::vector<char> chunk(size_t{1} << 20);
  Sha256 hash;
  uint64_t size = 0;
  while (in) {
    in.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    hash.update(chunk.data(), static_cast<size_t>(in.gcount()));
    size += static_cast<uint64_t>(in.gcount());
  }
  if (in.bad()) fail(MEDNEXT_E_INTEGRITY, file.u8string(), " cannot be read; copy the bundle again");
  return {hash.hex(), size};
}

bool is_below(const fs::path& file, const fs::path& root) {
  const auto [in_root, rest] = std::mismatch(root.begin(), root.end(), file.begin(), file.end());
  return in_root == root.end() && rest != file.end();
}

void check_listed(const fs::path& folder, const Manifest& manifest) {
  const fs::path root = fs::canonical(folder);
  for (const auto& entry : manifest.files) {
    std::error_code missing;
    const fs::path file = fs::canonical(folder / fs::u8path(entry.path), missing);
    if (missing || !fs::is_regular_file(file))
      fail(MEDNEXT_E_INTEGRITY, entry.path, " is missing from ", folder.u8string(), "; copy the bundle again");
    if (!is_below(file, root))
      fail(MEDNEXT_E_INTEGRITY, entry.path, " of ", folder.u8string(), " is a link to a place outside; refused");
    if (const uint64_t size = fs::file_size(file); size != entry.size)
      fail(MEDNEXT_E_INTEGRITY, entry.path, " of ", folder.u8string(), " has ", size, " bytes; the manifest states ",
           entry.size, ". Copy the bundle again or export again");
    const auto [found, size] = digest(file);
    if (found != entry.sha256 || size != entry.size)
      fail(MEDNEXT_E_INTEGRITY, entry.path, " of ", folder.u8string(), " has SHA-256 ", found,
           "; the manifest states ", entry.sha256, ". Copy the bundle again or export again");
  }
}

void check_unlisted(const fs::path& folder, const Manifest& manifest) {
  std::set<std::string> listed;
  for (const auto& entry : manifest.files) listed.insert(entry.path);
  size_t entries = 0;
  for (const fs::directory_entry& found : fs::recursive_directory_iterator(folder)) {
    if (++entries > kMostEntries)
      fail(MEDNEXT_E_INTEGRITY, folder.u8string(), " holds more than ", kMostEntries, " files; this is no bundle");
    std::string suffix = found.path().extension().u8string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
    const std::string name = found.path().lexically_relative(folder).generic_u8string();
    if (kEngineSuffixes.count(suffix) && !listed.count(name) && !found.is_directory())
      fail(MEDNEXT_E_INTEGRITY, name, " in ", folder.u8string(),
           " is not listed in its manifest; remove it or export again");
  }
}

}  // namespace

Manifest verify_bundle(const fs::path& folder) {
  if (!fs::is_directory(folder) || !fs::is_regular_file(folder / "manifest.json"))
    fail(MEDNEXT_E_BUNDLE, folder.u8string(), " is not a bundle: ",
         fs::is_directory(folder) ? "it holds no manifest.json" : "there is no such folder",
         ". Give the folder that `mednext-export` wrote");
  try {
    const std::string text = read_text(folder / "manifest.json", Json::kMaxText);
    Manifest manifest = Manifest::parse(text);
    const std::string actual = sha256(text.data(), text.size()) + "  manifest.json\n";
    if (!fs::is_regular_file(folder / "manifest.sha256") || read_text(folder / "manifest.sha256", 4096) != actual)
      fail(MEDNEXT_E_INTEGRITY, "manifest.json of ", folder.u8string(), " has SHA-256 ", actual.substr(0, 64),
           "; manifest.sha256 states another or none. Copy the bundle again or export again");
    check_listed(folder, manifest);
    check_unlisted(folder, manifest);
    return manifest;
  } catch (const fs::filesystem_error& error) {
    fail(MEDNEXT_E_INTEGRITY, folder.u8string(), " cannot be read: ", error.code().message());
  }
}

}  // namespace mednext
