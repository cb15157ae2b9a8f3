// A bundle's folder, checked file by file before anything in it is opened: the twin of mednext_edge/bundle/check.py.
#pragma once

#include <filesystem>

#include "manifest.h"

namespace mednext {

// The manifest of a bundle whose every byte has been checked against its digest. The digests guard against damage and
// mix-ups; they are no signature.
//
// Throws Error: BUNDLE where the path is no bundle, INTEGRITY where the manifest, a digest or a size does not hold, a
// file is missing or lies outside, or an engine-like file is not listed.
Manifest verify_bundle(const std::filesystem::path& folder);

}  // namespace mednext
