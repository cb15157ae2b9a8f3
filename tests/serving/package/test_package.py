"""Packages: Triton's configuration against its own protobufs, OVMS's models opened, OpenRecon's label by its rules."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

import mednext_edge as mx
from mednext_edge.data.volume import Volume
from mednext_edge.errors import IntegrityError, UnknownNameError, UsageError
from mednext_edge.serving.package import openrecon, ovms, triton
from mednext_edge.serving.package.formats import MARK, PACKAGES, Source, package

FORMATS = (triton, ovms, openrecon)


@pytest.mark.parametrize("form", list(PACKAGES))
def test_written_whole_or_not_at_all(bundle: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = package(bundle, form, tmp_path / "out")
    readme = (out / "README.md").read_text()
    assert "Research software, not a medical device" in readme
    assert len(re.findall(r"^(?:pip|docker|curl)\b", readme, re.MULTILINE)) == 3
    assert json.loads((out / MARK).read_text())["format"] == form
    with pytest.raises(UsageError, match="--force"):
        package(bundle, form, out)
    package(bundle, form, out, force=True)
    kind = PACKAGES[form]

    def fails(source: Source, folder: Path) -> None:
        kind.write(source, folder)
        raise OSError("no space")

    before = sorted(out.rglob("*"))
    monkeypatch.setitem(PACKAGES._entries, form, type(kind)(kind.title, kind.targets, fails))
    with pytest.raises(OSError, match="no space"):
        package(bundle, form, out, force=True)
    assert sorted(out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="never replaced"):
        package(bundle, "triton", tmp_path / "mine", force=True)
    with pytest.raises(UnknownNameError, match="Did you mean `triton`"):
        package(bundle, "tritn", tmp_path / "out")
    shutil.copytree(bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.bin").write_bytes(b"!")
    with pytest.raises(IntegrityError):
        package(tmp_path / "damaged", "triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formats_say_which_targets_they_hold(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mednext_edge.serving.package import formats

    manifest = formats.verify(bundle)
    for form, target in (("ovms", "onnx"), ("openrecon", "trt"), ("triton", "trt-rtx")):
        changed = manifest.model_copy(update={"target": target})
        monkeypatch.setattr(formats, "verify", lambda _, changed=changed: changed)
        with pytest.raises(UsageError, match=f"is for `{target}`"):
            package(bundle, form, tmp_path / "out")
    model = manifest.model.model_copy(update={"kind": "classification"})
    monkeypatch.setattr(formats, "verify", lambda _: manifest.model_copy(update={"model": model}))
    with pytest.raises(UsageError, match="answers with a classification"):
        package(bundle, "triton", tmp_path / "out")


def configuration(folder: Path) -> Any:
    """config.pbtxt as Triton parses it: an unknown field is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_triton_configuration(bundle: Path, tmp_path: Path) -> None:
    out = package(bundle, "triton", tmp_path / "repository")
    whole, patch = configuration(out / "tiny"), configuration(out / "tiny_patch")
    assert (whole.name, whole.backend, whole.max_batch_size) == ("tiny", "python", 0)
    assert [(i.name, list(i.dims)) for i in whole.input] == [("IMAGE", [1, -1, -1, -1]), ("AFFINE", [4, 4])]
    assert whole.output[0].data_type == model_config_pb2.TYPE_UINT16
    assert (out / "tiny" / whole.output[0].label_filename).read_text().split() == ["background", "one", "two"]
    warm = whole.model_warmup[0].inputs
    assert (out / "tiny" / "warmup" / warm["AFFINE"].input_data_file).stat().st_size == 4 * 4 * 8
    assert list(warm["IMAGE"].dims) == [1, 16, 16, 16]
    assert (patch.backend, patch.default_model_filename) == ("openvino", "model.xml")
    assert [(i.name, list(i.dims)) for i in patch.input] == [("image", [1, 1, -1, -1, -1])]
    agent = patch.model_repository_agents.agents[0]
    assert (agent.name, len(agent.parameters)) == ("checksum", 2)
    compiled = ov.Core().compile_model(out / "tiny_patch" / "1" / patch.default_model_filename, "CPU")
    assert next(iter(compiled(np.zeros((1, 1, 16, 16, 16), np.float32)).values())).shape == (1, 3, 16, 16, 16)


def test_triton_plans_by_architecture(bundle: Path, tmp_path: Path) -> None:
    from mednext_edge.bundle import Plan, read_manifest

    shutil.copytree(bundle, tmp_path / "plans")
    for arch in ("8.6", "12.0"):
        (tmp_path / "plans" / f"model-{arch}.plan").write_bytes(arch.encode())
    manifest = read_manifest(bundle)
    plans = tuple(Plan(arch=arch, file=f"model-{arch}.plan") for arch in ("8.6", "12.0"))
    engine = manifest.engine.model_copy(update={"file": plans[0].file, "plans": plans})
    source = Source(tmp_path / "plans", manifest.model_copy(update={"target": "trt", "engine": engine}), "0" * 64)
    triton._patch_model(source, tmp_path / "tiny_patch")
    config = configuration(tmp_path / "tiny_patch")
    assert dict(config.cc_model_filenames) == {"8.6": "model_sm86.plan", "12.0": "model_sm120.plan"}
    assert (tmp_path / "tiny_patch" / "1" / "model_sm120.plan").read_bytes() == b"12.0"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


