"""Layers of INT8 that are faster in float: cut out of the network for real, timed by a clock that pretends."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import mednext_edge as mx
from mednext_edge.export import graph as graphs
from mednext_edge.export import tune_cache
from mednext_edge.export.export import TARGETS
from mednext_edge.export.targets import Job, silent
from mednext_edge.export.tune_cache import TuningCache, graph_digest
from mednext_edge.export.tune_layers import ALONE, LayerTuning, input_shapes, tune_layers
from mednext_edge.export.tune_part import alone, model_of, noise, signature, whole_parity
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.ptq import calibrate
from mednext_edge.runtime.openvino_session import OpenVinoSession
from tests.export.pretended import Machine

PATCH = (16, 16, 16)
FAST = {"enc_block_0.0.conv2", "enc_block_0.0.conv3", "up_1.conv1", "enc_block_0.0.conv1"}
"""Layers that are pretended to be faster in float: two dense ones, a parity form and a depthwise one."""


@pytest.fixture(scope="module")
def deploy(tiny_model: LoadedModel) -> LoadedModel:
    return mx.fuse(tiny_model, optional=["parity"])


@pytest.fixture(scope="module")
def graph(deploy: LoadedModel) -> onnx.ModelProto:
    """Of any size, as OpenVINO's are."""
    return graphs.to_onnx(deploy, PATCH, dynamic=True)


@pytest.fixture(scope="module")
def plan(deploy: LoadedModel, graph: onnx.ModelProto) -> Plan:
    given = CalibrationSet(patches=(noise(1, PATCH),), cases=("noise",), sha256="", foreground=0)
    return calibrate(graphs.fix_size(graph, PATCH), deploy.net, given, CPU)


@pytest.fixture
def job(deploy: LoadedModel, graph: onnx.ModelProto) -> Job:
    return Job(deploy, graph, "int8", PATCH)


def in_int8(graph: onnx.ModelProto) -> set[str]:
    """Layers whose weights are dequantised; a parity form by its own name."""
    constants = {init.name for init in graph.graph.initializer}
    weights = constants.intersection(n.input[0] for n in graph.graph.node if n.op_type == "DequantizeLinear")
    return {name.removesuffix(".weight").split(".weight_")[0] for name in weights}


def machine(whole: Callable[[set[str]], float]) -> Machine:
    """INT8 takes 2 ms alone; float 1 ms or, of layers that are not `FAST`, 4; `whole` is told what is in float."""

    def takes(job: Job) -> float:
        if job.model.task.name != "block":
            return whole(FAST - in_int8(job.graph))
        if in_int8(job.graph):
            return 2.0
        # Several layers can be equal; the first in the order of the network is measured.
        return 1.0 if job.graph.graph.name in FAST else 4.0

    return Machine(takes)


def tune(made: Machine, job: Job, plan: Plan, folder: Path, seconds: float = 1000.0) -> LayerTuning:
    return tune_layers(
        made.target(), job, plan, seconds=seconds, progress=silent, cache=TuningCache(folder), watch=made.watch
    )


def convolutions(plan: Plan) -> list[str]:
    return [name for name in plan.ranges if plan.layers[name].weights]


def test_every_layer_alone_is_the_layer(job: Job, plan: Plan) -> None:
    """Cut out of the graph and run by OpenVINO, it answers as its module does in PyTorch."""
    shapes = input_shapes(job.model, PATCH, convolutions(plan))
    assert set(shapes) == set(convolutions(plan))
    assert shapes["stem"] == (1, *PATCH) and shapes["up_1.conv1"] == (16, 4, 4, 4)
    for name, (channels, *size) in shapes.items():
        part = alone(job.graph, plan.layers[name], (channels, *size))
        if len(plan.layers[name].weights) > 1:
            part, only = whole_parity(plan, name, (channels, *size))
            assert len(in_int8(only.apply(part))) == len(plan.layers[name].weights)
        model = model_of(nn.Identity(), channels, tuple(size))
        x = noise(channels, tuple(size))
        with torch.inference_mode():
            expected = plan.layers[name].module(torch.from_numpy(x)).numpy()
        with TARGETS["openvino"].trial(Job(model, part, "fp32", tuple(size))) as session:
            found = session.run(x)
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-6, name


def test_a_layer_alone_in_int8(job: Job, plan: Plan) -> None:
    part = alone(job.graph, plan.layers["enc_block_0.0.conv2"], (4, *PATCH))
    only = replace(plan, ranges={"enc_block_0.0.conv2": plan.ranges["enc_block_0.0.conv2"]})
    model = model_of(nn.Identity(), 4, PATCH)
    with TARGETS["openvino"].trial(Job(model, only.apply(part), "int8", PATCH)) as session:
        assert isinstance(session, OpenVinoSession)
        assert [layer.precision for layer in session.layers()] == ["int8"]


def test_equal_layers_have_one_signature(job: Job, plan: Plan) -> None:
    shapes = input_shapes(job.model, PATCH, convolutions(plan))
    found = {name: signature(alone(job.graph, plan.layers[name], shapes[name])) for name in shapes}
    assert found["enc_block_0.0.conv2"] == found["dec_block_0.0.conv2"]
    assert found["enc_block_0.0.conv2"] != found["enc_block_1.0.conv2"], "another size"
    assert found["enc_block_0.0.conv2"] != found["enc_block_0.0.conv3"], "other weights"


