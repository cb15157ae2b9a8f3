"""The deployable directory: its manifest, its digests, and how it is written whole or not at all."""

from mednext_edge.bundle.check import read_manifest, verify
from mednext_edge.bundle.manifest import Engine, FileEntry, Gate, InputSpec, Manifest, OutputSpec, Plan
from mednext_edge.bundle.update import edit_bundle, update_bundle
from mednext_edge.bundle.writer import BundleWriter

__all__ = [
    "BundleWriter",
    "Engine",
    "FileEntry",
    "Gate",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "Plan",
    "edit_bundle",
    "read_manifest",
    "update_bundle",
    "verify",
]
