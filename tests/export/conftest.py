"""One small network, images for it, and its bundles: each is exported once for the whole run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mednext_edge.bundle import read_manifest
from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.export.export import TARGETS, export
from mednext_edge.export.targets import BuildOptions
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.runtime.engines import open as open_session
from mednext_edge.runtime.session import Array, Session
from tests.fusion.networks import WITH_GRN, levels, loaded

PATCH = (16, 8, 16)
Bundles = Callable[..., Path]


def single(model: LoadedModel) -> LoadedModel:
    """A float32 copy of a float64 network."""
    return replace(model, net=copy.deepcopy(model.net).float())


BUILD = {
    # As on a machine without a GPU, wherever the tests run; and one plan, which is as good as three.
    "trt": BuildOptions(defer=True),
    "trt-rtx": BuildOptions(archs=("8.6",)),
}


def build_options(target: str, **changes: Any) -> BuildOptions | None:
    """What the tests build a target with; skips where its package is missing. None for targets that take none."""
    if target == "trt-rtx":
        try:
            PROVIDERS["tensorrt-rtx"].load()
        except TargetUnavailableError as error:
            pytest.skip(str(error))
    return replace(BUILD[target], **changes) if target in BUILD else None


def session_of(bundle: Path, patch: tuple[int, ...] | None = None) -> Session:
    """The engine of a bundle, or what stands in for it where no GPU is."""
    try:
        opened: Session = open_session(bundle, patch=patch)
        return opened
    except TargetUnavailableError:
        manifest = read_manifest(bundle)
        stand_in = TARGETS[manifest.target].stand_in
        assert stand_in is not None
        session: Session = stand_in(bundle, manifest)
        session.patch = patch or session.patch
        return session


@pytest.fixture(scope="session")
def exact() -> LoadedModel:
    """Two levels, GRN, deep supervision, random weights; float64."""
    return loaded(replace(WITH_GRN, in_channels=1, deep_supervision=True))


@pytest.fixture(scope="session")
def model(exact: LoadedModel) -> LoadedModel:
    return single(exact)


@pytest.fixture(scope="session")
def shallow() -> LoadedModel:
    """One level and no GRN, for what needs a network but not its depth."""
    return single(loaded(replace(levels(1), in_channels=1)))


@pytest.fixture(scope="session")
def images(model: LoadedModel) -> Dataset:
    """Three images of noise, without labels."""
    rng = np.random.default_rng(0)
    volumes = [Volume(rng.normal(size=(1, 20, 20, 20)).astype(np.float32), np.eye(4)) for _ in range(3)]
    cases = tuple(Case(f"case-{i}", lambda v=volume: v) for i, volume in enumerate(volumes))  # type: ignore[misc]
    return Dataset("noise", cases, (), model.task.labels, ("MRI",))


@pytest.fixture(scope="session")
def x() -> Array:
    return np.random.default_rng(1).normal(size=(1, 1, *PATCH)).astype(np.float32)


@pytest.fixture(scope="session")
def expected(exact: LoadedModel, x: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What the unmodified network answers in float64."""
    with torch.no_grad():
        logits: torch.Tensor = exact.net(torch.from_numpy(x).double())[0]
    return logits.numpy()


@pytest.fixture(scope="session")
def bundles(model: LoadedModel, images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """(target, precision) -> the bundle of `model`."""
    root = tmp_path_factory.mktemp("bundles")

    def bundle(target: str, precision: str) -> Path:
        out = root / f"{target}-{precision}"
        if not out.exists():
            export(
                model,
                target=target,
                precision=precision,
                out=out,
                calibration=images,
                patch=PATCH,
                build=build_options(target),
            )
        return out

    return bundle
