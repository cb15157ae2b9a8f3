"""`--patch` with two or three numbers."""

from __future__ import annotations

import pytest

from mednext_edge.cli.sizes import join_sizes, parse_size
from mednext_edge.errors import UsageError


@pytest.mark.parametrize(
    ("args", "joined"),
    [
        ("x --patch 96 128 160 --json", "x --patch 96,128,160 --json"),
        ("--patch 256 256 model.pth", "--patch 256,256 model.pth"),
        ("--patch 96,128,160 -o 5", "--patch 96,128,160 -o 5"),
        ("--rounds 10 20", "--rounds 10 20"),
        ("--patch", "--patch"),
        ("--patch a 1", "--patch a 1"),
        ("1 2 3", "1 2 3"),
    ],
)
def test_numbers_after_the_flag_become_one_value(args: str, joined: str) -> None:
    assert join_sizes(args.split()) == joined.split()


@pytest.mark.parametrize(
    ("text", "size"), [("96,128,160", (96, 128, 160)), ("64x64", (64, 64)), ("64X64X32", (64, 64, 32)), (None, None)]
)
def test_sizes(text: str | None, size: tuple[int, ...] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["128", "1,2,3,4", "0,16,16", "-16,16,16", "a,b,c", "", "16,,16", "16.5,16,16"])
def test_other_values_are_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="expected two or three whole numbers"):
        parse_size(text)
