"""From a MedNeXt in deploy form to the numbers of our native CPU engine, in float32 or bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mednext_edge.errors import ExportError
from mednext_edge.fusion.instance_norm import InstanceNorm
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import Block, DownBlock, MedNeXt, UpBlock
from mednext_edge.ops.float_net import FloatBlock, FloatNet, FloatPrecision
from mednext_edge.ops.net_parts import KERNELS, Dense, Form
from mednext_edge.ops.parity import parity_taps


def float_net(model: LoadedModel, precision: FloatPrecision) -> FloatNet:
    """The numbers of the engine.

    Args:
        model: a MedNeXt in deploy form.
        precision: that the engine computes in; in `bf16` it rounds the weights itself.

    Raises:
        ExportError: the network has a part that the engine does not know.
    """
    net = check_native(model)
    blocks = tuple(_block(block) for _, block in mednext_blocks(net))
    return FloatNet(float_dense(net.stem), blocks, float_dense(net.get_submodule("out_0.conv_out")), precision)


def check_native(model: LoadedModel) -> MedNeXt:
    """The network, known to be one that the engine can run.

    Raises:
        ExportError: it has a part that the engine does not know.
    """
    found, net = "", model.net
    if not isinstance(net, MedNeXt):
        found = model.task.model.variant
    elif net.config.norm != "group":
        found = f"a MedNeXt with the norm `{net.config.norm}`"
    elif net.config.grn or any(net.config.down_grn):
        found = "a MedNeXt with global response norm"
    elif unknown := {net.config.encoder_kernel, net.config.decoder_kernel}.difference(KERNELS):
        found = f"a MedNeXt with the kernel {min(unknown)}"
    if found:
        raise ExportError(
            f"found {found}; the native engine runs MedNeXt in 2-D and 3-D with the norm `group` and the kernels "
            f"{', '.join(map(str, KERNELS))}. Export with --target openvino"
        )
    assert isinstance(net, MedNeXt)
    return net


def mednext_blocks(net: MedNeXt) -> list[tuple[str, Block]]:
    """Its blocks by name, in the order of computation."""
    return [(name, block) for name, block in net.named_modules() if isinstance(block, Block)]


def form_of(block: Block) -> Form:
    """What its depthwise convolution does to the size."""
    return Form.DOWN if isinstance(block, DownBlock) else Form.UP if isinstance(block, UpBlock) else Form.SAME


def float_dense(layer: nn.Module) -> Dense:
    """A 1x1x1 convolution, transposed or not."""
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    weight = layer.weight.detach()
    if isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        weight = weight.transpose(0, 1)
    return Dense(weight.float().flatten(1).contiguous(), layer.bias.detach().float().contiguous())


def _block(block: Block) -> FloatBlock:
    assert isinstance(block.norm, InstanceNorm)
    compress, shortcut = float_dense(block.conv3), None
    if isinstance(block, (DownBlock, UpBlock)) and block.residual:
        shortcut = float_dense(block.res_conv)
        if isinstance(block, UpBlock):
            # A transposed convolution adds its bias to every voxel, also to those that none of its weights reaches.
            compress = Dense(compress.weight, compress.bias + shortcut.bias)
            shortcut = Dense(shortcut.weight, torch.zeros_like(shortcut.bias))
    return FloatBlock(
        form=form_of(block),
        residual=block.residual,
        depthwise=_depthwise(block.conv1),
        eps=block.norm.eps,
        expand=float_dense(block.conv2),
        compress=compress,
        shortcut=shortcut,
    )


def _depthwise(layer: nn.Module) -> Tensor:
    """Weights [C, *kernel] float32; parities are put together again."""
    if not isinstance(layer, ParityConvTranspose):
        assert isinstance(layer.weight, Tensor)
        return layer.weight.detach().float().squeeze(1).contiguous()
    whole = torch.zeros(len(layer.get_parameter("weight_0")), *(layer.kernel,) * layer.dims)
    channels = torch.arange(len(whole)).view(-1, *(1,) * layer.dims)
    for (_, part), taps in zip(layer.named_parameters(), parity_taps(layer.kernel, layer.dims), strict=True):
        places = torch.meshgrid(*(torch.tensor(t) for t in taps), indexing="ij")
        whole.index_put_((channels, *places), part.detach().float().squeeze(1))
    return whole
