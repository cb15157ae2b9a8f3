"""Calibrated ranges kept from one run to the next: the same graph on the same patches gives the same ones.

Exporting a checkpoint again, for another target of the same graph or with accuracy control, then passes no patch twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import secrets
from collections.abc import Iterable, Mapping

import onnx
import torch
from pydantic import ValidationError, model_validator

from mednext_edge.cache import cache_folder
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.ranges import ActivationRange
from mednext_edge.task import Frozen

_LOG = logging.getLogger(__name__)
VERSION = 1
"""Of the way that ranges are taken; another one makes all that is kept useless."""


class _Kept(Frozen):
    threshold: float
    peak: float
    mean: tuple[float, ...] | None

    @model_validator(mode="after")
    def _usable(self) -> _Kept:
        numbers = (self.threshold, self.peak, *(self.mean or ()))
        if not (all(map(math.isfinite, numbers)) and self.threshold > 0):
            raise ValueError("not the range of an activation")
        return self


class _File(Frozen):
    ranges: dict[str, _Kept]


class RangeCache:
    """The ranges of some layers of one graph, by one calibration set.

    A cache only saves time: what cannot be read or written is told to the log, and ranges are taken anew.

    Args:
        graph: that the patches are passed through.
        layers: names of those whose inputs are watched.
        calibration: patches.
    """

    def __init__(self, graph: onnx.ModelProto, layers: Iterable[str], calibration: CalibrationSet) -> None:
        self._layers = tuple(layers)
        count = len(calibration.patches)
        parts = (VERSION, calibration.sha256, count, calibration.estimator, ",".join(self._layers))
        key = hashlib.sha256(repr(parts).encode() + graph.SerializeToString(deterministic=True)).hexdigest()
        self.file = cache_folder() / "ranges" / f"{key}.json"

    def load(self) -> dict[str, ActivationRange] | None:
        """The ranges by the layers' names; None where there are none that can be used."""
        try:
            kept = _File.model_validate_json(self.file.read_bytes()).ranges
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            _LOG.warning("the ranges in %s cannot be used (%s); they are taken anew", self.file, error)
            return None
        if tuple(kept) != self._layers:
            _LOG.warning("the ranges in %s are of other layers; they are taken anew", self.file)
            return None
        return {
            name: ActivationRange(
                seen.threshold, seen.peak, None if seen.mean is None else torch.tensor(seen.mean, dtype=torch.float32)
            )
            for name, seen in kept.items()
        }

    def save(self, ranges: Mapping[str, ActivationRange]) -> None:
        """Keep the ranges, whole or not at all."""
        content = _File(
            ranges={
                name: _Kept(
                    threshold=seen.threshold,
                    peak=seen.peak,
                    mean=None if seen.mean is None else tuple(seen.mean.tolist()),
                )
                for name, seen in ranges.items()
            }
        )
        temporary = self.file.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(content.model_dump_json(), encoding="utf-8")
            temporary.replace(self.file)
        except OSError as error:
            _LOG.warning("the ranges cannot be kept in %s (%s); the next run takes them anew", self.file, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
