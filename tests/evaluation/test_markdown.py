from __future__ import annotations

from pathlib import Path

from mednext_edge.evaluation.markdown import NOTICE, to_markdown
from mednext_edge.evaluation.report import Report

from .reports import ENVIRONMENT, make_report

GOLDEN = Path(__file__).with_name("report.md")


def test_golden() -> None:
    assert to_markdown(make_report()) == GOLDEN.read_text(encoding="utf-8")


def test_every_row_has_as_many_cells_as_its_table() -> None:
    """Class names may hold the character that parts the cells."""
    width = 0
    for line in to_markdown(make_report()).splitlines():
        cells = line.replace("\\|", "").count("|")
        assert not line.startswith("|") or width in (0, cells), line
        width = cells if line.startswith("|") else 0


def test_one_case_says_why_there_is_no_interval() -> None:
    text = to_markdown(make_report(interval=None, labelled=1))
    assert "No interval can be given" in text
    assert "there is only one case" in text
    assert "No interval" not in to_markdown(make_report())


def test_collapse_is_said_aloud() -> None:
    assert "**Collapsed" in to_markdown(make_report(collapsed=True))
    assert "Collapsed" not in to_markdown(make_report())


def test_sections_that_were_not_measured_are_left_out() -> None:
    text = to_markdown(Report(environment=ENVIRONMENT))
    assert NOTICE in text
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Report", "## Environment"]
