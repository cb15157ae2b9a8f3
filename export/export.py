"""From a network to a bundle: the verb `mednext_edge.export`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.bundle import BundleWriter, Gate, InputSpec, Manifest, OutputSpec
from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import UsageError

# Importing a target's file puts it into the table.
from mednext_edge.export import native as _native  # noqa: F401
from mednext_edge.export import onnx as _onnx  # noqa: F401
from mednext_edge.export import openvino as _openvino  # noqa: F401
from mednext_edge.export import tensorrt as _tensorrt  # noqa: F401
from mednext_edge.export.targets import TARGETS, BuildOptions, Job, Progress, Target, in_int8, silent
from mednext_edge.export.tune import Effort, Setting, granted
from mednext_edge.export.tuner import Tuner
from mednext_edge.fusion import fuse
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import CalibrationSet, default_count, draw
from mednext_edge.quantize.kinds import KINDS

if TYPE_CHECKING:
    from mednext_edge.quantize.plan import Plan

Choose = Callable[[Target, Job, "Plan", CalibrationSet], "Plan"]
"""Given a target, a job with the graph before INT8, every layer that may become INT8, and the calibration patches."""
Check = Callable[[Path, Manifest], Gate]
"""Given a finished but unpublished bundle; may add reports to it and returns the outcome of its gate."""


def export(
    model: LoadedModel,
    *,
    target: str,
    out: Path | str,
    precision: str | None = None,
    calibration: Dataset | CalibrationSet | None = None,
    patch: tuple[int, ...] | None = None,
    dynamic: bool = False,
    force: bool = False,
    int8_layers: tuple[str, ...] = (),
    choose: Choose | None = None,
    build: BuildOptions | None = None,
    check: Check | None = None,
    tune: Effort | None = None,
    progress: Progress = silent,
) -> Path:
    """Write a bundle: fuse, quantise if asked to, convert, and seal with digests.

    Args:
        model: in training or deploy form; it is fused here either way.
        target: name in the table of targets.
        out: folder to write; it appears whole or not at all.
        precision: one of the target's; None takes its first.
        calibration: for `int8`: a dataset (its training cases are used) or patches drawn before; a model that was
            trained in INT8 needs none. On NVIDIA's targets it shows whether float16 can hold every activation.
        patch: spatial size of the engine's input; None takes the task's.
        dynamic: let the engine take any multiple of the network's divisor.
        force: replace an existing bundle.
        int8_layers: kinds of layer to quantise, names in `quantize.kinds.KINDS`; empty leaves the choice to the target.
        choose: decides which layers stay in float after all, such as `AccuracyControl.choose`; None quantises all.
        build: what the builders of NVIDIA's targets are told.
        check: called on the finished bundle before it is published.
        tune: what it may take to find out what is fastest on this machine: the form of every block, the layers of
            INT8 that are faster in float, the threads; None takes the target's defaults. `tuning.json` in the bundle
            has the figures.
        progress: told of calibration and build, as (what, steps done, steps in all).

    Returns:
        The folder of the bundle.

    Raises:
        UnknownNameError: no such target, precision or kind of layer.
        UsageError: an unusable patch, INT8 without calibration data, options of another target, or `out` is taken.
        TargetUnavailableError: the target's package is not installed.
        ExportError: a library refuses the network.
    """
    import onnx

    from mednext_edge.export.graph import to_onnx

    entry, precision = target_of(target, precision)
    build = build or BuildOptions()
    check_build(target, precision, build, dynamic)
    check_kinds(int8_layers, precision)
    check_network(model, target, chosen=bool(int8_layers) or choose is not None)
    size = check_sizes(model, patch, build)
    if dynamic and not takes_any_size(model):
        raise UsageError(f"found --dynamic; this network is declared to take the patch {size} alone")
    patches = None
    if (in_int8(precision) and model.quantization is None) or (precision in entry.half and calibration is not None):
        patches = _calibration(model, size, calibration)
    if choose is not None and patches is None:
        raise UsageError(
            "accuracy control measures layers on images; give --calib DATA (in Python: calibration=dataset)"
        )
    setting = Setting(target, entry, precision, size, int8_layers)
    effort = granted(model, setting, tune)
    tuner = None if effort is None else Tuner(model, setting, effort, progress)
    if in_int8(precision) and patches is not None:
        from mednext_edge.quantize.equalise import equalise

        model = equalise(model, patches)
    writer = BundleWriter(Path(out), force=force)
    with writer as folder:
        deploy = deploy_form(model, entry, int8_layers) if tuner is None else tuner.forms(model)
        dynamic = dynamic or (entry.open_size and takes_any_size(model)) or build.range is not None
        if precision in entry.graphless:
            graph = onnx.ModelProto()
        else:
            graph = to_onnx(deploy, size, dynamic=dynamic, half=precision in entry.half)
        job = Job(deploy, graph, precision, size, build, progress)
        plan = _calibrated(entry, job, patches, int8_layers)
        if plan is not None:
            if choose is not None and patches is not None:
                plan = choose(entry, job, plan, patches)
            refused = entry.refuses(job, plan) if entry.refuses is not None else ()
            plan = plan.keeping(plan.float_layers.union(refused))
            given_back = tuner.layers(job, plan) if tuner is not None else {}
            plan = plan.keeping(plan.float_layers.union(given_back))
            job = replace(job, graph=plan.apply(graph), refused=refused, given_back=given_back, plan=plan)
        if tuner is not None:
            tuner.threads(job)
            tuner.write(folder)
        engine = entry.write(job, folder)
        task = deploy.task
        spatial: tuple[int | None, ...] = (None,) * len(size) if dynamic else size
        answer = task.model.output_shape(spatial)
        layout = "NC" + "DHW"[-len(size) :]
        manifest = Manifest(
            name=task.name,
            model=task.model,
            source=deploy.source,
            input=InputSpec(shape=(1, task.model.in_channels, *spatial), layout=layout, patch=size),
            output=OutputSpec(shape=(1, *answer), layout=layout[: 1 + len(answer)]),
            preprocessing=task.preprocessing,
            inference=task.inference.model_copy(update={"patch": size}),
            labels=task.labels,
            regions=task.regions,
            target=target,
            precision=precision,
            engine=engine,
            rewrites=deploy.rewrites,
        )
        if check is not None:
            manifest = manifest.model_copy(update={"gate": check(folder, manifest)})
        writer.commit(manifest)
    return Path(out)


def deploy_form(model: LoadedModel, entry: Target, int8_layers: tuple[str, ...]) -> LoadedModel:
    """The network as a target takes it: fused, with the rewrites that pay there and those that INT8 needs."""
    # INT8 for transposed convolutions exists in their parity form alone.
    parity = ("parity",) if "transposed" in int8_layers else ()
    return fuse(model, optional=(*entry.rewrites, *parity))


def check_patch(model: LoadedModel, patch: tuple[int, ...] | None) -> tuple[int, ...]:
    """The patch to export for, checked against the network.

    Raises:
        UsageError: wrong number of axes, not a multiple of the divisor, or too small for the bottleneck's norm.
    """
    spec = model.task.model
    size = patch or model.task.inference.patch
    if not takes_any_size(model) and tuple(size) != model.task.inference.patch:
        raise UsageError(f"found the patch {size}; this network is declared to take {model.task.inference.patch} alone")
    divisor = patch_divisor(model)
    if len(size) != spec.spatial_dims:
        raise UsageError(f"found a patch of {len(size)} sides; this network takes {spec.spatial_dims}")
    smallest = 2 * divisor if takes_any_size(model) else divisor
    if any(n < divisor or n % divisor for n in size) or max(size) < smallest:
        fits = tuple(max(divisor, round(n / divisor) * divisor) for n in size)
        fits = fits if max(fits) > divisor else (2 * divisor, *fits[1:])
        raise UsageError(
            f"patch {size}: every side must be a multiple of {divisor} and one at least {2 * divisor}; "
            f"the nearest that fits is {fits}"
        )
    return tuple(size)


def check_sizes(model: LoadedModel, patch: tuple[int, ...] | None, build: BuildOptions) -> tuple[int, ...]:
    """The patch to export for, checked against the network and the range of patches to build for.

    Raises:
        UsageError: as `check_patch`; or a patch outside the range.
    """
    size = check_patch(model, patch)
    if build.range is None:
        return size
    low, high = (check_patch(model, bound) for bound in build.range)
    if not all(a <= b <= c for a, b, c in zip(low, size, high, strict=True)):
        raise UsageError(
            f"found the patches {low}, {size}, {high}; expected --min-patch <= --patch <= --max-patch on every axis"
        )
    return size


def takes_any_size(model: LoadedModel) -> bool:
    """Whether every multiple of the divisor will do; if not, the task's patch alone."""
    spec = model.task.model
    return FAMILIES[spec.family].any_size(spec)


