"""The file of the native engine: safetensors with the tensors of a `Net8`, and its structure as JSON beside them.

Tensors are named `stem.weight`, `blocks.0.expand.scale`, ...; the metadata `net` holds a block for each that has no
tensor. Reading it executes nothing, and every shape is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mednext_edge.errors import ExportError, UsageError
from mednext_edge.ops.int8_net import Block8, Dense, Dense8, Form, Net8, tensors
from mednext_edge.task import Frozen

KEY = "net"
VERSION: Final = 1


class _Block(Frozen):
    form: Form
    residual: bool
    in_step: float
    eps: float
    norm_step: float


class _Net(Frozen):
    version: Literal[1] = VERSION
    blocks: tuple[_Block, ...]


def save_net(net: Net8, file: Path) -> None:
    """Write a network."""
    blocks = tuple(_Block.model_validate({name: getattr(b, name) for name in _Block.model_fields}) for b in net.blocks)
    save_file(_named(net), file, metadata={KEY: _Net(blocks=blocks).model_dump_json()})


def load_net(file: Path) -> Net8:
    """Read a network.

    Raises:
        ExportError: the file holds none, or one that does not fit together.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        described = _Net.model_validate_json(metadata.get(KEY, ""))
        net = Net8(
            _dense(found, "stem"),
            tuple(_block(found, f"blocks.{i}", block) for i, block in enumerate(described.blocks)),
            _dense(found, "head"),
        )
        if unused := sorted(found.keys() - _named(net).keys()):
            raise UsageError(f"its structure does not use the tensor {unused[0]}")
        return net
    except (SafetensorError, OSError, ValidationError, UsageError, KeyError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ExportError(f"{file} holds no network of the native engine ({reason}); export it again") from error


def _named(net: Net8) -> dict[str, Tensor]:
    """All tensors, as the file names them."""
    parts: dict[str, Dense | Block8] = {"stem": net.stem, "head": net.head}
    parts |= {f"blocks.{i}": block for i, block in enumerate(net.blocks)}
    return {f"{part}.{name}": tensor for part, given in parts.items() for name, tensor in tensors(given).items()}


def _dense(found: Mapping[str, Tensor], name: str) -> Dense:
    return Dense(found[f"{name}.weight"], found[f"{name}.bias"])


def _dense8(found: Mapping[str, Tensor], name: str) -> Dense8:
    return Dense8(found[f"{name}.weight"], found[f"{name}.scale"], found[f"{name}.bias"])


def _block(found: Mapping[str, Tensor], name: str, described: _Block) -> Block8:
    return Block8(
        **dict(described),
        depthwise=found[f"{name}.depthwise"],
        depthwise_scale=found[f"{name}.depthwise_scale"],
        expand=_dense8(found, f"{name}.expand"),
        table=found[f"{name}.table"],
        compress=_dense8(found, f"{name}.compress"),
        shortcut=_dense8(found, f"{name}.shortcut") if f"{name}.shortcut.weight" in found else None,
    )
