"""The kinds of convolution, as INT8 sees them.

The 1x1x1 convolutions between wide tensors hold most multiplications of a MedNeXt (nine of ten at kernel 3, seven to
eight at kernel 5) and are matrix products, which INT8 speeds up everywhere. The others are each a case of their own:
an engine may have no INT8 kernel for them, or one that is slower than float16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.registry import Registry

THIN = 16
"""Channels below which a convolution cannot fill an INT8 tile of a tensor core (16 bytes deep)."""

KINDS: Registry[str] = Registry("layer kind")
"""Every kind, with what it is."""

KINDS.add("pointwise", "1x1x1 convolutions between wide tensors")
KINDS.add("strided", "1x1x1 convolutions with a stride, such as the residuals of the down blocks")
KINDS.add("thin", f"1x1x1 convolutions from or to fewer than {THIN} channels, such as stem and head")
KINDS.add("depthwise", "convolutions with one channel a group")
KINDS.add("transposed", "transposed depthwise convolutions, in their parity form")
KINDS.add("dense", "other convolutions with a kernel larger than 1")

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d | ParityConvTranspose


@dataclass(frozen=True)
class Layer:
    """One convolution of a network in deploy form.

    Attributes:
        name: of the module.
        kind: a name in KINDS.
        module: itself.
        weights: names of its weights; several in the parity form.
    """

    name: str
    kind: str
    module: Convolution
    weights: tuple[str, ...]

    @property
    def quantizable(self) -> bool:
        """Whether INT8 is possible at all: no engine here has a kernel for transposed convolutions as they are."""
        return not isinstance(self.module, TRANSPOSED)


def layers(net: nn.Module) -> Iterator[Layer]:
    """Every convolution, in the order of the modules."""
    for name, module in net.named_modules():
        if isinstance(module, ParityConvTranspose):
            yield Layer(name, "transposed", module, tuple(f"{name}.{part}" for part, _ in module.named_parameters()))
        elif isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
            yield Layer(name, kind_of(module), module, (f"{name}.weight",))


def kind_of(module: Convolution) -> str:
    """The name in KINDS of a convolution."""
    if isinstance(module, (*TRANSPOSED, ParityConvTranspose)):
        return "transposed"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    if math.prod(module.kernel_size) > 1:
        return "dense"
    if min(module.in_channels, module.out_channels) < THIN:
        return "thin"
    return "strided" if math.prod(module.stride) > 1 else "pointwise"
