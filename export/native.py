"""Target `native`: our own INT8 engine for CPUs, for MedNeXt alone."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from mednext_edge.bundle import Engine
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.report import Layers
from mednext_edge.export.targets import TARGETS, Job, Target
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.ops.int8_net import Net8
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
    from mednext_edge.quantize.int8_net import check_native

    check_native(model)


def _net(job: Job) -> Net8:
    from mednext_edge.quantize.int8_net import int8_net

    if job.plan is None:
        raise ExportError("the native engine computes in INT8 alone; give a plan of it")
    return int8_net(job.model, job.plan)


def layers(session: Session, file: Path) -> Layers:
    """Three layers a block, and the shortcuts; there is nothing that an engine could put elsewhere."""
    from mednext_edge.runtime.native_file import load_net

    net = load_net(file)
    shortcuts = sum(block.shortcut is not None for block in net.blocks)
    counts = {"int8": 3 * len(net.blocks) + shortcuts, "fp32": 2 + len(net.blocks)}  # stem, head, norms
    return Layers(counts_by_precision=counts, fallbacks=())


TARGETS.add(
    "native",
    Target(
        summary="mednext-edge's own INT8 engine",
        precisions=("int8",),
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
    ),
)
