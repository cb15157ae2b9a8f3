"""Whole blocks in one operator: which are taken, what they keep, and that they train as before."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mednext_edge.errors import UnknownNameError
from mednext_edge.fusion.cuda_block import FusedBlock, FusedDownBlock, FusedUpBlock, use_cuda_block
from mednext_edge.fusion.depthwise import DepthwiseConv, use_depthwise
from mednext_edge.fusion.fuse import REWRITES, fuse
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import Block, UpBlock

from .networks import MEDNEXT, TINY, WITH_GRN, image, loaded
from .test_fuse import TOLERANCE, answer, difference


def kinds(net: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in net.modules() if isinstance(module, (FusedBlock, Block))]


@pytest.mark.parametrize(
    ("name", "before", "places"),
    [
        ("tiny", (), 9),
        ("tiny", ("depthwise-bias", "norm-affine", "instance-norm"), 9),
        ("tiny", ("cuda-depthwise",), 9),
        ("tiny", ("depthwise-bias", "parity"), 7),
        ("deep supervision", (), 9),
        ("two kernels", (), 9),
        ("no residuals", (), 9),
        ("residuals in blocks only", (), 9),
        ("GRN", (), 1),
        ("GRN everywhere", (), 0),
        ("layer norm", (), 0),
        ("2-D, kernel 3", (), 0),
    ],
)
def test_what_is_taken_and_what_is_left(name: str, before: tuple[str, ...], places: int) -> None:
    config = MEDNEXT[name]
    model, x = loaded(config), image(config, batch=2)
    net = copy.deepcopy(model.net)
    for other in before:
        REWRITES[other].apply(net)
    assert use_cuda_block(net) == places
    assert use_cuda_block(net) == 0
    assert sum(issubclass(kind, FusedBlock) for kind in kinds(net)) == places
    assert difference(answer(net, x), answer(model.net, x)) <= TOLERANCE


def test_keys_and_parameters_stay() -> None:
    model = loaded(replace(TINY, deep_supervision=True))
    net = copy.deepcopy(model.net).train()
    before = dict(net.named_parameters())
    use_cuda_block(net)
    assert list(net.state_dict()) == list(model.net.state_dict())
    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    assert all(module.training for module in net.modules())
    net.load_state_dict(model.net.state_dict())
    assert kinds(net)[:2] == [FusedBlock, FusedDownBlock]
    assert kinds(net)[-2:] == [FusedUpBlock, FusedBlock]


def test_a_block_that_is_not_ours_is_left() -> None:
    net = copy.deepcopy(loaded(TINY).net)

    class Other(Block):
        """A block of which nothing is known."""

    bottleneck = net.get_submodule("bottleneck.0")
    bottleneck.__class__ = Other
    tanh = net.get_submodule("enc_block_0.0")
    assert isinstance(tanh, Block)
    tanh.act = nn.GELU(approximate="tanh")
    wide = net.get_submodule("dec_block_0.0")
    assert isinstance(wide, Block)
    wide.conv2 = nn.Conv3d(4, 8, 3, padding=1)
    dilated = net.get_submodule("dec_block_1.0")
    assert isinstance(dilated, Block)
    dilated.conv1 = nn.Conv3d(8, 8, 3, padding=2, dilation=2, groups=8)
    shared = net.get_submodule("enc_block_1.0")
    assert isinstance(shared, Block)
    shared.norm = nn.GroupNorm(2, 8)
    assert use_cuda_block(net) == 4
    assert [kind for kind in kinds(net) if issubclass(kind, Block)] == [Block, Block, Other, Block, Block]
    assert use_cuda_block(bottleneck) == 0


@pytest.mark.parametrize("config", [TINY, replace(TINY, residual_resample=False)], ids=["shortcuts", "none"])
def test_it_trains_as_before(config: MedNeXtConfig) -> None:
    nets = [copy.deepcopy(loaded(config).net).train() for _ in range(2)]
    use_cuda_block(nets[0])
    x = image(config, batch=2)
    outputs = [net(x) for net in nets]
    for net, y in zip(nets, outputs, strict=True):
        net.do_ds = False  # type: ignore[assignment]
        y.square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for again in (False, True):
        net = copy.deepcopy(loaded(TINY).net)
        use_cuda_block(net)
        net.checkpoint_gradients = again  # type: ignore[assignment]
        net(image(TINY)).square().sum().backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) > 80
    torch.testing.assert_close(*grads)


def test_the_backend_takes_whole_blocks_and_depthwise_convolutions_of_the_others() -> None:
    model, x = loaded(WITH_GRN), image(WITH_GRN)
    deploy = fuse(model, backend="cuda")
    assert deploy.rewrites[-2:] == ("cuda-depthwise", "cuda-block")
    assert sum(isinstance(module, DepthwiseConv) for module in deploy.net.modules()) == 9
    assert kinds(deploy.net).count(FusedDownBlock) == 1
    assert difference(answer(deploy.net, x), answer(model.net, x)) <= TOLERANCE
    again = fuse(fuse(model), backend="cuda")
    assert again.rewrites == deploy.rewrites
    assert fuse(deploy, backend="cuda").rewrites == deploy.rewrites
    assert fuse(model, backend="torch").rewrites == fuse(model).rewrites


def test_an_unknown_backend_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown backend `cude`. Did you mean `cuda`\?"):
        fuse(loaded(TINY), backend="cude")


def test_the_shortcut_of_an_up_block_is_padded_in_one_pass() -> None:
    net = copy.deepcopy(loaded(TINY).net)
    block = net.get_submodule("up_0")
    assert isinstance(block, UpBlock)
    fused = FusedUpBlock(block)
    x = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        shortcut, bias = fused.shortcut(x)
        assert shortcut is not None and bias is not None
        expected = nn.functional.pad(block.res_conv(x), block.front)
    inside = (slice(None), slice(None), *(slice(1, None),) * 3)
    ours = shortcut[inside] + (bias - block.conv3.bias)[:, None, None, None]  # type: ignore[operator]
    torch.testing.assert_close(ours, expected[inside])
    shortcut[inside] = 0
    assert shortcut.abs().max() == 0


def test_autocast(tiny_model: LoadedModel) -> None:
    nets = [copy.deepcopy(tiny_model.net).train() for _ in range(3)]
    use_depthwise(nets[0])
    use_cuda_block(nets[0])
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = nets[0](x), nets[1](x)
    exact = nets[2](x)
    off = [(y.float() - exact).square().mean().sqrt() for y in (ours, theirs)]
    assert ours.dtype == theirs.dtype
    assert off[0] <= 2 * off[1]
    ours.float().square().sum().backward()
    assert {p.grad.dtype for p in nets[0].parameters() if p.grad is not None} == {torch.float32}
