"""The numbers of the native engine, made from a plan: against the Q/DQ graph of the same plan, and against GELU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F

from mednext_edge.errors import ExportError
from mednext_edge.export import graph as exporter
from mednext_edge.export.native import KINDS
from mednext_edge.fusion import fuse
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.ops.net_parts import Form
from mednext_edge.ops.packed_net import PackedNet
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.flavour import Flavour
from mednext_edge.quantize.int8_net import HiddenLevels, int8_net
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.ptq import calibrate
from tests.fusion.networks import CMUNEXT, MEDNEXT, Config, loaded

NAMES = (
    *("tiny", "kernel 5", "two kernels", "2-D, kernel 7", "deep supervision", "no residuals"),
    *("residuals in blocks only", "3 levels", "L with MONAI's ratios"),
)
NATIVE = Flavour(KINDS)


def planned(config: MedNeXtConfig) -> tuple[LoadedModel, Plan, CalibrationSet]:
    """A network in deploy form, calibrated on noise."""
    model = loaded(config)
    model.net.float()
    deploy = fuse(model, optional=("parity",))
    spec = deploy.task.model
    size = (2 ** (config.levels + 1),) * spec.spatial_dims
    rng = np.random.default_rng(0)
    patches = tuple(rng.normal(size=(1, spec.in_channels, *size)).astype(np.float32) for _ in range(4))
    calibration = CalibrationSet(patches, ("noise",) * 4, "0" * 64, 0)
    return deploy, calibrate(exporter.to_onnx(deploy, size), deploy.net, calibration, NATIVE), calibration


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_near_to_float_as_the_graph(name: str) -> None:
    model, plan, calibration = planned(MEDNEXT[name])
    packed = PackedNet(int8_net(model, plan))
    graph = plan.apply(exporter.to_onnx(model, calibration.patches[0].shape[2:]))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    ours, theirs = [], []
    for patch in calibration.patches:
        with torch.no_grad():
            exact = model.net(torch.from_numpy(patch))
        found = packed(torch.from_numpy(patch[0]))
        other = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: patch})[0])
        ours.append(((found - exact[0]).norm() / exact.norm()).item())
        theirs.append(((other - exact).norm() / exact.norm()).item())
    assert np.mean(ours) < 1.5 * np.mean(theirs)


def test_up_blocks_have_the_weights_of_their_parities() -> None:
    model, plan, _ = planned(MEDNEXT["tiny"])
    net = int8_net(model, plan)
    modules = [m for m in model.net.modules() if isinstance(m, ParityConvTranspose)]
    blocks = [block for block in net.blocks if block.form is Form.UP]
    assert len(modules) == len(blocks) > 0
    for module, block in zip(modules, blocks, strict=True):
        x = torch.randint(-127, 128, (1, block.c_in, 3, 4, 5)).double()
        sums = F.conv_transpose3d(x, block.depthwise.double()[:, None], stride=2, padding=1, groups=block.c_in)
        found = torch.empty_like(sums)
        for parity, scale in enumerate(block.depthwise_scale.double()):
            where = (..., *(slice(parity >> (2 - axis) & 1, None, 2) for axis in range(3)))
            found[where] = sums[where] * scale.view(-1, 1, 1, 1)
        with torch.no_grad():
            exact = module.double()(x * block.in_step)
        # The weights are rounded to 127 levels of the largest of their parity.
        assert (found - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.5, 1.0, 3.0, 8.0, 100.0])
def test_gelu_by_table(threshold: float) -> None:
    levels = HiddenLevels.reaching(threshold)
    table = levels.table()
    x = torch.linspace(-20, 2 * threshold, 20001, dtype=torch.float64)
    line = ((x - levels.low) / levels.line - 128).round().clamp(-128, 127).long()
    found = (table[line + 128].double() - levels.zero) * levels.step
    # Half a line, whose slope is 1.13 at most, and half a level.
    error = (found - F.gelu(x).clamp(max=threshold)).abs().max()
    assert error <= 0.5 * 1.13 * levels.line + 0.5 * levels.step + 1e-9
    assert levels.line < (threshold + 6) / 250
    assert table[round(-levels.low / levels.line)] == levels.zero, "nothing must stay nothing"


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (MEDNEXT["GRN"], "global response norm"),
        (MEDNEXT["layer norm"], "norm `layer`"),
        (MEDNEXT["kernel 1"], "kernel 1"),
        (CMUNEXT["tiny"], "custom"),
    ],
    ids=["GRN", "layer norm", "kernel 1", "CMUNeXt"],
)
def test_networks_that_it_does_not_know(config: Config, found: str) -> None:
    model = loaded(config)
    with pytest.raises(ExportError, match=rf"found .*{found}.*; the native engine runs MedNeXt .*--target openvino"):
        int8_net(model, Plan({}, {}, NATIVE))


def test_a_layer_in_float_is_named() -> None:
    model, plan, _ = planned(MEDNEXT["tiny"])
    with pytest.raises(ExportError, match=r"no float form of bottleneck\.0\.conv2;"):
        int8_net(model, plan.keeping({"bottleneck.0.conv2"}))
    without = {name: seen for name, seen in plan.ranges.items() if not name.endswith("conv1")}
    with pytest.raises(ExportError, match=r"conv1, .*conv1, .*conv1 and more;"):
        int8_net(model, replace(plan, ranges=without))
