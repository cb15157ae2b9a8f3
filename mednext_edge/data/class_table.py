"""The classes of images as a CSV table: case, class, and the probability of every class."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from mednext_edge.errors import DataError

TABLE = "predictions.csv"


def cases_in_table(folder: Path, part: int | None = None) -> set[str]:
    """The cases that a table holds already; none where there is no table."""
    file = _file(folder, part)
    if not file.is_file():
        return set()
    with file.open(newline="", encoding="utf-8") as opened:
        return {row[0] for row in [*csv.reader(opened)][1:] if row}


class ClassTable:
    """A table that is whole after every row.

    Args:
        folder: of the table.
        labels: names of the classes, in the order of their values.
        part: number of this process where several write; each has a table of its own.
        resume: go on with the table that is there.

    Raises:
        DataError: the table to go on with is of other classes, or no such table.
    """

    def __init__(self, folder: Path, labels: Sequence[str], part: int | None = None, *, resume: bool = False) -> None:
        self.file = _file(folder, part)
        self._labels = tuple(labels)
        self._head = ["case", "class", *(f"p({name})" for name in labels)]
        self._rows: dict[str, list[str]] = {}
        if resume and self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as file:
                head, *rows = [*csv.reader(file)] or [[]]
            if head != self._head or any(len(row) != len(head) for row in rows):
                raise DataError(
                    f"{self.file} is no table of the classes {', '.join(labels)}; move it away, or start anew"
                )
            self._rows = {row[0]: row for row in rows}

    def add(self, case: str, answer: str, probabilities: Mapping[str, float]) -> None:
        """Write the table with one more row; to a temporary name first, then renamed.

        Raises:
            DataError: it cannot be written.
        """
        self._rows[case] = [case, answer, *(f"{probabilities[name]:.6f}" for name in self._labels)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self._head, *self._rows.values()])
        temporary = self.file.with_name(f".{uuid.uuid4().hex}.csv")
        try:
            temporary.write_text(text.getvalue(), encoding="utf-8")
            temporary.replace(self.file)
        except OSError as error:
            raise DataError(f"{self.file} cannot be written: {error}; nothing was left behind") from error
        finally:
            temporary.unlink(missing_ok=True)


def _file(folder: Path, part: int | None) -> Path:
    return folder / (TABLE if part is None else f"predictions.{part}.csv")
