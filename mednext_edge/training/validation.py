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
from mednext_edge.training.team import ALONE, Team


def validate_dice(
    net: nn.Module, task: Task, cases: Sequence[Case], device: str, team: Team = ALONE
) -> dict[str, float]:
    """Mean Dice per foreground class over whole images, by sliding window; NaN for a class no case has.

    Each process predicts its share of the cases; all of them return the same means.
    """
    was_training = net.training
    net.eval()
    predictor = Predictor(TorchSession(net, task, device))
    mine = {case.name: _dice_of(case, predictor, task) for case in team.share(cases)}
    net.train(was_training)
    by_case = {name: scores for part in team.gather(mine) for name, scores in part.items()}
    means: dict[str, float] = {}
    for label, value in task.labels.items():
        if value:
            # In the cases' own order, so that the mean does not depend on the number of processes.
            found = [by_case[case.name][label] for case in cases if label in by_case[case.name]]
            means[label] = float(np.mean(found)) if found else float("nan")
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
    """Dice of the foreground classes that the case or its prediction has."""
    if case.labels is None:
        raise DataError(f"validation case {case.name} has no labels")
    with case.named("validation"):
        image, reference = case.image(), case.labels().array
        if reference.shape != image.spatial:
            raise DataError(f"found labels of shape {reference.shape} for an image of shape {image.spatial}")
        predicted = predictor.predict(image)
    scores: dict[str, float] = {}
    for name, value in task.labels.items():
        a, b = predicted == value, reference == value
        total = int(a.sum()) + int(b.sum())
        if value and total:
            scores[name] = 2 * int((a & b).sum()) / total
    return scores


def confusion(logits: Tensor, target: Tensor) -> Tensor:
    """Voxels by reference and prediction, [classes, classes] float64.

    Args:
        logits: [N, classes, *patch].
        target: class indices [N, 1, *patch].
    """
    classes = logits.shape[1]
    pairs = target[:, 0].long() * classes + logits.argmax(1)
    return torch.bincount(pairs.flatten(), minlength=classes**2).view(classes, classes).double()


def pooled_dice(counts: Tensor) -> float:
    """Mean foreground Dice of a confusion matrix, over the classes that occur; 1 where none does."""
    totals = counts.sum(0) + counts.sum(1)
    scores = (2 * counts.diagonal() / totals)[1:][totals[1:] > 0]
    return float(scores.mean()) if len(scores) else 1.0
