"""The two programs: help, version, wrong usage, errors and exit codes."""

from __future__ import annotations

import errno
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import mednext_edge
from mednext_edge import bundle, errors
from mednext_edge.cli.main import COMMANDS, GROUPS, edge_app, run
from mednext_edge.errors import MednextEdgeError

from .conftest import Cli

ERRORS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, MednextEdgeError)]


def test_help_names_every_command_and_exit_code(edge: Cli) -> None:
    done = edge("--help")
    assert done.code == 0
    assert done.err == ""
    for name, command in COMMANDS:
        assert f" {name} " in done.out
        assert (command.__doc__ or "").split()[0] in done.out
    words = " ".join(done.out.split())
    assert "3 accuracy gate · 4 performance gate · 5 target or device not available · 6 integrity" in words


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_help_of_each_command_has_an_example_that_names_it(edge: Cli, name: str) -> None:
    done = edge(name, "-h")
    assert done.code == 0
    words = " ".join(done.out.split())
    assert "Example" in words
    assert f"mednext-edge {name}" in words or (name == "export" and "mednext-export --target" in words)
    assert "--json" in words


def test_help_of_groups_and_their_commands(edge: Cli) -> None:
    assert all(f" {group} " in edge("--help").out for group, _, _ in GROUPS)
    for group, _, commands in GROUPS:
        assert all(f" {name} " in edge(group, "--help").out for name, _ in commands)
        for name, _ in commands:
            words = " ".join(edge(group, name, "-h").out.split())
            assert f"mednext-edge {group} {name}" in words and "--json" in words


def test_export_program_is_the_export_command(edge: Cli, mednext_export: Cli) -> None:
    def body(text: str) -> str:
        return text.partition("Turn a checkpoint")[2]

    ours, theirs = mednext_export("--help"), edge("export", "--help")
    assert ours.code == theirs.code == 0
    assert body(ours.out) == body(theirs.out) != ""
    assert "Usage: mednext-export" in ours.out


def test_version(edge: Cli) -> None:
    done = edge("--version")
    assert (done.code, done.out) == (0, f"mednext-edge {mednext_edge.__version__}\n")


def test_no_arguments_show_the_help(edge: Cli) -> None:
    done = edge()
    assert done.code == 2
    assert "Commands" in done.out + done.err


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["valdate"], "Did you mean 'validate'"),
        (["verify"], "Missing argument 'BUNDLE'"),
        (["verify", "x", "--jsn"], "--json"),
        (["export", "--taget", "onnx"], "--target"),
        (["export", "--max-drop", "much"], "should be a valid number"),
        (["export", "--max-drop", "2"], "less than or equal to 1"),
    ],
)
def test_wrong_usage_names_the_closest(edge: Cli, args: list[str], hint: str) -> None:
    done = edge(*args)
    assert done.code == 2
    assert done.out == ""
    assert hint in " ".join(done.err.split())


@pytest.mark.parametrize("kind", ERRORS)
def test_deliberate_errors_become_one_line_and_an_exit_code(
    edge: Cli, monkeypatch: pytest.MonkeyPatch, kind: type[MednextEdgeError]
) -> None:
    message = "found [red]x[/red] in /a/very/long/path/" + "y" * 150 + "; expected z"

    def fail(_: Path) -> None:
        raise kind(message)

    monkeypatch.setattr(bundle, "verify", fail)
    done = edge("verify", "x")
    assert (done.code, done.out, done.err) == (kind.exit_code, "", f"error: {message}\n")


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_debug_shows_the_traceback(edge: Cli, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "variable":
        monkeypatch.setenv("MEDNEXT_DEBUG", "1")
    with pytest.raises(errors.UsageError, match="expected a bundle"):
        edge(*(["--debug"] if how == "flag" else []), "verify", "/nowhere")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x.bin"), "No space left on device: out/x.bin"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "Permission denied: /root/x"),
        (OSError("broken"), "broken"),
        (MemoryError("2 GiB"), "not enough memory (2 GiB); use a smaller --patch, or a machine with more"),
    ],
)
def test_errors_of_the_system_need_no_traceback(
    edge: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr(bundle, "verify", fail)
    done = edge("verify", "x")
    assert (done.code, done.err) == (1, f"error: {line}\n")


def test_defects_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bundle, "verify", fail)
    with pytest.raises(ZeroDivisionError):
        run(edge_app(), "mednext-edge", ["verify", "x"])


def test_interrupt_is_130(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "verify", interrupt)
    assert edge("verify", "x").code == 130


@pytest.mark.parametrize("program", ["mednext-edge", "mednext-export"])
def test_installed_programs_answer(program: str) -> None:
    command = [str(Path(sys.executable).parent / program), "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"Usage: {program}" in done.stdout


def test_words_without_colour_on_a_pipe() -> None:
    command = [str(Path(sys.executable).parent / "mednext-edge"), "verify", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "\x1b" not in done.stderr
    assert done.stdout == ""
