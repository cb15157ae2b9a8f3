"""The two programs `mednext-edge` and `mednext-export`, and what becomes of an error in them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from mednext_edge.cli import (
    bench,
    build,
    convert,
    doctor,
    export,
    inspect,
    package,
    predict,
    quantize,
    serve,
    train,
    validate,
    verify,
)
from mednext_edge.cli.console import show_error
from mednext_edge.cli.sizes import SizeCommand
from mednext_edge.errors import MednextEdgeError

DEBUG = "MEDNEXT_DEBUG"

EXIT_CODES = (
    "Exit codes: 0 done · 1 failed · 2 wrong usage · 3 accuracy gate · 4 performance gate · "
    "5 target or device not available · 6 integrity."
)

COMMANDS = (
    ("doctor", doctor.doctor),
    ("inspect", inspect.inspect),
    ("train", train.train),
    ("convert", convert.convert),
    ("quantize", quantize.quantize),
    ("export", export.export),
    ("build", build.build),
    ("validate", validate.validate),
    ("predict", predict.predict),
    ("bench", bench.bench),
    ("package", package.package),
    ("verify", verify.verify),
)

GROUPS: tuple[tuple[str, str, tuple[tuple[str, Callable[..., None]], ...]], ...] = (
    (
        "serve",
        "Serve a bundle to scanners and archives, until Ctrl-C or SIGTERM.",
        (("dicom", serve.dicom), ("mrd", serve.mrd)),
    ),
)
"""Commands that have commands of their own: name, help, and those."""


class _State:
    """What `run` must know after the parser's own context is gone."""

    debug = False


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mednext-edge {version('mednext-edge')}")
        raise typer.Exit


def _group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show the traceback of an error; {DEBUG}=1 does the same.")
    ] = False,
) -> None:
    _State.debug = debug


def _no_options() -> None:
    """A group of one command stays a group."""


def _typer(help_text: str | None = None) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def edge_app() -> typer.Typer:
    """The program with all sub-commands."""
    app = _typer(
        "From a MedNeXt checkpoint to a verified INT8 engine that runs where the scanner is.\n\n"
        "Start with `mednext-edge doctor`, then `mednext-export --target openvino --int8`."
    )
    app.callback()(_group)
    for name, command in COMMANDS:
        app.command(name, cls=SizeCommand, epilog=EXIT_CODES)(command)
    for group, words, commands in GROUPS:
        sub = _typer(words)
        for name, member in commands:
            sub.command(name, epilog=EXIT_CODES)(member)
        sub.callback()(_no_options)
        app.add_typer(sub, name=group)
    return app


def export_app() -> typer.Typer:
    """`mednext-edge export` as a program of its own."""
    app = _typer()
    app.command(cls=SizeCommand, epilog=EXIT_CODES)(export.export)
    return app


def run(app: typer.Typer, name: str, args: Sequence[str] | None = None) -> int:
    """Run a program and return its exit code; deliberate errors and those of the system become one line on stderr."""
    command: Any = typer.main.get_command(app)
    _State.debug = False
    if not sys.warnoptions:
        # Libraries warn their own developers of what they will change.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    try:
        command.main(args=args, prog_name=name)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (MednextEdgeError, OSError, MemoryError) as error:
        if _State.debug or os.environ.get(DEBUG):
            raise
        if isinstance(error, MednextEdgeError):
            show_error(str(error))
            return error.exit_code
        if isinstance(error, MemoryError):
            show_error(f"not enough memory ({error}); use a smaller --patch, or a machine with more")
            return 1
        # A full disk, a missing right, a vanished share: the system's own words name the file.
        show_error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        return 1
    return 0


def main() -> None:
    sys.exit(run(edge_app(), "mednext-edge"))


def export_main() -> None:
    sys.exit(run(export_app(), "mednext-export"))
