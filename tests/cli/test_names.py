"""Options that take several names at once."""

from __future__ import annotations

import pytest

from mednext_edge.cli.names import parse_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, ()),
        ("", ()),
        (" , ,", ()),
        ("8.6", ("8.6",)),
        ("8.6,8.9,12.0", ("8.6", "8.9", "12.0")),
        (" pointwise , depthwise,", ("pointwise", "depthwise")),
    ],
)
def test_names_between_commas(text: str | None, names: tuple[str, ...]) -> None:
    assert parse_names(text) == names
