"""Our own format: there and back, digests, and what a hand-edited file is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mednext_edge.checkpoints import load, ours, save
from mednext_edge.errors import CheckpointError, IntegrityError, UsageError
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.task import Frozen, Inference, Normalization, Preprocessing, Task
from tests.checkpoints.writers import SMALL, network


class Card(Frozen):
    """Provenance as training writes it."""

    command: str
    dice: float


@pytest.fixture
def model() -> LoadedModel:
    """A network with flags that leave no trace in its tensors, and a task with infinite bounds."""
    net = network(replace(SMALL, norm="layer", residual=False)).eval()
    net.do_ds = False
    task = Task(
        name="small",
        model=FAMILIES["mednext"].describe(net),
        preprocessing=Preprocessing(
            orientation="RAS", spacing=(1.0, 1.0, 2.0), normalization=(Normalization(scheme="ct", mean=1.0, sd=2.0),)
        ),
        inference=Inference(patch=(16, 16, 16)),
        labels={"background": 0, "head": 1, "tail": 2},
    )
    return LoadedModel(net, task, Source(format="test", file="none", sha256="0" * 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back(tmp_path: Path, model: LoadedModel, dtype: torch.dtype) -> None:
    save(tmp_path / "new" / "small", model, dtype=dtype, provenance=Card(command="train", dice=0.9))
    for path in (tmp_path / "new" / "small", tmp_path / "new" / "small" / "weights.safetensors"):
        again = load(path)
        assert again.task == model.task
        assert again.source.format == "mednext-edge"
        expected = {k: v.to(dtype).float() for k, v in model.net.state_dict().items()}
        assert all(torch.equal(v, expected[k]) for k, v in again.net.state_dict().items())
    described = json.loads((tmp_path / "new" / "small" / "model.json").read_text())
    assert described["provenance"] == {"command": "train", "dice": 0.9}
    assert described["weights"]["dtype"] == str(dtype).removeprefix("torch.")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["small"]


def test_saving_again_keeps_the_other_files(tmp_path: Path, model: LoadedModel) -> None:
    folder = tmp_path / "small"
    save(folder, model, provenance={"seed": 1})
    (folder / "README.md").write_text("card")
    save(folder, model, dtype=torch.float32)
    assert (folder / "README.md").read_text() == "card"
    assert load(folder).task == model.task
    assert load_file(folder / "weights.safetensors")["stem.bias"].dtype == torch.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small"]


def test_a_failure_while_saving_leaves_nothing(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(ours, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "small", model)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved(tmp_path: Path, model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="save it before fusing"):
        save(tmp_path / "a", replace(model, rewrites=("heads",)))
    with pytest.raises(UsageError, match="float32, float16, bfloat16"):
        save(tmp_path / "a", model, dtype=torch.int8)
    with torch.no_grad():
        model.net.get_parameter("stem.bias").fill_(1e6)
    with pytest.raises(CheckpointError, match=r"cannot be stored as float16: `stem\.bias`"):
        save(tmp_path / "a", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("position", [0, 9, 5000, -1])
def test_a_flipped_byte_is_seen(tmp_path: Path, model: LoadedModel, position: int) -> None:
    save(tmp_path / "a", model)
    file = tmp_path / "a" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="digest"):
        load(tmp_path / "a")


def edit(folder: Path, **changes: Any) -> None:
    described = json.loads((folder / "model.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        part = described
        for step in path:
            part = part[step]
        part[last] = value
    (folder / "model.json").write_text(json.dumps(described))


EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "a path": ({"weights__file": "../other.safetensors"}, "plain file name"),
    "no name": ({"weights__file": 3}, "plain file name"),
    "a missing file": ({"weights__file": "other.safetensors"}, "missing"),
    "an unknown field": ({"surprise": 1}, "surprise"),
    "other labels": ({"labels": {"background": 0}}, "do not number 3 classes"),
    "other classes": (
        {"model__classes": 2, "labels": {"background": 0, "head": 1}},
        "says classes = 2, its tensors have 3",
    ),
    "another family": ({"model__family": "mednet"}, "Did you mean `mednext`"),
    "other channels": ({"model__config__channels": 8}, "has shape"),
    "a huge width": ({"model__config__channels": 2**40}, "more than the tensors hold"),
    "a huge depth": ({"model__config__blocks": [10**9] * 5}, "more than the tensors hold"),
    "very many levels": ({"model__config__blocks": [1] * 10**5}, "more than the tensors hold"),
    "many levels": (
        {
            "model__config__blocks": [1] * 61,
            "model__config__expansion": [1] * 61,
            "model__config__down_expansion": [1] * 30,
            "model__config__down_grn": [False] * 30,
        },
        "cannot be built|missing",
    ),
    "an unknown setting": ({"model__config__depth": 3}, "cannot be built"),
}


@pytest.mark.parametrize(("changes", "message"), EDITS.values(), ids=EDITS)
def test_edited_descriptions_are_refused(
    tmp_path: Path, model: LoadedModel, changes: dict[str, Any], message: str
) -> None:
    save(tmp_path / "a", model)
    edit(tmp_path / "a", **changes)
    with pytest.raises((CheckpointError, UsageError), match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\udcff"])
def test_descriptions_that_are_not_json(tmp_path: Path, model: LoadedModel, text: str) -> None:
    save(tmp_path / "a", model)
    (tmp_path / "a" / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="JSON"):
        load(tmp_path / "a")


def test_a_second_weights_file_in_the_folder(tmp_path: Path, model: LoadedModel) -> None:
    save(tmp_path / "a", model)
    (tmp_path / "a" / "weights.safetensors").rename(tmp_path / "a" / "old.safetensors")
    with pytest.raises(CheckpointError, match=r"describes weights\.safetensors, not old\.safetensors"):
        load(tmp_path / "a" / "old.safetensors")
