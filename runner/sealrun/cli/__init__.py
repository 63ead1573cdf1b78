"""The command line: thin commands over the core, and the one place that exits.

Rules that this package keeps:

- One module a command; each returns a ``Status`` (or the experiment's own status), none exits.
- Importing a command imports nothing heavy: the core is imported inside the function.
- No traceback reaches a user; an unforeseen error says where it was written down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sealrun import __version__
from sealrun.cli import (
    cancel,
    console,
    doctor,
    engine,
    guard,
    log,
    logs,
    policy,
    ps,
    run,
    show,
    verify,
    warm,
)
from sealrun.errors import SealrunError, Status

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(
    name="sealrun",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run experiments exactly as committed, and know what changed behind the loop's back.\n\n"
    "Example:  sealrun warm  &&  sealrun run -- python3 train.py",
)


def _version(value: bool) -> None:
    if value:
        console.current().data(f"sealrun {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    version: Annotated[  # noqa: ARG001 - the callback has printed it
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
    ] = False,
) -> None:
    console.use(console.Console(-1 if quiet else 1 if verbose else 0))


_EXPERIMENT = {"allow_interspersed_args": False, "ignore_unknown_options": True}

app.command("run", context_settings=_EXPERIMENT)(run.command)
app.command("warm")(warm.command)
app.command("ps")(ps.command)
app.command("logs")(logs.command)
app.command("cancel")(cancel.command)
app.command("log")(log.command)
app.command("show")(show.command)
app.command("verify")(verify.command)
app.command("guard")(guard.command)
app.add_typer(policy.app, name="policy")
app.command("engine")(engine.command)
app.command("doctor")(doctor.command)


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    # Pydantic loads plugins of whatever is installed beside us; nothing foreign runs in the judge.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    # A terminated controller must still judge, record and clear up: SIGTERM is an exception.
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    status = _guarded()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.flush()
    # Taking the interpreter apart costs a sixth of a warm run. Nothing waits for it: what has to
    # last was written and synced by whoever wrote it, and everything else is this process's memory.
    os._exit(status)


def _terminated(number: int, frame: object) -> None:  # noqa: ARG001 - signal's signature
    raise KeyboardInterrupt


def _guarded() -> int:
    from typer import _click

    try:
        result = app(standalone_mode=False)
        return int(result or 0)
    except SealrunError as error:
        console.current().error(error)
        return int(error.status)
    except _click.exceptions.ClickException as error:
        console.current().say(f"error: {error.format_message()}", level=-1)
        console.current().say("hint: sealrun --help lists the commands.", level=-1)
        return int(Status.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        console.current().say("interrupted", level=-1)
        return int(Status.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last line of defence against tracebacks
        report = _write_down(error)
        console.current().say(f"error: unforeseen {type(error).__name__}: {error}", level=-1)
        console.current().say(f"hint: the details are in {report}; please report them.", level=-1)
        return int(Status.FAULT)


def _write_down(error: Exception) -> Path | str:
    from sealrun.state import Places, private

    text = "".join(traceback.format_exception(error))
    try:
        file = private(Places.of_user().state / "crashes") / f"{time.time_ns()}-{os.getpid()}.txt"
        file.write_text(f"sealrun {__version__}\n{sys.argv!r}\n{text}", "utf-8")
    except (OSError, SealrunError):
        return "no file: the state directory cannot be written"
    return file