class FakeTriton(types.ModuleType):
    """What the Python backend offers to a model."""

    class Tensor:
        def __init__(self, name: str, array: Any) -> None:
            self.name, self._array = name, array

        def as_numpy(self) -> Any:
            return self._array

    class TritonError(str):
        pass

    class InferenceResponse:
        def __init__(self, output_tensors: list[Any], error: Any = None) -> None:
            self.output_tensors, self.error = output_tensors, error

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return request[name]


def test_triton_model_gives_what_predict_gives(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = package(bundle, "triton", tmp_path / "repository")
    fake = FakeTriton("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    spec = importlib.util.spec_from_file_location("model", out / "tiny" / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = json.dumps({"instance_group": [{"kind": "KIND_CPU"}]})
    model.initialize({"model_repository": str(out / "tiny"), "model_version": "1", "model_config": config})
    image = np.random.default_rng(0).normal(size=(1, 17, 18, 20)).astype(np.float32)
    affine = np.diag([-1.0, 1, 2, 1])

    def request(image: Any, affine: Any) -> dict[str, Any]:
        return {"IMAGE": fake.Tensor("IMAGE", image), "AFFINE": fake.Tensor("AFFINE", affine)}

    good, flat, strange = model.execute(
        [request(image, affine), request(image, np.zeros((4, 4))), request(image.repeat(2, 0), affine)]
    )
    with mx.open(bundle) as session:
        expected = mx.predict(session, Volume(image, affine))
    np.testing.assert_array_equal(good.output_tensors[0].as_numpy(), expected)
    assert good.error is None
    assert "without inverse" in flat.error
    assert "2 channels" in strange.error
    model.finalize()


def test_ovms_configuration_opens_from_where_it_says(bundle: Path, tmp_path: Path) -> None:
    out = package(bundle, "ovms", tmp_path / "served")
    entries = [e["config"] for e in json.loads((out / "config.json").read_text())["model_config_list"]]
    assert [e["name"] for e in entries] == ["tiny", "tiny_labels"]
    x = np.random.default_rng(0).normal(size=(1, 1, 16, 16, 16)).astype(np.float32)
    results = []
    for entry in entries:
        assert entry["shape"] == "(1,1,16,16,16)"
        path = out / entry["base_path"].lstrip("/") / "1" / "model.xml"
        core = ov.Core()
        model = core.read_model(path)
        model.reshape(ov.PartialShape(list(x.shape)))
        compiled = core.compile_model(model, entry["target_device"], entry["plugin_config"])
        results.append(compiled(x)[compiled.outputs[0]])
    logits, labels = results
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(1))


def test_openrecon_label(bundle: Path, tmp_path: Path) -> None:
    out = package(bundle, "openrecon", tmp_path / "container")
    text = (out / "OpenReconLabel.json").read_text()
    label = openrecon.OpenReconLabel.model_validate_json(text)
    assert (label.reconstruction.emitter, label.reconstruction.content_qualification_type) == ("image", "RESEARCH")
    dockerfile = (out / "Dockerfile").read_text()
    (encoded,) = re.findall(rf'^LABEL "{re.escape(openrecon.LABEL)}"="(\S+)"$', dockerfile, re.MULTILINE)
    assert json.loads(base64.b64decode(encoded)) == json.loads(text)
    assert f"EXPOSE {label.reconstruction.port}" in dockerfile
    with mx.open(out / "bundle") as session:
        assert session.task.name == "tiny"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("general", "version"), "1.0"),
        (("general", "strange"), "x"),
        (("reconstruction", "emitter"), "video"),
        (("reconstruction", "min_count_required_cpu_cores"), 0),
        (("reconstruction", "transfer_protocol", "version"), "2.0"),
        (("parameters", 1, "id"), "send_original"),
        (("parameters", 1, "default"), "neither"),
        (("general", "regulatory_information", "device_trade_name"), None),
    ],
)
def test_openrecon_labels_that_break_the_rules(bundle: Path, tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    label = json.loads((package(bundle, "openrecon", tmp_path / "out") / "OpenReconLabel.json").read_text())
    place = label
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        openrecon.OpenReconLabel.model_validate(label)


def test_names_that_servers_do_not_take(bundle: Path, tmp_path: Path) -> None:
    from mednext_edge.bundle import read_manifest

    manifest = read_manifest(bundle).model_copy(update={"name": 'Leber "fein"/ö 2'})
    source = Source(bundle, manifest, "0" * 64)
    assert source.name == "Leber__fein____2"
    for module in FORMATS:
        folder = tmp_path / module.__name__
        folder.mkdir()
        module.write(source, folder)
    configuration(tmp_path / triton.__name__ / source.name)
