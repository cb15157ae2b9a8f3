"""Checkpoints for other programs: read back by our own readers, and by MONAI's own class."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mednext_edge.checkpoints import load
from mednext_edge.checkpoints.ensemble import ensemble, fold_folders
from mednext_edge.checkpoints.write_monai import NETWORK, WEIGHTS, write_monai
from mednext_edge.checkpoints.write_nnunet_v2 import write_nnunet_v2
from mednext_edge.errors import DataError, UsageError
from mednext_edge.fusion import fuse
from mednext_edge.models.families import FAMILIES, build
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.task import Normalization, Preprocessing


def network(tiny_model: LoadedModel, seed: int = 0, **changes: Any) -> LoadedModel:
    spec = tiny_model.task.model
    spec = spec.model_copy(update={"config": {**spec.config, **changes}})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(spec)
    net.do_ds = False  # type: ignore[assignment]
    task = tiny_model.task.model_copy(update={"model": FAMILIES["mednext"].describe(net)})
    return LoadedModel(net.eval(), task, tiny_model.source)


def recipe(model: LoadedModel, **changes: Any) -> LoadedModel:
    inference = model.task.inference.model_copy(update={"average": "logits", "mirror_axes": (0, 2)})
    task = model.task.model_copy(update={"preprocessing": Preprocessing(**changes), "inference": inference})
    return replace(model, task=task)


CT = Normalization(scheme="ct", mean=80.0, sd=40.0, lower=-50.0, upper=250.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing": (2.5, 1.0, 0.8), "normalization": (CT,), "transpose": (2, 0, 1), "image_order": 1},
        {"normalization": (Normalization(masked=True),), "anisotropy_threshold": 1.0, "spacing": (1.0, 1.0, 1.0)},
        {"normalization": (Normalization(scheme="rescale"),)},
        {"normalization": (Normalization(scheme="none"),)},
        {"normalization": (Normalization(scheme="ct", mean=0.0, sd=255.0),)},
    ],
    ids=["plain", "ct", "masked", "rescale", "none", "rgb"],
)
def test_nnunet_v2_and_back(tiny_model: LoadedModel, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = recipe(network(tiny_model, deep_supervision=True), **changes)
    notes = write_nnunet_v2(tmp_path / "out", model)
    assert len(notes) == 1
    again = load(tmp_path / "out")
    assert again.source.format == "nnunet-v2"
    assert again.task == model.task
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor)


def test_nnunet_v2_says_what_it_does_otherwise(tiny_model: LoadedModel, tmp_path: Path) -> None:
    own = Preprocessing(
        orientation="RAS",
        normalize_after_resampling=True,
        spacing=(1, 1, 1),
        crop_nonzero=False,
        anisotropy_threshold=2,
    )
    model = replace(tiny_model, task=tiny_model.task.model_copy(update={"preprocessing": own}))
    notes = " ".join(write_nnunet_v2(tmp_path / "out", model))
    for words in ("stored along RAS", "normalises before it resamples", "crops", "ratio of 3", "averages logits"):
        assert words in notes


def test_folds_of_an_ensemble(tiny_model: LoadedModel, tmp_path: Path) -> None:
    models = [recipe(network(tiny_model, seed)) for seed in (1, 2)]
    together = ensemble(models)
    write_nnunet_v2(tmp_path / "out", together)
    again = ensemble([load(fold) for fold in fold_folders(tmp_path / "out")])
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.net(x), together.net(x))


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("changes", [{}, {"spatial_dims": 2}, {"grn": True}, {"blocks": (1, 2, 1, 1, 2)}])
def test_monai_and_back(tiny_model: LoadedModel, tmp_path: Path, changes: dict[str, Any], deep: bool) -> None:
    from monai.bundle import ConfigParser

    model = network(tiny_model, deep_supervision=deep, **changes)
    if changes.get("spatial_dims") == 2:
        inference = model.task.inference.model_copy(update={"patch": (32, 32), "mirror_axes": ()})
        model = replace(model, task=model.task.model_copy(update={"inference": inference}))
    assert write_monai(tmp_path / "out", model)
    parser = ConfigParser({"net": json.loads((tmp_path / "out" / NETWORK).read_text())})
    theirs = parser.get_parsed_content("net").eval()
    theirs.load_state_dict(torch.load(tmp_path / "out" / WEIGHTS, weights_only=True))
    x = torch.randn(1, 1, *(32,) * model.task.model.spatial_dims, generator=torch.Generator().manual_seed(0))
    again = load(tmp_path / "out" / WEIGHTS)
    with torch.no_grad():
        expected = model.net(x)
        torch.testing.assert_close(theirs(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(again.net(x), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expansion": (2, 3, 4, 3, 2), "down_expansion": (3, 4)}, "next level's expansion ratio"),
        ({"encoder_kernel": 5}, "kernels of different sizes"),
        ({"residual": False}, "residuals"),
        ({"grn": True, "down_grn": (False, True)}, "GRN in its down blocks"),
        ({"norm": "layer"}, "layer norms"),
    ],
)
def test_what_monai_cannot_be(tiny_model: LoadedModel, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        write_monai(tmp_path / "out", network(tiny_model, **changes))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_half_written(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    for write in (write_monai, write_nnunet_v2):
        with pytest.raises(UsageError, match="exists"):
            write(tmp_path / "out", tiny_model)
        with pytest.raises(UsageError, match=r"expected MedNeXts|as it was trained"):
            write(tmp_path / "new", fuse(tiny_model))

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    for write in (write_monai, write_nnunet_v2):
        with pytest.raises(DataError, match=r"cannot be written.*nothing was left"):
            write(tmp_path / "new", tiny_model)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
