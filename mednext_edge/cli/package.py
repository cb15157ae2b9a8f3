"""`mednext-edge package`: a bundle as what a model server or a scanner takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mednext_edge.cli.console import JSON_OPTION, emit_json, one_of, say

FORMATS = ("triton", "ovms", "openrecon")


def package(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that mednext-export wrote.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="triton (Triton model repository), ovms (OpenVINO Model Server) or openrecon (Siemens OpenRecon).",
            callback=one_of("package format", FORMATS),
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the package. [default: BUNDLE.FORMAT]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a package that is there.")] = False,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            help="The vendor's JSON schema: OpenReconLabel.json (openrecon) or config.json (ovms) is checked against "
            "it, and a package that breaks it is not written.",
        ),
    ] = None,
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Write a bundle as a package for a server, with a README of the commands that run it.

    Examples:

    - `mednext-edge package brain-tissue.openvino-int8 --format triton --out model_repository`
    - `mednext-edge package brain-tissue.openvino-int8 --format openrecon --schema OpenReconSchema_1.1.0.json`
    """
    from mednext_edge.serving.package import openrecon, ovms, triton  # noqa: F401  # each puts itself into the table
    from mednext_edge.serving.package.formats import package as write

    folder = write(bundle, form, out or bundle.resolve().with_name(f"{bundle.resolve().name}.{form}"), force, schema)
    if json:
        emit_json({"bundle": bundle, "format": form, "package": folder, "schema": schema})
        return
    checked = "" if schema is None else f", checked against {schema}"
    say(f"{folder}: {form} package of {bundle}{checked}; README.md says how to run it", "green")
