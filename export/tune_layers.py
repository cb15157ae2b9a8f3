"""Which layers of INT8 are faster in float on this machine: each alone, and then all of them in the whole network.

A layer alone says little of the network: there its input comes quantised from a neighbour, or a layout has to be
changed for it. So the layers that are faster in float alone are only candidates. The whole engine is timed with and
without them, and when it is slower with them, with the better half of them, and so on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import onnx
import torch
from torch import nn

from mednext_edge.cache import Keyed
from mednext_edge.evaluation.regression import Rules, judge
from mednext_edge.export.targets import Job, Progress, Target
from mednext_edge.export.tune_cache import TuningCache, graph_digest, key_of
from mednext_edge.export.tune_part import alone, model_of, noise, signature, whole_parity
from mednext_edge.export.tune_race import Race, Watch, faster, race
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.task import Frozen

if TYPE_CHECKING:
    from mednext_edge.quantize.plan import Plan

ALONE = Rules(gate=0.03, first=8, looks=4)
"""A layer in float has to be faster by this much than in INT8."""
WHOLE = Rules(gate=0.01, first=8, looks=5)
"""The whole must be shown not to be slower by more than this with layers in float."""
LEAST = 2.0
"""Milliseconds of one timing of a layer."""
SHARE = 0.5
"""Of the time, for the layers alone."""


class LayerChoice(Frozen):
    """One layer of INT8.

    Attributes:
        name, kind: of the layer.
        ratio: time in float over that in INT8, alone, with its interval; None when it was not measured.
        float_ms, int8_ms: medians.
        pairs: of timings; those of equal layers of equal size are shared.
        decision: what it runs in.
    """

    name: str
    kind: str
    ratio: tuple[float, float, float] | None = None
    float_ms: float | None = None
    int8_ms: float | None = None
    pairs: int = 0
    decision: Literal["int8", "float"] = "int8"

    @property
    def saved_ms(self) -> float:
        """By float, alone; 0 where that is not surely faster."""
        if self.ratio is None or self.float_ms is None or self.int8_ms is None or self.ratio[2] >= 1 - ALONE.gate:
            return 0.0
        return max(0.0, self.int8_ms - self.float_ms)


class WholeTrial(Frozen):
    """The whole engine with so many layers in float over that with none of them; `kept` says what came of it."""

    float_layers: int
    ratio: tuple[float, float, float] | None
    with_ms: float | None
    without_ms: float | None
    pairs: int
    kept: bool


class LayerTuning(Keyed):
    """What was chosen for the layers of one network.

    Attributes:
        layers: in the plan's order.
        trials: of the whole engine, the last one decided.
        seconds: that it took.
        complete: whether time did for all of it.
    """

    layers: tuple[LayerChoice, ...]
    trials: tuple[WholeTrial, ...]
    seconds: float
    complete: bool

    @property
    def reasons(self) -> dict[str, str]:
        """The layers that are given back to float, and why."""
        whole = next((trial for trial in self.trials if trial.kept), None)
        if whole is None or whole.ratio is None:
            return {}
        words = f"the whole network takes {whole.ratio[0]:.3f} times as long with {whole.float_layers} layers in float"
        return {
            layer.name: f"faster in float: {layer.float_ms:.3f} ms alone, {layer.int8_ms:.3f} ms in INT8; {words}"
            for layer in self.layers
            if layer.decision == "float"
        }


def tune_layers(
    entry: Target, job: Job, plan: Plan, *, seconds: float, progress: Progress, cache: TuningCache, watch: Watch
) -> LayerTuning:
    """Which layers of a plan are better given back to float.

    Args:
        entry: of the target.
        job: with the graph before INT8 is written into it.
        plan: its layers that are in float already stay there.
        seconds: to measure for; what was measured before on this machine takes none.
    """
    names = [name for name in plan.ranges if name not in plan.float_layers and plan.layers[name].weights]
    key = key_of(
        entry.package,
        step="layers",
        graph=graph_digest(job.graph),
        for_=(job.precision, job.patch),
        layers=(sorted(plan.ranges), sorted(plan.float_layers)),
        flavour=plan.flavour,
    )
    kept = cache.load(LayerTuning, key)
    if kept is not None:
        return kept
    start = watch.clock()
    choices = _alone(entry, job, plan, names, start + SHARE * seconds, progress, watch)
    measured = watch.clock() < start + SHARE * seconds
    wanted = sorted((c for c in choices if c.saved_ms > 0), key=lambda c: c.saved_ms, reverse=True)
    progress("tune layers together", 0, 0)
    trials = _whole(entry, job, plan, [c.name for c in wanted], start + seconds, watch)
    given_back = {c.name for c in wanted[: trials[-1].float_layers]} if trials and trials[-1].kept else set()
    found = LayerTuning(
        key=key,
        layers=tuple(c.model_copy(update={"decision": "float"}) if c.name in given_back else c for c in choices),
        trials=tuple(trials),
        seconds=watch.clock() - start,
        complete=measured and all(trial.ratio is not None for trial in trials) and len(trials) >= bool(wanted),
    )
    if found.complete:
        cache.save(found)
    return found


def input_shapes(model: LoadedModel, patch: tuple[int, ...], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """[C, *spatial] of the inputs of those layers that the network calls once, for one patch."""
    net = copy.deepcopy(model.net).to("meta")
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def see(name: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found[name].append(tuple(args[0].shape[1:]))

    for name in names:
        net.get_submodule(name).register_forward_pre_hook(partial(see, name))
    with torch.inference_mode():
        net(torch.zeros(1, model.task.model.in_channels, *patch, device="meta"))
    return {name: shapes[0] for name, shapes in found.items() if len(shapes) == 1}


def _alone(
    entry: Target, job: Job, plan: Plan, names: list[str], deadline: float, progress: Progress, watch: Watch
) -> list[LayerChoice]:
    """Every layer alone, the largest first; of equal ones one."""
    shapes = input_shapes(job.model, job.patch, names)
    parts = {name: alone(job.graph, plan.layers[name], shapes[name]) for name in names if name in shapes}
    groups: dict[str, list[str]] = {}
    for name, part in parts.items():
        groups.setdefault(signature(part), []).append(name)
    found = {name: LayerChoice(name=name, kind=plan.layers[name].kind) for name in names}
    order = sorted(groups.values(), key=lambda equal: torch.Size(shapes[equal[0]]).numel(), reverse=True)
    for index, equal in enumerate(order):
        progress("tune layers", index, len(order))
        now = watch.clock()
        if now >= deadline:
            break
        first = equal[0]
        until = now + 2 * (deadline - now) / (len(order) - index)  # the large ones take longer than their share
        result = _race_alone(entry, job, plan, first, parts[first], shapes[first], min(until, deadline), watch)
        if result is not None:
            times = {"ratio": result.ratio, "float_ms": result.this_ms, "int8_ms": result.reference_ms}
            for name in equal:
                found[name] = found[name].model_copy(update={**times, "pairs": result.pairs})
    progress("tune layers", len(order), len(order))
    return list(found.values())


def _race_alone(
    entry: Target,
    job: Job,
    plan: Plan,
    name: str,
    part: onnx.ModelProto,
    shape: tuple[int, ...],
    until: float,
    watch: Watch,
) -> Race | None:
    channels, *size = shape
    model = model_of(nn.Identity(), channels, tuple(size))
    only = replace(plan, ranges={name: plan.ranges[name]}, float_layers=frozenset())
    if len(plan.layers[name].weights) > 1:
        part, only = whole_parity(plan, name, shape)
    in_float = Job(model, part, job.precision, tuple(size))
    with entry.trial(in_float) as this, entry.trial(replace(in_float, graph=only.apply(part))) as reference:
        if reference.refused:  # it computes the rest in FP32, which the whole does not
            return None
        x = noise(channels, tuple(size))
        return race(this, reference, x, ALONE, faster, until=until, watch=watch, least=LEAST)


def _whole(entry: Target, job: Job, plan: Plan, wanted: list[str], deadline: float, watch: Watch) -> list[WholeTrial]:
    """The whole engine with the layers in float against that without; half of them for every time that it is slower.

    Args:
        wanted: names of layers, those that save most first.
    """
    trials: list[WholeTrial] = []
    count = len(wanted)
    while count > 0 and watch.clock() < deadline and not any(trial.kept for trial in trials):
        chosen = plan.keeping(plan.float_layers.union(wanted[:count]))
        with (
            entry.trial(replace(job, graph=chosen.apply(job.graph))) as this,
            entry.trial(replace(job, graph=plan.apply(job.graph))) as reference,
        ):
            x = noise(job.model.task.model.in_channels, job.patch)
            found = race(this, reference, x, WHOLE, judge, until=deadline, watch=watch)
            kept = found is not None and found.verdict == "passed" and this.refused == reference.refused
        trials.append(
            WholeTrial(
                float_layers=count,
                ratio=None if found is None else found.ratio,
                with_ms=None if found is None else found.this_ms,
                without_ms=None if found is None else found.reference_ms,
                pairs=0 if found is None else found.pairs,
                kept=kept,
            )
        )
        count //= 2
    return trials
