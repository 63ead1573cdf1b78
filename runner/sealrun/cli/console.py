"""The one place that prints.

Rules that this module keeps:

- Data goes to stdout, everything else to stderr; ``sealrun run`` prints nothing of ours on stdout.
- Each line of ours on stderr begins with ``[sealrun] ``, so that none looks like ``name: value``.
- What came from a container, a file name or a git object is printed with control characters
  escaped: a terminal obeys them.
- Progress is a bar on a terminal and one line a minute elsewhere; ``-q`` silences both.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Self, TextIO

from sealrun.errors import StorageFault

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from rich.table import Table

    from sealrun.errors import SealrunError
    from sealrun.progress import Task

PREFIX = "[sealrun] "
#: Seconds of work before progress is worth showing.
PATIENCE = 2.0
#: Seconds between two progress lines where no terminal shows a bar.
LINE_EVERY = 60.0
#: Version of every ``--json`` document.
SCHEMA = 1


def printable(text: str) -> str:
    r"""Escape what a terminal would obey: ``\x1b[2J`` becomes visible text.

    Keeps printable characters of every script and the space; escapes controls, surrogates and
    bidirectional overrides.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


class Console:
    """Writes for one command; ``verbosity`` is -1 (quiet), 0 or 1 (verbose)."""

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity

    def say(self, text: str, *, level: int = 0) -> None:
        """Write lines of ours to stderr, each with the prefix; ``level`` 1 needs ``-v``."""
        if level > self.verbosity:
            return
        lines = "".join(f"{PREFIX}{printable(line)}\n" for line in text.split("\n"))
        self._write(sys.stderr, lines)

    def data(self, text: str) -> None:
        """Write one line of data to stdout, as it is."""
        self._write(sys.stdout, text + "\n")

    def json(self, document: dict[str, Any]) -> None:
        """Write a versioned JSON document to stdout."""
        self.data(json.dumps({"schema": SCHEMA, **document}, indent=2, ensure_ascii=True))

    def table(self, table: Table) -> None:
        """Write a table to stdout."""
        from rich.console import Console as RichConsole

        width = None if sys.stdout.isatty() else 160
        with taken(sys.stdout):
            RichConsole(file=sys.stdout, width=width, highlight=False).print(table)
            sys.stdout.flush()

    def error(self, error: SealrunError) -> None:
        """Report an error: what happened, and apart from it what to do next."""
        self.say(f"error: {error.message}", level=-1)
        if error.hint:
            self.say(f"hint: {error.hint}", level=-1)

    def task(self, title: str, total: int | None = None) -> Task:
        """Open a piece of long work (see ``sealrun.progress.Progress``)."""
        if self.verbosity >= 0 and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            return _Bar(title, total)
        return _Lines(self, title, total)

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        with taken(stream):
            stream.write(text)
            stream.flush()


@contextlib.contextmanager
def taken(stream: TextIO) -> Generator[None]:
    """Write to a stream that its reader may have left, or whose disk may be full.

    Where the reader left (``| head``), or where it is only about messages of ours, the work goes on
    and its status still counts; the stream leads nowhere from then on.

    Raises:
        StorageFault: data could not be written to stdout.
    """
    try:
        yield
    except OSError as error:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            raise StorageFault(
                f"stdout cannot be written: {error.strerror}",
                hint="Free space where it leads to, or redirect it to another place.",
            ) from error


_current: list[Console] = [Console()]


def current() -> Console:
    """Return the console of the command that runs."""
    return _current[0]


def use(console: Console) -> None:
    """Make a console the current one; the global options decide which."""
    _current[0] = console


def _size(amount: float) -> str:
    for unit in ("", "k", "M"):
        if amount < 1000:  # noqa: PLR2004 - SI prefixes
            return f"{amount:.0f}{unit}"
        amount /= 1000
    return f"{amount:.1f}G"


class _Lines:
    """Progress as one line a minute."""

    def __init__(self, console: Console, title: str, total: int | None) -> None:
        self.console, self.title, self.total = console, title, total
        self.done = 0
        self.started = self.said = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count, and say so once a minute."""
        self.done += amount
        self._maybe()

    def describe(self, text: str) -> None:
        """Say what is done now, once a minute."""
        self._maybe(text)

    def _maybe(self, detail: str = "") -> None:
        now = time.monotonic()
        if now - self.said < LINE_EVERY:
            return
        self.said = now
        spent = now - self.started
        parts = [f"{self.title}: {spent:.0f} s"]
        if self.total and self.done:
            left = spent * max(self.total - self.done, 0) / self.done
            parts.append(f"{_size(self.done)} of {_size(self.total)}, about {left:.0f} s left")
        if detail:
            parts.append(detail)
        self.console.say(", ".join(parts))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        spent = time.monotonic() - self.started
        if kind is None and spent > PATIENCE:
            self.console.say(f"{self.title}: done in {spent:.1f} s")


class _Bar:
    """Progress as a bar with the time left."""

    def __init__(self, title: str, total: int | None) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = [TextColumn(PREFIX.replace("[", r"\[") + "{task.description}"), BarColumn()]
        if total is not None:
            columns += [DownloadColumn(), TimeRemainingColumn()]
        self.title = title
        self.bar = Progress(
            *columns, TimeElapsedColumn(), console=RichConsole(file=sys.stderr), transient=True
        )
        self.id = self.bar.add_task(title, total=total)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        self.bar.advance(self.id, amount)

    def describe(self, text: str) -> None:
        """Show what is done now beside the title."""
        self.bar.update(self.id, description=f"{self.title}: {printable(text)[:60]}")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
