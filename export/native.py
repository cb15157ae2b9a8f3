"""Target `native`: our own engine for CPUs, for MedNeXt alone."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import cast, get_args

from mednext_edge.bundle import Engine
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.report import Layers
from mednext_edge.export.targets import TARGETS, Job, Target
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.ops.float_net import FloatPrecision
from mednext_edge.ops.packed_net import CpuNet
from mednext_edge.quantize.flavour import Flavour
from mednext_edge.runtime.session import Session

FILE = "model.safetensors"
# Stem and head, which are thin too, stay in float all the same; norms read sums of 16 bits.
KINDS = ("pointwise", "strided", "thin", "depthwise", "transposed")


def write(job: Job, folder: Path) -> Engine:
    """Write `model.safetensors`.

    Raises:
        ExportError: a layer has to stay in float.
    """
    from mednext_edge.runtime.native_file import save_net

    save_net(_net(job), folder / FILE)
    return Engine(file=FILE, provider="mednext-edge", provider_version=version("mednext-edge"))


def trial(job: Job) -> Session:
    """The engine itself, from memory."""
    from mednext_edge.runtime.native_session import NativeSession

    return NativeSession(_net(job), job.model.task, patch=job.patch)


def accepts(model: LoadedModel) -> None:
    """Raises ExportError for a network that the engine has no form of."""
    from mednext_edge.fusion.native import check_native

    check_native(model)


def _net(job: Job) -> CpuNet:
    from mednext_edge.fusion.native import float_net
    from mednext_edge.quantize.int8_net import int8_net

    if job.precision in get_args(FloatPrecision):
        return float_net(job.model, cast(FloatPrecision, job.precision))
    if job.plan is None:
        raise ExportError("found a job in INT8 without a plan; calibrate the network first")
    return int8_net(job.model, job.plan)


def layers(session: Session, file: Path) -> Layers:
    """Three layers a block, and the shortcuts; there is nothing that an engine could put elsewhere."""
    from mednext_edge.ops.packed_net import precision_of
    from mednext_edge.runtime.native_file import load_net

    net = load_net(file)
    shortcuts = sum(block.shortcut is not None for block in net.blocks)
    counts = Counter({precision_of(net): 3 * len(net.blocks) + shortcuts})
    counts["fp32"] += 2 + len(net.blocks)  # stem, head, norms
    return Layers(counts_by_precision=dict(counts), fallbacks=())


TARGETS.add(
    "native",
    Target(
        summary="mednext-edge's own engine",
        precisions=("int8", "bf16", "fp32"),
        package="mednext-edge",
        device="CPU",
        rewrites=("parity",),  # as its plan has them; the engine puts them together again
        write=write,
        layers=layers,
        flavour=Flavour(KINDS),
        trial=trial,
        open_size=True,
        accepts=accepts,
        whole=True,
        graphless=get_args(FloatPrecision),
    ),
)
