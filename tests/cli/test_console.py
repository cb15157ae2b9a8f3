"""Words on stderr, one document on stdout, names with their closest match."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from mednext_edge.cli import console
from mednext_edge.cli.console import emit_json, one_of, show_facts, show_table, track
from mednext_edge.errors import UnknownNameError
from mednext_edge.task import Inference


@dataclass
class Record:
    path: Path
    value: float


def test_json_is_strict_and_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with track() as report:
        print("a library talks")
        report("stage", 1, 2)
    emit_json({"record": Record(Path("a/b"), math.nan), "model": Inference(patch=(16, 16)), "none": None})
    out, err = capsys.readouterr()
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["record"] == {"path": "a/b", "value": None}
    assert document["model"]["patch"] == [16, 16]
    assert err == "a library talks\nstage\n"


def test_progress_off_a_terminal_is_one_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with track() as report:
        for step in range(5):
            report(f"train · loss {1 / (step + 1):.2f}", step, 5)
        report("convert", 0, 0)
    assert capsys.readouterr().err == "train\nconvert\n"


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=True, width=100, color_system=None))
    with track() as report:
        report("convert [x]", 0, 0)
        for step in range(1, 4):
            report(f"train · loss {1 / step:.2f}", step, 3)
    *_, first, second = (line.strip() for line in screen.getvalue().splitlines() if "━" in line)
    assert "convert [x] " in first
    assert " 1/1 " in first  # its length was not known; it was over when training began
    assert "train · loss 0.33" in second
    assert " 3/3 " in second


def test_no_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with track(enabled=False) as report:
        report("train", 1, 5)
    assert capsys.readouterr() == ("", "")


def test_tables_print_markup_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_facts("Facts", [("labels", "[bold]0[/bold]")])
    show_table("Table", ["a", "b"], [(1, "[x]"), (None, Path("c"))])
    out, err = capsys.readouterr()
    assert out == ""
    assert "[bold]0[/bold]" in err
    assert "[x]" in err


def test_one_of_takes_any_case_and_names_the_closest() -> None:
    check = one_of("precision", ("fp32", "INT8"))
    assert check("FP32") == "fp32"
    assert check("int8") == "INT8"
    assert check(None) is None
    with pytest.raises(UnknownNameError, match=r"unknown precision `in8`\. Did you mean `INT8`"):
        check("in8")
