"""The processes of one run: alone, or several that `torchrun` has started.

    torchrun --nproc-per-node 2 --no-python mednext-edge train DATA -o RUN --device cuda

Each process computes its share of every batch and of every validation; gradients are averaged, so that N processes do
what one would with the same batch. Nothing else is exchanged: no norm of MedNeXt looks beyond one sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mednext_edge.errors import UsageError

T = TypeVar("T")
WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What torchrun tells each process by its environment."""


@dataclass(frozen=True)
class Team:
    """This process among `size`; `local` is its number on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: of `cuda`, the GPU with its local number."""
        return f"cuda:{self.local}" if self.size > 1 and name == "cuda" else name

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `size`-th item, from this process's own number on."""
        return items[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, without gradients."""
        if self.size > 1:
            value = value.detach().clone()
            distributed.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        return self.sum(value) / self.size

    def sum_with_gradient(self, value: Tensor) -> Tensor:
        """The sum over all processes, through which gradients flow to all of them."""
        if self.size == 1:
            return value
        from torch.distributed.nn.functional import all_reduce

        total: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]
        return total

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order, on every process."""
        if self.size == 1:
            return [value]
        found: list[T | None] = [None] * self.size
        distributed.all_gather_object(found, value)
        return [item for item in found if item is not None]

    def barrier(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def wrap(self, net: nn.Module) -> nn.Module:
        """A network whose gradients are those of all processes together."""
        if self.size == 1:
            return net
        for name, parameter in net.named_parameters():
            # It takes no part in the output, which DistributedDataParallel would wait for.
            if name.rpartition(".")[2] == "dummy_tensor":
                parameter.requires_grad_(False)
        return DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)


ALONE = Team()


def no_sync(net: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Holds back the exchange of gradients until the last part of an accumulated batch."""
    return net.no_sync() if isinstance(net, DistributedDataParallel) and not last else nullcontext()


@contextmanager
def join(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Team]:
    """This process's team: what torchrun has set up, or this process alone.

    Args:
        device: what is computed on; CUDA talks over NCCL, everything else over Gloo.

    Raises:
        UsageError: a GPU is named by number for several processes.
    """
    if int(environment.get("WORLD_SIZE", "1")) <= 1 or not all(name in environment for name in WORLD):
        yield ALONE
        return
    team = Team(*(int(environment[name]) for name in WORLD))
    if device.startswith("cuda:"):
        raise UsageError(f"found --device {device} for {team.size} processes; give cuda, each takes a GPU of its own")
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(team.local)
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield team
    finally:
        distributed.destroy_process_group()
