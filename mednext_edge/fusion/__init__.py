"""Exact rewrites from the training form to the deploy form: the same function of the input, cheaper."""

from __future__ import annotations

from mednext_edge.fusion.fuse import fuse

__all__ = ["fuse"]
