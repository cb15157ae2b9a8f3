"""What the commands share: words and bars on stderr, one JSON document on stdout, checked names."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mednext_edge.registry import unknown_name

# A pipe or a log file has no width of its own; rich would fold everything at 80 columns.
stderr = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)

Report = Callable[[str, int, int], None]
"""Told of progress: (what is being done, steps done, steps in all; 0 in all means not known).

One bar belongs to what stands before ` · `; the rest of the words may change from step to step.
"""

JSON_OPTION = typer.Option("--json", help="Put one JSON document on stdout, and nothing else there.")
DEVICE_OPTION = typer.Option(
    "--device",
    metavar="DEVICE",
    help="Device in the engine's terms, such as CPU, GPU or cuda:1. [default: CPU; CUDA for TensorRT]",
)
THREADS_OPTION = typer.Option(
    "--threads", min=1, help="CPU threads. [default: what --tune found on this machine; else the engine chooses]"
)
METRIC = typer.Option(
    "--metric",
    metavar="METRIC",
    help="What must not drop: dice, iou or nsd; of a classifier accuracy or auc. [default: dice, accuracy]",
)
MAX_CLASS_DROP = typer.Option(
    "--max-class-drop", min=0.0, max=1.0, help="Largest drop of any class's mean too. [default: no limit]"
)
MAX_CASE_DROP = typer.Option(
    "--max-case-drop", min=0.0, max=1.0, help="Largest drop of any class in any case too. [default: no limit]"
)
NO_PROGRESS_OPTION = typer.Option("--no-progress", help="Show no progress bars.")


def say(message: str, style: str = "") -> None:
    """One line of words for a person; never folded, so that paths can be copied."""
    stderr.print(Text(message, style=style), soft_wrap=True)


def show_error(message: str) -> None:
    stderr.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def show_warning(message: str) -> None:
    stderr.print(Text.assemble(("warning: ", "yellow"), message), soft_wrap=True)


def show_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """A table of two columns: what, and its value."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(str(value)))
    stderr.print(table)


def show_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="cyan")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    stderr.print(table)


def emit_json(value: Any) -> None:
    """One JSON document on stdout, of a pydantic model, a dataclass or plain data; NaN becomes null."""
    from pydantic_core import to_json

    sys.stdout.write(to_json(value, indent=2, by_alias=True, inf_nan_mode="null").decode() + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def track(enabled: bool = True) -> Iterator[Report]:
    """A progress bar a stage, with the time left; what libraries print goes to stderr meanwhile.

    On anything but a terminal each stage is one line, written when it starts.
    """
    if not (enabled and stderr.is_terminal):
        with contextlib.redirect_stdout(sys.stderr):
            yield _lines() if enabled else lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr))
        # After the bar has taken hold of stderr, so that other output scrolls above it.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            stage = what.partition(" · ")[0]
            if stage not in tasks:
                for task in progress.tasks:
                    if task.total is None:  # a stage of unknown length ends where the next one starts
                        progress.update(task.id, total=1, completed=1)
                tasks[stage] = progress.add_task(stage, total=total or None)
            progress.update(tasks[stage], description=escape(what), completed=done, total=total or None)

        yield report


def _lines() -> Report:
    seen: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        stage = what.partition(" · ")[0]
        if stage not in seen:
            seen.add(stage)
            say(stage)

    return report


def one_of(kind: str, known: Iterable[str]) -> Callable[[str | None], str | None]:
    """An option callback that accepts the known names in any case and answers others with the closest one.

    Raises:
        UnknownNameError: from the callback.
    """
    names = {name.lower(): name for name in known}

    def check(value: str | None) -> str | None:
        if value is None:
            return None
        if value.lower() not in names:
            raise unknown_name(kind, value, names.values())
        return names[value.lower()]

    return check
