"""Interleaving by OpenVINO's own operator: the same numbers, in 2-D and 3-D, and nothing else is touched."""

from __future__ import annotations

import io

import numpy as np
import openvino as ov
import pytest
import torch
from torch import Tensor, nn

from mednext_edge.export.depth_to_space import use_depth_to_space
from mednext_edge.ops.parity import interleave


class Interleave(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.parts = 2**dims

    def forward(self, x: Tensor) -> Tensor:
        return interleave([x * (i + 1) for i in range(self.parts)])


class Permute(nn.Module):
    """Reshape, transpose, reshape, with blocks of another size or in another order."""

    def __init__(self, block: int, order: tuple[int, ...]) -> None:
        super().__init__()
        self.block, self.order = block, order

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = self.block
        split = x.reshape(n, b, b, c // b**2, h, w).permute(self.order)
        return split.reshape(n, c // b**2, h * b, w * b)


def converted(net: nn.Module, x: Tensor, *, open_size: bool = False) -> ov.Model:
    """Through ONNX, as the exporter does it."""
    sizes = {axis: torch.export.Dim(f"size_{axis}", min=2) for axis in range(2, x.dim())}
    program = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=(sizes,) if open_size else None, verbose=False)
    assert program is not None
    return ov.convert_model(io.BytesIO(program.model_proto.SerializeToString()))


def kinds(model: ov.Model) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def run(model: ov.Model, x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = ov.Core().compile_model(model, "CPU")(x.numpy())[0]
    return found


@pytest.mark.parametrize("open_size", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (3, 4, 5)])
def test_same_numbers(size: tuple[int, ...], open_size: bool) -> None:
    x = torch.randn(1, 3, *size)
    net = Interleave(len(size))
    model = converted(net, x, open_size=open_size)
    assert "Transpose" in kinds(model)
    assert use_depth_to_space(model) == 1
    assert "DepthToSpace" in kinds(model)
    assert "Transpose" not in kinds(model)
    assert np.array_equal(run(model, x), net(x).numpy())


@pytest.mark.parametrize(("block", "order"), [(3, (0, 3, 4, 1, 5, 2)), (2, (0, 3, 4, 2, 5, 1))])
def test_other_permutations_stay(block: int, order: tuple[int, ...]) -> None:
    x = torch.randn(1, 36, 4, 5)
    model = converted(Permute(block, order), x)
    assert use_depth_to_space(model) == 0
    assert np.array_equal(run(model, x), Permute(block, order)(x).numpy())