def patch_divisor(model: LoadedModel) -> int:
    """What every side of a patch must be a multiple of."""
    spec = model.task.model
    return FAMILIES[spec.family].divisor(spec)


def _calibration(model: LoadedModel, patch: tuple[int, ...], given: Dataset | CalibrationSet | None) -> CalibrationSet:
    if given is None:
        raise UsageError("INT8 needs images to calibrate on; give --calib DATA (in Python: calibration=dataset)")
    if isinstance(given, Dataset):
        return draw(given.training, model.task, default_count(patch), patch=patch)
    channels, divisor = model.task.model.in_channels, patch_divisor(model)
    shapes = {p.shape for p in given.patches}
    fits = [
        s for s in shapes if s[:2] == (1, channels) and len(s) == len(patch) + 2 and not any(n % divisor for n in s[2:])
    ]
    if len(shapes) != 1 or not fits:
        raise UsageError(
            f"found calibration patches of the shapes {sorted(shapes) or 'none'}; expected one shape "
            f"[1, {channels}, ...] whose {len(patch)} spatial sides are multiples of {divisor}"
        )
    return given


def _calibrated(entry: Target, job: Job, patches: CalibrationSet | None, kinds: tuple[str, ...]) -> Plan | None:
    """The layers for INT8, if it is asked for, with their ranges; and whether float16 holds every activation."""
    from mednext_edge.export.graph import fix_size, to_onnx
    from mednext_edge.quantize.headroom import check_headroom
    from mednext_edge.quantize.ptq import calibrate
    from mednext_edge.quantize.qat import learnt_plan

    learnt = None
    if in_int8(job.precision) and job.model.quantization is not None:
        learnt = learnt_plan(job.model.net, job.model.quantization, entry.flavour, kinds)
    if patches is None:
        return learnt
    window = tuple(patches.patches[0].shape[2:])
    given = tuple(dim.dim_value for dim in job.graph.graph.input[0].type.tensor_type.shape.dim)[2:]
    if not any(given):
        fixed = fix_size(job.graph, window)
    else:
        fixed = job.graph if window == given else to_onnx(job.model, window, half=job.precision in entry.half)
    if not in_int8(job.precision) or learnt is not None:
        if job.precision in entry.half:
            check_headroom(fixed, patches, partial(job.progress, "check float16"))
        return learnt
    progress = partial(job.progress, "calibrate")
    return calibrate(fixed, job.model.net, patches, entry.flavour, kinds=kinds, progress=progress)


