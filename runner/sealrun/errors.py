"""The exception tree: what went wrong, whose trouble it is, and what to do next.

Rules that this module keeps:

- Every class carries the exit status of DESIGN's command contract; nobody else maps errors to
  statuses.
- Every error says what happened and to what; the remedy stands apart, in ``hint``.
- Trouble of ours (``Fault``, 125) and a refusal (``Refused``, 121) never share a class: trouble of
  ours is never the experiment's result.
- No hint tells its reader how to get around the guard: agents obey what we print.
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Exit statuses of sealrun's own; any other status is the experiment's."""

    OK = 0
    USAGE = 2
    FLAGGED = 120
    REFUSED = 121
    ABORTED = 122
    DIFFERENT = 123
    DEADLINE = 124
    FAULT = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130


class SealrunError(Exception):
    """Anything that we report to a user.

    Args:
        message: what happened, to which file, run or line. One sentence, no trailing newline.
        hint: what to do next, if anything can be done.
    """

    status: Status = Status.FAULT

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SealrunError):
    """The call cannot be carried out as given: unknown revision, ambiguous prefix, bad option."""

    status = Status.USAGE


class RepositoryError(UsageError):
    """Not a git repository, no commit yet, or a shape of repository that cannot be run."""


class PolicyError(UsageError):
    """A policy file that does not validate; the message names file, line and nearest key."""


class Refused(SealrunError):
    """The run may not start. Nothing is wrong with sealrun; something is wrong with the inputs."""

    status = Status.REFUSED


class SealRefused(Refused):
    """The committed tree cannot be sealed faithfully: the message names the path."""


class Fault(SealrunError):
    """Trouble of ours or of the machine: nothing was judged."""

    status = Status.FAULT


class EngineUnavailable(Fault):
    """No container engine answers, or the one that answers cannot be used."""


class EngineError(Fault):
    """The engine answered a call with an error, or went away in the middle."""


class EnvironmentFault(Fault):
    """A base or environment could not be built or loaded."""


class ColdStart(Fault):
    """An image, environment or prefetch is missing and nobody is there to wait for it."""


class StorageFault(Fault):
    """State, data or cache cannot be read or written: disk full, permissions, corruption."""


class LedgerError(Fault):
    """The ledger is locked, damaged or of a newer version."""


class LedgerMissing(Refused):
    """Pinned runs exist but their ledger does not: never a fresh start."""


class ObjectCorrupt(Refused):
    """A git object does not hash to its id, or is missing."""


class GuardError(Fault):
    """The guard process cannot be started or does not answer."""


class SandboxError(Fault):
    """The container was not what we asked for, or could not be created."""


class ImageDamaged(SandboxError):
    """The engine shows other files than were sealed: its layer store was changed or damaged.

    Args:
        tree_only: every such file is one of the commit's.
    """

    def __init__(self, message: str, *, hint: str | None = None, tree_only: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.tree_only = tree_only


class ImageGone(SandboxError):
    """The engine has an image no more: somebody removed it after it was loaded."""


class Interrupted(SealrunError):
    """The user or a signal ended us."""

    status = Status.INTERRUPTED
