"""nnU-Net's regions: labels that hold several values, found by a sigmoid each (nnU-Net v2, "Region-based training")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mednext_edge.task import Region

ORDER = "regions_class_order"


def has_regions(labels: Mapping[str, int | Sequence[int]]) -> bool:
    """Whether any label of a dataset.json is a union of values."""
    return any(not isinstance(value, int) and len(value) > 1 for value in labels.values())


def read_regions(
    labels: Mapping[str, int | Sequence[int]], order: Sequence[int] | None
) -> tuple[dict[str, int], tuple[Region, ...]]:
    """Labels and regions of a data set whose labels are regions.

    Args:
        labels: as in dataset.json: the background's name with 0, and each region's with its value or values. Their
            order is that of the network's outputs.
        order: `regions_class_order`, the value that each region leaves in a label map, those later over those before.

    Returns:
        Name to value, background included and sorted by value; and the regions, in the order of the outputs.

    Raises:
        ValueError: no background, no order, or one that does not number the regions from 1 with values of their own.
    """
    values = {name: (of,) if isinstance(of, int) else tuple(sorted(set(of))) for name, of in labels.items()}
    background = [name for name, of in values.items() if of == (0,)]
    regions = tuple(Region(name=name, values=of) for name, of in values.items() if of != (0,))
    if len(background) != 1:
        raise ValueError(f"found the labels {dict(labels)}; expected one of value 0, the background")
    if order is None:
        raise ValueError(f"its labels are regions, and it has no {ORDER}; expected a value for each of {len(regions)}")
    if sorted(order) != list(range(1, len(regions) + 1)):
        raise ValueError(f"found the {ORDER} {list(order)}; expected the values 1 to {len(regions)}, one a region")
    for region, value in zip(regions, order, strict=True):
        if value not in region.values or not set(region.values) <= set(order):
            raise ValueError(
                f"the region `{region.name}` holds the values {list(region.values)} and is written as {value}; "
                f"expected values of {sorted(order)}, {value} among them"
            )
    painted = {region.name: value for region, value in zip(regions, order, strict=True)}
    return {background[0]: 0, **dict(sorted(painted.items(), key=lambda item: item[1]))}, regions


def write_regions(labels: Mapping[str, int], regions: Sequence[Region]) -> tuple[dict[str, int | list[int]], list[int]]:
    """The inverse of `read_regions`: `labels` and `regions_class_order` of dataset.json.

    Args:
        labels: name to value.
        regions: in the order of the outputs, which nnU-Net paints in.
    """
    (background,) = (name for name, value in labels.items() if value == 0)
    named = {region.name: region.values[0] if len(region.values) == 1 else list(region.values) for region in regions}
    return {background: 0, **named}, [labels[region.name] for region in regions]
