"""One holder a device on the whole host: a lock of the kernel's, and a line in front of it.

Rules that this module keeps:

- The lock is ``flock(2)`` on one file a device, held by a descriptor of the controller: the kernel
  lets go of it when the controller ends, however it ends.
- Who waits stands in line with a ticket: a file with the time in its name, locked by its owner. A
  ticket that nobody locks is a dead process's and counts for nothing. Tickets make the order; the
  lock makes the exclusion.
- Nobody steps into the line before another: whose ticket has an earlier time than one that is there
  already takes a new one. So the line keeps runs apart where somebody removes a held lock's file.
- Several devices are taken in the order of their names: no two runs wait for each other.
- The directory belongs to everybody. Nothing in it is followed, waited for, or believed without a
  check of what it is; what a ticket says is shown, and decides nothing.
- A file that its owner removed or replaced while we waited is opened anew: a lock on a file without
  a name keeps nobody out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import EnvironmentFault, StorageFault

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

#: Seconds between two looks at the line.
LOOK_EVERY = 0.2
#: Entries of the directory that are looked at; more than this many are somebody's mischief.
_MOST = 20_000
_TICKET = re.compile(r"\.(\d{20})-(\d{1,10})-[0-9a-f]{8}\.ticket")
_SAYS = 4096


@dataclass(frozen=True)
class Holder:
    """Who holds a device, or waits for it, by its own word.

    Attributes:
        pid: in its own pid namespace.
        run: its run's id.
    """

    pid: int
    run: str

    def __str__(self) -> str:
        return f"pid {self.pid}, run {self.run}"


@dataclass(frozen=True)
class Place:
    """A place in the line for one device.

    Attributes:
        key: of the device.
        position: 1 for the next in turn.
        holder: who has the device now, if it says so.
    """

    key: str
    position: int
    holder: Holder | None = None


@contextlib.contextmanager
def held(
    keys: Sequence[str],
    directory: Path,
    owner: Holder,
    waiting: Callable[[Place], None],
) -> Generator[None]:
    """Hold devices; wait for them as long as it takes.

    Args:
        keys: what names each device on this host: its uuid.
        directory: the same for everybody on this host (``state.leases``).
        owner: what to tell others who wait for us.
        waiting: called at every look while we wait.

    Raises:
        StorageFault: the directory or a lock in it cannot be used.
        EnvironmentFault: the directory is not one that everybody can trust.
        KeyboardInterrupt: the caller ended the wait; nothing is held any more.
    """
    with contextlib.ExitStack() as stack:
        handle = _opened(directory)
        stack.callback(os.close, handle)
        for key in sorted(set(keys)):
            stack.enter_context(_one(handle, directory, key, owner, waiting))
        yield


@contextlib.contextmanager
def _one(
    handle: int,
    directory: Path,
    key: str,
    owner: Holder,
    waiting: Callable[[Place], None],
) -> Generator[None]:
    name = _name(key)
    with contextlib.ExitStack() as stack:
        ticket = _last_in_line(handle, directory, name, owner)
        stack.callback(ticket.leave)
        while True:
            ahead = _ahead(handle, name, ticket.name)
            lock = None if ahead else _locked(handle, directory, f"{name}.lock")
            if lock is not None:
                stack.callback(os.close, lock)
                break
            first = _said(handle, ahead[0]) if ahead else None
            waiting(Place(key, max(len(ahead), 1), first))
            time.sleep(LOOK_EVERY)
        yield


def holders(keys: Sequence[str], directory: Path) -> dict[str, Holder]:
    """Return who holds each of some devices now, as far as it can be seen; for showing."""
    found: dict[str, Holder] = {}
    try:
        handle = _opened(directory, make=False)
    except (StorageFault, EnvironmentFault):
        return found
    try:
        for key in keys:
            line = _ahead(handle, _name(key), None)
            said = _said(handle, line[0]) if line else None
            if said is not None:
                found[key] = said
    finally:
        os.close(handle)
    return found


def _name(key: str) -> str:
    # A hash: what a driver calls a device decides no path.
    return f"sealrun-gpu-{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:24]}"


def _opened(directory: Path, *, make: bool = True) -> int:
    """Open the directory, which must be one that no other user can pull from under us."""
    try:
        if make:
            _make(directory)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFault(
            f"the directory of GPU leases {directory} cannot be used: {error.strerror}",
            hint="It has to be a directory that every user of this host can write to (mode 1777), "
            "no link. SEALRUN_LEASES names another one, the same for everybody.",
        ) from error
    status = os.fstat(handle)
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if status.st_uid not in (0, os.getuid()) or (
        others_write and not status.st_mode & stat.S_ISVTX
    ):
        os.close(handle)
        raise EnvironmentFault(
            f"the directory of GPU leases {directory} (uid {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):o}) lets another user remove what keeps runs apart",
            hint="It has to belong to root and have mode 1777. As root: "
            f"install -d -m 1777 -o root {directory}",
        )
    return handle


def _make(directory: Path) -> None:
    if not directory.exists():
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            # Not at once: the umask takes part in mkdir(2).
            directory.chmod(0o1777)


@dataclass
class _Ticket:
    handle: int
    name: str
    file: int

    def leave(self) -> None:
        """Leave the line: first the name, then the lock, so that no dead ticket stays behind."""
        with contextlib.suppress(OSError):
            os.unlink(self.name, dir_fd=self.handle)
        os.close(self.file)


def _last_in_line(handle: int, directory: Path, name: str, owner: Holder) -> _Ticket:
    while True:
        ticket = _ticket(handle, directory, name, owner)
        # Its time was taken before it could be seen. One from the future is nobody's true ticket.
        now = f"{name}.{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020}."
        if not _living(handle, name, after=ticket.name, before=now):
            return ticket
        ticket.leave()


def _ticket(handle: int, directory: Path, name: str, owner: Holder) -> _Ticket:
    """Stand in line: a file that is locked before it has its name."""
    # Nanoseconds since boot, waits for nobody and is the same in every container of this host.
    moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    final = f"{name}.{moment:020}-{os.getpid()}-{secrets.token_hex(4)}.ticket"
    said = json.dumps({"pid": owner.pid, "run": owner.run}).encode()
    return _Ticket(handle, final, _made(handle, directory, final, said, lock=True))


def _made(handle: int, directory: Path, name: str, content: bytes, *, lock: bool) -> int:
    """Make a file whole, readable by everybody, before it has its name; return it open.

    Raises:
        FileExistsError: the name is taken.
        StorageFault: it cannot be made.
    """
    draft = f"{name}.{secrets.token_hex(8)}"
    try:
        file = os.open(
            draft,
            os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=handle,
        )
    except OSError as error:
        raise _unusable(directory / draft, error) from error
    try:
        if lock:
            fcntl.flock(file, fcntl.LOCK_EX)
        os.write(file, content)
        os.fchmod(file, 0o644)
        os.link(draft, name, src_dir_fd=handle, dst_dir_fd=handle, follow_symlinks=False)
    except FileExistsError:
        os.close(file)
        raise
    except OSError as error:
        os.close(file)
        raise _unusable(directory / name, error) from error
    finally:
        os.unlink(draft, dir_fd=handle)
    return file


def _ahead(handle: int, name: str, mine: str | None) -> list[str]:
    """Return the living tickets before one's own, the first first; all where one has none."""
    return _living(handle, name, before=mine)


