"""The network a run begins with: random weights, those of the same network, or a smaller kernel's by UpKern."""

from __future__ import annotations

import torch
from torch import nn

from mednext_edge.data.dataset import Dataset
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


def check_channels(name: str, source: LoadedModel, dataset: Dataset) -> None:
    """That a checkpoint takes as many channels as a data set has, or photographs whose colours can be brought there.

    Args:
        name: what the checkpoint was called by.
        source, dataset: the two.

    Raises:
        CheckpointError: it does not; the tensor is named.
    """
    takes, has = source.task.model.in_channels, len(dataset.channels)
    if takes == has or (source.task.preprocessing.colour is not None and dataset.colour is not None):
        return
    stem = next(key for key, tensor in source.net.named_parameters() if tensor.dim() > 2)
    shape = tuple(source.net.get_parameter(stem).shape)
    raise CheckpointError(
        f"{name} is of another network: `{stem}` has shape {shape}, for {takes} channels; "
        f"{dataset.name} has {has} ({', '.join(dataset.channels)}). Give a checkpoint of these channels"
    )


def check_labels(name: str, source: LoadedModel, dataset: Dataset) -> list[str]:
    """That a checkpoint that keeps its classes knows those of a data set; returns what a person should look at.

    Args:
        name: what the checkpoint was called by.
        source, dataset: the two.

    Raises:
        CheckpointError: it segments and the data are to be classified, or the other way round; or the data have a value
            that it does not know.
    """
    if source.task.model.kind != dataset.kind:
        raise CheckpointError(
            f"{name} is for {source.task.model.kind}, {dataset.name} for {dataset.kind}; give data of the same kind"
        )
    known = {value: label for label, value in source.task.labels.items()}
    unknown = sorted(set(dataset.labels.values()) - set(known))
    if unknown:
        raise CheckpointError(
            f"{dataset.name} has the label values {unknown}; {name} knows {source.task.labels}. "
            "Give the data that it was trained on"
        )
    return [
        f"the label {value} is `{label}` in {dataset.name} and `{known[value]}` in {name}"
        for label, value in dataset.labels.items()
        if label != known[value] and value
    ]


def _copy_weights(net: nn.Module, init: LoadedModel) -> None:
    wanted, given = net.state_dict(), init.net.state_dict()
    for name, tensor in wanted.items():
        if name in given and given[name].shape != tensor.shape:
            resampled = name.endswith("conv1.weight") and given[name].shape[:2] == tensor.shape[:2]
            raise CheckpointError(
                f"{init.source.file}: `{name}` is {tuple(given[name].shape)}, this plan needs {tuple(tensor.shape)}"
                + ("; --upkern-from resamples kernels" if resampled else "; --init takes the same network and classes")
            )
    missing = [n for n in wanted if n not in given and not n.startswith("out_")]
    if missing or set(given) - set(wanted):
        raise CheckpointError(f"{init.source.file} is another network than the plan's; {len(missing)} tensors lack")
    net.load_state_dict({**wanted, **given})
