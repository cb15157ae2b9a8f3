"""`mednext-edge verify`: are the files of a bundle what its manifest says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mednext_edge.cli.console import JSON_OPTION, emit_json, say


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that mednext-export wrote.")],
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Check every file of a bundle against the digests in its manifest.

    An engine is executable code: do this after each copy. The digests show damage and mix-ups, not who made the bundle.

    Example:

    - `mednext-edge verify hippocampus.openvino-int8`
    """
    from mednext_edge.bundle import verify as verify_bundle

    manifest = verify_bundle(bundle)
    if json:
        emit_json({"bundle": bundle, "verified": True, "files": manifest.files, "gate": manifest.gate})
        return
    size = sum(entry.size for entry in manifest.files)
    say(f"{bundle}: {len(manifest.files)} files, {size / 1e6:.1f} MB, every digest matches", "green")
    if manifest.gate.status == "failed":
        say(f"Its accuracy gate failed: drop {manifest.gate.drop}, allowed {manifest.gate.max_drop}", "yellow")
