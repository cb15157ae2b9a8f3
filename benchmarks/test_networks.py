"""One patch of every network in every engine; what this machine or installation lacks is skipped with the reason."""

from __future__ import annotations

import pytest
from conftest import PATCH, Timed
from peers.engines import ENGINES
from peers.networks import NETWORKS, network

from mednext_edge.errors import TargetUnavailableError


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_network(timed: Timed, name: str, engine: str) -> None:
    try:
        model = network(name, PATCH[: NETWORKS[name].dims])
    except TargetUnavailableError as error:
        pytest.skip(str(error))
    timed(engine, model)
