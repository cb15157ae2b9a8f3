"""A bare state_dict: weights that say nothing of images, so the task is the plainest one there is."""

from __future__ import annotations

from mednext_edge.checkpoints.assemble import Recipe, assemble
from mednext_edge.checkpoints.candidate import Candidate
from mednext_edge.checkpoints.state import find_tensors, mednext_spec
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.task import Inference, Normalization, Preprocessing

NAME = "state-dict"
DEFAULT_PATCH = 128


def detect(candidate: Candidate) -> bool:
    """Any file with tensors in it; this format is asked last.

    Raises:
        CheckpointError: no tensors, saying what was found instead.
    """
    return bool(find_tensors(candidate.content))


def read(candidate: Candidate) -> LoadedModel:
    """Network from the tensors, z-score per channel, the image's own spacing, classes without names."""
    spec, _ = mednext_spec(candidate.weights)
    recipe = Recipe(
        name=candidate.file.stem,
        preprocessing=Preprocessing(normalization=(Normalization(),) * spec.in_channels),
        inference=Inference(patch=(DEFAULT_PATCH,) * spec.spatial_dims, mirror_axes=tuple(range(spec.spatial_dims))),
        labels={"background": 0, **{f"class_{i}": i for i in range(1, spec.classes)}},
        notes=(
            "the file says nothing of images: assumed z-score per channel, no resampling, "
            f"patch {DEFAULT_PATCH}, labels without names",
        ),
    )
    return assemble(candidate, NAME, recipe)
