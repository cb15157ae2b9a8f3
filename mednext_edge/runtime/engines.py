"""Open anything that can segment: a bundle, or a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mednext_edge.bundle import Manifest, verify
from mednext_edge.errors import TargetUnavailableError, UsageError
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.registry import Registry
from mednext_edge.runtime.session import Session
from mednext_edge.task import ModelSpec

CPU = "CPU"
"""The device of every engine that runs without an accelerator."""


@dataclass(frozen=True)
class OpenOptions:
    """Where and how an engine runs.

    Attributes:
        device: name of the device in the engine's own terms; None is the CPU, or CUDA for an engine that needs it.
        threads: CPU threads; None takes what `--tune` measured on this machine, or else lets the engine choose.
        patch: spatial size to run at; None is the one it was exported for.
    """

    device: str | None = None
    threads: int | None = None
    patch: tuple[int, ...] | None = None


ENGINES: Registry[Callable[[Path, Manifest, OpenOptions], Session]] = Registry("engine")
"""By target name: opens the engine file of a verified bundle."""


def open(
    model: str | Path | LoadedModel,
    *,
    device: str | None = None,
    threads: int | None = None,
    patch: tuple[int, ...] | None = None,
) -> Session:
    """A session on a bundle or on a model in memory.

    The digests of a bundle are checked before its engine is read: an engine is executable code.

    Args:
        model: folder of a bundle, or a loaded model (which runs in PyTorch, FP32).
        device: a name that the engine knows, such as `CPU`, `GPU` or `cuda:1`; None is the CPU, or CUDA for an engine
            that needs it.
        threads: CPU threads; None takes what `--tune` measured on this machine, or else lets the engine choose.
        patch: spatial size to run at; None is the one it was exported for.

    Raises:
        IntegrityError: not a bundle, or one whose digests do not match.
        TargetUnavailableError: the engine still has to be built, or its device or package is not here.
        UsageError: a patch that the network cannot take, or another than a fixed engine was exported for.
        ExportError: the engine refuses its file.
    """
    if isinstance(model, LoadedModel):
        from mednext_edge.runtime.torch_session import TorchSession

        _check_patch(model.task.model, patch)
        session = TorchSession.of(model, (device or CPU).lower(), threads)
        session.patch = patch
        return session
    folder = Path(model)
    return open_engine(folder, verify(folder), OpenOptions(device, threads, patch))


def open_engine(folder: Path, manifest: Manifest, options: OpenOptions) -> Session:
    """The session of a bundle whose digests are known to hold: verified, or written by this very process.

    Raises:
        TargetUnavailableError: the engine still has to be built, or its device or package is not here.
        UsageError: a patch that the network cannot take, or another than a fixed engine was exported for.
        ExportError: the engine refuses its file.
    """
    if options.patch not in (None, manifest.input.patch) and None not in manifest.input.shape:
        raise UsageError(
            f"found the patch {options.patch}; {folder} takes {manifest.input.patch} alone. "
            "Export for this --patch, or for any (--dynamic; --min-patch and --max-patch for NVIDIA)"
        )
    _check_patch(manifest.model, options.patch)
    if manifest.engine.status == "deferred":
        raise TargetUnavailableError(
            f"{folder}: the engine is not built yet; run `mednext-edge build {folder}` on the device"
        )
    return ENGINES[manifest.target](folder / manifest.engine.file, manifest, options)


def _check_patch(spec: ModelSpec, patch: tuple[int, ...] | None) -> None:
    if patch is None:
        return
    divisor = FAMILIES[spec.family].divisor(spec)
    if len(patch) != spec.spatial_dims or any(n < divisor or n % divisor for n in patch):
        raise UsageError(f"found the patch {patch}; expected {spec.spatial_dims} multiples of {divisor}")


def _openvino(file: Path, manifest: Manifest, options: OpenOptions) -> Session:
    from mednext_edge.runtime.openvino_session import OpenVinoSession
    from mednext_edge.runtime.threads import TUNING, recorded_threads

    patch, device, threads = options.patch or manifest.input.patch, options.device or CPU, options.threads
    # What is not listed has no digest; a bundle that is still being written lists nothing.
    listed = not manifest.files or any(entry.path == TUNING for entry in manifest.files)
    if threads is None and device == CPU and listed:
        threads = recorded_threads(file.parent, patch)
    return OpenVinoSession(file, manifest.task, manifest.precision, patch=patch, device=device, threads=threads)


def _native(file: Path, manifest: Manifest, options: OpenOptions) -> Session:
    from mednext_edge.runtime.native_session import NativeSession

    return NativeSession(
        file,
        manifest.task,
        patch=options.patch or manifest.input.patch,
        device=options.device or CPU,
        threads=options.threads,
    )


def _onnx(file: Path, manifest: Manifest, options: OpenOptions) -> Session:
    from mednext_edge.runtime.onnx_session import OnnxSession

    session = OnnxSession(
        file, manifest.task, manifest.precision, device=options.device or CPU, threads=options.threads
    )
    if session.patch is None:
        session.patch = options.patch or manifest.input.patch
    return session


def _tensorrt(file: Path, manifest: Manifest, options: OpenOptions) -> Session:
    from mednext_edge.nvidia.devices import find_device
    from mednext_edge.nvidia.providers import PROVIDERS
    from mednext_edge.runtime.plan_choice import choose_plan, read_recipe
    from mednext_edge.runtime.tensorrt_session import TensorRtSession

    folder = file.parents[len(PurePosixPath(manifest.engine.file).parts) - 1]
    provider = PROVIDERS[manifest.engine.provider]
    provider.load()  # a package that is missing is told before a device that is
    recipe = read_recipe(folder)
    device = find_device(options.device)
    return TensorRtSession(
        choose_plan(folder, manifest, recipe, device),
        manifest.task,
        manifest.precision,
        provider=provider,
        provider_version=manifest.engine.provider_version,
        patch=options.patch or manifest.input.patch,
        device=f"cuda:{device.index}",
        version_compatible=recipe.version_compatible,
    )


ENGINES.add("openvino", _openvino)
ENGINES.add("native", _native)
ENGINES.add("onnx", _onnx)
ENGINES.add("trt", _tensorrt)
ENGINES.add("trt-rtx", _tensorrt)
