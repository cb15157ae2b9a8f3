"""Quantisation-aware training of a checkpoint: what `train --qat` runs in place of a network of its own.

The student is the checkpoint's network, rounded as the INT8 engine will round it, from the thresholds of post-training
calibration on; the teacher is the checkpoint itself in FP32.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mednext_edge.data.dataset import Case
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.export.export import check_kinds, check_patch, deploy_form, target_of
from mednext_edge.export.targets import Progress, silent
from mednext_edge.fusion.cpu_training import use_cpu_training
from mednext_edge.fusion.neutral import neutralize
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Quantization
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.quantize.calibration import ESTIMATOR, default_count, draw
from mednext_edge.quantize.equalise import Octaves, octaves_of, scaled
from mednext_edge.quantize.ptq import choose
from mednext_edge.quantize.qat import attach, learnt, quantization_of
from mednext_edge.task import Frozen
from mednext_edge.training.distill import Distillation
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.objective import Classified, Supervised
from mednext_edge.training.state import PLAN, RunFolder

FILE = "quantization.json"


@dataclass(frozen=True)
class QatOptions:
    """Whose INT8, and how it is calibrated.

    Attributes:
        target: a name in TARGETS.
        int8_layers: kinds of layer in place of the target's.
        calib_samples: calibration patches; None chooses.
        calib_method: how ranges are taken, a name in `quantize.ranges.ESTIMATORS`.
    """

    target: str = "openvino"
    int8_layers: tuple[str, ...] = ()
    calib_samples: int | None = None
    calib_method: str = ESTIMATOR

    def name(self, model: LoadedModel) -> str:
        """How a plan records the start, so that `--resume` cannot go on from another one."""
        chosen = [] if self.calib_samples is None else [self.calib_samples]
        method = [] if self.calib_method == ESTIMATOR else [self.calib_method]
        parts = (self.target, *sorted(self.int8_layers), *chosen, *method)
        return f"qat:{model.source.sha256}:{','.join(map(str, parts))}"

    def layers(self, model: LoadedModel) -> Collection[str]:
        """Names of the layers that will train in INT8.

        Raises:
            UnknownNameError: no such target or kind of layer.
            ExportError: the network has none of these kinds.
        """
        entry, _ = target_of(self.target, "int8")
        deploy = deploy_form(model, entry, self.int8_layers)
        return choose(deploy.net, self.int8_layers or entry.flavour.kinds)

    def check(self, model: LoadedModel) -> None:
        """Refuse what cannot be trained in INT8.

        Raises:
            UsageError: the model is fused, or was trained in INT8 before.
            UnknownNameError: no such target or kind of layer.
        """
        target_of(self.target, "int8")
        check_kinds(self.int8_layers, "int8")
        if FAMILIES[model.task.model.family].plan is None:
            raise UsageError(
                f"found a network of the kind {model.task.model.family}; training takes one network of ours. Export it "
                "with --int8, and --accuracy-control where its accuracy must be held"
            )
        if model.rewrites:
            raise UsageError(f"found a model with the rewrites {model.rewrites}; give the checkpoint that it came from")
        if model.quantization is not None:
            raise UsageError(
                f"{model.source.file} was trained in INT8 already; give the FP32 checkpoint that it came from, or go "
                "on with its run by --resume"
            )


class Start(Frozen):
    """Where training begins: the calibrated thresholds, and by what the residual streams were scaled before."""

    quantization: Quantization
    octaves: Octaves


@dataclass(frozen=True)
class Student:
    """A network to be trained in INT8.

    Attributes:
        model: what it starts from.
        net: in training form, with quantisers.
        quantization: the layers in INT8, with the thresholds at the start.
        device: that it trains on.
    """

    model: LoadedModel
    net: nn.Module
    quantization: Quantization
    device: str

    def objective(self, *, batch_dice: bool) -> Distillation:
        """Half the labels, half the checkpoint's own answers in FP32."""
        teacher = _for_device(_with_every_output(self.model.net), self.device)
        task = self.model.task
        plain = (
            Supervised(SupervisedLoss(regions=task.values_by_output, batch_dice=batch_dice))
            if task.model.kind == "segmentation"
            else Classified()
        )
        return Distillation(plain, teacher, regions=bool(task.regions))

    def trained(self, result: LoadedModel) -> LoadedModel:
        """The checkpoint with what its student has learnt.

        Args:
            result: of the training of `net`.
        """
        state, quantization = learnt(result.net, self.quantization)
        plain = copy.deepcopy(self.model.net)
        plain.load_state_dict(state)
        return replace(result, net=plain.eval(), task=self.model.task, quantization=quantization)


