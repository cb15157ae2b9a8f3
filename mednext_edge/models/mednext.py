"""MedNeXt (Roy et al., MICCAI 2023, arXiv 2303.09975), key for key the authors' state_dict.

Shapes are written for 3-D, [N, C, D, H, W]; 2-D drops D.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mednext_edge.models.config import MedNeXtConfig

CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of a channels-first tensor, in 2-D and 3-D (eps 1e-5, biased variance)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(channels))
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype == torch.float16 else x  # squares overflow float16
        centred = wide - wide.mean(1, keepdim=True)
        normalised = (centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)).to(x.dtype)
        if self.weight is None or self.bias is None:
            return normalised  # folded into the next convolution
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return normalised * self.weight.view(shape) + self.bias.view(shape)


class Block(nn.Module):
    """Depthwise convolution -> norm -> 1x1x1 expansion -> GELU -> (GRN) -> 1x1x1 compression, plus identity.

    [N, C, D, H, W] -> [N, C, D, H, W]
    """

    def __init__(self, config: MedNeXtConfig, channels: int, out: int, expansion: int, kernel: int, grn: bool) -> None:
        super().__init__()
        conv = CONV[config.spatial_dims]
        hidden = channels * expansion
        if grn:
            shape = (1, hidden) + (1,) * config.spatial_dims
            self.grn_beta = nn.Parameter(torch.zeros(shape))
            self.grn_gamma = nn.Parameter(torch.zeros(shape))
        self.grn = grn
        self.residual = config.residual
        self.conv1: nn.Module = self._depthwise(config, channels, kernel)
        self.norm: nn.Module = (
            nn.GroupNorm(channels, channels) if config.norm == "group" else ChannelLayerNorm(channels)
        )
        self.conv2 = conv(channels, hidden, 1)
        self.act = nn.GELU()
        self.conv3 = conv(hidden, out, 1)

    def _depthwise(self, config: MedNeXtConfig, channels: int, kernel: int) -> nn.Module:
        return CONV[config.spatial_dims](channels, channels, kernel, padding=kernel // 2, groups=channels)

    def main(self, x: Tensor) -> Tensor:
        """The path beside the residual."""
        hidden = self.act(self.conv2(self.norm(self.conv1(x))))
        if self.grn:
            hidden = global_response_norm(hidden, self.grn_gamma, self.grn_beta)
        return cast(Tensor, self.conv3(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x) if self.residual else self.main(x)


class DownBlock(Block):
    """A block whose depthwise convolution has stride 2: [N, C, D, H, W] -> [N, 2C, D/2, H/2, W/2]."""

    def __init__(self, config: MedNeXtConfig, channels: int, expansion: int, kernel: int, grn: bool) -> None:
        super().__init__(config, channels, 2 * channels, expansion, kernel, grn)
        self.residual = config.residual_resample
        if self.residual:
            self.res_conv = CONV[config.spatial_dims](channels, 2 * channels, 1, stride=2)

    def _depthwise(self, config: MedNeXtConfig, channels: int, kernel: int) -> nn.Module:
        conv = CONV[config.spatial_dims]
        return conv(channels, channels, kernel, stride=2, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.res_conv(x) if self.residual else self.main(x)


class UpBlock(Block):
    """A block whose depthwise convolution is transposed: [N, C, D, H, W] -> [N, C/2, 2D, 2H, 2W].

    Everything runs on 2n-1 voxels per axis, the norm's statistics included; one zero voxel is put in
    front of every axis at the end.
    """

    def __init__(self, config: MedNeXtConfig, channels: int, expansion: int, kernel: int, grn: bool) -> None:
        super().__init__(config, channels, channels // 2, expansion, kernel, grn)
        self.residual = config.residual_resample
        self.front = (1, 0) * config.spatial_dims
        if self.residual:
            self.res_conv: nn.Module = CONV_TRANSPOSE[config.spatial_dims](channels, channels // 2, 1, stride=2)

    def _depthwise(self, config: MedNeXtConfig, channels: int, kernel: int) -> nn.Module:
        conv = CONV_TRANSPOSE[config.spatial_dims]
        return conv(channels, channels, kernel, stride=2, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.main(x) + self.res_conv(x) if self.residual else self.main(x)
        return F.pad(out, self.front)


class Head(nn.Module):
    """Logits from features: a transposed 1x1x1 convolution, as the authors store it."""

    def __init__(self, config: MedNeXtConfig, channels: int) -> None:
        super().__init__()
        self.conv_out: nn.Module = CONV_TRANSPOSE[config.spatial_dims](channels, config.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv_out(x))


def global_response_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """GRN (Woo et al., ConvNeXt V2, arXiv 2301.00808) as MedNeXt has it: spatial L2 norm over its channel mean."""
    axes = tuple(range(2, x.dim()))
    wide = x.float() if x.dtype == torch.float16 else x  # sums of squares over a volume overflow float16
    response = wide.square().sum(axes, keepdim=True).sqrt()
    share = (response / (response.mean(1, keepdim=True) + 1e-6)).to(x.dtype)
    return gamma * (x * share) + beta + x


class MedNeXt(nn.Module):
    """The network: stem, L encoder levels, bottleneck, L decoder levels with additive skips, head.

    Input [N, in_channels, D, H, W], every spatial size a multiple of 2**L; output raw logits
    [N, classes, D, H, W]. With deep supervision and `do_ds` set, a list of logits at strides 1, 2, ... 2**L.

    Attributes:
        do_ds: return the list; nnU-Net switches it off for inference.
        checkpoint_gradients: recompute the activations of each block in the backward pass.
    """

    def __init__(self, config: MedNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.do_ds = config.deep_supervision
        self.checkpoint_gradients = False
        levels, width = config.levels, config.channels
        # Carried by every official checkpoint; the authors feed it to activation checkpointing.
        self.dummy_tensor = nn.Parameter(torch.ones(1))
        self.stem = CONV[config.spatial_dims](config.in_channels, width, 1)
        for i in range(levels):
            self.add_module(f"enc_block_{i}", self._stage(i, width << i, config.encoder_kernel))
            down = DownBlock(
                config, width << i, config.down_expansion[i], config.encoder_kernel, grn=config.down_grn[i]
            )
            self.add_module(f"down_{i}", down)
        self.bottleneck = self._stage(levels, width << levels, config.decoder_kernel)
        for i in reversed(range(levels)):
            ratio = config.expansion[2 * levels - i]
            self.add_module(f"up_{i}", UpBlock(config, width << (i + 1), ratio, config.decoder_kernel, grn=config.grn))
            self.add_module(f"dec_block_{i}", self._stage(2 * levels - i, width << i, config.decoder_kernel))
        for i in range(levels + 1 if config.deep_supervision else 1):
            self.add_module(f"out_{i}", Head(config, width << i))

    def _stage(self, stage: int, channels: int, kernel: int) -> nn.Sequential:
        config = self.config
        ratio = config.expansion[stage]
        return nn.Sequential(
            *(Block(config, channels, channels, ratio, kernel, grn=config.grn) for _ in range(config.blocks[stage]))
        )

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.checkpoint_gradients and torch.is_grad_enabled():
            for part in module if isinstance(module, nn.Sequential) else (module,):
                x = cast(Tensor, checkpoint(part, x, use_reentrant=False))
            return x
        return cast(Tensor, module(x))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(x)
        skips: list[Tensor] = []
        for i in range(self.config.levels):
            x = self._run(self.get_submodule(f"enc_block_{i}"), x)
            skips.append(x)
            x = self._run(self.get_submodule(f"down_{i}"), x)
        x = self._run(self.bottleneck, x)
        features = [x]
        for i in reversed(range(self.config.levels)):
            x = skips[i] + self._run(self.get_submodule(f"up_{i}"), x)
            x = self._run(self.get_submodule(f"dec_block_{i}"), x)
            features.append(x)
        if not self.do_ds:
            return self._run(self.get_submodule("out_0"), x)
        return [self._run(self.get_submodule(f"out_{i}"), f) for i, f in enumerate(reversed(features))]
