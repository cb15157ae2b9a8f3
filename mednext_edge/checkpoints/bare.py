"""A bare state_dict: weights that say nothing of images, so the task is what its family is usually used for."""

from __future__ import annotations

from mednext_edge.checkpoints.assemble import Recipe, assemble
from mednext_edge.checkpoints.candidate import Candidate
from mednext_edge.checkpoints.dialects import DIALECTS
from mednext_edge.checkpoints.state import find_tensors, network_spec
from mednext_edge.models.loaded import LoadedModel

NAME = "state-dict"


def detect(candidate: Candidate) -> bool:
    """Any file with tensors in it; this format is asked last.

    Raises:
        CheckpointError: no tensors, saying what was found instead.
    """
    return bool(find_tensors(candidate.content))


def read(candidate: Candidate) -> LoadedModel:
    """Network from the tensors, images as the family's dialect assumes them, classes without names."""
    spec, _ = network_spec(candidate.weights)
    assumed = DIALECTS[candidate.weights.family].bare(spec)
    recipe = Recipe(
        name=candidate.file.stem,
        preprocessing=assumed.preprocessing,
        inference=assumed.inference,
        labels={"background": 0, **{f"class_{i}": i for i in range(1, spec.labels)}},
        notes=(assumed.note,),
    )
    return assemble(candidate, NAME, recipe)
