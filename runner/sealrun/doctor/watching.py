"""What the guard can see: file systems and inotify's limits.

Rules that this module keeps:

- A file system that others can write to without this kernel is graded by what it costs: coverage
  of the workspace becomes content-only.
- Limits are compared with what this workspace needs, counted now.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.doctor.model import Check, Grade
from sealrun.guard.filesystem import mount_of, read_mounts
from sealrun.nested import walk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.state import Places

_LIMITS = Path("/proc/sys/fs/inotify")
#: Other programs of the same user (editors, language servers) hold watches too.
_ROOM = 2
#: One for the guard, and as many as a desktop or an agent commonly holds.
_INSTANCES_WANTED = 64
#: A checkout of another branch makes about this many events at once.
_QUEUE_WANTED = 16384
_WATCHES_ADVISED = 524288


@dataclass(frozen=True)
class Limits:
    """inotify's limits of this user (inotify(7))."""

    watches: int
    instances: int
    queue: int


def state(places: Places) -> Iterable[Check]:
    """Yield the file system that our records are on."""
    there = next(p for p in (places.state, *places.state.parents) if p.exists())
    yield _file_system(
        "state",
        there,
        "no write-ahead log there, and locks of other machines",
        "Put sealrun's state on a local disk: XDG_STATE_HOME or SEALRUN_HOME.",
    )


def _file_system(name: str, place: Path, remote: str, fix: str) -> Check:
    """Grade the file system that a directory is on.

    Args:
        name: of the directory, for the row.
        place: the directory.
        remote: what it means that another machine may write there.
        fix: what to do about that.
    """
    mount = mount_of(os.fsencode(place), read_mounts())
    row = f"file system: {name}"
    if mount is None:
        return Check(row, Grade.WARN, f"{place}: type not known")
    if mount.remote:
        return Check(row, Grade.WARN, f"{mount.type} at {place}: {remote}", fix)
    return Check(row, Grade.OK, f"{mount.type} at {place}")


def workspace(top: Path) -> Iterable[Check]:
    """Yield the file system of the workspace, and whether every directory can be watched."""
    yield _file_system(
        "workspace",
        top,
        "writes of other machines make no event; coverage is content-only",
        "Work in a clone on a local disk.",
    )
    limits = read_limits()
    if limits is None:
        yield Check("inotify", Grade.WARN, "its limits cannot be read here")
        return
    directories = 1 + sum(len(below) for _, below, _ in walk(os.fsencode(top)))
    yield judge_limits(limits, directories)


def read_limits() -> Limits | None:
    """Return inotify's limits, or None where the kernel does not tell."""
    try:
        return Limits(
            *(
                int((_LIMITS / name).read_text("ascii"))
                for name in ("max_user_watches", "max_user_instances", "max_queued_events")
            )
        )
    except (OSError, ValueError):
        return None


def judge_limits(limits: Limits, directories: int) -> Check:
    """Grade inotify's limits against the directories that want watching."""
    detail = (
        f"{directories} directories; {limits.watches} watches, {limits.instances} instances,"
        f" queue {limits.queue}"
    )
    changes: list[str] = []
    if limits.watches < directories * _ROOM:
        changes.append(f"fs.inotify.max_user_watches={max(_WATCHES_ADVISED, directories * 4)}")
    if limits.instances < _INSTANCES_WANTED:
        changes.append(f"fs.inotify.max_user_instances={_INSTANCES_WANTED * 8}")
    if limits.queue < _QUEUE_WANTED:
        changes.append(f"fs.inotify.max_queued_events={_QUEUE_WANTED * 8}")
    if not changes:
        return Check("inotify", Grade.OK, detail)
    # Too few watches is certain loss; the others only make loss likelier.
    grade = Grade.FAIL if limits.watches < directories else Grade.WARN
    kept = " && ".join(
        f"echo {change} | sudo tee -a /etc/sysctl.d/60-sealrun.conf" for change in changes
    )
    return Check("inotify", grade, detail, f"{kept} && sudo sysctl --system")
