"""The table of checkpoint formats, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mednext_edge.checkpoints import bare, nnunet_v1, nnunet_v2, ours
from mednext_edge.checkpoints.candidate import Candidate
from mednext_edge.errors import CheckpointError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.registry import Registry


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint.

    Attributes:
        detect: whether a file is of this kind, by what is in it and beside it.
        read: the model in such a file.
    """

    name: str
    description: str
    detect: Callable[[Candidate], bool]
    read: Callable[[Candidate], LoadedModel]


FORMATS: Registry[Format] = Registry("checkpoint format")

for _format in (
    Format(ours.NAME, "weights.safetensors with model.json (task, digest, provenance)", ours.detect, ours.read),
    Format(nnunet_v2.NAME, "nnU-Net v2 .pth, fold or trainer folder", nnunet_v2.detect, nnunet_v2.read),
    Format(nnunet_v1.NAME, "nnU-Net v1 .model, fold or trainer folder", nnunet_v1.detect, nnunet_v1.read),
    Format(
        bare.NAME,
        "bare or wrapped state_dict, torch or safetensors, of a MedNeXt (MIC or MONAI names) or CMUNeXt",
        bare.detect,
        bare.read,
    ),
):
    FORMATS.add(_format.name, _format)


def read(candidate: Candidate) -> LoadedModel:
    """The model in a file, by the first format that recognises it; the last takes all tensors and refuses the rest.

    Raises:
        CheckpointError: not a checkpoint, or not a usable one; the message begins with the file.
        IntegrityError: weights of ours whose digest does not match.
    """
    try:
        return next(entry for entry in FORMATS.values() if entry.detect(candidate)).read(candidate)
    except CheckpointError as error:
        if str(candidate.file) in str(error):
            raise
        raise type(error)(f"{candidate.file}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{candidate.file} cannot be read: {error}") from error
