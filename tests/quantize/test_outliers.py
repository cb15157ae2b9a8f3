"""Outlier channels: nothing to float32, much to INT8, and what accuracy control looks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mednext_edge.export.graph import to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.observe import open_graph
from mednext_edge.quantize.ptq import calibrate
from mednext_edge.quantize.sensitivity import measure
from tests.fusion.networks import loaded
from tests.quantize.networks import WIDE, noise
from tests.quantize.outliers import with_outliers

PATCH = (16, 16, 16)
READERS = {"enc_block_0.0.conv1", "down_0.conv1", "down_0.res_conv", "dec_block_0.0.conv1", "out_0.conv_out"}
"""The layers that read the residual stream at full resolution."""


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    model = loaded(replace(WIDE, residual_resample=True))
    model.net.float()
    return model


def test_float_does_not_see_outliers_and_int8_does(model: LoadedModel) -> None:
    calibration = noise(WIDE, PATCH, count=2)
    exact, costs = [], []
    for one in (model, with_outliers(model, factor=300.0)):
        deploy = fuse(one, optional=("parity",))
        graph = to_onnx(deploy, PATCH)
        plan = calibrate(graph, deploy.net, calibration, CPU)
        answers = [
            open_graph(g).run(None, {"image": calibration.patches[0]})[0].astype(np.float64)
            for g in (graph, plan.apply(graph))
        ]
        exact.append(answers[0])
        costs.append(float(((answers[1] - answers[0]) ** 2).sum() / (answers[0] ** 2).sum()))
    assert np.abs(exact[1] - exact[0]).max() < 1e-3 * np.abs(exact[0]).max()
    assert costs[1] > 5 * costs[0]
    # The last network's: its readers of the stream are the ones that cost most.
    worst = sorted(measure(graph, plan, calibration.patches[:1]), key=lambda found: found.nmse, reverse=True)
    assert len({found.name for found in worst[:4]} & READERS) >= 3
