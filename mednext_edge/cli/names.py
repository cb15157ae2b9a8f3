"""Options that take several names at once: `8.6,8.9,12.0`."""

from __future__ import annotations


def parse_names(text: str | None) -> tuple[str, ...]:
    """The names between the commas, without blanks; none for None."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
