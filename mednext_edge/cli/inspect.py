"""`mednext-edge inspect`: what a checkpoint or a bundle is, and what was inferred about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mednext_edge.cli.console import JSON_OPTION, emit_json, say, show_facts

if TYPE_CHECKING:
    from mednext_edge.task import Task


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A weights file, an nnU-Net fold or trainer folder, a bundle, or demo:NAME."
        ),
    ],
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Say what a checkpoint is: network, labels, preprocessing, and what its file left open.

    Variant, kernel, classes and channels are read from the tensors themselves. Nothing in the file is executed.

    Examples:

    - `mednext-edge inspect nnUNet_results/.../fold_0`
    - `mednext-edge inspect model.pth --json`
    """
    from mednext_edge.bundle.manifest import MANIFEST

    if (Path(path) / MANIFEST).is_file():
        _bundle(Path(path), json)
    else:
        _checkpoint(path, json)


def _checkpoint(path: str, json: bool) -> None:
    from mednext_edge.checkpoints.inspect import describe

    found = describe(path)
    if json:
        emit_json(found)
        return
    show_facts(
        "Checkpoint",
        [
            ("format", found.description),
            ("file", f"{found.file} ({found.size_bytes / 1e6:.1f} MB)"),
            ("SHA-256", found.sha256),
            *_task(found.task),
            ("deep supervision", "yes" if found.deep_supervision else "no"),
            ("down-block rule", found.down_expansion or "-"),
            ("tensors", f"{found.tensors} of {', '.join(found.dtypes)}, {found.tensor_parameters:,} values"),
        ],
    )
    for note in found.notes:
        say(f"note: {note}", "yellow")


def _bundle(path: Path, json: bool) -> None:
    from mednext_edge.bundle import read_manifest

    manifest = read_manifest(path)
    if json:
        emit_json(manifest)
        return
    engine = manifest.engine
    show_facts(
        "Bundle",
        [
            ("target", f"{manifest.target}, {manifest.precision}"),
            ("engine", f"{engine.file} ({engine.provider} {engine.provider_version}, {engine.status})"),
            ("source", f"{manifest.source.file} ({manifest.source.format})"),
            *_task(manifest.task),
            ("rewrites", ", ".join(manifest.rewrites) or "none"),
            ("accuracy gate", manifest.gate.status),
            ("written", f"{manifest.created} by mednext-edge {manifest.tool_version}"),
        ],
    )
    say(f"The files were not read; `mednext-edge verify {path}` checks their digests.")


def _task(task: Task) -> list[tuple[str, str]]:
    model, recipe = task.model, task.preprocessing
    spacing = "the image's own" if recipe.spacing is None else " x ".join(f"{s:g}" for s in recipe.spacing) + " mm"
    if recipe.size is not None:
        spacing = f"every image stretched to {' x '.join(map(str, recipe.size))} pixels"
    return [
        ("task", task.name),
        ("for", model.kind),
        ("network", f"{model.family} {model.variant}, kernel {model.kernel_size}, {model.spatial_dims}-D"),
        ("parameters", f"{model.parameters:,}"),
        ("channels", str(model.in_channels) + (f" ({recipe.colour})" if recipe.colour else "")),
        ("labels", ", ".join(f"{value} {name}" for name, value in task.labels.items())),
        *(
            (f"region {region.name}", f"output {paint.output}, the values {', '.join(map(str, region.values))}")
            for region, paint in zip(task.regions, task.paints, strict=True)
        ),
        ("patch", " x ".join(map(str, task.inference.patch))),
        ("spacing", spacing),
        ("intensities", ", ".join(entry.scheme for entry in recipe.normalization)),
    ]
