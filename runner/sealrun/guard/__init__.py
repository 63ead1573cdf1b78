"""The guard: the process that watches one workspace, also between runs.

Rules that this package keeps:

- Content decides, events explain; and no watch, no clean run (see ``coverage``).
- What is out of the loop's reach goes through this interface, so that a guard of another user can
  stand behind it one day.
- Importing the package imports neither watchdog nor anything else that is slow.
"""

from __future__ import annotations

from sealrun.guard.client import GuardClient, GuardLost, ensure, find
from sealrun.guard.coverage import Coverage, Gap, Moment
from sealrun.guard.manifest import write_manifest
from sealrun.guard.messages import GuardStatus
from sealrun.guard.mutations import (
    Evidence,
    GitChange,
    GitState,
    Happened,
    Mutation,
    Report,
    Rewrite,
    Writer,
)

__all__ = [
    "Coverage",
    "Evidence",
    "Gap",
    "GitChange",
    "GitState",
    "GuardClient",
    "GuardLost",
    "GuardStatus",
    "Happened",
    "Moment",
    "Mutation",
    "Report",
    "Rewrite",
    "Writer",
    "ensure",
    "find",
    "write_manifest",
]
