"""`--patch` with two or three numbers, and the range around it."""

from __future__ import annotations

import pytest

from mednext_edge.cli.sizes import join_sizes, parse_range, parse_size
from mednext_edge.errors import UsageError


@pytest.mark.parametrize(
    ("args", "joined"),
    [
        ("x --patch 96 128 160 --json", "x --patch 96,128,160 --json"),
        ("--patch 256 256 model.pth", "--patch 256,256 model.pth"),
        ("--patch 96,128,160 -o 5", "--patch 96,128,160 -o 5"),
        ("--rounds 10 20", "--rounds 10 20"),
        ("--min-patch 8 8 8 --max-patch 16 16 16 x", "--min-patch 8,8,8 --max-patch 16,16,16 x"),
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


@pytest.mark.parametrize("flag", ["--min-patch", "--max-patch"])
def test_wrong_values_name_their_flag(flag: str) -> None:
    with pytest.raises(UsageError, match=f"found `{flag} 128`.*such as `{flag} 128 128 128`"):
        parse_size("128", flag)


@pytest.mark.parametrize(
    ("patch", "low", "high", "expected"),
    [
        (None, None, None, None),
        ("64,64,64", None, None, None),
        (None, "32,32,32", "96,96,96", ((32, 32, 32), (96, 96, 96))),
        ("64,64,64", "32,32,32", "96,96,96", ((32, 32, 32), (96, 96, 96))),
        ("64,64,64", "32,32,32", None, ((32, 32, 32), (64, 64, 64))),
        ("64,64,64", None, "96,96,96", ((64, 64, 64), (96, 96, 96))),
    ],
)
def test_ranges(
    patch: str | None, low: str | None, high: str | None, expected: tuple[tuple[int, ...], tuple[int, ...]] | None
) -> None:
    assert parse_range(patch, low, high) == expected


@pytest.mark.parametrize(("low", "high"), [("32,32,32", None), (None, "32,32,32")])
def test_one_end_of_a_range_needs_the_patch(low: str | None, high: str | None) -> None:
    with pytest.raises(UsageError, match="found one end of the range of patches"):
        parse_range(None, low, high)


def test_an_end_of_a_range_that_is_no_size() -> None:
    with pytest.raises(UsageError, match="found `--max-patch 96`"):
        parse_range("64,64,64", "32,32,32", "96")
