"""``sealrun watch``: a guard that stands alone, for loops without containers."""

from __future__ import annotations

import json as encoder
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.errors import Status

if TYPE_CHECKING:
    from sealrun.watch.stream import Conclusion, Detection


def command(
    directory: Annotated[Path, typer.Argument(help="What to watch.")] = Path(),
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print the machine stream: one JSON object a line.")
    ] = False,
) -> int:
    """Watch a directory until stdin ends, and say what changed in it, when, and who did it.

    A git working directory must stay HEAD's tree; any other must stay as it is at the start. What could
    be imported or read as configuration counts too, whether or not git ignores it. End of stdin, an
    interrupt or SIGTERM ends the watch: everything is compared a last time, and a verdict follows.
    Exits with 0 when it is clean, and with 120 when something changed or was not observed.

    Example:  sleep 60 | sealrun watch --jsonl .
    """
    from sealrun.state import Places
    from sealrun.watch.sink import Sink
    from sealrun.watch.watch import Watch

    voice = console.current()
    viewer = os.geteuid()

    def tell(detection: Detection) -> None:
        sink.put(
            encoder.dumps(detection.document(viewer))
            if jsonl
            else console.printable(detection.line(viewer))
        )

    _log_to(voice)
    watch = Watch(directory, Places.of_user(), tell)
    told_to_end = _until_signalled()
    # A copy: if the reader goes away, stdout itself may be led elsewhere.
    sink = Sink(os.dup(1), watch.evidence / "stream.jsonl")
    try:
        expected = watch.start()
        against = expected.commit[:12] if expected.commit else "its state at the start"
        voice.say(f"watching {expected.workspace} against {against}")
        if jsonl:
            from sealrun.watch.stream import READY

            sink.put(encoder.dumps(READY))
        watch.ready()
        watch.attend(0, told_to_end)
        conclusion = watch.finish()
    finally:
        watch.close()
    _conclude(conclusion, sink, jsonl=jsonl)
    return Status.OK if conclusion.clean else Status.FLAGGED


def _log_to(voice: console.Console) -> None:
    """Show what the guard logs with ``-v``; all that matters of it is in the verdict too."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            voice.say(self.format(record), level=1)

    logging.getLogger("sealrun").addHandler(Shown(logging.INFO))
    logging.getLogger("sealrun").setLevel(logging.INFO)


def _conclude(conclusion: Conclusion, sink: Any, *, jsonl: bool) -> None:  # noqa: ANN401
    voice = console.current()
    if jsonl:
        sink.put(encoder.dumps(conclusion.document()))
    else:
        sink.put(console.printable(conclusion.line()))
    missed = sink.close()
    if missed:
        voice.say(f"{missed} lines were not taken by the reader of stdout", level=-1)
        voice.say(f"hint: they are in {sink.spill}.", level=-1)
    if conclusion.writers:
        voice.say(f"writers were unavailable: {conclusion.writers}")
    if conclusion.evidence and not jsonl:
        voice.say(f"the bytes that were found are kept in {conclusion.evidence}")


def _until_signalled() -> int:
    """Let the first signal ask for the end, and another one force it; return what becomes readable."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def ask(number: int, frame: object) -> None:  # noqa: ARG001 - signal's signature
        os.write(writable, b"\0")
        for each in numbers:
            signal.signal(each, _force)

    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    return readable


def _force(number: int, frame: object) -> None:  # noqa: ARG001 - signal's signature
    raise KeyboardInterrupt
