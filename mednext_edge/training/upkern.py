"""UpKern: a network with large kernels that starts from a trained one with small kernels.

(Roy et al., MICCAI 2023, arXiv 2303.09975, section 2.4.) Every depthwise kernel is resampled to the larger size by
(bi-, tri-)linear interpolation with half-voxel centres (PyTorch's `align_corners=False`), without re-scaling: three
taps 1, 2, 3 become 1, 1.4, 2, 2.6, 3. Everything else is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.errors import CheckpointError
from mednext_edge.models.loaded import LoadedModel

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
AS_IS = ("bias", "norm", "dummy")
"""Parts of names whose tensors have no kernel; the authors copy them whatever their shape."""


@dataclass(frozen=True)
class Transfer:
    """What UpKern did, by tensor name: resampled, copied, or left as the target had it (not in the source)."""

    resampled: tuple[str, ...]
    copied: tuple[str, ...]
    kept: tuple[str, ...]


def upkern(target: nn.Module, source: nn.Module | Mapping[str, Tensor]) -> Transfer:
    """Fill `target` with the weights of `source`, resampling kernels to the sizes of `target`.

    Takes two networks, or a network and a state_dict, under the same names; 2-D and 3-D. The source may have fewer
    tensors (deep-supervision heads, say), whose place in the target keeps its value, and more, which are not used.

    Raises:
        CheckpointError: another number of input or output channels (a different class count, too), or of axes; the
            tensor is named, and the target is as it was.
    """
    given = source.state_dict() if isinstance(source, nn.Module) else source
    given = {name.removeprefix("module."): tensor for name, tensor in given.items()}
    filled: dict[str, Tensor] = {}
    done: dict[str, list[str]] = {"resampled": [], "copied": [], "kept": []}
    for name, wanted in target.state_dict().items():
        if name not in given:
            filled[name] = wanted
            done["kept"].append(name)
            continue
        tensor = given[name]
        if tensor.shape == wanted.shape:
            filled[name] = tensor
            done["copied"].append(name)
            continue
        channels_differ = tensor.dim() != wanted.dim() or tensor.shape[:2] != wanted.shape[:2]
        if channels_differ or tensor.dim() < 3 or any(part in name for part in AS_IS):
            raise CheckpointError(
                f"UpKern: `{name}` has shape {tuple(tensor.shape)} in the source, {tuple(wanted.shape)} is needed; "
                "only kernel sizes may differ: the source must have the same variant, channels, classes and dimensions"
            )
        filled[name] = resample_kernel(tensor, tuple(wanted.shape[2:]))
        done["resampled"].append(name)
    target.load_state_dict(filled)
    return Transfer(**{what: tuple(names) for what, names in done.items()})


def upkern_from(target: nn.Module, source: LoadedModel) -> Transfer:
    """UpKern from a checkpoint that `mednext_edge.load` has read, of any of its formats.

    Raises:
        CheckpointError: the source is another network in more than its kernel sizes and deep-supervision heads.
    """
    wanted, given = set(target.state_dict()), set(source.net.state_dict())
    foreign = sorted(name for name in wanted ^ given if not name.startswith("out_"))
    if foreign:
        where = "only in the source" if foreign[0] in given else "not in the source"
        raise CheckpointError(
            f"UpKern from {source.source.file}: {len(foreign)} tensors differ, such as `{foreign[0]}`, which is "
            f"{where}; train the small-kernel network with the same variant and blocks first"
        )
    try:
        return upkern(target, source.net)
    except CheckpointError as error:
        raise CheckpointError(f"{source.source.file}: {error}") from error


def resample_kernel(kernel: Tensor, size: tuple[int, ...]) -> Tensor:
    """[out, in, *spatial] -> [out, in, *size], linear along every spatial axis."""
    wide = kernel.float() if kernel.dtype.itemsize < 4 else kernel
    return F.interpolate(wide, size=size, mode=LINEAR[len(size)], align_corners=False).to(kernel.dtype)
