"""Which form of every up block is fastest on this machine: measured, block by block, at the size it has in the network.

A transposed depthwise convolution and its parities are the same function (`fusion.parity`). Which of them is faster
depends on the processor, the precision and the size; in INT8 the transposed one stays in float. Each block is converted
alone in both forms, and the two are timed in pairs until it is clear whether the transposed one is faster, or time is
up: then it stays as it is without tuning.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from mednext_edge.cache import cache_folder
from mednext_edge.environment import Environment, environment
from mednext_edge.errors import UsageError
from mednext_edge.evaluation.duel import Pairs
from mednext_edge.evaluation.ratios import Ratio
from mednext_edge.evaluation.regression import Rules, Verdict, decide
from mednext_edge.export.graph import to_onnx
from mednext_edge.export.targets import Job, Progress, Target, in_int8
from mednext_edge.fusion import fuse
from mednext_edge.fusion.parity import transposed_blocks, use_parity
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.module import FAMILY
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.runtime.session import Session
from mednext_edge.task import Frozen, Inference, ModelSpec, Preprocessing, Task

FILE = "tuning.json"
PARITY = "parity"
RULES = Rules(gate=0.03, first=8, looks=5)
"""The transposed form has to be faster by this much: less would not be seen in the whole network."""

log = logging.getLogger(__name__)


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


class Tuning(Frozen):
    """What was chosen, where, and for what; `key` is the digest of machine, network, patch and precision."""

    key: str
    target: str
    precision: str
    patch: tuple[int, ...]
    blocks: tuple[Choice, ...]
    seconds: float
    environment: Environment

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
class Setting:
    """What is tuned for: a target and its name, a precision of it, the patch, and kinds of layer for INT8."""

    name: str
    target: Target
    precision: str
    patch: tuple[int, ...]
    kinds: tuple[str, ...] = ()


def check_tunable(model: LoadedModel, setting: Setting) -> None:
    """Refuse what has nothing to choose.

    Raises:
        UsageError: a target that takes one form alone, or a network that was trained in INT8, in its one form.
    """
    if PARITY not in setting.target.rewrites or setting.target.whole:
        raise UsageError(f"found --tune with target {setting.name}; it has one form of every block alone")
    if model.quantization is not None:
        raise UsageError(
            "found --tune for a network that was trained in INT8; it keeps the form that it was trained in"
        )


def tuned(
    model: LoadedModel, setting: Setting, *, seconds: float, progress: Progress, cache: Path | None = None
) -> tuple[LoadedModel, Tuning]:
    """The deploy form of a model with the fastest form of every up block.

    Args:
        seconds: to measure for; what was measured before on this machine takes none.
        cache: folder of earlier tunings; None is the user's.

    Raises:
        UsageError: as `check_tunable`.
    """
    check_tunable(model, setting)
    plain = fuse(model, optional=[name for name in setting.target.rewrites if name != PARITY])
    key = tuning_key(plain, setting)
    file = (cache or cache_folder() / "tuning") / f"{key}.json"
    found = _read(file, key)
    if found is None:
        found = _tune(plain, setting, key, seconds, progress)
        if found.complete:
            _write(file, found)
    return found.apply(plain), found


def tuning_key(model: LoadedModel, setting: Setting) -> str:
    """SHA-256 in hex of everything that a choice depends on; the weights are no part of it."""
    here = environment()
    package = setting.target.package
    what = {
        "machine": [here.platform, here.cpu, here.physical_cores, here.usable_cores, here.isa],
        "engine": [setting.name, here.packages.get(package)],
        "network": [str(model.net), model.task.model.model_dump(exclude={"variant", "parameters"})],
        "for": [setting.precision, setting.patch, sorted(setting.kinds)],
        "tool": here.packages["mednext-edge"],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


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


def _tune(model: LoadedModel, setting: Setting, key: str, seconds: float, progress: Progress) -> Tuning:
    start = time.monotonic()
    sizes = input_sizes(model, setting.patch)
    blocks = dict(transposed_blocks(model.net))
    choices = []
    for index, (name, (channels, *size)) in enumerate(sizes.items()):
        progress("tune", index, len(sizes))
        choice = Choice(name=name, size=tuple(size))
        if time.monotonic() - start < seconds:
            choice = _choose(blocks[name], channels, choice, setting, start + seconds, len(sizes) - index)
        choices.append(choice)
    progress("tune", len(sizes), len(sizes))
    return Tuning(
        key=key,
        target=setting.name,
        precision=setting.precision,
        patch=setting.patch,
        blocks=tuple(choices),
        seconds=time.monotonic() - start,
        environment=environment(),
    )


def _choose(block: nn.Module, channels: int, choice: Choice, setting: Setting, deadline: float, left: int) -> Choice:
    """Time both forms of one block, for its share of what is left until the deadline when both are converted."""
    with (
        _alone(block, channels, choice.size, setting, parity=False) as transposed,
        _alone(block, channels, choice.size, setting, parity=True) as parity,
    ):
        x = np.random.default_rng(0).standard_normal((1, channels, *choice.size), dtype=np.float32)
        sides = _Timed(transposed, x), _Timed(parity, x)
        for side in sides * 2:
            side.time()
        now = time.monotonic()
        until = now + (deadline - now) / left
        pairs = Pairs(*sides, calls=1, until=until, generator=np.random.default_rng(0), progress=lambda done: None)
        finding = decide(pairs.draw, RULES, _faster)
    if len(finding.logs) < RULES.first:  # too few to say anything
        return choice
    ratio = finding.ratio
    return choice.model_copy(
        update={
            "form": "transposed" if finding.verdict == "passed" else PARITY,
            "ratio": (ratio.value, ratio.low, ratio.high),
            "pairs": len(finding.logs),
        }
    )


def _faster(ratio: Ratio, gate: float) -> Verdict:
    """Passed when the whole interval says that the transposed form is faster by the gate."""
    if ratio.high < 1 - gate:
        return "passed"
    return "slower" if ratio.low > 1 - gate else "undecided"


class _Timed:
    def __init__(self, session: Session, x: np.ndarray) -> None:
        self.session, self.x = session, x

    def time(self, calls: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            self.session.run(self.x)
        return (time.perf_counter() - start) * 1e3 / calls


def _alone(block: nn.Module, channels: int, size: tuple[int, ...], setting: Setting, *, parity: bool) -> Session:
    """One block as an engine: [1, C, *size] -> [1, C / 2, *2 size]."""
    net = copy.deepcopy(block)
    if parity:
        use_parity(net)
    spec = ModelSpec(
        family=FAMILY,
        variant="block",
        kernel_size=1,
        spatial_dims=3 if len(size) == 3 else 2,
        in_channels=channels,
        classes=max(1, channels // 2),
        parameters=0,
        config={"divisor": 1, "any_size": False},
    )
    task = Task(
        name="block",
        model=spec,
        preprocessing=Preprocessing().model_copy(update={"normalization": Preprocessing().normalization * channels}),
        inference=Inference(patch=size),
        labels={str(n): n for n in range(spec.labels)},
    )
    model = LoadedModel(net, task, Source(format="block", file="none", sha256="0" * 64))
    graph = to_onnx(model, size, half=setting.precision in setting.target.half)
    if in_int8(setting.precision):
        from mednext_edge.quantize.ptq import calibrate

        noise = np.random.default_rng(0).standard_normal((1, channels, *size), dtype=np.float32)
        given = CalibrationSet(patches=(noise,), cases=("noise",), sha256="", foreground=0)
        graph = calibrate(graph, net, given, setting.target.flavour, kinds=setting.kinds).apply(graph)
    assert setting.target.trial is not None
    return setting.target.trial(Job(model, graph, setting.precision, size))


def _read(file: Path, key: str) -> Tuning | None:
    try:
        found = Tuning.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the earlier tuning %s cannot be read (%s); it is measured anew", file, error)
        return None
    return found if found.key == key else None


def _write(file: Path, tuning: Tuning) -> None:
    """A cache only saves time: where it cannot be written, the log says so."""
    temporary = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(tuning.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        log.warning("the tuning cannot be kept in %s (%s)", file, error)
