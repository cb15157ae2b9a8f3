"""The network a run begins with: random weights, those of the same network, or a smaller kernel's by UpKern."""

from __future__ import annotations

import torch
from torch import nn

from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.models.families import build
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.task import Task
from mednext_edge.training.upkern import upkern_from


def start_network(
    task: Task, seed: int, *, init: LoadedModel | None = None, upkern: LoadedModel | None = None
) -> nn.Module:
    """The network of a task, in training form.

    Args:
        task: what is trained.
        seed: of the random weights.
        init: copy these weights; must be the same network.
        upkern: take these weights and resample their kernels; must be the same network but for the kernel sizes.
            Deep-supervision heads that a source lacks keep their random start.

    Raises:
        CheckpointError: a source is another network; the tensor is named.
        UsageError: two sources.
    """
    if init is not None and upkern is not None:
        raise UsageError("a run starts from --init or from --upkern-from; give one of them")
    torch.manual_seed(seed)
    net = build(task.model)
    if init is not None:
        _copy_weights(net, init)
    if upkern is not None:
        upkern_from(net, upkern)
    return net


def start_name(*, init: LoadedModel | None = None, upkern: LoadedModel | None = None) -> str:
    """How the plan records the start, so that `--resume` cannot go on from another one."""
    for kind, source in (("init", init), ("upkern", upkern)):
        if source is not None:
            return f"{kind}:{source.source.sha256}"
    return "random"


def _copy_weights(net: nn.Module, init: LoadedModel) -> None:
    wanted, given = net.state_dict(), init.net.state_dict()
    for name, tensor in wanted.items():
        if name in given and given[name].shape != tensor.shape:
            raise CheckpointError(
                f"{init.source.file}: {name} is {tuple(given[name].shape)}, this plan needs {tuple(tensor.shape)}"
                + ("; --upkern-from resamples kernels" if name.endswith("conv1.weight") else "")
            )
    missing = [n for n in wanted if n not in given and not n.startswith("out_")]
    if missing or set(given) - set(wanted):
        raise CheckpointError(f"{init.source.file} is another network than the plan's; {len(missing)} tensors lack")
    net.load_state_dict({**wanted, **given})
