"""One table of classes: whole after every row, gone on with, and never mixed with another."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mednext_edge.data.class_table import ClassTable, cases_in_table
from mednext_edge.errors import DataError

LABELS = ("a", "b")


def rows(file: Path) -> list[list[str]]:
    with file.open(newline="") as opened:
        return [*csv.reader(opened)]


def test_table_is_whole_after_every_case_and_goes_on(tmp_path: Path) -> None:
    ClassTable(tmp_path, LABELS).add("one, with a comma", "a", {"a": 0.75, "b": 0.25})
    again = ClassTable(tmp_path, LABELS, resume=True)
    assert cases_in_table(tmp_path) == {"one, with a comma"}
    again.add("two", "b", {"a": 0.1, "b": 0.9})
    assert rows(tmp_path / "predictions.csv") == [
        ["case", "class", "p(a)", "p(b)"],
        ["one, with a comma", "a", "0.750000", "0.250000"],
        ["two", "b", "0.100000", "0.900000"],
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_parts_have_tables_of_their_own(tmp_path: Path) -> None:
    for part in range(2):
        ClassTable(tmp_path, LABELS, part).add(f"case {part}", "a", {"a": 1.0, "b": 0.0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.0.csv", "predictions.1.csv"]


@pytest.mark.parametrize("content", ["", "case,class,p(other)\nx,other,1\n", "case,class,p(a),p(b)\nbroken\n"])
def test_another_table_is_not_gone_on_with(tmp_path: Path, content: str) -> None:
    (tmp_path / "predictions.csv").write_text(content)
    with pytest.raises(DataError, match="is no table of the classes"):
        ClassTable(tmp_path, LABELS, resume=True)
    assert (tmp_path / "predictions.csv").read_text() == content
