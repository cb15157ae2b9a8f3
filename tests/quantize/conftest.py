"""Graphs of small networks, in both float types."""

from __future__ import annotations

import pytest

from tests.quantize.networks import NETWORKS, Network, network


@pytest.fixture(params=[False, True], ids=["fp32", "fp16"])
def half(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=list(NETWORKS))
def built(request: pytest.FixtureRequest) -> Network:
    return network(request.param)
