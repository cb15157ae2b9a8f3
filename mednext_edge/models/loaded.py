"""A network with its weights and its task: what every checkpoint reader returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, FiniteFloat
from torch import nn

from mednext_edge.models.module import ModuleSpec, describe_module, weights_digest
from mednext_edge.task import Frozen, Task


class Source(Frozen):
    """Where the weights came from: the format's name, the file's name (no path), the file's digest."""

    format: str
    file: str
    sha256: str


class Quantization(Frozen):
    """What a network learnt that was trained in INT8.

    Attributes:
        weight_levels: largest value of an INT8 weight.
        thresholds: |x| that becomes 127 at the input of every layer in INT8, by the layer's name.
    """

    weight_levels: int = Field(ge=1, le=127)
    thresholds: dict[str, Annotated[FiniteFloat, Field(gt=0)]]


@dataclass(frozen=True)
class LoadedModel:
    """Weights in a network, in eval mode, with the task they were trained for.

    Attributes:
        net: [N, C, *spatial] -> logits [N, classes, *spatial]; returns a list only while training.
        task: network, preprocessing, sliding window, labels.
        source: origin of the weights.
        notes: what the file did not say and how it was inferred, for `inspect`.
        rewrites: names of the exact rewrites applied, in order; empty for the training form.
        quantization: for INT8, where the network was trained in it; None otherwise.
    """

    net: nn.Module
    task: Task
    source: Source
    notes: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    quantization: Quantization | None = None

    @classmethod
    def from_module(cls, net: nn.Module, spec: ModuleSpec) -> LoadedModel:
        """Any network, with a declaration of what it takes and answers.

            model = LoadedModel.from_module(net, ModuleSpec(name="liver", in_channels=1, classes=3, patch=(96, 96, 96)))
            mx.export(model, target="openvino", precision="int8", calibration=data, out="liver.openvino-int8")

        It is put into eval mode and called once with zeros, to see that it keeps the declaration.

        Raises:
            UsageError: it does not.
        """
        net.eval()
        task = describe_module(net, spec)
        return cls(net, task, Source(format="module", file=type(net).__name__, sha256=weights_digest(net)))
