"""A container for Siemens Healthineers' OpenRecon: its label, and a Dockerfile around the MRD server.

The label is described by the vendor's JSON schema 1.1.0 (`openrecon/engraving`); the models here state the same rules,
and a copy of the schema itself can be given to `package`.
Known containers hold CUDA 11.8 at most, so that engines for current GPUs stay outside: on the scanner the CPU runs.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mednext_edge.serving.package.formats import PACKAGES, PackageFormat, Source, copy_bundle
from mednext_edge.task import Frozen

LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
PORT = 9002
_LABEL_FILE = "OpenReconLabel.json"

_SEMVER = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$"
ParameterId = Annotated[str, Field(pattern="^[A-Za-z0-9]+$")]


class Words(Frozen):
    """A text by language."""

    en: str


class Regulatory(Frozen):
    """Every field must be there, and may be empty."""

    device_trade_name: str
    production_identifier: str
    manufacturer_address: str = ""
    made_in: str = ""
    manufacture_date: str
    material_number: str
    gtin: str = ""
    udi: str = ""
    safety_advices: str = "Research software, not for diagnosis or treatment"
    special_operating_instructions: str = ""
    additional_relevant_information: str = ""


class General(Frozen):
    """What the container is."""

    name: Words
    version: str = Field(pattern=_SEMVER)
    vendor: str
    information: Words
    id: str
    regulatory_information: Regulatory


class Protocol(Frozen):
    """The stream that the container speaks."""

    protocol: Literal["ISMRMRD"] = "ISMRMRD"
    version: Literal["1.4.1"] = "1.4.1"


class Reconstruction(Frozen):
    """Where it stands in the scanner's pipeline, and what it needs; memory in megabytes."""

    transfer_protocol: Protocol = Protocol()
    port: int = PORT
    emitter: Literal["raw", "image"] = "image"
    injector: Literal["image", "compleximage"] = "image"
    can_process_adjustment_data: bool = False
    can_use_gpu: bool = False
    min_count_required_gpus: int = Field(default=0, ge=0)
    min_required_gpu_memory: int = Field(default=0, ge=0)
    min_required_memory: int = Field(default=8192, ge=0)
    min_count_required_cpu_cores: int = Field(default=4, ge=1)
    content_qualification_type: Literal["PRODUCT", "SERVICE", "RESEARCH"] = "RESEARCH"


class Value(Frozen):
    """One of the values of a choice."""

    id: str
    name: Words


class Choice(Frozen):
    """A parameter that the operator chooses at the scanner."""

    type: Literal["choice"] = "choice"
    id: ParameterId
    label: Words
    information: Words
    default: str
    values: tuple[Value, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_default(self) -> Choice:
        if self.default not in {value.id for value in self.values}:
            raise ValueError(f"the default `{self.default}` is none of the values")
        return self


class OpenReconLabel(Frozen):
    """The whole label; at most 14 parameters."""

    general: General
    reconstruction: Reconstruction = Reconstruction()
    parameters: tuple[Choice, ...] = Field(max_length=14)


def label(source: Source) -> OpenReconLabel:
    """The label of a bundle's container."""
    name, number = source.manifest.name, version("mednext-edge")
    return OpenReconLabel(
        general=General(
            name=Words(en=name),
            version=number,
            vendor="mednext-edge",
            information=Words(en=f"{name}: segmentation. Research software, not for diagnosis or treatment"),
            id=source.name,
            regulatory_information=Regulatory(
                device_trade_name=name,
                production_identifier=number,
                manufacture_date=datetime.now(UTC).strftime("%Y/%m/%d"),
                material_number=f"{source.name}_{number}",
            ),
        ),
        parameters=(
            _choice("config", "Configuration", "What the MRD server runs", ("mednextedge",)),
            _choice("output", "Output", "Label images, or the images with outlines", ("labels", "overlay")),
        ),
    )


def _choice(name: str, title: str, words: str, values: tuple[str, ...]) -> Choice:
    return Choice(
        id=name,
        label=Words(en=title),
        information=Words(en=words),
        default=values[0],
        values=tuple(Value(id=value, name=Words(en=value)) for value in values),
    )


def write(source: Source, folder: Path) -> None:
    """Fill an empty folder with the bundle, the label, a Dockerfile and a README."""
    copy_bundle(source, folder / "bundle")
    text = label(source).model_dump_json(indent=2)
    (folder / _LABEL_FILE).write_text(text + "\n")
    (folder / "Dockerfile").write_text(_dockerfile(text))
    (folder / "README.md").write_text(_readme(source))


def _dockerfile(text: str) -> str:
    encoded = base64.b64encode(text.encode()).decode()
    return f"""# Runs as root on linux/amd64, as OpenRecon expects.
FROM --platform=linux/amd64 python:3.11-slim
COPY mednext_edge-*.whl /tmp/
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \\
 && pip install --no-cache-dir "$(ls /tmp/mednext_edge-*.whl)[mrd]" \\
 && rm /tmp/*.whl
COPY bundle /bundle
EXPOSE {PORT}
LABEL "{LABEL}"="{encoded}"
CMD ["mednext-edge", "serve", "mrd", "/bundle", "--host", "0.0.0.0", "--port", "{PORT}", "--http-port", "-1"]
"""


def _readme(source: Source) -> str:
    tag = f"openrecon_mednext-edge_{source.name}:v{version('mednext-edge')}".lower()
    return f"""# {source.manifest.name} for OpenRecon

Research software, not a medical device. The scanner's own rules for containers apply.

```
pip wheel --no-deps -w . PATH/TO/mednext-edge
docker build --platform linux/amd64 -t {tag} .
docker save -o OpenRecon_mednext-edge_{source.name}_V{version("mednext-edge")}.tar {tag}
```

The archive, a manual as PDF of the same name beside it, and both in a ZIP file (Deflate) of that name are what the
scanner imports. `{_LABEL_FILE}` is the label in the image, in clear. `mednext-edge package --format openrecon --schema
FILE` checks it against the vendor's own schema, version {LABEL.rpartition(":")[2]}. The container was not run on a
scanner by its makers: `docker run -p {PORT}:{PORT} {tag}` starts the same MRD server anywhere.
"""


PACKAGES.add("openrecon", PackageFormat("OpenRecon", ("openvino", "onnx"), write, _LABEL_FILE))
