"""Sensitivity as a job: it stops, goes on, and mixes with no other job's figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from mednext_edge.checkpoints import save
from mednext_edge.cli.main import edge_app, run
from mednext_edge.errors import DataError, UnknownNameError, UsageError
from mednext_edge.export import sensitivity
from mednext_edge.export.sensitivity import SensitivityReport, run_sensitivity
from mednext_edge.models.loaded import LoadedModel
from tests.training.blobs import write_blobs


@pytest.fixture(scope="module")
def places(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("sensitivity")
    save(folder / "tiny", tiny_model, dtype=torch.float32)
    return str(folder / "tiny"), str(write_blobs(folder / "blobs", cases=4))


@pytest.fixture
def job(places: tuple[str, str]) -> Callable[..., SensitivityReport]:
    checkpoint, data = places
    return partial(
        run_sensitivity,
        checkpoint,
        target="openvino",
        calib=data,
        int8_layers=("norm",),
        calib_samples=2,
        progress=lambda what, done, total: None,
    )


def test_a_stopped_job_goes_on(
    job: Callable[..., SensitivityReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job(out=tmp_path, minutes=0)
    assert (len(first.layers), first.complete) == (1, False)
    assert SensitivityReport.model_validate_json((tmp_path / "sensitivity.json").read_bytes()) == first
    measured: list[str] = []
    real = sensitivity.measure
    monkeypatch.setattr(
        sensitivity,
        "measure",
        lambda *args, **named: (measured.append(found.name) or found for found in real(*args, **named)),
    )
    rest = job(out=tmp_path)
    assert rest.complete
    assert rest.layers[0] == first.layers[0]
    assert measured == [layer.name for layer in rest.layers[1:]]
    assert {layer.kind for layer in rest.layers} == {"norm"}
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    measured.clear()
    assert job(out=tmp_path) == rest
    assert not measured
    assert {file.name for file in tmp_path.iterdir()} == {"sensitivity.json", "sensitivity.png"}


def test_figures_of_another_job_are_refused(job: Callable[..., SensitivityReport], tmp_path: Path) -> None:
    job(out=tmp_path, minutes=0)
    before = (tmp_path / "sensitivity.json").read_bytes()
    for other in ({"target": "onnx"}, {"int8_layers": ("thin",)}, {"calib_samples": 1}):
        with pytest.raises(UsageError, match="figures of another checkpoint, target, calibration or kind of layer"):
            job(out=tmp_path, **other)
    assert (tmp_path / "sensitivity.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 3}'])
def test_a_file_that_is_no_report(job: Callable[..., SensitivityReport], tmp_path: Path, content: str) -> None:
    (tmp_path / "sensitivity.json").write_text(content)
    with pytest.raises(DataError, match="no report of sensitivity"):
        job(out=tmp_path)
    assert (tmp_path / "sensitivity.json").read_text() == content


def test_transposed_convolutions_have_their_parity_form(job: Callable[..., SensitivityReport], tmp_path: Path) -> None:
    found = job(out=tmp_path, target="trt", int8_layers=("transposed",), minutes=0)
    assert [layer.kind for layer in found.layers] == ["transposed"]


def test_unknown_kinds(job: Callable[..., SensitivityReport], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="`norm`"):
        job(out=tmp_path / "out", int8_layers=("norms",))
    assert not (tmp_path / "out").exists()


def test_the_command(places: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, data = places
    arguments = ["quantize", checkpoint, "--sensitivity", "--calib", data, "--int8-layers", "norm", "--minutes", "0"]
    arguments += ["--calib-samples", "1", "--out", str(tmp_path), "--no-progress"]
    assert run(edge_app(), "mednext-edge", [*arguments, "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)
    assert len(stated["layers"]) == 1
    assert not stated["complete"]
    assert run(edge_app(), "mednext-edge", arguments) == 0
    done = capsys.readouterr()
    assert done.out == ""
    assert "the same command goes on" in done.err
    assert "norm" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["demo:hippocampus"], "give --sensitivity"), (["demo:hippocampus", "--sensitivity"], "give --calib DATA")],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(edge_app(), "mednext-edge", ["quantize", *arguments]) == 2
    assert words in capsys.readouterr().err
