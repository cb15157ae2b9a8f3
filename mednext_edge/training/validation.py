"""How good the network is while it trains: on its own patches, and on whole images by sliding window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mednext_edge.data.dataset import Case
from mednext_edge.errors import DataError
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.torch_session import TorchSession
from mednext_edge.task import Task
from mednext_edge.training.loss import Regions, region_masks
from mednext_edge.training.team import ALONE, Team


def validate_dice(
    net: nn.Module, task: Task, cases: Sequence[Case], device: str, team: Team = ALONE
) -> dict[str, float]:
    """Mean Dice per foreground class, or region, over whole images, by sliding window; NaN for a class no case has.

    Each process predicts its share of the cases; all of them return the same means.
    """
    was_training = net.training
    net.eval()
    predictor = Predictor(TorchSession(net, task, device))
    mine = {case.name: _dice_of(case, predictor, task) for case in team.share(cases)}
    net.train(was_training)
    by_case = {name: scores for part in team.gather(mine) for name, scores in part.items()}
    means: dict[str, float] = {}
    for name in task.masks:
        # In the cases' own order, so that the mean does not depend on the number of processes.
        found = [by_case[case.name][name] for case in cases if name in by_case[case.name]]
        means[name] = float(np.mean(found)) if found else float("nan")
    return means


def validate_sensitivity(
    net: nn.Module, task: Task, cases: Sequence[Case], device: str, team: Team = ALONE
) -> dict[str, float]:
    """Share of each class's images that are classified as it; NaN for a class without images.

    Their mean is the balanced accuracy. Each process predicts its share of the cases; all return the same.
    """
    was_training = net.training
    net.eval()
    predictor = Predictor(TorchSession(net, task, device))
    mine = {case.name: _class_of(case, predictor) for case in team.share(cases)}
    net.train(was_training)
    found = {name: value for part in team.gather(mine) for name, value in part.items()}
    shares: dict[str, float] = {}
    for label, value in task.labels.items():
        right = [found[case.name] == value for case in cases if case.category == value]
        shares[label] = float(np.mean(right)) if right else float("nan")
    return shares


def _class_of(case: Case, predictor: Predictor) -> int:
    with case.named("validation"):
        return int(predictor.classify(case.image()).argmax())


def _dice_of(case: Case, predictor: Predictor, task: Task) -> dict[str, float]:
    """Dice of the foreground classes, or regions, that the case or its prediction has."""
    if case.labels is None:
        raise DataError(f"validation case {case.name} has no labels")
    with case.named("validation"):
        image, reference = case.image(), case.labels().array
        if reference.shape != image.spatial:
            raise DataError(f"found labels of shape {reference.shape} for an image of shape {image.spatial}")
        predicted = predictor.predict(image)
    scores: dict[str, float] = {}
    for name, values in task.masks.items():
        a, b = np.isin(predicted, values), np.isin(reference, values)
        total = int(a.sum()) + int(b.sum())
        if total:
            scores[name] = 2 * int((a & b).sum()) / total
    return scores


def overlaps(logits: Tensor, target: Tensor, regions: Regions = ()) -> Tensor:
    """Twice the voxels in common and the voxels of both, [foreground classes or regions, 2] float64.

    Args:
        logits: [N, classes or regions, *patch].
        target: label values [N, 1, *patch].
        regions: the values of each, where the outputs are regions.
    """
    if regions:
        axes = (0, *range(2, logits.dim()))
        found, truth = logits > 0, region_masks(target, regions).bool()
        common, both = (found & truth).sum(axes), found.sum(axes) + truth.sum(axes)
    else:
        best, label = logits.argmax(1).flatten(), target[:, 0].long().flatten()
        common, found, truth = (
            torch.bincount(values, minlength=logits.shape[1])[1:] for values in (label[label == best], best, label)
        )
        both = found + truth
    return torch.stack([2 * common, both], 1).double()


def pooled_dice(counts: Tensor) -> float:
    """Mean Dice of overlaps, over the classes or regions that occur; 1 where none does."""
    scores = counts[:, 0] / counts[:, 1]
    scores = scores[counts[:, 1] > 0]
    return float(scores.mean()) if len(scores) else 1.0