def _living(handle: int, name: str, *, after: str = "", before: str | None = None) -> list[str]:
    names: list[str] = []
    with os.scandir(handle) as entries:
        for number, entry in enumerate(entries):
            if number > _MOST:
                break
            if entry.name.startswith(name) and _TICKET.fullmatch(entry.name[len(name) :]):
                names.append(entry.name)
    between = sorted(one for one in names if one > after and (before is None or one < before))
    return [one for one in between if _lives(handle, one)]


def _lives(handle: int, name: str) -> bool:
    file = _plain(handle, name)
    if file is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(file)
    # Nobody's: swept, where it is ours to sweep.
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=handle)
    return False


def _plain(handle: int, name: str) -> int | None:
    """Open a regular file of the directory without following or waiting; None if it is none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(name, flags, dir_fd=handle)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None


def _said(handle: int, name: str) -> Holder | None:
    file = _plain(handle, name)
    if file is None:
        return None
    try:
        said = json.loads(os.read(file, _SAYS))
        pid, run = said["pid"], said["run"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        os.close(file)
    if isinstance(pid, int) and isinstance(run, str) and re.fullmatch(r"[0-9A-Za-z-]{1,40}", run):
        return Holder(pid, run)
    return None


def _locked(handle: int, directory: Path, name: str) -> int | None:
    """Take a device's lock without waiting; None where somebody has it."""
    file = _lock_file(handle, directory, name)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.stat(name, dir_fd=handle, follow_symlinks=False)
        if os.path.samestat(there, os.fstat(file)):
            return file
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(file)
            raise _unusable(directory / name, error) from error
    os.close(file)
    return None


def _lock_file(handle: int, directory: Path, name: str) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            file = os.open(name, flags, dir_fd=handle)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                return _made(handle, directory, name, b"", lock=False)
            continue
        except OSError as error:
            raise _unusable(directory / name, error) from error
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        raise EnvironmentFault(
            f"{directory / name} is not a plain file; it cannot be a GPU's lock",
            hint="Somebody put it there. Its owner or root can remove it.",
        )


def _unusable(path: Path, error: OSError) -> StorageFault:
    why = "it is a link" if error.errno == errno.ELOOP else error.strerror
    return StorageFault(
        f"the GPU lease {path} cannot be used: {why}",
        hint="Its owner or root can remove the file while no run has the GPU; every user of this "
        "host has to be able to read it.",
    )