def test_the_whole_decides(job: Job, plan: Plan, tmp_path: Path) -> None:
    """Faster with all of them: they are given back, with a reason that has both times."""
    made = machine(lambda in_float: 100.0 - len(in_float))
    found = tune(made, job, plan, tmp_path)
    chosen = {layer.name for layer in found.layers if layer.decision == "float"}
    assert FAST <= chosen == set(found.reasons)
    assert [layer.name for layer in found.layers] == convolutions(plan), "norms are none of them"
    equal = {layer.name for layer in found.layers if layer.saved_ms > 0}
    assert chosen == equal and found.complete
    assert [(trial.float_layers, trial.kept) for trial in found.trials] == [(len(chosen), True)]
    expected = (
        r"faster in float: (1\.0|0\.9)\d+ ms alone, (2\.0|1\.9)\d+ ms in INT8; the whole .* 0\.9[56]\d times as long"
    )
    assert re.match(expected, found.reasons["up_1.conv1"])
    assert made.most == 2, "no more than two engines are in memory"


def test_when_the_whole_is_slower_the_better_half_is_tried(job: Job, plan: Plan, tmp_path: Path) -> None:
    """Reorders between neighbours: alone every layer seems to gain, together they lose; at last none is left."""
    all_lose = tune(machine(lambda in_float: 100.0 + 5 * len(in_float)), job, plan, tmp_path / "a")
    candidates = sum(layer.saved_ms > 0 for layer in all_lose.layers)
    counts = [trial.float_layers for trial in all_lose.trials]
    assert counts[0] == candidates and counts[-1] == 1
    assert all(after == before // 2 for before, after in itertools.pairwise(counts))
    assert not any(trial.kept for trial in all_lose.trials) and not all_lose.reasons
    assert {layer.decision for layer in all_lose.layers} == {"int8"} and all_lose.complete
    some_gain = tune(machine(lambda n: 95.0 if len(n) <= 2 else 110.0), job, plan, tmp_path / "b")
    assert some_gain.trials[-1].kept and 0 < len(some_gain.reasons) < candidates


def test_what_is_not_faster_by_more_than_the_noise_stays(job: Job, plan: Plan, tmp_path: Path) -> None:
    made = Machine(lambda job: 2.0 if in_int8(job.graph) else 2.0 * (1 - ALONE.gate / 2))
    found = tune(made, job, plan, tmp_path)
    assert found.complete and not found.trials and not found.reasons
    assert all(layer.ratio is not None and layer.saved_ms == 0 for layer in found.layers)


def test_layers_that_are_in_float_already_are_not_asked(job: Job, plan: Plan, tmp_path: Path) -> None:
    kept = plan.keeping({"stem", "up_1.conv1"})
    made = machine(lambda in_float: 100.0 - len(in_float))
    found = tune(made, job, kept, tmp_path)
    assert not {"stem", "up_1.conv1"} & {layer.name for layer in found.layers}
    whole = [job for job in made.jobs if job.model.task.name != "block"]
    assert whole and all("up_1.conv1" not in in_int8(job.graph) for job in whole)


def test_an_engine_that_leaves_the_precision_is_no_measure(job: Job, plan: Plan, tmp_path: Path) -> None:
    """Where a layer in INT8 forces the rest into FP32, what it takes alone is not what it takes in the network."""
    made = machine(lambda in_float: 100.0)
    trial = made.target().trial

    def refusing(job: Job) -> object:
        session = trial(job)
        session.refused = "no such kernel" if in_int8(job.graph) else ""
        return session

    target = replace(made.target(), trial=refusing)
    found = tune_layers(target, job, plan, seconds=1000, progress=silent, cache=TuningCache(tmp_path), watch=made.watch)
    assert not any(layer.ratio for layer in found.layers) and not found.trials


def test_what_was_measured_is_kept(
    job: Job, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def made() -> Machine:
        return machine(lambda in_float: 100.0 - len(in_float))

    first, again = tune(made(), job, plan, tmp_path), made()
    assert tune(again, job, plan, tmp_path) == first and not again.jobs, "nothing is measured twice"
    others = (replace(job, precision="int8-bf16"), plan), (job, plan.keeping({"stem"}))
    for other_job, other_plan in others:
        again = made()
        tune(again, other_job, other_plan, tmp_path)
        assert again.jobs
    (tmp_path / f"{first.key}.json").write_text("no JSON")
    again = made()
    with caplog.at_level(logging.WARNING):
        assert tune(again, job, plan, tmp_path).reasons.keys() == first.reasons.keys()
    assert again.jobs and "cannot be read" in caplog.text
    here = tune_cache.environment()
    monkeypatch.setattr(tune_cache, "environment", lambda: here.model_copy(update={"cpu": "another"}))
    again = made()
    tune(again, job, plan, tmp_path)
    assert again.jobs, "another machine measures for itself"


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_the_end_of_the_budget_changes_nothing_and_is_not_kept(
    job: Job, plan: Plan, tmp_path: Path, seconds: float
) -> None:
    found = tune(machine(lambda in_float: 100.0 - len(in_float)), job, plan, tmp_path, seconds)
    assert not found.complete and not found.reasons and not list(tmp_path.iterdir())
    measured = [layer.ratio is not None for layer in found.layers]
    assert not all(measured) and any(measured) == (seconds > 0)


def test_the_digest_of_a_graph_is_not_of_its_weights(graph: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    weight = next(init for init in other.graph.initializer if init.name == "stem.weight")
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(values + 1, "stem.weight"))
    assert graph_digest(other) == graph_digest(graph)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.concatenate([values, values]), "stem.weight"))
    assert graph_digest(other) != graph_digest(graph)
