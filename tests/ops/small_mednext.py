"""The blocks of a small MedNeXt."""

from __future__ import annotations

from collections.abc import Iterator

from mednext_edge.ops.net_parts import Form


def small_mednext(width: int, levels: int) -> Iterator[tuple[Form, tuple[int, int, int]]]:
    """Form and channels (in, hidden, out) of every block, one a stage, in the order of computation."""

    def block(form: Form, c_in: int, out: int) -> tuple[Form, tuple[int, int, int]]:
        return form, (c_in, 2 * c_in + 5, out)

    for level in range(levels):
        c = width << level
        yield block(Form.SAME, c, c)
        yield block(Form.DOWN, c, 2 * c)
    yield block(Form.SAME, width << levels, width << levels)
    for level in reversed(range(levels)):
        c = width << level
        yield block(Form.UP, 2 * c, c)
        yield block(Form.SAME, c, c)
