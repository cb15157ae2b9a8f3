"""What `mednext-edge train` is about to do, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mednext_edge.cli.console import show_facts, show_warning

if TYPE_CHECKING:
    from mednext_edge.data.dataset import Dataset
    from mednext_edge.task import Task
    from mednext_edge.training.size import Sized


def parse_spacing(text: str | None) -> tuple[float, ...] | Literal["plan", "own"]:
    """`1 1 1` in millimetres, `own`, or nothing for nnU-Net's choice.

    Raises:
        UsageError: anything else.
    """
    from mednext_edge.errors import UsageError

    if text is None:
        return "plan"
    if text.strip().lower() == "own":
        return "own"
    try:
        sizes = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        sizes = ()
    if len(sizes) not in (2, 3) or not all(0 < size < float("inf") for size in sizes):
        raise UsageError(f"found the spacing `{text}`; expected two or three sizes in mm such as 1 1 1, or own")
    return sizes


def show_plan(sized: Sized, task: Task, dataset: Dataset, device: str) -> None:
    """The plan as a table, with a warning where the memory is not likely to do."""
    plan, recipe = sized.plan, task.preprocessing
    spacing = "each image's own" if recipe.spacing is None else " x ".join(f"{s:.3g}" for s in recipe.spacing) + " mm"
    norms = ", ".join(
        f"{name}: {n.scheme}{' of non-zero voxels' if n.masked else ''}"
        for name, n in zip(dataset.channels, recipe.normalization, strict=True)
    )
    show_facts(
        f"plan for {dataset.name}",
        (
            (
                "network",
                f"{task.model.family} {task.model.variant}, kernel {task.model.kernel_size}, "
                f"{task.model.parameters:,} parameters",
            ),
            ("starts from", plan.start.partition(":")[0]),
            ("regions" if task.regions else "classes", ", ".join(task.masks if task.regions else task.labels)),
            ("cases", f"{len(dataset.training)} for training, {len(dataset.validation)} for validation"),
            ("spacing", spacing),
            ("intensities", norms),
            ("patch", " x ".join(map(str, plan.patch))),
            ("batch", f"{plan.batch}" + (f" in {plan.accumulate} parts" if plan.accumulate > 1 else "")),
            ("steps", f"{plan.epochs} epochs of {plan.steps}, learning rate {plan.learning_rate:g} to 0"),
            ("memory", f"about {sized.needed / 1e9:.1f} GB of {sized.usable / 1e9:.1f} GB on {device}"),
        ),
    )
    if sized.needed > sized.usable:
        show_warning(
            "the memory may not do; choose a smaller --patch or --batch, --accumulate, or --checkpoint-gradients"
        )
