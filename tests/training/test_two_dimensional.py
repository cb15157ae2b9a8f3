"""Training of 2-D networks: one logit, classes of whole images, and what their data becomes."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mednext_edge.checkpoints import load, save
from mednext_edge.data.dataset import Dataset, open_dataset
from mednext_edge.data.recipe import prepare
from mednext_edge.export.export import export
from mednext_edge.fusion import fuse
from mednext_edge.fusion.depthwise import DepthwiseConv
from mednext_edge.models.families import FAMILIES
from mednext_edge.quantize.flavour import CPU
from mednext_edge.runtime import engines
from mednext_edge.training.batches import CategorySource
from mednext_edge.training.form import training_form
from mednext_edge.training.loop import train
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.objective import Batch, Classified, Supervised
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.qat import QatOptions, as_trained, student
from mednext_edge.training.size import size_run
from mednext_edge.training.state import RunFolder
from mednext_edge.training.task import make_task, plan_photographs
from tests.data.pictures import mask, picture
from tests.fusion.networks import CMUNEXT, MEDNEXT, SMALL_2D

PLAN = TrainingPlan(
    family="cmunext",
    variant="S",
    kernel=None,
    patch=(32, 32),
    batch=2,
    epochs=1,
    steps=2,
    validate_every=1,
    mirror_axes=(0, 1),
    amp="fp32",
)


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("lesions")
    for i in range(5):
        picture(folder / "images" / f"{i}.png", seed=i, size=(40, 48))
        mask(folder / "masks" / f"{i}.png", slice(4 * i, 4 * i + 20), size=(40, 48))
    return open_dataset(folder)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("kinds")
    for name, count in (("a", 4), ("b", 3), ("c", 2)):
        for i in range(count):
            picture(folder / name / f"{name} {i}.png", seed=ord(name) + i, size=(70, 50), mode="L")
    return open_dataset(folder)


def test_one_logit_is_trained_by_its_sigmoid(lesions: Dataset) -> None:
    """Dice and cross-entropy of [0, z] are those of sigmoid(z): binary cross-entropy exactly."""
    logits, target = torch.randn(2, 1, 8, 8, requires_grad=True), torch.randint(0, 2, (2, 1, 8, 8)).float()
    found = Supervised(SupervisedLoss())(lambda x: logits, Batch(torch.zeros(2, 3, 8, 8), target, 0))
    share = logits.sigmoid()
    axes = (2, 3)
    dice = (2 * (share * target).sum(axes) + 1e-5) / ((share + target).sum(axes) + 1e-5)
    expected = 1 - dice.mean() + F.binary_cross_entropy_with_logits(logits, target)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.logits.shape == (2, 2, 8, 8)


def test_classes_are_trained_by_cross_entropy() -> None:
    logits, target = torch.randn(4, 3), torch.tensor([[0.0], [2.0], [1.0], [1.0]])
    found = Classified()(lambda x: logits, Batch(torch.zeros(4, 1, 8, 8), target, 0))
    assert found.loss.item() == pytest.approx(F.cross_entropy(logits, torch.tensor([0, 2, 1, 1])).item())


def test_photographs_are_stretched_or_tiled(lesions: Dataset, kinds: Dataset) -> None:
    whole = plan_photographs(lesions, (32, 32))
    assert (whole.colour, whole.size, len(whole.normalization)) == ("RGB", (32, 32), 3)
    image = lesions.training[0].image()
    assert prepare(image, whole).image.shape == (3, 1, 32, 32)
    assert prepare(image, plan_photographs(lesions, None)).image.shape == (3, 1, 40, 48)
    white = image.__class__(np.full_like(image.array, 255), image.affine)
    assert prepare(white, whole).image[:, 0, 0, 0] == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-3)
    assert plan_photographs(kinds, (32, 32)).colour == "grey"


def test_cmunext_trains_and_its_model_has_one_output(lesions: Dataset, tmp_path: Path) -> None:
    task = make_task(lesions, PLAN, plan_photographs(lesions, (32, 32)))
    assert (task.model.family, task.model.classes, task.labels) == ("cmunext", 1, {"background": 0, "foreground": 1})
    model = train(lesions, task, PLAN, tmp_path / "run")
    log = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert set(log["dice_per_class"]) == {"foreground"}
    with torch.no_grad():
        assert model.net(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("family", "variant", "kernel", "pooled"), [("mednext", "S", 3, True), ("cmunext", "S", None, False)]
)
def test_the_dice_is_that_of_the_batch_in_the_recipe_of_nnunet(
    lesions: Dataset, family: str, variant: str, kernel: int | None, pooled: bool
) -> None:
    planned = functools.partial(TrainingPlan, family=family, variant=variant, kernel=kernel, accumulate=1)
    sized = size_run(lesions, plan_photographs(lesions, (32, 32)), planned, size=(32, 32), batch=2, device="cpu")
    assert sized.plan.batch_dice is pooled


def test_labels_of_a_classification_are_the_classes(kinds: Dataset) -> None:
    recipe = plan_photographs(kinds, (32, 32))
    samples = []
    for case in kinds.training:
        found = prepare(case.image(), recipe)
        samples.append(
            found.__class__(found.image, np.full(found.image.shape[1:], case.category, np.uint16), found.grid)
        )
    plan = TrainingPlan(patch=(32, 32), batch=16, mirror_axes=(0, 1))
    seen = set()
    source = CategorySource(samples, plan)
    for step in range(4):
        images, labels = source.batch(step)
        assert (images.shape, labels.shape) == ((16, 1, 32, 32), (16, 1))
        seen |= set(labels.flatten().tolist())
    assert seen == {0.0, 1.0, 2.0}


def test_a_classifier_trains_and_logs_its_sensitivities(kinds: Dataset, tmp_path: Path) -> None:
    plan = TrainingPlan(
        family="mednext2d",
        variant="tiny",
        kernel=None,
        patch=(64, 64),
        batch=2,
        epochs=1,
        steps=2,
        mirror_axes=(0, 1),
        amp="fp32",
    )
    task = make_task(kinds, plan, plan_photographs(kinds, (64, 64)))
    assert (task.model.kind, task.model.classes, task.model.in_channels) == ("classification", 3, 1)
    model = train(kinds, task, plan, tmp_path / "run")
    log = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert set(log["sensitivity_per_class"]) == {"a", "b", "c"}
    assert 0 <= log["balanced_accuracy"] <= 1
    with torch.no_grad():
        assert model.net(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(("data", "family"), [("lesions", "cmunext"), ("lesions", "mednext2d"), ("kinds", "mednext2d")])
def test_every_family_is_trained_in_int8(
    data: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The graph answers as the network that was trained in INT8, and otherwise than in FP32."""
    dataset: Dataset = request.getfixturevalue(data)
    plan = replace(
        PLAN, family=family, variant=FAMILIES[family].variants[0], steps=4, learning_rate=3e-3, patch=(64, 64)
    )
    task = make_task(dataset, plan, plan_photographs(dataset, (64, 64)))
    save(tmp_path / "teacher", train(dataset, task, plan, tmp_path / "run"))
    model = load(tmp_path / "teacher")
    options = QatOptions(calib_samples=2)
    options.check(model)
    again = replace(plan, learning_rate=1e-3, start=options.name(model), seed=1)
    pupil = student(model, dataset.training, options, RunFolder(tmp_path / "int8", again, resume=False))
    objective = pupil.objective(batch_dice=False)
    result = train(dataset, model.task, again, tmp_path / "int8", net=pupil.net, objective=objective)
    save(tmp_path / "student", pupil.trained(result))
    trained = load(tmp_path / "student")
    bundle = export(trained, target="onnx", precision="int8", int8_layers=CPU.kinds, out=tmp_path / "bundle")
    twin, exact = as_trained(trained), fuse(trained).net
    between, beside = 0.0, 0.0
    with engines.open(bundle) as session:
        for case in dataset.training:
            x = prepare(case.image(), task.preprocessing).image[:, 0][None]
            with torch.no_grad():
                mine, plain = twin(torch.from_numpy(x)).numpy(), exact(torch.from_numpy(x)).numpy()
            answer = session.run(x)
            between += float(((answer - mine) ** 2).sum())
            beside += float(((plain - mine) ** 2).sum())
    assert beside > 0
    assert between < 0.6 * beside


