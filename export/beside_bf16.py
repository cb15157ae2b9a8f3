"""INT8 beside bfloat16: the layers that OpenVINO has no kernel for on this machine.

It does not move such a layer to float by itself but refuses the whole graph ("No suitable implementations"), without
naming the layer. So it is asked for parts of the plan, half by half, until every layer that it refuses is found.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mednext_edge.quantize.kinds import find, layers

if TYPE_CHECKING:
    import onnx
    import openvino as ov

    from mednext_edge.export.targets import Job
    from mednext_edge.quantize.plan import Plan

PRECISION = "int8-bf16"
_LOG = logging.getLogger(__name__)


def refused_layers(job: Job, plan: Plan) -> tuple[str, ...]:
    """Names of the layers of a plan that are refused; none where the precision is another.

    None, too, where the graph is refused with every layer in bfloat16: then no layer of INT8 is to blame, and the
    session computes all that is not INT8 in FP32.
    """
    if job.precision != PRECISION:
        return ()
    names = [name for name in plan.ranges if name not in plan.float_layers]

    def accepts(chosen: Sequence[str]) -> bool:
        return _compiles(plan.keeping(set(plan.ranges) - set(chosen)).apply(job.graph), _patch(job))

    if accepts(names) or not accepts(()):
        return ()
    refused = tuple(culprits(names, accepts))
    _LOG.warning(
        "OpenVINO has no INT8 kernel beside bfloat16 on this machine for %s; computed in bfloat16", ", ".join(refused)
    )
    return refused


def culprits(names: Sequence[str], accepts: Callable[[Sequence[str]], bool]) -> list[str]:
    """Those without which the others are accepted.

    Args:
        names: which together are not accepted.
        accepts: whether some are; it accepts none at all.
    """

    def search(good: list[str], part: Sequence[str]) -> list[str]:
        """Sorts a part, of which not all can join the good ones; appends those that can."""
        if len(part) == 1:
            return list(part)
        found = []
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            if accepts([*good, *half]):
                good.extend(half)
            else:
                found += search(good, half)
        return found

    return search([], names)


def note(model: ov.Model, job: Job, parts: Mapping[str, Sequence[str]]) -> None:
    """Write into a model which of its nodes are in float although INT8 was asked for: refused, or faster so.

    Args:
        model: made of the job's graph.
        job: it names the layers.
        parts: the names of what stands for one node of the graph, by its name.
    """
    from mednext_edge.runtime.openvino_session import GIVEN_BACK, REFUSED

    named = {layer.name: layer for layer in layers(job.model.net)}
    # A node that has the name of its weights, as parities have, is called otherwise there.
    renamed = {name: op.get_friendly_name() for op in model.get_ops() for out in op.outputs() for name in out.names}

    def nodes(name: str) -> set[str]:
        found = find(job.graph.graph, named[name])
        own = {each for node in found for each in (node.name, *node.output, *parts.get(node.name, ()))}
        return own | {renamed[each] for each in own if each in renamed}

    refused = {each for name in job.refused for each in nodes(name)}
    if refused:
        model.set_rt_info("\n".join(sorted(refused)), REFUSED)
    given_back = {each: reason for name, reason in job.given_back.items() for each in sorted(nodes(name))}
    if given_back:
        model.set_rt_info(json.dumps(given_back), GIVEN_BACK)


def _patch(job: Job) -> tuple[int, ...]:
    """The smallest that the network takes: which kernels there are does not depend on it."""
    from mednext_edge.export.export import patch_divisor, takes_any_size

    if not takes_any_size(job.model):
        return job.patch
    return tuple(min(n, 2 * patch_divisor(job.model)) for n in job.patch)


def _compiles(graph: onnx.ModelProto, patch: tuple[int, ...]) -> bool:
    import openvino as ov

    from mednext_edge.export.openvino_model import to_openvino

    model, _ = to_openvino(graph)
    channels = model.inputs[0].partial_shape[1].get_length()
    model.reshape([1, channels, *patch])
    try:
        ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    except RuntimeError:
        return False
    return True
