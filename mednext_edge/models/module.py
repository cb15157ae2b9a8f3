"""Networks of any make: a `torch.nn.Module` and a declaration of what it takes and answers.

Such a network lives in memory alone: a `ModelSpec` cannot build it anew, as it can those of a family of ours. All that
needs no second copy (session, export, validation, prediction from its bundle) works for it like for any other.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, NoReturn

import torch
from pydantic import Field
from torch import nn

from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.task import Frozen, Inference, ModelSpec, Preprocessing, Region, Task

FAMILY = "module"


class ModuleSpec(Frozen):
    """What a network takes, and what its answer means.

    Attributes:
        name: of the task, for bundles and reports.
        in_channels: of the image.
        classes: channels of the answer.
        patch: spatial size to run at; its length is the number of spatial axes.
        divisor: what every spatial size must be a multiple of.
        any_size: the network takes every multiple of `divisor`, and can be exported with its size open. Otherwise it
            is run and exported at `patch` alone.
        kind: see `ModelSpec`.
        labels: name to value; None numbers the classes, with 0 as the background.
        regions: what each channel of the answer finds by itself, in place of classes; see `Task`. They need `labels`.
        preprocessing: from image to input; None is z-score of every channel.
        inference: of the sliding window; None is half a patch a step. Its patch must be `patch`.
    """

    name: str
    in_channels: int = Field(ge=1)
    classes: int = Field(ge=1)
    patch: tuple[int, ...] = Field(min_length=2, max_length=3)
    divisor: int = Field(default=1, ge=1)
    any_size: bool = False
    kind: Literal["segmentation", "classification"] = "segmentation"
    labels: dict[str, int] | None = None
    regions: tuple[Region, ...] = ()
    preprocessing: Preprocessing | None = None
    inference: Inference | None = None


def describe_module(net: nn.Module, spec: ModuleSpec) -> Task:
    """The task of a network, after one call of it with a patch of zeros.

    Raises:
        UsageError: it does not take such a patch, or does not answer as declared.
    """
    if any(n < 1 or n % spec.divisor for n in spec.patch):
        raise UsageError(f"found the patch {spec.patch}; expected multiples of the declared divisor {spec.divisor}")
    model = ModelSpec(
        kind=spec.kind,
        family=FAMILY,
        variant=type(net).__name__,
        kernel_size=max((max(_kernel(m)) for m in net.modules() if _kernel(m)), default=1),
        spatial_dims=3 if len(spec.patch) == 3 else 2,
        in_channels=spec.in_channels,
        classes=spec.classes,
        parameters=sum(p.numel() for p in net.parameters()),
        config={"divisor": spec.divisor, "any_size": spec.any_size},
    )
    check_answer(net, model, spec.patch)
    numbered = {"background" if n == 0 else f"class-{n}": n for n in range(model.labels)}
    inference = spec.inference or Inference(patch=spec.patch, average="logits" if spec.regions else "softmax")
    if inference.patch != spec.patch:
        raise UsageError(f"found the patches {spec.patch} and {inference.patch} (inference); expected the same")
    return Task(
        name=spec.name,
        model=model,
        preprocessing=spec.preprocessing or _zscore(spec.in_channels),
        inference=inference,
        labels=numbered if spec.labels is None else spec.labels,
        regions=spec.regions,
    )


def check_answer(net: nn.Module, model: ModelSpec, patch: tuple[int, ...]) -> None:
    """Run a network on zeros.

    Raises:
        UsageError: it fails, or its answer is no tensor of the declared shape.
    """
    shape = (1, model.in_channels, *patch)
    expected = (1, *model.output_shape(patch))
    some = next((p for p in net.parameters()), torch.zeros(()))
    try:
        with torch.inference_mode():
            answer: Any = net(torch.zeros(shape, dtype=some.dtype, device=some.device))
    except Exception as error:  # whatever the network raises, it does not take this input
        raise UsageError(f"{model.variant} does not take an input of {shape}: {error}") from error
    if not isinstance(answer, torch.Tensor):
        raise UsageError(
            f"{model.variant} answers with a {type(answer).__name__}; expected one tensor {expected}. Switch deep "
            "supervision off, or wrap the network in a module that returns its first output"
        )
    if tuple(answer.shape) != expected:
        raise UsageError(f"{model.variant} answers {tuple(answer.shape)} to {shape}; declared is {expected}")


def weights_digest(net: nn.Module) -> str:
    """SHA-256 in hex of all names and values of a network's state, in their order."""
    found = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def refuse_to_build(config: object) -> NoReturn:
    """What stands in for a builder.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(
        "a network that was given as a module cannot be built from a description; give the module itself"
    )


def _kernel(module: nn.Module) -> tuple[int, ...]:
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return tuple(module.kernel_size) if isinstance(module, convolutions) else ()


def _zscore(channels: int) -> Preprocessing:
    plain = Preprocessing()
    return plain.model_copy(update={"normalization": plain.normalization * channels})
