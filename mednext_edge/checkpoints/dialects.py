"""How foreign files write each family of networks: whose tensor names, what they say of the network, what is assumed.

A network whose only files are our own has no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mednext_edge.checkpoints.infer import OTHERS, infer_config
from mednext_edge.checkpoints.infer_cmunext import infer_cmunext, is_cmunext
from mednext_edge.checkpoints.keys import DUMMY, from_monai, layout_of
from mednext_edge.registry import Registry
from mednext_edge.task import Inference, ModelSpec, Normalization, Preprocessing

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Bare:
    """What to take a network's images for when its file says nothing of them, and the note that says so."""

    preprocessing: Preprocessing
    inference: Inference
    note: str


@dataclass(frozen=True)
class Dialect:
    """How files write one family.

    Attributes:
        title: of the network, for messages.
        anchor: a tensor that every such network has; what stands before it in a file is a prefix.
        example: names of tensors, for messages.
        layout: whose tensor names these are; None when they are no network of this family.
        ours: the tensors under the names of `models`, and notes on what was done.
        infer: the family's configuration, and notes on what leaves no trace in the tensors.
        bare: what to assume of images.
    """

    title: str
    anchor: str
    example: str
    layout: Callable[[Iterable[str]], str | None]
    ours: Callable[[State, str], tuple[dict[str, Tensor], tuple[str, ...]]]
    infer: Callable[[State, str], tuple[dict[str, Any], tuple[str, ...]]]
    bare: Callable[[ModelSpec], Bare]


DIALECTS: Registry[Dialect] = Registry("model family in foreign files")


def not_a_network(state: State) -> str:
    """What to say of tensors that no dialect takes."""
    names = list(state)
    guess = next((what for prefix, what in OTHERS if any(n.startswith(prefix) for n in names)), None)
    expected = "; or ".join(f"{dialect.title}: {dialect.example}" for dialect in DIALECTS.values())
    return (
        f"this does not look like a {' or a '.join(dialect.title for dialect in DIALECTS.values())}"
        f"{f' but like {guess}' if guess else ''}: found {len(names)} tensors "
        f"such as {', '.join(f'`{n}`' for n in names[:4])}; expected {expected}"
    )


PATCH = 128


def _mednext_ours(state: State, layout: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if layout == "monai":
        return from_monai(state), ("tensor names are MONAI's, converted to the authors'",)
    if DUMMY in state:
        return dict(state), ()
    note = f"`{DUMMY}` was not in the file; it changes no output and is set to 1"
    return {DUMMY: torch.ones(1), **state}, (note,)


def _mednext_config(state: State, layout: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    config, notes = infer_config(state, layout)
    return config.to_dict(), notes


def _mednext_bare(spec: ModelSpec) -> Bare:
    axes = tuple(range(spec.spatial_dims))
    return Bare(
        Preprocessing(normalization=(Normalization(),) * spec.in_channels),
        Inference(patch=(PATCH,) * spec.spatial_dims, mirror_axes=axes),
        f"the file says nothing of images: assumed z-score per channel, no resampling, patch {PATCH}, "
        "classes that exclude each other, without names; `mednext-edge convert --task` says it otherwise",
    )


DIALECTS.add(
    "mednext",
    Dialect(
        title="MedNeXt",
        anchor="stem.weight",
        example="`stem.weight`, `enc_block_0.0.conv1.weight`, ... (or MONAI's `enc_stages.0.0.conv1.weight`)",
        layout=layout_of,
        ours=_mednext_ours,
        infer=_mednext_config,
        bare=_mednext_bare,
    ),
)

SIDE = 256
IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""Mean and standard deviation of each channel, of values in 0..1."""


def _cmunext_config(state: State, layout: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    return infer_cmunext(state).to_dict(), ()


def authors_normalization() -> tuple[Normalization, ...]:
    """What the authors of CMUNeXt feed their networks, of values 0..255.

    `((x / 255) - mean) / sd`, and then a second division by 255; ImageNet's figures in their RGB order, on channels
    that OpenCV reads as BGR (FengheTan9/CMUNeXt, its dataset class and transforms).
    """
    # The scheme `ct` with nothing to clip is (x - mean) / sd.
    return tuple(Normalization(scheme="ct", mean=255 * mean, sd=255 * 255 * sd) for mean, sd in IMAGENET)


def _cmunext_bare(spec: ModelSpec) -> Bare:
    authors = spec.in_channels == len(IMAGENET)
    preprocessing = Preprocessing(
        colour="BGR" if authors else None,
        crop_nonzero=False,
        normalization=authors_normalization() if authors else (Normalization(),) * spec.in_channels,
        size=(SIDE, SIDE),
        image_order=1,
        label_order=0,
    )
    scaled = "BGR, ImageNet's mean and sd, and a second division by 255" if authors else "z-score per channel"
    note = f"the file says nothing of images: assumed the authors' recipe ({SIDE} x {SIDE} pixels, {scaled})"
    return Bare(preprocessing, Inference(patch=(SIDE, SIDE), mirror_axes=(0, 1)), note)


DIALECTS.add(
    "cmunext",
    Dialect(
        title="CMUNeXt",
        anchor="stem.conv.0.weight",
        example="`stem.conv.0.weight`, `encoder1.block.0.0.fn.0.weight`, ...",
        layout=lambda names: "authors" if is_cmunext(names) else None,
        ours=lambda state, layout: (dict(state), ()),
        infer=_cmunext_config,
        bare=_cmunext_bare,
    ),
)
