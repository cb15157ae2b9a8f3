"""`mednext-edge bench --compare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.environment import environment
from mednext_edge.evaluation import duel as module
from mednext_edge.evaluation.duel import Duel, Phase
from mednext_edge.evaluation.ratios import Ratio
from mednext_edge.evaluation.regression import Finding, Rules

from .conftest import Cli


def outcome(status: Any) -> Duel:
    phase = Phase(Finding("passed", Ratio(1.1, 1.08, 1.12), (0.1,) * 8), (33.0,) * 8, (30.0,) * 8)
    return Duel(
        status=status,
        words="words for people",
        patch=(16, 16, 16),
        engines={"this": "a", "reference": "b"},
        rules=Rules(),
        calls=1,
        noise=phase,
        compared=None if status == "noisy" else phase,
        confirmed=None,
        seconds=1.0,
        environment=environment(),
    )


def test_a_bundle_against_itself(edge: Cli, bundle: Path, tmp_path: Path) -> None:
    """Real processes. On a machine as busy as one that runs tests anything but an alarm may come of it."""
    done = edge(
        *("bench", bundle, "--compare", bundle, "--gate", 0.5, "--seconds", 10, "--threads", 1),
        *("--plot", tmp_path / "pairs.png", "--json"),
    )
    found = done.json["comparison"]
    assert (done.code, found["status"]) in {(0, "passed"), (0, "undecided"), (1, "noisy")}
    assert found["noise"]["finding"]["logs"]
    assert found["engines"]["this"] == found["engines"]["reference"]
    assert found["environment"]["packages"]["openvino"]
    assert done.json["proxies"]["this"] == done.json["proxies"]["reference"]
    assert done.json["proxies"]["this"]["engine_bytes"] > 1000
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("passed", 0, "words for people"),
        ("undecided", 0, "warning: words for people"),
        ("slower", 4, "error: words for people"),
        ("noisy", 1, "error: words for people. Give it more --seconds"),
    ],
)
@pytest.mark.parametrize("json", [False, True])
def test_every_outcome_has_its_exit_code(
    edge: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int, words: str, json: bool
) -> None:
    monkeypatch.setattr(module, "duel", lambda *sides, **options: outcome(status))
    done = edge("bench", bundle, "--compare", bundle, *(["--json"] if json else []))
    assert done.code == code
    if json:
        assert done.json["comparison"]["status"] == status
        assert (words in done.err) == (status != "passed")
    else:
        assert done.out == ""
        assert words in done.err
        assert "reference against itself" in done.err and "MB moved" in done.err


def test_checkpoints_are_exported_by_both_sides(
    edge: Cli, checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def compared(this: Any, reference: Any, rules: Rules, **options: Any) -> Duel:
        seen.extend([this, reference, rules])
        assert (Path(this.source) / "manifest.json").is_file()
        return replace(outcome("passed"), patch=this.patch)

    monkeypatch.setattr(module, "duel", compared)
    options = ("--target", "openvino", "--patch", 16, 16, 16, "--gate", 0.1)
    done = edge("bench", checkpoint, "--compare", bundle, *options, "--json")
    assert done.code == 0, done.err
    this, reference, rules = seen
    assert reference.source == str(bundle) and not Path(this.source).exists()
    assert rules.gate == 0.1
    assert set(done.json["proxies"]) == {"this", "reference"}


def test_wrong_questions(edge: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["--compare", "no-such-revision"], "neither a bundle, nor a checkpoint, nor a revision"),
        (["--compare", bundle, "--baseline"], "give one of them"),
        (["--compare", bundle, "--precision", "int8"], "without --target"),
        (["--compare", bundle, "--target", "openvino"], "turn a checkpoint into a bundle"),
        (["--plot", "a.png"], "without --compare"),
        (["--compare", bundle, "--gate", "2"], "gate"),
    ):
        done = edge("bench", bundle, *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert words in done.err
