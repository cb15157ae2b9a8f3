"""`demo:NAME`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mednext_edge.checkpoints import demo, load, save
from mednext_edge.errors import UnknownNameError
from tests.checkpoints.test_ours import model

__all__ = ["model"]  # the fixture


def test_a_shipped_model_is_found_by_name(tmp_path: Path, model, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    save(tmp_path / "brain-tissue", model)
    (tmp_path / "not-a-model").mkdir()
    assert load("demo:brain-tissue").task == model.task
    with pytest.raises(UnknownNameError, match="Did you mean `brain-tissue`"):
        load("demo:brain-tisue")
    with pytest.raises(UnknownNameError, match=r"unknown demo model `\.\./brain-tissue`"):
        load("demo:../brain-tissue")
    shutil.rmtree(tmp_path / "brain-tissue")
    with pytest.raises(UnknownNameError):
        load("demo:brain-tissue")
