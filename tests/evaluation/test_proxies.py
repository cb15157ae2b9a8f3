"""What the engines of a small network do, counted: a change that adds work fails here, on any x86-64 machine.

`proxies.json` holds the counts of the OpenVINO release in constraints.txt with the kernels of AVX2. When a change takes
work away, or a new release counts otherwise, write it anew: `python -m tests.evaluation.test_proxies`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import mednext_edge as mx
from mednext_edge.evaluation.proxies import GATED, Proxies, count, worse
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.task import Inference, Preprocessing, Task

RECORD = Path(__file__).with_name("proxies.json")
PATCH = (16, 16, 16)
PRECISIONS = ("fp32", "int8")


def small() -> LoadedModel:
    """Two levels, 16 channels: wide enough that every kind of layer is there."""
    config = MedNeXtConfig(
        classes=3, channels=16, expansion=(2,) * 5, down_expansion=(2,) * 2, blocks=(1,) * 5, down_grn=(False,) * 2
    )
    torch.manual_seed(0)
    net = MedNeXt(config).eval()
    task = Task(
        name="small",
        model=FAMILIES["mednext"].describe(net),
        preprocessing=Preprocessing(),
        inference=Inference(patch=PATCH),
        labels={"background": 0, "one": 1, "two": 2},
    )
    return LoadedModel(net, task, Source(format="random", file="none", sha256="0" * 64))


def counted(folder: Path) -> dict[str, Proxies]:
    """The proxies of the bundles of the small network, by precision."""
    model = small()
    rng = np.random.default_rng(0)
    noise = tuple(rng.standard_normal((1, 1, *PATCH), dtype=np.float32) for _ in range(2))
    patches = CalibrationSet(patches=noise, cases=("noise",) * 2, sha256="0" * 64, foreground=2)
    found = {}
    for precision in PRECISIONS:
        given = patches if precision == "int8" else None
        out = mx.export(model, target="openvino", precision=precision, calibration=given, out=folder / precision)
        with mx.open(out) as session:
            assert isinstance(session, OpenVinoSession)
            found[precision] = count(session, out / "model.xml")
    return found


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Proxies]:
    """Counted in a process of its own, which is told to use no more than AVX2."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the record is of x86-64 kernels, this is {platform.machine()}")
    folder = tmp_path_factory.mktemp("proxies")
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.evaluation.test_proxies import main; main({str(folder)!r})"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: Proxies.model_validate(one) for name, one in json.loads(done.stdout).items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_more_work_than_recorded(now: dict[str, Proxies], precision: str) -> None:
    record = json.loads(RECORD.read_text())
    if version("openvino") != record["openvino"]:
        pytest.skip(f"the record is of OpenVINO {record['openvino']}, this is {version('openvino')}")
    reference = Proxies.model_validate(record[precision])
    assert not worse(now[precision], reference), f"{now[precision]} instead of {reference}"


def test_int8_moves_less_and_rounds_inside_its_layers(now: dict[str, Proxies]) -> None:
    assert now["int8"].bytes_moved < now["fp32"].bytes_moved
    assert now["fp32"].fake_quantize == 0
    assert now["fp32"].operators["Convolution"] > 20


def test_more_of_anything_is_worse() -> None:
    one = Proxies(operators={"MVN": 2, "Reorder": 1}, reorders=1, fake_quantize=0, bytes_moved=100, engine_bytes=10)
    assert worse(one, one) == []
    assert one.executed == 3
    for name, change in (
        ("executed", {"operators": {"MVN": 3, "Reorder": 1}}),
        ("reorders", {"reorders": 2}),
        ("fake_quantize", {"fake_quantize": 1}),
        ("bytes_moved", {"bytes_moved": 101}),
        ("engine_bytes", {"engine_bytes": 11}),
    ):
        assert name in GATED
        [words] = worse(one.model_copy(update=change), one)
        assert words.startswith(name.replace("_", " "))
        assert worse(one, one.model_copy(update=change)) == []


def test_bytes_of_one_convolution() -> None:
    """[1, 2, 8, 8, 8] -> [1, 4, 8, 8, 8] with 1x1x1: input, output and weights."""
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([1, 2, 8, 8, 8], np.float32)
    weight = ops.constant(np.ones((4, 2, 1, 1, 1), np.float32))
    zero = [0, 0, 0]
    y = ops.convolution(x, weight, [1, 1, 1], zero, zero, [1, 1, 1])
    session = OpenVinoSession(ov.Model([y], [x]), small().task, "fp32")
    found = [op for op in session.executed() if op.kind == "Convolution"]
    assert [op.outputs for op in found] == [(((1, 4, 8, 8, 8), "f32"),)]
    proxies = count(session)
    assert proxies.operators["Convolution"] == 1
    reorders = sum(8 * np.prod(op.outputs[0][0]) for op in session.executed() if op.kind == "Reorder")
    assert proxies.bytes_moved - reorders == 4 * 512 * (2 + 4) + 4 * 8
    session.close()


def main(folder: str) -> None:
    print(json.dumps({name: one.model_dump() for name, one in counted(Path(folder)).items()}))


if __name__ == "__main__":
    import tempfile

    if os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2":
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        os.execv(sys.executable, [sys.executable, "-m", "tests.evaluation.test_proxies"])
    with tempfile.TemporaryDirectory() as temporary:
        whole = {"openvino": version("openvino")} | {n: p.model_dump() for n, p in counted(Path(temporary)).items()}
    RECORD.write_text(json.dumps(whole, indent=2) + "\n")
