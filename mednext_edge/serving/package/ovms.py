"""Models and configuration for OpenVINO Model Server.

NAME gives the logits of a patch; NAME_labels the best class of each voxel as uint8, which is a fraction of the bytes on
the wire and enough where an image is one patch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mednext_edge.optional import require
from mednext_edge.runtime.openvino_session import HINTS
from mednext_edge.serving.package.formats import PACKAGES, PackageFormat, Source


def write(source: Source, folder: Path) -> None:
    """Fill an empty folder with `models/`, `config.json` and a README."""
    engine = source.folder / source.manifest.engine.file
    logits, labels = (folder / "models" / name / "1" for name in (source.name, f"{source.name}_labels"))
    for place in (logits, labels):
        place.mkdir(parents=True)
    for suffix in (".xml", ".bin"):
        shutil.copy(engine.with_suffix(suffix), logits / f"model{suffix}")
    _write_labels_model(engine, labels / "model.xml")
    entries = [{"config": _config(source, place.parent.name)} for place in (logits, labels)]
    (folder / "config.json").write_text(json.dumps({"model_config_list": entries}, indent=2) + "\n")
    (folder / "README.md").write_text(_readme(source))


def _write_labels_model(engine: Path, to: Path) -> None:
    openvino = require("openvino", "openvino")
    ops = require("openvino.opset13", "openvino")
    model: Any = openvino.Core().read_model(engine)
    logits = model.outputs[0].get_node().input_value(0)
    best = ops.topk(logits, openvino.op.Constant(openvino.Type.i64, openvino.Shape([]), [1]), 1, "max", "none")
    labels = ops.squeeze(ops.convert(best.output(1), "u8"), ops.constant([1], dtype="int64"))
    labels.output(0).get_tensor().set_names({"labels"})
    openvino.save_model(openvino.Model([labels], model.get_parameters(), "labels"), to, compress_to_fp16=False)


def _config(source: Source, name: str) -> dict[str, Any]:
    manifest = source.manifest
    shape = (1, manifest.model.in_channels, *manifest.input.patch)
    return {
        "name": name,
        "base_path": f"/models/{name}",
        "shape": f"({','.join(map(str, shape))})",
        "target_device": "CPU",
        "nireq": 1,
        "plugin_config": {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[manifest.precision]},
    }


def _readme(source: Source) -> str:
    shape = (1, source.manifest.model.in_channels, *source.manifest.input.patch)
    return f"""# {source.manifest.name} for OpenVINO Model Server

Research software, not a medical device.

```
docker run --name ovms -v "$PWD/models":/models -v "$PWD/config.json":/config.json -p 9000:9000 -p 8000:8000 -d \\
  openvino/model_server:latest --config_path /config.json --port 9000 --rest_port 8000
curl localhost:8000/v2/models/{source.name}/ready
curl localhost:8000/v2/models/{source.name}_labels
```

Both models take one patch `image` {list(shape)} float32, prepared as `manifest.json` of the bundle
says (orientation, spacing, normalisation). `{source.name}` gives its logits for a sliding window of the client;
`{source.name}_labels` the best class of each voxel. The models were not run in a Model Server by their makers; they are
checked by opening them with OpenVINO from here.
"""


PACKAGES.add("ovms", PackageFormat("OpenVINO Model Server", ("openvino",), write, "config.json"))
