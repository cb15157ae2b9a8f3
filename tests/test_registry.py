"""The table type, and the closest match it answers unknown names with."""

from __future__ import annotations

import pytest

from mednext_edge.errors import UnknownNameError
from mednext_edge.registry import Registry, unknown_name


def test_entries_keep_their_order() -> None:
    registry: Registry[int] = Registry("number")
    assert registry.add("two", 2) == 2
    registry.add("one", 1)
    assert list(registry.items()) == [("two", 2), ("one", 1)]
    assert len(registry) == 2
    assert "one" in registry
    assert "three" not in registry


def test_a_name_is_registered_once() -> None:
    registry: Registry[int] = Registry("number")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="number `one` is registered twice"):
        registry.add("one", 2)
    assert registry["one"] == 1


def test_unknown_name_says_the_closest_and_all() -> None:
    registry: Registry[int] = Registry("target")
    for name in ("openvino", "onnx", "trt"):
        registry.add(name, 0)
    with pytest.raises(UnknownNameError) as caught:
        registry["opnvino"]
    assert str(caught.value) == "unknown target `opnvino`. Did you mean `openvino`? Known: onnx, openvino, trt."


@pytest.mark.parametrize(
    ("name", "hint"), [("OPENVINO", "Did you mean `OpenVINO`"), ("int-8", "Did you mean `int8`"), ("zzzz", None)]
)
def test_closest_match_ignores_case_and_may_be_absent(name: str, hint: str | None) -> None:
    message = str(unknown_name("name", name, ["OpenVINO", "int8", "fp32"]))
    assert (hint in message) if hint else ("Did you mean" not in message)
