"""Engines behind one call, and the sliding window over them."""

from __future__ import annotations

from mednext_edge.runtime.engines import open
from mednext_edge.runtime.predict import predict

__all__ = ["open", "predict"]
