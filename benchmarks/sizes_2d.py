"""Parameters and multiply-adds of the 2-D networks, as a Markdown table: `python benchmarks/sizes_2d.py [SIDE]`."""

from __future__ import annotations

import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from mednext_edge.models.families import FAMILIES, Request, build, for_inference, plan_spec


def main(side: int = 256) -> None:
    """One line for each size that can be trained in 2-D."""
    print(f"| network | parameters | multiply-adds at {side} x {side} |\n| --- | --- | --- |")
    for family, kind in (("cmunext", "segmentation"), ("mednext2d", "segmentation"), ("mednext2d", "classification")):
        for variant in FAMILIES[family].variants:
            request = Request(kind=kind, variant=variant, in_channels=3, labels=2, spatial_dims=2)  # type: ignore[arg-type]
            spec = plan_spec(family, request)
            net = for_inference(build(spec))
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                net(torch.zeros(1, 3, side, side))
            billions = counter.get_total_flops() / 2e9
            print(f"| {family} {variant}, {kind} | {spec.parameters:,} | {billions:.2f} G |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
