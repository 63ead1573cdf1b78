"""How long work tells how far it is, without knowing who listens.

Rules: the core reports through this Protocol and prints nothing; the command line decides whether
that becomes a bar (terminal) or one line a minute (elsewhere).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType


class Task(Protocol):
    """One piece of long work under way; a context manager that ends it."""

    def advance(self, amount: int) -> None:
        """Report that ``amount`` more units (usually bytes) are done."""
        ...

    def describe(self, text: str) -> None:
        """Say what is being done now, e.g. the package being installed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class Progress(Protocol):
    """Somebody who wants to know how far long work is."""

    def task(self, title: str, total: int | None = None) -> Task:
        """Open a piece of work.

        Args:
            title: what is done, e.g. ``loading torch environment into the engine``.
            total: units in all, where known beforehand; then the time left can be shown.
        """
        ...


class Listener(Progress, Protocol):
    """Who hears what a run has to say."""

    def say(self, text: str, *, level: int = 0) -> None:
        """Take a line for the user."""
        ...


class Silent:
    """A listener that does not listen: for tests and library use."""

    def task(self, title: str, total: int | None = None) -> Task:  # noqa: ARG002 - the Protocol's
        """Open a piece of work that nobody watches."""
        return _SilentTask()


class _SilentTask:
    def advance(self, amount: int) -> None:
        """Ignore it."""

    def describe(self, text: str) -> None:
        """Ignore it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