def student(
    model: LoadedModel,
    cases: Sequence[Case],
    options: QatOptions,
    folder: RunFolder,
    *,
    device: str = "cpu",
    write: bool = True,
    progress: Progress = silent,
) -> Student:
    """The student of a run that begins, or is gone on with.

    Args:
        model: in training form, in FP32.
        cases: images to calibrate on.
        options: whose INT8.
        folder: of the run; the calibrated thresholds are kept there.
        device: torch device that it will train on.
        write: whether this process writes to the folder.
        progress: told of the calibration.

    Raises:
        UsageError, UnknownNameError: as `QatOptions.check`.
        CheckpointError: what the folder holds is damaged, or of another network.
    """
    options.check(model)
    file, begun = folder.path / FILE, (folder.path / PLAN).exists()
    start = _read(file) if begun else _calibrated(model, cases, options, progress)
    try:
        net = _with_every_output(scaled(model, start.octaves).net)
        neutralize(net)
        attach(_for_device(net, device), start.quantization)
    except (AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} has the thresholds of another network: {error}") from error
    if write and not begun:
        folder.path.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{FILE}.tmp")
        temporary.write_text(start.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    return Student(model, net, start.quantization, device)


def as_trained(model: LoadedModel) -> nn.Module:
    """A checkpoint that was trained in INT8 as the network it was trained as, in eval mode: the engine's twin.

    Raises:
        UsageError: it was not trained in INT8.
    """
    if model.quantization is None:
        raise UsageError(f"{model.source.file} was not trained in INT8")
    net = copy.deepcopy(model.net).eval()
    attach(net, model.quantization)
    return net


def _calibrated(model: LoadedModel, cases: Sequence[Case], options: QatOptions, progress: Progress) -> Start:
    """Where post-training INT8 stands."""
    from mednext_edge.export.graph import to_onnx
    from mednext_edge.quantize.ptq import calibrate

    entry, _ = target_of(options.target, "int8")
    size = check_patch(model, None)
    count = options.calib_samples or default_count(size)
    told = partial(progress, "draw calibration patches")
    patches = draw(cases, model.task, count, estimator=options.calib_method, progress=told)
    octaves = octaves_of(model, patches)
    deploy = deploy_form(scaled(model, octaves), entry, options.int8_layers)
    told = partial(progress, "calibrate")
    graph = to_onnx(deploy, size)
    plan = calibrate(graph, deploy.net, patches, entry.flavour, kinds=options.int8_layers, progress=told)
    return Start(quantization=quantization_of(plan), octaves=octaves)


def _read(file: Path) -> Start:
    try:
        return Start.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); choose another --out to start anew") from error


def _for_device(net: nn.Module, device: str) -> nn.Module:
    """The network itself, on a CPU by our kernels."""
    if torch.device(device).type == "cpu":
        use_cpu_training(net)
    return net


def _with_every_output(net: nn.Module) -> nn.Module:
    """A copy in eval mode that gives the outputs of all its heads."""
    net = copy.deepcopy(net).eval()
    if isinstance(net, MedNeXt):
        net.do_ds = net.config.deep_supervision
    return net
