"""Ensembles: the average of the members' probabilities, in PyTorch, through our format, fused and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mednext_edge as mx
from mednext_edge.checkpoints import load, save
from mednext_edge.checkpoints.ensemble import ensemble, fold_folders
from mednext_edge.data.volume import Volume
from mednext_edge.errors import CheckpointError
from mednext_edge.fusion import fuse
from mednext_edge.models.families import FAMILIES, build
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.torch_session import TorchSession


def member(tiny_model: LoadedModel, seed: int, **changes: object) -> LoadedModel:
    spec = tiny_model.task.model
    spec = spec.model_copy(update={"config": {**spec.config, **changes}})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(spec)
    net.do_ds = False  # type: ignore[assignment]
    task = tiny_model.task.model_copy(update={"model": FAMILIES["mednext"].describe(net)})
    return LoadedModel(net.eval(), task, tiny_model.source.model_copy(update={"file": f"fold_{seed}"}))


@pytest.fixture(scope="module")
def members(tiny_model: LoadedModel) -> list[LoadedModel]:
    return [member(tiny_model, seed, deep_supervision=seed == 1) for seed in range(3)]


def test_probabilities_are_averaged(members: list[LoadedModel]) -> None:
    together = ensemble(members)
    x = 3 * torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.stack([m.net(x).double().softmax(1) for m in members]).mean(0)
        found = together.net(x).double().softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    spec = together.task.model
    assert (spec.family, spec.config["members"], spec.classes) == ("ensemble", 3, 3)
    assert spec.parameters == sum(p.numel() for p in together.net.parameters())


def test_nothing_underflows(members: list[LoadedModel]) -> None:
    """Members that are sure of different classes: the logarithm stays finite, in float16 too."""
    together = ensemble(members[:2])

    class Sure(torch.nn.Module):
        def __init__(self, best: int) -> None:
            super().__init__()
            self.best = best

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = x.new_full((1, 3, 2, 2, 2), -300.0)
            logits[:, self.best] = 300.0
            return logits

    together.net.members = torch.nn.ModuleList([Sure(0), Sure(1)])  # type: ignore[assignment]
    for dtype in (torch.float32, torch.float16):
        found = together.net(torch.zeros(1, dtype=dtype))
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.float().softmax(1)[0, :, 0, 0, 0], torch.tensor([0.5, 0.5, 0.0]))


def test_logits_are_averaged_as_in_nnunet_v2(members: list[LoadedModel]) -> None:
    def v2(model: LoadedModel) -> LoadedModel:
        inference = model.task.inference.model_copy(update={"average": "logits"})
        return replace(model, task=model.task.model_copy(update={"inference": inference}))

    together = ensemble([v2(m) for m in members])
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.stack([m.net(x) for m in members]).mean(0)
        torch.testing.assert_close(together.net(x), expected)


def test_a_whole_image_is_the_average_of_the_members_images(members: list[LoadedModel]) -> None:
    image = Volume(np.random.default_rng(0).normal(size=(1, 24, 20, 28)).astype(np.float32), np.eye(4))
    parts = [Predictor(TorchSession.of(m)).probabilities(image.array) for m in members]
    found = Predictor(TorchSession.of(ensemble(members))).probabilities(image.array)
    np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=2e-6)


def test_through_our_format_and_fusion(members: list[LoadedModel], tmp_path: Path) -> None:
    together = ensemble(members)
    save(tmp_path / "all", together, dtype=torch.float32)
    again = load(tmp_path / "all")
    assert again.task == together.task
    fused = fuse(again)
    assert "plain-heads" in fused.rewrites
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.net(x), together.net(x))
        torch.testing.assert_close(fused.net(x), together.net(x), rtol=1e-4, atol=1e-5)


def test_one_graph_for_an_engine(members: list[LoadedModel], tmp_path: Path) -> None:
    bundle = mx.export(mx.fuse(ensemble(members)), target="openvino", out=tmp_path / "all.openvino-fp32")
    x = np.random.default_rng(0).normal(size=(1, 1, 16, 16, 16)).astype(np.float32)
    with mx.open(bundle) as session, torch.no_grad():
        expected = ensemble(members).net(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run(x), expected, atol=2e-3)


def test_models_that_do_not_belong_together(members: list[LoadedModel], tiny_model: LoadedModel) -> None:
    with pytest.raises(CheckpointError, match="found 1 model"):
        ensemble(members[:1])
    with pytest.raises(CheckpointError, match="fold_7 is not of the same training as fold_0: its network"):
        ensemble([members[0], member(tiny_model, 7, encoder_kernel=5)])
    other = members[1].task.model_copy(update={"labels": {"background": 0, "one": 2, "two": 1}})
    with pytest.raises(CheckpointError, match="its labels is"):
        ensemble([members[0], replace(members[1], task=other)])
    with pytest.raises(CheckpointError, match="was rewritten"):
        ensemble([members[0], fuse(members[1])])
    assert isinstance(members[1].net, MedNeXt)


def test_an_ensemble_of_ensembles_is_refused(members: list[LoadedModel]) -> None:
    inner = ensemble(members).task.model
    spec = inner.model_copy(update={"config": {**inner.config, "member": inner.model_dump()}})
    with pytest.raises(CheckpointError, match="an ensemble of ensembles"):
        build(spec)


def test_folds_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no fold_0"):
        fold_folders(tmp_path)
    for name in ("fold_10", "fold_2", "fold_all", "fold_0", "other"):
        (tmp_path / name).mkdir()
    assert [f.name for f in fold_folders(tmp_path)] == ["fold_0", "fold_2", "fold_10"]
