"""The stock baseline of the speed figures is the same function as the network."""

from __future__ import annotations

import copy

import numpy as np

from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.runtime.stock import stock_session
from mednext_edge.runtime.torch_session import TorchSession


def test_baseline_is_the_unmodified_network(tiny_model: LoadedModel) -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 16, 24, 8)).astype(np.float32)
    with TorchSession.of(tiny_model) as reference:
        expected = reference.run(x)
    with stock_session(tiny_model.task, (16, 24, 8), net=copy.deepcopy(tiny_model.net)) as stock:
        assert isinstance(stock, OpenVinoSession)
        np.testing.assert_allclose(stock.run(x), expected, rtol=1e-4, atol=1e-4)
        assert (stock.precision, stock.patch) == ("fp32", (16, 24, 8))
        # Nothing is rewritten: both up blocks are still transposed convolutions.
        assert sum(layer.kind == "Deconvolution" for layer in stock.layers()) >= 2


def test_random_weights_have_the_same_shape_of_output(tiny_model: LoadedModel) -> None:
    with stock_session(tiny_model.task, (16, 16, 16), threads=1) as stock:
        assert stock.run(np.zeros((1, 1, 16, 16, 16), np.float32)).shape == (1, 3, 16, 16, 16)
