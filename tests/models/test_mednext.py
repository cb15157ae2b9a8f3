"""MedNeXt against the authors' key list, numeric fingerprints and the parts it is made of."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mednext_edge.models.config import MedNeXtConfig, mednext_config
from mednext_edge.models.mednext import Block, ChannelLayerNorm, DownBlock, MedNeXt, UpBlock, global_response_norm

HERE = Path(__file__).parent
TINY = MedNeXtConfig(
    in_channels=2,
    classes=3,
    channels=4,
    blocks=(1,) * 5,
    expansion=(2, 3, 2, 3, 2),
    down_expansion=(3, 2),
    down_grn=(False, True),
)


def monai_key(key: str) -> str:
    """The name that MONAI gives to a tensor of the authors."""
    for pattern, name, flip in (
        (r"enc_block_(\d)\.", "enc_stages", None),
        (r"down_(\d)\.", "down_blocks", None),
        (r"dec_block_(\d)\.", "dec_stages", 3),
        (r"up_(\d)\.", "up_blocks", 3),
        (r"out_([1-4])\.", "out_blocks", 4),
    ):
        if match := re.match(pattern, key):
            index = int(match[1]) if flip is None else flip - int(match[1])
            return f"{name}.{index}.{key[match.end() :]}"
    return key


def fill(net: nn.Module, layout: str) -> None:
    """Weights that a formula gives: s = sin(0.37 t + 0.11 j), j the tensor's place in lexicographic key order.

    Scale weights become 1 + 0.1 s, other vectors 0.1 s, all else s / sqrt(n / shape[0]).
    """
    tensors = net.state_dict()
    names = {key: monai_key(key) if layout == "monai" else key for key in tensors}
    if layout == "monai":
        del names["dummy_tensor"]  # MONAI has none, so it takes no place
    for j, (key, _) in enumerate(sorted(names.items(), key=lambda item: item[1])):
        tensor = tensors[key]
        s = torch.sin(0.37 * torch.arange(tensor.numel(), dtype=torch.float64) + 0.11 * j).reshape(tensor.shape)
        if tensor.dim() <= 1:
            tensor.copy_(1 + 0.1 * s if key.endswith("weight") else 0.1 * s)
        else:
            tensor.copy_(s / math.sqrt(tensor.numel() / tensor.shape[0]))


@pytest.mark.parametrize("name", ["mic-S-3", "mic-S-5", "mic-B-3", "monai-S-3"])
def test_fingerprint(name: str) -> None:
    layout, variant, kernel = name.split("-")
    config = mednext_config(variant, in_channels=2, classes=3, kernel=int(kernel), deep_supervision=True)
    net = MedNeXt(config).double().eval()
    fill(net, layout)
    x = torch.sin(0.013 * torch.arange(2 * 32**3, dtype=torch.float64)).reshape(1, 2, 32, 32, 32)
    with torch.no_grad():
        outputs = net(x)
    golden: list[dict[str, Any]] = json.loads((HERE / "golden.json").read_text())[name]
    assert len(outputs) == len(golden) == 5
    for output, expected in zip(outputs, golden, strict=True):
        flat = output.flatten()
        found = [flat.sum().item(), flat.abs().sum().item(), *flat[:4].tolist(), flat[-1].item()]
        assert list(output.shape) == expected["shape"]
        assert found == pytest.approx(
            [expected["sum"], expected["abssum"], *expected["first"], expected["last"]], rel=1e-9, abs=0
        )


def test_keys_and_shapes_are_the_authors_in_order() -> None:
    lines = (HERE / "mednext_B_k3.txt").read_text().splitlines()
    with torch.device("meta"):
        net = MedNeXt(mednext_config("B", classes=14, deep_supervision=True))
    assert [f"{key} {tuple(tensor.shape)}" for key, tensor in net.state_dict().items()] == lines


# One input, 14 classes: parameters without and with deep supervision, keys of both.
COUNTS = {
    ("S", 3): (5_551_311, 5_564_807, 229),
    ("S", 5): (5_980_943, 5_994_439, 229),
    ("B", 3): (10_526_703, 10_540_199, 229),
    ("B", 5): (10_956_335, 10_969_831, 229),
    ("M", 3): (17_549_359, 17_562_855, 357),
    ("M", 5): (18_261_231, 18_274_727, 357),
    ("L", 3): (61_779_663, 61_793_159, 517),
    ("L", 5): (62_993_295, 63_006_791, 517),
}


def count(config: MedNeXtConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in MedNeXt(config).parameters())


@pytest.mark.parametrize(("variant", "kernel"), COUNTS)
def test_parameter_and_key_counts(variant: str, kernel: int) -> None:
    plain, supervised, keys = COUNTS[variant, kernel]
    config = mednext_config(variant, classes=14, kernel=kernel)
    assert count(config) == plain
    assert count(replace(config, deep_supervision=True)) == supervised
    with torch.device("meta"):
        assert len(MedNeXt(config).state_dict()) == keys
        assert len(MedNeXt(replace(config, deep_supervision=True)).state_dict()) == keys + 8


@pytest.mark.parametrize(
    ("variant", "kernel", "parameters"),
    [
        ("S", 3, 5_564_806),
        ("S", 5, 5_994_438),
        ("B", 3, 10_524_742),
        ("B", 5, 10_954_374),
        ("M", 3, 17_547_398),
        ("M", 5, 18_259_270),
        ("L", 3, 61_740_646),
        ("L", 5, 62_954_278),
    ],
)
def test_monai_parameter_counts(variant: str, kernel: int, parameters: int) -> None:
    config = mednext_config(variant, classes=14, kernel=kernel, deep_supervision=True, layout="monai")
    assert count(config) == parameters + 1  # MONAI carries no dummy tensor


@pytest.mark.parametrize(("channels", "parameters"), [(32, 61_969_252), (64, 246_535_876)])
def test_grn_parameter_counts(channels: int, parameters: int) -> None:
    assert count(replace(mednext_config("L", classes=3, grn=True), channels=channels)) == parameters


def test_grn_is_in_every_block_but_the_first_down_block() -> None:
    with torch.device("meta"):
        keys = MedNeXt(mednext_config("S", grn=True)).state_dict()
    without = {m.group(1) for key in keys if (m := re.match(r"(.+)\.conv1\.weight", key))}
    without -= {key.removesuffix(".grn_gamma") for key in keys if key.endswith("grn_gamma")}
    assert without == {"down_0"}
    assert [key for key in keys if key.startswith("down_1.")][:2] == ["down_1.grn_beta", "down_1.grn_gamma"]


@pytest.mark.parametrize("dims", [2, 3])
def test_global_response_norm(dims: int) -> None:
    x = torch.randn(2, 5, *(4, 3, 2)[:dims], dtype=torch.float64)
    gamma, beta = torch.randn(2, 1, 5, *(1,) * dims, dtype=torch.float64)
    out = global_response_norm(x, gamma, beta)
    flat = x.flatten(2)
    for n in range(2):
        norms = flat[n].norm(dim=1)
        for c in range(5):
            g, b = gamma.flatten()[c], beta.flatten()[c]
            expected = g * flat[n, c] * norms[c] / (norms.mean() + 1e-6) + b + flat[n, c]
            torch.testing.assert_close(out[n, c].flatten(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_layer_norm_is_that_of_torch_over_channels(dims: int) -> None:
    x = torch.randn(2, 6, *(5, 4, 3)[:dims], dtype=torch.float64)
    ours, theirs = ChannelLayerNorm(6).double(), nn.LayerNorm(6, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("grn", [False, True])
def test_output_shapes(dims: int, norm: Any, grn: bool) -> None:
    net = MedNeXt(replace(TINY, spatial_dims=dims, norm=norm, grn=grn, deep_supervision=True)).eval()
    size = (12, 8, 16)[:dims]
    outputs = net(torch.randn(2, 2, *size))
    assert isinstance(outputs, list)
    assert [tuple(o.shape) for o in outputs] == [(2, 3, *(n >> level for n in size)) for level in range(3)]
    net.do_ds = False
    torch.testing.assert_close(net(torch.ones(2, 2, *size)).shape, outputs[0].shape)


@pytest.mark.parametrize("kind", [Block, DownBlock, UpBlock])
def test_two_dimensional_block_is_the_three_dimensional_one_on_a_plane(kind: Any) -> None:
    arguments = (6, 3, 3, True)
    make = (lambda c: Block(c, 6, *arguments)) if kind is Block else (lambda c: kind(c, *arguments))
    flat, solid = (make(replace(TINY, spatial_dims=dims)).double() for dims in (2, 3))
    weights = {}
    for key, tensor in flat.state_dict().items():
        value = torch.randn_like(tensor)
        flat.state_dict()[key].copy_(value)
        weights[key] = value if value.dim() == 1 else value.unsqueeze(2)
    # The plane meets only the middle of the 3-D kernel.
    kernel = weights["conv1.weight"]
    weights["conv1.weight"] = torch.cat([torch.zeros_like(kernel), kernel, torch.zeros_like(kernel)], 2)
    solid.load_state_dict(weights)
    x = torch.randn(2, 6, 6, 8, dtype=torch.float64)
    plane = solid(x.unsqueeze(2))[:, :, -1]  # the up block puts its empty plane in front
    torch.testing.assert_close(plane, flat(x), rtol=1e-12, atol=1e-12)


def test_up_block_leaves_its_front_planes_empty() -> None:
    out = UpBlock(TINY, 8, 2, 5, grn=False)(torch.randn(1, 8, 3, 4, 5))
    assert out.shape == (1, 4, 6, 8, 10)
    for axis in (2, 3, 4):
        assert not out.select(axis, 0).any()
        assert out.select(axis, 1).any()


def test_encoder_and_decoder_kernels_differ() -> None:
    with torch.device("meta"):
        keys = MedNeXt(replace(TINY, encoder_kernel=3, decoder_kernel=5)).state_dict()
    for key, tensor in keys.items():
        if key.endswith("conv1.weight"):
            assert tensor.shape[-1] == (3 if key.startswith(("enc_", "down_")) else 5), key


def test_without_residuals() -> None:
    config = replace(TINY, residual=False, residual_resample=False)
    net = MedNeXt(config)
    assert not [key for key in net.state_dict() if "res_conv" in key]
    block = Block(config, 4, 4, 2, 3, grn=False)
    x = torch.randn(1, 4, 5, 5, 5)
    torch.testing.assert_close(block(x), block.main(x))


def gradients(net: MedNeXt, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    outputs = net(x)
    torch.autograd.backward([o.square().sum() for o in outputs])
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    net = MedNeXt(replace(TINY, deep_supervision=True)).double().train()
    x = torch.randn(1, 2, 8, 8, 8, dtype=torch.float64)
    plain = gradients(net, x)
    calls = 0
    forward = Block.forward

    def counted(self: Block, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(self, y)

    monkeypatch.setattr(Block, "forward", counted)
    net.checkpoint_gradients = True
    recomputed = gradients(net, x)
    assert calls == 10  # 5 stages of one block, each run again in the backward pass
    assert plain.keys() == recomputed.keys() == {n for n, _ in net.named_parameters()} - {"dummy_tensor"}
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-12, atol=1e-12, msg=name)
