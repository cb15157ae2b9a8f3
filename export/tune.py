"""Which form of every up block is fastest on this machine: measured, block by block, at the size it has in the network.

A transposed depthwise convolution and its parities are the same function (`fusion.parity`). Which of them is faster
depends on the processor, the precision and the size; in INT8 the transposed one stays in float. Each block is converted
alone in both forms, and the two are timed in pairs until it is clear whether the transposed one is faster, or time is
up: then it stays as it is without tuning.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mednext_edge.cache import Keyed
from mednext_edge.environment import Environment, environment
from mednext_edge.errors import UsageError
from mednext_edge.evaluation.regression import Rules
from mednext_edge.export.graph import to_onnx
from mednext_edge.export.targets import Job, Progress, Target, in_int8
from mednext_edge.export.tune_cache import TuningCache, key_of
from mednext_edge.export.tune_layers import LayerTuning
from mednext_edge.export.tune_part import model_of, noise
from mednext_edge.export.tune_race import LOOK, Watch, faster, race
from mednext_edge.fusion import fuse
from mednext_edge.fusion.parity import transposed_blocks, use_parity
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.runtime.session import Session
from mednext_edge.runtime.threads import ThreadTuning
from mednext_edge.task import Frozen

PARITY = "parity"
RULES = Rules(gate=0.03, first=8, looks=5)
"""The transposed form has to be faster by this much: less would not be seen in the whole network."""


class Choice(Frozen):
    """One up block.

    Attributes:
        name: of the block.
        size: spatial size of its input.
        form: that it gets.
        ratio: time of the transposed form over that of the parity form, with its interval; None when there was no time
            to measure it, and the form is the one without tuning.
        pairs: of timings.
    """

    name: str
    size: tuple[int, ...]
    form: Literal["parity", "transposed"] = "parity"
    ratio: tuple[float, float, float] | None = None
    pairs: int = 0


class Tuning(Keyed):
    """What was chosen, where, and for what.

    Attributes:
        key: digest of machine, network, patch and precision; of the forms alone.
        blocks: the forms.
        seconds: that these took.
        layers: of INT8, that are in float because they are faster so; None where nothing is INT8.
        threads: None before it was measured.
    """

    target: str
    precision: str
    patch: tuple[int, ...]
    blocks: tuple[Choice, ...]
    seconds: float
    environment: Environment
    layers: LayerTuning | None = None
    threads: ThreadTuning | None = None

    @property
    def complete(self) -> bool:
        """Whether every block was measured."""
        return all(block.ratio is not None for block in self.blocks)

    def apply(self, model: LoadedModel) -> LoadedModel:
        """A fused model without parities, with the forms that were chosen."""
        chosen = [block.name for block in self.blocks if block.form == PARITY]
        net = copy.deepcopy(model.net)
        done = use_parity(net, chosen)
        return replace(model, net=net.requires_grad_(False), rewrites=(*model.rewrites, *[PARITY] * (done > 0)))


@dataclass(frozen=True)
class Effort:
    """What a tuning may take.

    Attributes:
        seconds: to measure for, all steps together; conversions count.
        layers: time layers of INT8 in float too, which takes longest.
        asked: refuse what has nothing to choose, which is else exported as it is.

    Raises:
        UsageError: no time to measure for.
    """

    seconds: float
    layers: bool = True
    asked: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise UsageError(f"found {self.seconds} seconds to tune (--tune-seconds); expected 0 or more")


QUICK = Effort(20.0, layers=False, asked=False)
"""Of `mednext-export` by default: what is decided within that is kept for the next export, and takes no time there."""
THOROUGH = Effort(60.0)


@dataclass(frozen=True)
class Setting:
    """What is tuned for: a target and its name, a precision of it, the patch, and kinds of layer for INT8."""

    name: str
    target: Target
    precision: str
    patch: tuple[int, ...]
    kinds: tuple[str, ...] = ()


def why_not(model: LoadedModel, setting: Setting) -> str:
    """Why nothing can be chosen: one form alone, or trained in INT8; empty where something can."""
    if PARITY not in setting.target.rewrites or setting.target.whole:
        return f"with target {setting.name}; it has one form of every block alone"
    if model.quantization is not None:
        return "for a network that was trained in INT8; it keeps the form that it was trained in"
    return ""


def check_tunable(model: LoadedModel, setting: Setting) -> None:
    """Raises UsageError for what has nothing to choose."""
    if reason := why_not(model, setting):
        raise UsageError(f"found --tune {reason}")


def granted(model: LoadedModel, setting: Setting, effort: Effort | None) -> Effort | None:
    """What is left of an effort: None where nothing can be chosen.

    Raises:
        UsageError: nothing can be chosen, and it was asked for.
    """
    if effort is None:
        return None
    if effort.asked:
        check_tunable(model, setting)
    return None if why_not(model, setting) else effort


def tuned(
    model: LoadedModel,
    setting: Setting,
    *,
    seconds: float,
    progress: Progress,
    cache: Path | None = None,
    watch: Watch | None = None,
) -> tuple[LoadedModel, Tuning]:
    """The deploy form of a model with the fastest form of every up block.

    Args:
        seconds: to measure for; what was measured before on this machine takes none.
        cache: folder of earlier tunings; None is the user's.
        watch: what time is told by; None is this machine's.

    Raises:
        UsageError: as `check_tunable`.
    """
    check_tunable(model, setting)
    plain = fuse(model, optional=[name for name in setting.target.rewrites if name != PARITY])
    key, kept = tuning_key(plain, setting), TuningCache(cache)
    found = kept.load(Tuning, key)
    if found is None:
        found = _tune(plain, setting, key, seconds, progress, watch or Watch())
        if found.complete:
            kept.save(found)
    return found.apply(plain), found


def tuning_key(model: LoadedModel, setting: Setting) -> str:
    """SHA-256 in hex of everything that a choice of forms depends on; the weights are no part of it."""
    return key_of(
        setting.target.package,
        target=setting.name,
        network=[str(model.net), model.task.model.model_dump(exclude={"variant", "parameters"})],
        precision=setting.precision,
        patch=setting.patch,
        kinds=sorted(setting.kinds),
    )


def input_sizes(model: LoadedModel, patch: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
    """Of every up block that has a choice, in the order of the network: [C, *spatial] of its input."""
    net = copy.deepcopy(model.net).to("meta")
    found: dict[str, tuple[int, ...]] = {}

    def see(name: str, block: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found[name] = tuple(args[0].shape[1:])

    for name, block in transposed_blocks(net):
        block.register_forward_pre_hook(partial(see, name))
    with torch.inference_mode():
        net(torch.zeros(1, model.task.model.in_channels, *patch, device="meta"))
    return found


def _tune(model: LoadedModel, setting: Setting, key: str, seconds: float, progress: Progress, watch: Watch) -> Tuning:
    start = watch.clock()
    sizes = input_sizes(model, setting.patch)
    blocks = dict(transposed_blocks(model.net))
    choices: dict[str, Choice] = {}
    # The largest first: most of the time is theirs, and the budget may not do for all.
    for index, name in enumerate(sorted(sizes, key=lambda name: math.prod(sizes[name]), reverse=True)):
        progress("tune", index, len(sizes))
        channels, *size = sizes[name]
        choice = Choice(name=name, size=tuple(size))
        if watch.clock() - start < seconds:
            choice = _choose(blocks[name], channels, choice, setting, start + seconds, len(sizes) - index, watch)
        choices[name] = choice
    progress("tune", len(sizes), len(sizes))
    return Tuning(
        key=key,
        target=setting.name,
        precision=setting.precision,
        patch=setting.patch,
        blocks=tuple(choices[name] for name in sizes),
        seconds=watch.clock() - start,
        environment=environment(),
    )


def _choose(
    block: nn.Module, channels: int, choice: Choice, setting: Setting, deadline: float, left: int, watch: Watch
) -> Choice:
    """Time both forms of one block, for its share of what is left when both are converted."""
    with (
        _alone(block, channels, choice.size, setting, parity=False) as transposed,
        _alone(block, channels, choice.size, setting, parity=True) as parity,
    ):
        now = watch.clock()
        until = now + max((deadline - now) / left, LOOK)
        found = race(transposed, parity, noise(channels, choice.size), RULES, faster, until=until, watch=watch)
    if found is None:
        return choice
    form = "transposed" if found.verdict == "passed" else PARITY
    return choice.model_copy(update={"form": form, "ratio": found.ratio, "pairs": found.pairs})


def _alone(block: nn.Module, channels: int, size: tuple[int, ...], setting: Setting, *, parity: bool) -> Session:
    """One block as an engine: [1, C, *size] -> [1, C / 2, *2 size]."""
    net = copy.deepcopy(block)
    if parity:
        use_parity(net)
    model = model_of(net, channels, size)
    graph = to_onnx(model, size, half=setting.precision in setting.target.half)
    if in_int8(setting.precision):
        from mednext_edge.quantize.ptq import calibrate

        given = CalibrationSet(patches=(noise(channels, size),), cases=("noise",), sha256="", foreground=0)
        graph = calibrate(graph, net, given, setting.target.flavour, kinds=setting.kinds).apply(graph)
    return setting.target.trial(Job(model, graph, setting.precision, size))
