"""From whatever a weights file holds to a checked network: unwrap, rename, check, build, copy in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mednext_edge.checkpoints.dialects import DIALECTS, not_a_network
from mednext_edge.errors import CheckpointError
from mednext_edge.models.families import FAMILIES, build, for_inference
from mednext_edge.task import ModelSpec

WRAPPERS = ("network_weights", "state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Where training code puts the tensors, in the order in which they are looked for."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a network under the names of `models`, as stored (any float type).

    Attributes:
        family: a name in DIALECTS.
        layout: whose names the file used.
        stored: how many tensors the file holds for the network.
        notes: what was done to get here.
    """

    tensors: dict[str, Tensor]
    family: str
    layout: str
    stored: int
    notes: tuple[str, ...] = ()


def find_tensors(content: Any) -> dict[str, Tensor]:
    """The mapping of names to tensors in a loaded file: at the top, or under one of `WRAPPERS`.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(content, Mapping):
        for name in WRAPPERS:
            inner = content.get(name)
            if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
                content = inner
                break
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            return tensors
        found = f"a dictionary with {', '.join(f'`{k}`' for k in list(content)[:6]) or 'nothing in it'}"
    else:
        found = f"a {type(content).__name__}"
    raise CheckpointError(f"found {found}; expected a state_dict, or one under {', '.join(f'`{w}`' for w in WRAPPERS)}")


def network_weights(content: Any) -> Weights:
    """Unwrapped, without the prefixes of DataParallel, torch.compile and wrapper modules, under the names of `models`.

    Raises:
        CheckpointError: no tensors, no network that is known, or tensors that cannot be weights (see `check_tensors`).
    """
    tensors = find_tensors(content)
    names = {name: name.replace("_orig_mod.", "") for name in tensors}
    recognised = _recognise(names.values())
    if recognised is None:
        raise CheckpointError(not_a_network(tensors))
    family, layout, prefix = recognised
    state = {new[len(prefix) :]: tensors[old] for old, new in names.items() if new.startswith(prefix)}
    notes: list[str] = []
    if prefix:
        notes.append(f"prefix `{prefix}` taken off the tensor names")
    if left_out := [old for old, new in names.items() if not new.startswith(prefix)]:
        notes.append(f"{len(left_out)} tensors outside `{prefix}` left out: {_some(left_out)}")
    if len(state) + len(left_out) != len(tensors):
        raise CheckpointError("two tensors have the same name once the prefixes are taken off; save the bare network")
    check_tensors(state)
    renamed, done = DIALECTS[family].ours(state, layout)
    notes += done
    if any(t.dtype == torch.float64 for t in renamed.values()):
        notes.append("float64 weights are used as float32")
    return Weights(renamed, family, layout, len(state), tuple(notes))


def _recognise(names: Collection[str]) -> tuple[str, str, str] | None:
    """Family, layout and prefix of the network that tensors of these names make."""
    for family, dialect in DIALECTS.items():
        anchors = [n for n in names if n == dialect.anchor or n.endswith(f".{dialect.anchor}")]
        if anchors:
            prefix = min(anchors, key=len).removesuffix(dialect.anchor)
            layout = dialect.layout(name[len(prefix) :] for name in names if name.startswith(prefix))
            if layout is not None:
                return family, layout, prefix
    return None


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what cannot be a weight: other layouts, non-floats, shapes larger than their storage, NaN, Inf.

    Raises:
        CheckpointError: naming the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(
                f"`{name}` is a {tensor.layout} tensor on {tensor.device}; expected a dense CPU tensor"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"`{name}` claims the shape {tuple(tensor.shape)} but the file holds fewer numbers")
        if not tensor.is_floating_point():
            if name.endswith("num_batches_tracked"):
                continue
            raise CheckpointError(f"`{name}` is of type {tensor.dtype}; expected floating-point weights")
        if bad := int((~torch.isfinite(tensor.float())).sum()):
            raise CheckpointError(
                f"`{name}` holds {bad} NaN or infinite values; the training diverged, use another file"
            )


def network_spec(weights: Weights) -> tuple[ModelSpec, tuple[str, ...]]:
    """The ModelSpec that the tensors themselves prove, and what had to be assumed.

    Raises:
        CheckpointError: the tensors do not make a network of their family.
    """
    config, notes = DIALECTS[weights.family].infer(weights.tensors, weights.layout)
    family = FAMILIES[weights.family]
    with torch.device("meta"):
        return family.describe(family.build(config)), notes


def build_network(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of `spec` with these weights in float32, in eval mode, without its extra heads in use.

    Nothing is reserved before the shapes that `spec` asks for are those of the tensors.

    Raises:
        CheckpointError: missing or unexpected names, wrong shapes, or numbers in `spec` that the tensors belie.
    """
    _check_numbers(spec.config, tensors)
    try:
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in build(spec).state_dict().items()}
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"the configuration of this `{spec.family}` cannot be built: {error}") from error
    missing = [n for n in expected if n not in tensors]
    unexpected = [n for n in tensors if n not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} ({_some(names)})"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise CheckpointError(
            f"the tensors do not fit a {spec.family} {spec.variant}: {' and '.join(parts)} of {len(expected)}; "
            "the file is incomplete or of a changed network"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"`{name}` has shape {tuple(tensors[name].shape)}; expected {shape}")
    net = build(spec)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return for_inference(net)


def _check_numbers(config: Any, tensors: Mapping[str, Tensor]) -> None:
    """No number of a configuration can exceed the longest axis and the count of the tensors."""
    limit = max([len(tensors), *(n for t in tensors.values() for n in t.shape)])
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, (Mapping, list, tuple)):
            stack += value.values() if isinstance(value, Mapping) else value
        if (isinstance(value, (int, float)) and value > limit) or (
            isinstance(value, (list, tuple)) and len(value) > limit
        ):
            raise CheckpointError(f"the configuration asks for {str(value)[:40]}, more than the tensors hold ({limit})")


def _some(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(f"`{n}`" for n in names[:limit]) + (", ..." if len(names) > limit else "")
