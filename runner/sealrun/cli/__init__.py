"""The command line: thin commands over the core, and the one place that exits.

Rules that this package keeps:

- One module a command; each returns a ``Status`` (or the experiment's own status), none exits.
- Importing a command imports nothing heavy: the core is imported inside the function.
- No traceback reaches a user; an unforeseen error says where it was written down.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sealrun import __version__
from sealrun.cli import console
from sealrun.errors import SealrunError, Status, StorageFault

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path
    from types import FrameType

#: Seconds until a signal that came in the midst of an import is heeded.
_AGAIN = 0.01
#: Everything after the experiment's own name belongs to it.
_EXPERIMENT: dict[str, Any] = {"allow_interspersed_args": False}
#: Each command is a module of this package, in the order of the help.
COMMANDS: dict[str, dict[str, Any]] = {
    "init": {},
    "run": {"context_settings": _EXPERIMENT},
    "warm": {"context_settings": _EXPERIMENT},
    "gc": {},
    "ps": {},
    "logs": {},
    "outputs": {},
    "sync": {},
    "cancel": {},
    "log": {},
    "show": {},
    "reproduce": {},
    "verify": {},
    "key": {},
    "verify-run": {},
    "bundle": {},
    "alerts": {},
    "alarm": {},
    "mirror": {},
    "restore": {},
    "audit": {},
    "watch": {},
    "guard": {},
    "session": {},
    "hook": {},
    "policy": {},
    "engine": {},
    "doctor": {},
}


def application(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """Return the command line.

    Args:
        names: of its commands; others are not even imported, so that a run starts sooner.
    """
    app = typer.Typer(
        name="sealrun",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Run experiments exactly as committed, and know what changed behind the loop's back."
        "\n\nExample:  sealrun warm  &&  sealrun run -- python3 train.py",
    )
    app.callback()(_options)
    for name in names:
        module = importlib.import_module(f"sealrun.cli.{name.replace('-', '_')}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, **COMMANDS[name])(module.command)
    return app


def _version(value: bool) -> None:
    if value:
        console.current().data(f"sealrun {__version__}")
        raise typer.Exit


def _options(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    version: Annotated[  # noqa: ARG001 - the callback has printed it
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
    ] = False,
) -> None:
    console.use(console.Console(-1 if quiet else 1 if verbose else 0))


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    # Pydantic loads plugins of whatever is installed beside us; nothing foreign runs in the judge.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    heed_signals()
    _open_standard_streams()
    status = _guarded()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Taking the interpreter apart costs a sixth of a warm run. Nothing waits for it: what has to
    # last was written and synced by whoever wrote it, and everything else is this process's memory.
    os._exit(status)


def _open_standard_streams() -> None:
    """Let streams that our caller closed lead nowhere.

    Otherwise the next file that we open gets the number of one, and is written to as if it were it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # open(2) gives the lowest free number: those below are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", encoding="utf-8"))  # noqa: PTH123, SIM115 - a descriptor, for as long as we live


def heed_signals() -> None:
    """Turn what would end us into an exception: a controller must judge, record and clear up."""
    numbers = [signal.SIGTERM, signal.SIGALRM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1) outlives its terminal
        numbers.append(signal.SIGHUP)
    for number in numbers:
        _callers[number] = signal.signal(number, _terminated)


#: What our caller had set for the signals that we heed.
_callers: dict[int, Any] = {}


def give_signals_back() -> None:
    """Undo ``heed_signals`` for a program that takes our place: what a caller ignores stays ignored."""
    for number, before in _callers.items():
        signal.signal(number, before)


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
    if _is_importing(frame):
        # An exception in there leaves a module's lock held for ever, and whoever else imports that
        # module waits as long: the docker client is imported by a thread.
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        return
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _guarded() -> int:
    from typer.exceptions import TyperException

    named = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        result = application(_needed(named))(standalone_mode=False)
        return int(result or 0)
    except SealrunError as error:
        console.current().error(error)
        return int(error.status)
    except TyperException as error:
        _explain_usage(error.format_message(), named)
        return int(Status.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        console.current().say("interrupted", level=-1)
        return int(Status.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last line of defence against tracebacks
        if isinstance(error, OSError) and error.errno in _MACHINE:
            console.current().error(_trouble_of_the_machine(error))
            return int(Status.FAULT)
        report = _write_down(error)
        console.current().say(f"error: unforeseen {type(error).__name__}: {error}", level=-1)
        console.current().say(f"hint: the details are in {report}; please report them.", level=-1)
        return int(Status.FAULT)


def _needed(named: str | None) -> Collection[str]:
    """Return the commands that a command line needs: the others are then not even imported."""
    if named in COMMANDS:
        return [named]
    return [] if named is None and "--version" in sys.argv else COMMANDS


#: What no program can help: no space or quota, read-only, too many open files, a broken disk.
_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)
}


def _trouble_of_the_machine(error: OSError) -> StorageFault:
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    return StorageFault(
        f"{error.strerror}{where}",
        hint="Free space or repair what it names, then repeat the command; sealrun doctor shows "
        "the disks that sealrun uses.",
    )


def _explain_usage(words: str, named: str | None) -> None:
    voice = console.current()
    if words.startswith("Usage:"):
        # Called without arguments: what comes is the help, and no error.
        voice.say(words, level=-1)
    elif named in COMMANDS:
        voice.say(f"error: {words}", level=-1)
        voice.say(f"hint: sealrun {named} --help shows its options, with an example.", level=-1)
    else:
        voice.say(f"error: {words}", level=-1)
        voice.say("hint: sealrun --help lists the commands.", level=-1)


def _write_down(error: Exception) -> Path | str:
    from sealrun.state import Places, private

    text = "".join(traceback.format_exception(error))
    try:
        file = private(Places.of_user().state / "crashes") / f"{time.time_ns()}-{os.getpid()}.txt"
        file.write_text(f"sealrun {__version__}\n{sys.argv!r}\n{text}", "utf-8")
    except (OSError, SealrunError):
        return "no file: the state directory cannot be written"
    return file
