"""MedNeXtConfig: what it refuses and what it derives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mednext_edge.errors import UnknownNameError, UsageError
from mednext_edge.models.config import VARIANTS, MedNeXtConfig, mednext_config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks": (1,) * 8}, "expected 9 of each"),
        ({"blocks": (1,), "expansion": (2,), "down_expansion": (), "down_grn": ()}, "expected"),
        ({"expansion": (2,) * 5}, "expected 9 of each"),
        ({"down_expansion": (2,) * 3}, "expected 4 down-block ratios"),
        ({"down_grn": (True,)}, "expected 4"),
        ({"spatial_dims": 4}, "expected 2 or 3"),
        ({"encoder_kernel": 4}, "expected an odd number"),
        ({"decoder_kernel": 0}, "expected an odd number"),
        ({"channels": 0}, "at least 1"),
        ({"classes": 0}, "at least 1"),
        ({"in_channels": -1}, "at least 1"),
        ({"blocks": (0,) + (1,) * 8}, "at least 1"),
        ({"norm": "batch"}, "unknown norm `batch`"),
    ],
)
def test_impossible_configurations_are_usage_errors(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MedNeXtConfig(**change)


def test_unknown_variant_and_layout_name_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown MedNeXt variant `XL`.*Did you mean `L`"):
        mednext_config("XL")
    layout: Any = "monia"
    with pytest.raises(UnknownNameError, match="Did you mean `monai`"):
        mednext_config("S", layout=layout)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["mic", "monai"])
def test_variant_and_layout_are_recognised(variant: str, layout: Any) -> None:
    config = mednext_config(variant.lower(), layout=layout)
    assert config.variant == variant
    assert config.layout == ("both" if variant == "S" else layout)
    assert (config.levels, config.divisor) == (4, 16)


def test_other_numbers_are_custom() -> None:
    config = MedNeXtConfig(channels=8)
    assert config.variant == "custom"
    assert MedNeXtConfig(down_expansion=(5, 5, 5, 5)).layout == "custom"


def test_survives_json_and_stays_hashable() -> None:
    config = mednext_config("L", kernel=5, grn=True, deep_supervision=True)
    again = MedNeXtConfig(**json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_deep_supervision_can_be_dropped() -> None:
    config = mednext_config("S", deep_supervision=True)
    assert not config.without_deep_supervision().deep_supervision
    assert config.deep_supervision
