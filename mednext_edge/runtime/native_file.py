"""The file of the native engine: safetensors with the tensors of a network, and its structure as JSON beside them.

Tensors are named `stem.weight`, `blocks.0.expand.weight`, ...; the metadata `net` holds a block for each that has no
tensor, and the precision, `int8` where it says none. In bfloat16 the weights of products are stored as such; all other
numbers of float networks are float32. Reading it executes nothing, and every shape is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mednext_edge.errors import ExportError, UsageError
from mednext_edge.ops.float_net import FloatBlock, FloatNet, FloatPrecision
from mednext_edge.ops.int8_net import Block8, Dense8, Net8
from mednext_edge.ops.net_parts import Dense, Form, tensors
from mednext_edge.ops.packed_net import CpuNet
from mednext_edge.task import Frozen

KEY = "net"
VERSION: Final = 1
F = TypeVar("F", bound=Frozen)
PRODUCTS = ("expand.weight", "compress.weight", "shortcut.weight")


class _FloatBlock(Frozen):
    form: Form
    residual: bool
    eps: float


class _Block8(_FloatBlock):
    in_step: float
    norm_step: float


class _Net8(Frozen):
    version: Literal[1] = VERSION
    blocks: tuple[_Block8, ...]


class _FloatNet(Frozen):
    version: Literal[1] = VERSION
    precision: FloatPrecision
    blocks: tuple[_FloatBlock, ...]


class _Kind(BaseModel):
    precision: str = "int8"


def save_net(net: CpuNet, file: Path) -> None:
    """Write a network."""
    described: Frozen
    if isinstance(net, FloatNet):
        described = _FloatNet(precision=net.precision, blocks=tuple(_described(_FloatBlock, b) for b in net.blocks))
    else:
        described = _Net8(blocks=tuple(_described(_Block8, b) for b in net.blocks))
    save_file(_named(net), file, metadata={KEY: described.model_dump_json()})


def load_net(file: Path) -> CpuNet:
    """Read a network.

    Raises:
        ExportError: the file holds none, or one that does not fit together.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            described = (opened.metadata() or {}).get(KEY, "")
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        net = _read(described, found)
        if unused := sorted(found.keys() - _named(net).keys()):
            raise UsageError(f"its structure does not use the tensor {unused[0]}")
        return net
    except (SafetensorError, OSError, ValidationError, UsageError, KeyError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ExportError(f"{file} holds no network of the native engine ({reason}); export it again") from error


def _read(described: str, found: Mapping[str, Tensor]) -> CpuNet:
    stem, head = _dense(found, "stem"), _dense(found, "head")
    if _Kind.model_validate_json(described).precision == "int8":
        blocks8 = _Net8.model_validate_json(described).blocks
        return Net8(stem, tuple(_block8(found, f"blocks.{i}", block) for i, block in enumerate(blocks8)), head)
    net = _FloatNet.model_validate_json(described)
    blocks = tuple(_float_block(found, f"blocks.{i}", b, net.precision) for i, b in enumerate(net.blocks))
    return FloatNet(stem, blocks, head, net.precision)


def _described(kind: type[F], block: Block8 | FloatBlock) -> F:
    return kind.model_validate({name: getattr(block, name) for name in kind.model_fields})


def _named(net: CpuNet) -> dict[str, Tensor]:
    """All tensors, as the file names and keeps them."""
    parts = {"stem": net.stem, "head": net.head, **{f"blocks.{i}": block for i, block in enumerate(net.blocks)}}
    found = {f"{part}.{name}": tensor for part, given in parts.items() for name, tensor in tensors(given).items()}
    if isinstance(net, FloatNet) and net.precision == "bf16":
        found |= {name: tensor.bfloat16() for name, tensor in found.items() if name.endswith(PRODUCTS)}
    return found


def _dense(found: Mapping[str, Tensor], name: str, kept: torch.dtype = torch.float32) -> Dense:
    weight = found[f"{name}.weight"]
    if weight.dtype != kept:
        raise UsageError(f"{name}.weight is {weight.dtype}; expected {kept}")
    return Dense(weight.float(), found[f"{name}.bias"])


def _dense8(found: Mapping[str, Tensor], name: str) -> Dense8:
    return Dense8(found[f"{name}.weight"], found[f"{name}.scale"], found[f"{name}.bias"])


def _block8(found: Mapping[str, Tensor], name: str, described: _Block8) -> Block8:
    return Block8(
        **dict(described),
        depthwise=found[f"{name}.depthwise"],
        depthwise_scale=found[f"{name}.depthwise_scale"],
        expand=_dense8(found, f"{name}.expand"),
        table=found[f"{name}.table"],
        compress=_dense8(found, f"{name}.compress"),
        shortcut=_dense8(found, f"{name}.shortcut") if f"{name}.shortcut.weight" in found else None,
    )


def _float_block(
    found: Mapping[str, Tensor], name: str, described: _FloatBlock, precision: FloatPrecision
) -> FloatBlock:
    kept = torch.bfloat16 if precision == "bf16" else torch.float32
    return FloatBlock(
        **dict(described),
        depthwise=found[f"{name}.depthwise"],
        expand=_dense(found, f"{name}.expand", kept),
        compress=_dense(found, f"{name}.compress", kept),
        shortcut=_dense(found, f"{name}.shortcut", kept) if f"{name}.shortcut.weight" in found else None,
    )
