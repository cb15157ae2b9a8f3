"""The demo model for NVIDIA's devices, on a machine that has none: what a user types, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import onnx
import pytest
from onnx import numpy_helper

from mednext_edge.bundle import verify
from mednext_edge.cli.main import export_app, run
from mednext_edge.data.dataset import open_dataset
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.evaluation.report import Report
from mednext_edge.nvidia.devices import devices
from mednext_edge.nvidia.providers import PROVIDERS

ARCHS = ("8.6", "8.9", "12.0")
MIDDLE = (96, 96, 96)
# Smaller than the demo's own patch and with fewer calibration patches, to be done in a minute.
QUICK = ("--patch", "64", "64", "64", "--calib-samples", "4", "--json", "--no-progress")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(devices()), reason="this is about machines without an NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of the demo's two halves, eight windows in place of sixty: one is validated on."""
    folder = tmp_path_factory.mktemp("middle")
    whole = open_dataset("demo:brain-tissue")
    for case in (*whole.training, *whole.validation):
        assert case.labels is not None
        for sub, volume in (("imagesTr", case.image()), ("labelsTr", case.labels())):
            array = volume.array.reshape(volume.array.shape[-3:])
            corner = [(n - side) // 2 for n, side in zip(array.shape, MIDDLE, strict=True)]
            voxels = array[tuple(slice(start, start + side) for start, side in zip(corner, MIDDLE, strict=True))]
            (folder / sub).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels.T, volume.affine), folder / sub / f"{case.name}.nii.gz")
    names = [case.name for case in (*whole.training, *whole.validation)]
    description = {
        "name": "middle",
        "modality": dict(enumerate(whole.channels)),
        "labels": {value: name for name, value in whole.labels.items()},
        "numTraining": len(names),
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module", autouse=True)
def rtx() -> object:
    try:
        return PROVIDERS["tensorrt-rtx"].load()
    except TargetUnavailableError as error:
        pytest.skip(str(error))


def exported(capsys: pytest.CaptureFixture[str], out: Path, images: Path, *args: str) -> Report:
    code = run(export_app(), "mednext-export", [*args, *QUICK, "--validate", str(images), "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert json.loads(captured.out)["gate"]["status"] == "passed"
    report = Report.model_validate_json((out / "report.json").read_text())
    assert report.stand_in is not None
    assert report.accuracy is not None
    assert report.accuracy.drop is not None
    assert report.accuracy.drop.dice_mean is not None
    assert report.accuracy.drop.dice_mean <= 0.005
    assert report.latency is None
    return report


@pytest.mark.parametrize("precision", [(), ("--int8",)], ids=["fp16", "int8"])
def test_plans_for_three_architectures(
    precision: tuple[str, ...], middle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = exported(capsys, out, middle, "--target", "trt-rtx", "--gpu-arch", ",".join(ARCHS), *precision)
    manifest = verify(out)
    assert [plan.arch for plan in manifest.engine.plans] == list(ARCHS)
    assert manifest.engine.status == "built"
    assert all((out / plan.file).stat().st_size > 2**20 for plan in manifest.engine.plans)
    assert report.layers is not None
    assert report.layers.counts_by_precision.keys() == ({"fp16", "int8"} if precision else {"fp16"})


def test_deferred_int8(middle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rtx: object) -> None:
    out = tmp_path / "out"
    exported(capsys, out, middle, "--target", "trt", "--int8", "--defer-build")
    assert verify(out).engine.status == "deferred"
    graph = onnx.load(out / "model.onnx").graph
    constants = {init.name: numpy_helper.to_array(init) for init in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == "int8"
        assert not zero.any()
    trt = PROVIDERS["tensorrt-rtx"].load()
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)  # The parser does not keep it alive.
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(out / "model.onnx")), [parser.get_error(i) for i in range(parser.num_errors)]