def test_only_networks_that_pytorch_trains_as_well_are_channels_last() -> None:
    chosen = {}
    for family, config in {
        "cmunext": CMUNEXT["tiny"],
        "mednext2d": SMALL_2D,
        "mednext": MEDNEXT["2-D, kernel 3"],
    }.items():
        net = training_form(FAMILIES[family].build(config.to_dict()), PLAN, "cpu")
        wide = [p for p in net.parameters() if p.dim() == 4 and min(p.shape) > 1]
        chosen[family] = any(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    assert chosen == {"cmunext": True, "mednext2d": False, "mednext": False}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_our_operators_are_asked_for(device: str) -> None:
    """Then images are channels-last, as our CUDA kernels take them, except on CPUs, where they are PyTorch's."""
    notes: list[str] = []
    channels_last = set()
    for family, config, places in (
        ("cmunext", CMUNEXT["tiny"], 8),
        ("mednext2d", SMALL_2D, 13),
        ("mednext", MEDNEXT["2-D, kernel 3"], 9),
    ):
        net = FAMILIES[family].build(config.to_dict())
        form = training_form(net, replace(PLAN, fused=True), device, notes.append)
        assert form.training and list(form.state_dict()) == list(net.state_dict())
        assert sum(isinstance(part, DepthwiseConv) for part in form.modules()) == places
        wide = [p for p in form.parameters() if p.dim() == 4 and min(p.shape[:2]) > 1 and min(p.shape[2:]) > 1]
        channels_last |= {p.is_contiguous(memory_format=torch.channels_last) for p in wide}
        assert {p.device.type for p in form.parameters()} == {device}
    assert channels_last == {device == "meta"}
    assert not notes
    training_form(torch.nn.Conv2d(2, 2, 1), replace(PLAN, fused=True), device, notes.append)
    assert len(notes) == 1 and "no layer" in notes[0]
