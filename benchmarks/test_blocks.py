"""Whole blocks of MedNeXt at the width and size of each level."""

from __future__ import annotations

import pytest
from conftest import SIDE, Timed

from mednext_edge.models.config import mednext_config
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import Block
from mednext_edge.models.module import ModuleSpec

ENGINES = ["torch eager", "onnxruntime", "stock openvino fp32", "stock nncf int8", "ours fp32", "ours int8"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_block(timed: Timed, engine: str, kernel: int, level: int) -> None:
    config = mednext_config("S", in_channels=1, classes=3, kernel=kernel)
    width, side = config.channels << level, max(1, SIDE >> level)
    block = Block(config, width, width, config.expansion[level], kernel, grn=False)
    spec = ModuleSpec(name="block", in_channels=width, classes=width, patch=(side,) * 3)
    timed(engine, LoadedModel.from_module(block, spec))