def target_of(name: str, precision: str | None) -> tuple[Target, str]:
    """The entry of a target, and a precision that it is known to come in.

    Args:
        name: of the target.
        precision: None takes the target's first.

    Raises:
        UnknownNameError: no such target or precision, with the closest match.
    """
    entry = TARGETS[name]
    if precision is None:
        return entry, entry.precisions[0]
    entry.check_precision(name, precision)
    return entry, precision


def check_build(target: str, precision: str, build: BuildOptions, dynamic: bool) -> None:
    """Refuse build options that a target cannot follow.

    Raises:
        UsageError: the target is not NVIDIA's, or cannot follow one of them.
        TargetUnavailableError: the package that builds is not installed.
    """
    check = TARGETS[target].check
    if check is not None:
        if dynamic and build.range is None:
            raise UsageError(
                f"found --dynamic with target {target}; its engines take a range of patches, give --min-patch and "
                "--max-patch instead"
            )
        check(build, precision)
    elif build != BuildOptions():
        others = ", ".join(name for name, entry in TARGETS.items() if entry.check is not None)
        raise UsageError(f"found options for NVIDIA's builders with target {target}; they belong to {others}")


def check_network(model: LoadedModel, target: str, *, chosen: bool) -> None:
    """Refuse a network that a target has no engine for, or a choice of layers where it has none.

    Args:
        model: in training or deploy form.
        target: its name.
        chosen: whether layers are to stay in float.

    Raises:
        ExportError: there is no engine for this network.
        UsageError: its engine has no float form of a layer.
    """
    entry = TARGETS[target]
    if entry.accepts is not None:
        entry.accepts(model)
    if entry.whole and chosen:
        raise UsageError(
            f"found a choice of INT8 layers (--int8-layers, --accuracy-control, --sensitivity) with target {target}, "
            "whose engine has all of them in INT8; take --target openvino"
        )


def check_kinds(kinds: tuple[str, ...], precision: str) -> None:
    """Refuse kinds of layer to quantise that are not known, or that nothing is quantised for.

    Raises:
        UnknownNameError: no such kind, with the closest match.
        UsageError: the precision is not INT8.
    """
    if kinds and not in_int8(precision):
        raise UsageError(f"found --int8-layers with precision {precision}; it belongs to --int8")
    for kind in kinds:
        KINDS[kind]
