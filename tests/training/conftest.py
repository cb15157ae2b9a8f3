"""A small labelled data set on disk, and a small network to train on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mednext_edge.data.dataset import Dataset, open_dataset
from mednext_edge.task import Task

from .blobs import task_for, write_blobs


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="session")
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder)


@pytest.fixture(scope="session")
def task(dataset: Dataset) -> Task:
    return task_for(dataset)
