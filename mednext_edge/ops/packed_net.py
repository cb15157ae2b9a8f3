"""Networks on the kernels of `libmednext_cpu`."""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor

from mednext_edge.errors import UsageError
from mednext_edge.ops import cpu_library
from mednext_edge.ops.float_net import FloatBlock, FloatNet
from mednext_edge.ops.int8_net import Block8, Net8
from mednext_edge.ops.net_parts import Dense, Form, tensors

FORMS = {Form.SAME: 0, Form.DOWN: 1, Form.UP: 2}
PRECISIONS = {"int8": 0, "fp32": 1, "bf16": 2}
RENAMED = {"expand.weight": "expand", "compress.weight": "compress", "shortcut.weight": "shortcut"}

CpuNet = Net8 | FloatNet


def precision_of(net: CpuNet) -> str:
    """`int8`, `fp32` or `bf16`."""
    return net.precision if isinstance(net, FloatNet) else "int8"


class PackedNet:
    """A network as the kernels of this processor read it; calls of several threads wait for one another.

    Raises:
        MednextEdgeError: the library is missing, or there is not enough memory.
    """

    def __init__(self, net: CpuNet) -> None:
        self.channels = net.stem.weight.shape[1]
        self.classes = len(net.head.weight)
        self.dims, self.divisor = net.dims, net.divisor
        self._lock = threading.Lock()
        self._net = cpu_library.new_net(_dense(net.stem), _dense(net.head), PRECISIONS[precision_of(net)])
        self.close = weakref.finalize(self, cpu_library.free_net, self._net)
        for block in net.blocks:
            if isinstance(block, Block8):
                cpu_library.call("net_add", self._net, _block8(block))
            else:
                cpu_library.call("net_add_float", self._net, _float_block(block))

    def __call__(self, x: Tensor, *, threads: int | None = None) -> Tensor:
        """Logits.

        Args:
            x: [C, *size] float32, every side a multiple of the divisor.
            threads: None takes as many as PyTorch has.

        Returns:
            [classes, *size] float32.

        Raises:
            UsageError: another shape or type.
        """
        size = tuple(x.shape[1:])
        fits = len(size) == self.dims and x.shape[0] == self.channels and all(n and n % self.divisor == 0 for n in size)
        if x.dtype != torch.float32 or not fits:
            raise UsageError(
                f"found x {x.dtype} {tuple(x.shape)}; expected torch.float32 [{self.channels}, ...] with {self.dims} "
                f"sides that are multiples of {self.divisor}"
            )
        y = torch.empty(self.classes, *size)
        deep = (1,) * (3 - self.dims) + size
        with self._lock:
            cpu_library.call("net_run", self._net, *deep, x.contiguous(), y, threads=threads)
        return y


def _dense(layer: Dense) -> cpu_library.DenseLayer:
    out, c_in = layer.weight.shape
    return cpu_library.DenseLayer(c_in=c_in, c_out=out, weight=layer.weight.data_ptr(), bias=layer.bias.data_ptr())


def _block8(block: Block8) -> cpu_library.NetBlock:
    return cpu_library.NetBlock(in_step=block.in_step, norm_step=block.norm_step, **_common(block))


def _float_block(block: FloatBlock) -> cpu_library.FloatNetBlock:
    return cpu_library.FloatNetBlock(**_common(block))


def _common(block: Block8 | FloatBlock) -> dict[str, int | float]:
    """Sizes, and where the tensors are."""
    pointers = {RENAMED.get(name, name.replace(".", "_")): tensor.data_ptr() for name, tensor in tensors(block).items()}
    return {
        "form": FORMS[block.form],
        "kernel": block.kernel,
        "depth": block.kernel if block.dims == 3 else 1,
        "residual": block.residual,
        "c_in": block.c_in,
        "hidden": block.hidden,
        "c_out": block.c_out,
        "eps": block.eps,
        **pointers,
    }
