"""A model repository for NVIDIA Triton Inference Server.

Two models: NAME takes a whole volume with its affine and gives labels (Python backend: preprocessing, sliding window
and resampling are this package's own), and NAME_patch is the engine alone, one patch at a time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mednext_edge.errors import UsageError
from mednext_edge.serving.package import triton_model
from mednext_edge.serving.package.formats import PACKAGES, PackageFormat, Source, copy_bundle

# By target: the backend that runs the engine, and the name that it expects.
_BACKENDS = {
    "openvino": ("openvino", "model.xml"),
    "onnx": ("onnxruntime", "model.onnx"),
    "trt": ("tensorrt", "model.plan"),
}
_INPUT, _OUTPUT = "image", "logits"


def write(source: Source, folder: Path) -> None:
    """Fill an empty folder with the repository and its README."""
    _volume_model(source, folder / source.name)
    _patch_model(source, folder / f"{source.name}_patch")
    (folder / "README.md").write_text(_readme(source))


def _volume_model(source: Source, folder: Path) -> None:
    manifest = source.manifest
    copy_bundle(source, folder / "1" / "bundle")
    shutil.copy(Path(triton_model.__file__), folder / "1" / "model.py")
    _names(source.manifest.labels, folder)
    (folder / "warmup").mkdir()
    # A warm-up affine of zeros would be no place in space.
    (folder / "warmup" / "affine").write_bytes(np.eye(4).tobytes())
    patch = manifest.inference.patch if len(manifest.inference.patch) == 3 else (1, *manifest.inference.patch)
    channels = manifest.model.in_channels
    (folder / "config.pbtxt").write_text(
        f"""name: {_quoted(source.name)}
backend: "python"
max_batch_size: 0
input [
  {{ name: "IMAGE" data_type: TYPE_FP32 dims: [ {channels}, -1, -1, -1 ] }},
  {{ name: "AFFINE" data_type: TYPE_FP64 dims: [ 4, 4 ] }}
]
output [
  {{ name: "LABELS" data_type: TYPE_UINT16 dims: [ -1, -1, -1 ] label_filename: "labels.txt" }}
]
instance_group [ {{ count: 1 kind: {_kind(source)} }} ]
model_warmup [
  {{
    name: "one patch"
    batch_size: 0
    inputs {{ key: "IMAGE" value: {{ data_type: TYPE_FP32 dims: {_dims((channels, *patch))} zero_data: true }} }}
    inputs {{ key: "AFFINE" value: {{ data_type: TYPE_FP64 dims: [ 4, 4 ] input_data_file: "affine" }} }}
  }}
]
{_parameters(source)}
"""
    )


def _patch_model(source: Source, folder: Path) -> None:
    manifest = source.manifest
    backend, name = _BACKENDS[manifest.target]
    (folder / "1").mkdir(parents=True)
    files = _engine_files(source, name)
    for new, old in files.items():
        shutil.copy(old, folder / "1" / new)
    outputs = {region.name: n for n, region in enumerate(manifest.task.by_output)}
    _names(outputs or manifest.labels, folder)
    plans = manifest.engine.plans
    by_arch = ""
    if len(plans) > 1:
        by_arch = "".join(
            f'cc_model_filenames {{ key: "{plan.arch}" value: "{_plan_name(plan.arch)}" }}\n' for plan in plans
        )
    shape = (1, manifest.model.in_channels, *manifest.input.patch)
    (folder / "config.pbtxt").write_text(
        f"""name: {_quoted(folder.name)}
backend: "{backend}"
default_model_filename: "{next(iter(files))}"
max_batch_size: 0
{by_arch}input [ {{ name: "{_INPUT}" data_type: TYPE_FP32 dims: {_dims(manifest.input.shape)} }} ]
output [
  {{ name: "{_OUTPUT}" data_type: TYPE_FP32 dims: {_dims(manifest.output.shape)} label_filename: "labels.txt" }}
]
instance_group [ {{ count: 1 kind: {_kind(source)} }} ]
model_warmup [
  {{
    name: "one patch"
    batch_size: 0
    inputs {{ key: "{_INPUT}" value: {{ data_type: TYPE_FP32 dims: {_dims(shape)} zero_data: true }} }}
  }}
]
model_repository_agents {{
  agents [ {{ name: "checksum" {_checksums(folder / "1")} }} ]
}}
{_parameters(source)}
"""
    )


def _engine_files(source: Source, name: str) -> dict[str, Path]:
    """New name to file; the first is the one that opens."""
    manifest, folder = source.manifest, source.folder
    engine = folder / manifest.engine.file
    if len(manifest.engine.plans) > 1:
        return {_plan_name(plan.arch): folder / plan.file for plan in manifest.engine.plans}
    files = {name: engine}
    if manifest.target == "openvino":
        files["model.bin"] = engine.with_suffix(".bin")
    for data in sorted(folder.glob(f"{engine.name}.data")):
        raise UsageError(
            f"{data.name} of {folder} holds weights apart from the graph, which is not packaged for Triton"
        )
    return files


def _plan_name(arch: str) -> str:
    return f"model_sm{arch.replace('.', '')}.plan"


def _kind(source: Source) -> str:
    return "KIND_GPU" if source.manifest.target == "trt" else "KIND_CPU"


def _names(numbers: Mapping[str, int], folder: Path) -> None:
    """`labels.txt`: a name a line, in the order of their numbers."""
    folder.mkdir(exist_ok=True)
    names = sorted(numbers, key=numbers.__getitem__)
    (folder / "labels.txt").write_text("\n".join(names) + "\n")


def _dims(shape: tuple[int | None, ...]) -> str:
    return f"[ {', '.join(str(-1 if n is None else n) for n in shape)} ]"


def _checksums(folder: Path) -> str:
    """Triton's checksum agent knows MD5 alone; the bundle's own SHA-256 are checked when it is packaged."""
    entries = []
    for file in sorted(folder.iterdir()):
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        entries.append(f'parameters {{ key: "MD5:1/{file.name}" value: "{digest}" }}')
    return " ".join(entries)


def _parameters(source: Source) -> str:
    return f'parameters {{ key: "bundle_sha256" value: {{ string_value: "{source.digest}" }} }}'


def _quoted(text: str) -> str:
    return json.dumps(text)


def _readme(source: Source) -> str:
    extra = "--gpus all " if source.manifest.target == "trt" else ""
    return f"""# {source.manifest.name} for Triton

Research software, not a medical device.

```
pip wheel --no-deps -w . PATH/TO/mednext-edge
docker run --name triton {extra}-v "$PWD":/models -p 8000:8000 -p 8001:8001 -d nvcr.io/nvidia/tritonserver:25.06-py3 \\
  sh -c 'pip install /models/mednext_edge-*.whl && tritonserver --model-repository /models --strict-readiness true'
curl localhost:8000/v2/models/{source.name}/ready
```

`{source.name}` takes IMAGE [{source.manifest.model.in_channels}, z, y, x] float32 as it was read, and AFFINE [4, 4]
float64, the NIfTI axes (x, y, z) to RAS mm; it gives LABELS [z, y, x] uint16 on the same grid, named in `labels.txt`.
`{source.name}_patch` is the engine alone: one normalised patch to logits; `perf_analyzer -m {source.name}_patch`
measures it. The repository was not run in a Triton server by its makers; its configuration is checked against Triton's
own schema.
"""


PACKAGES.add("triton", PackageFormat("Triton", tuple(_BACKENDS), write))
