"""`--patch D H W` for 3-D and `--patch H W` for 2-D networks: an option with as many numbers as follow it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from mednext_edge.errors import UsageError

SIZE_FLAGS = ("--patch", "--min-patch", "--max-patch", "--spacing")
_NUMBER = re.compile(r"\d+(\.\d+)?")


class SizeCommand(TyperCommand):
    """A command whose size flags take every number that follows: `--patch 96 128 128` or `96,128,128`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_sizes(args))


def join_sizes(args: Sequence[str]) -> list[str]:
    """The arguments with the numbers after a size flag joined by commas, which the parser sees as one value."""
    joined: list[str] = []
    for arg in args:
        follows = len(joined) > 1 and joined[-2] in SIZE_FLAGS
        if _NUMBER.fullmatch(arg) and follows and all(map(_NUMBER.fullmatch, joined[-1].split(","))):
            joined[-1] += f",{arg}"
        else:
            joined.append(arg)
    return joined


def parse_size(text: str | None, flag: str = "--patch") -> tuple[int, ...] | None:
    """`96,128,128`, `96x128x128` or `96 128 128` -> (96, 128, 128).

    Raises:
        UsageError: not two or three whole numbers above 0.
    """
    if text is None:
        return None
    parts = re.split(r"\s*[,x]\s*|\s+", text.strip().lower())
    if len(parts) not in (2, 3) or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"found `{flag} {text}`; expected two or three whole numbers, such as `{flag} 128 128 128`")
    return tuple(int(part) for part in parts)


def parse_range(patch: str | None, low: str | None, high: str | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The range of `--min-patch` and `--max-patch`, None when neither is given; one alone ends at `--patch`.

    Raises:
        UsageError: not sizes; or one alone, and no `--patch`.
    """
    if low is None and high is None:
        return None
    smallest, largest = parse_size(low, "--min-patch"), parse_size(high, "--max-patch")
    usual = parse_size(patch)
    smallest, largest = smallest or usual, largest or usual
    if smallest is None or largest is None:
        raise UsageError("found one end of the range of patches; give --min-patch and --max-patch, or --patch with one")
    return smallest, largest
