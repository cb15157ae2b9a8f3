"""The numbers of the native engine in float: the twin that computes with them is the network."""

from __future__ import annotations

import pytest
import torch

from mednext_edge.fusion import fuse
from mednext_edge.fusion.native import float_net
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.ops.float_net_twin import float_twin
from mednext_edge.ops.packed_net import PackedNet
from tests.fusion.networks import MEDNEXT, loaded

NAMES = (
    *("tiny", "kernel 5", "two kernels", "2-D, kernel 7", "deep supervision", "no residuals"),
    *("residuals in blocks only", "3 levels", "L with MONAI's ratios"),
)


@pytest.mark.parametrize("optional", [(), ("parity",)], ids=["transposed", "parities"])
@pytest.mark.parametrize("name", NAMES)
def test_twin_is_the_network(name: str, optional: tuple[str, ...]) -> None:
    """In float64, of weights that are float32."""
    config: MedNeXtConfig = MEDNEXT[name]
    model = loaded(config)
    model.net.float()
    deploy = fuse(model, optional=optional)
    net = float_net(deploy, "fp32")
    spec = deploy.task.model
    size = (2 ** (config.levels + 1),) * spec.spatial_dims
    x = torch.randn(spec.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = deploy.net.double()(x.double()[None])[0]
    assert (float_twin(net, x) - exact).norm() < 1e-6 * exact.norm()  # sums of two biases were rounded to float32
    assert (PackedNet(net)(x) - exact).norm() < 1e-5 * exact.norm()
