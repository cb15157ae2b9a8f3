"""Networks of other makes through the one door for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mednext_edge as mx
from mednext_edge.errors import CheckpointError, ExportError, UsageError
from mednext_edge.models.families import build
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.module import ModuleSpec
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.task import Inference

PATCH = (8, 8, 12)


class Foreign(nn.Module):
    """As nnU-Net's: convolutions that are registered under two names, and a head that only training asks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 16, 3, padding=1)
        self.norm = nn.InstanceNorm3d(16, affine=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, nn.LeakyReLU())
        self.down = nn.Conv3d(16, 32, 2, stride=2)
        self.up = nn.ConvTranspose3d(32, 16, 2, stride=2)
        self.head = nn.Conv3d(16, 3, 1)
        self.training_head = nn.Conv3d(32, 3, 1)  # never asked in eval mode

    def forward(self, x: Tensor) -> Tensor:
        x = self.all_modules(x)
        found: Tensor = self.head(x + self.up(self.down(x)))
        return found


def spec(**changes: Any) -> ModuleSpec:
    return ModuleSpec(**{"name": "foreign", "in_channels": 2, "classes": 3, "patch": PATCH, "divisor": 2, **changes})


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel.from_module(Foreign(), spec())


@pytest.fixture(scope="module")
def noise() -> CalibrationSet:
    rng = np.random.default_rng(0)
    patches = tuple(rng.standard_normal((1, 2, *PATCH), dtype=np.float32) for _ in range(3))
    return CalibrationSet(patches=patches, cases=("noise",) * 3, sha256="0" * 64, foreground=3)


def test_the_task_is_the_declaration(model: LoadedModel) -> None:
    task = model.task
    assert (task.name, task.model.family, task.model.variant) == ("foreign", "module", "Foreign")
    assert (task.model.in_channels, task.model.classes, task.model.spatial_dims) == (2, 3, 3)
    assert task.model.kernel_size == 3
    assert task.model.parameters == sum(p.numel() for p in model.net.parameters())
    assert task.labels == {"background": 0, "class-1": 1, "class-2": 2}
    assert len(task.preprocessing.normalization) == 2
    assert task.inference.patch == PATCH
    assert not model.net.training


def test_the_digest_is_of_the_weights() -> None:
    nets = [Foreign() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    first, same = (LoadedModel.from_module(net, spec()).source.sha256 for net in nets)
    assert first == same
    with torch.no_grad():
        nets[1].head.bias[0] += 1
    assert LoadedModel.from_module(nets[1], spec()).source.sha256 != first


def test_it_runs_in_a_session(model: LoadedModel, noise: CalibrationSet) -> None:
    x = noise.patches[0]
    with mx.open(model) as session:
        found = session.run(x)
    with torch.inference_mode():
        assert np.array_equal(found, model.net(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_its_bundle_gives_its_labels(model: LoadedModel, noise: CalibrationSet, precision: str, tmp_path: Path) -> None:
    given = noise if precision == "int8" else None
    out = mx.export(model, target="openvino", precision=precision, calibration=given, out=tmp_path / "out")
    x = noise.patches[0]
    with mx.open(out) as session, torch.inference_mode():
        assert session.patch == PATCH
        found, expected = session.run(x), model.net(torch.from_numpy(x)).numpy()
        precisions = {layer.precision for layer in session.layers()}  # type: ignore[attr-defined]
    assert ("int8" in precisions) == (precision == "int8")
    error = ((found - expected) ** 2).sum() / (expected**2).sum()
    assert error < (1e-9 if precision == "fp32" else 0.02)
    if precision == "fp32":
        assert (found.argmax(1) == expected.argmax(1)).all()
    with pytest.raises(UsageError, match="takes"):
        mx.open(out, patch=(16, 16, 16))


def test_sizes_are_those_declared(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="alone"):
        mx.export(model, target="openvino", patch=(16, 16, 16), out=tmp_path / "out")
    with pytest.raises(UsageError, match="--dynamic"):
        mx.export(model, target="openvino", dynamic=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Answers(nn.Module):
    """Whatever it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x) if callable(self.answer) else self.answer


@pytest.mark.parametrize(
    ("net", "declared", "words"),
    [
        (Foreign(), {"classes": 4}, "declared is"),
        (Foreign(), {"in_channels": 1}, "does not take an input of"),
        (Foreign(), {"patch": (7, 8, 8)}, "multiples of the declared divisor 2"),
        (Foreign(), {"inference": Inference(patch=(4, 4, 4))}, "expected the same"),
        (Answers(lambda x: [x, x]), {"classes": 2}, "answers with a list; .* deep supervision"),
        (Answers(None), {}, "answers with a NoneType"),
    ],
)
def test_what_breaks_the_declaration(net: nn.Module, declared: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LoadedModel.from_module(net, spec(**declared))


def test_classifiers_answer_without_space() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    declared = ModuleSpec(name="c", in_channels=3, classes=4, patch=(16, 16), kind="classification", any_size=True)
    assert LoadedModel.from_module(net, declared).task.model.output_shape((16, 16)) == (4,)


def test_a_description_builds_no_module(model: LoadedModel) -> None:
    with pytest.raises(CheckpointError, match="give the module itself"):
        build(model.task.model)


class Skips(nn.Sequential):
    """Looks like a sequence, and is none: what its norm gives is added to what it takes."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[0](x)
        z: Tensor = y + self[1](y)
        return z


class Twice(nn.Module):
    """One convolution in two sequences: a norm cannot be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(1, 2, 1)
        norm = nn.BatchNorm2d(2)
        norm.weight.data.fill_(3.0)
        self.one, self.other = nn.Sequential(shared, norm), nn.Sequential(shared, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) + self.other(x)
        return y


class Reaches(nn.Module):
    """Takes the weights of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.conv.weight)


def test_fusion_leaves_the_function_or_refuses() -> None:
    declared = ModuleSpec(name="f", in_channels=1, classes=2, patch=(8, 8), any_size=True)
    norm = nn.BatchNorm2d(2)
    norm.weight.data.fill_(3.0)
    net = Skips(nn.Conv2d(1, 2, 1), norm).eval()
    x = torch.randn(1, 1, 8, 8)
    fused = mx.fuse(LoadedModel.from_module(net, declared))
    with torch.inference_mode():
        assert torch.allclose(fused.net(x), net(x), atol=1e-6)
    with pytest.raises(ExportError, match="change what Twice answers"):
        mx.fuse(LoadedModel.from_module(Twice(), declared))
    with pytest.raises(ExportError, match="uses the weights of conv without calling"):
        mx.fuse(LoadedModel.from_module(Reaches(), declared))
