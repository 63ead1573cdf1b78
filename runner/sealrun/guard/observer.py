"""The observer: watchdog's inotify reader underneath, its silent failures made visible.

Rules that this module keeps:

- The reading thread does nothing but read and hand on, so that the kernel's queue stays short.
- Every wanted directory either has a watch or stands in ``missing`` with the reason; the kernel's
  own list of our watches (proc(5), ``fdinfo``) is compared with ours, not believed.
- An overflow of the kernel's queue, and of ours, is an item of the stream: whoever consumes it
  cannot miss it. Nothing is paired or held back: a move is two events, at once.
- Reads are never asked for: no IN_ACCESS, IN_OPEN or IN_CLOSE_NOWRITE.
- One queue for everything, the cookie included: when the cookie's event comes out, every event of
  a write that had returned before the cookie was touched has come out too. An echo is the same for
  the guard's own use, while a drain may be waiting for its cookie.

Only the guard process imports this module; watchdog stays out of every command's start.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from watchdog.observers import inotify_c
from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.observers.inotify_c import InotifyFD

from sealrun.errors import GuardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sealrun.guard.attribution import Attribution

#: What a watch on a directory asks for.
CONTENT = inotify_c.Mask(
    In.IN_MODIFY
    | In.IN_ATTRIB
    | In.IN_CLOSE_WRITE
    | In.IN_MOVED_FROM
    | In.IN_MOVED_TO
    | In.IN_CREATE
    | In.IN_DELETE
    | In.IN_DELETE_SELF
    | In.IN_MOVE_SELF
    | In.IN_ONLYDIR
    | In.IN_DONT_FOLLOW
    | In.IN_EXCL_UNLINK
    | In.IN_MASK_ADD
)
#: What a watch on a directory above a root asks for: that it moves or ends. Costs nothing else.
PLACE = inotify_c.Mask(
    In.IN_MOVE_SELF | In.IN_DELETE_SELF | In.IN_ONLYDIR | In.IN_DONT_FOLLOW | In.IN_MASK_ADD
)
#: Bytes asked for in one read, and bytes read but not consumed before we drop on purpose.
READ = 1 << 20
BACKLOG = 64 << 20

#: The kernel's words, in ours, for the record.
WORDS: tuple[tuple[int, str], ...] = (
    (In.IN_MODIFY, "modify"),
    (In.IN_ATTRIB, "attrib"),
    (In.IN_CLOSE_WRITE, "close-write"),
    (In.IN_MOVED_FROM, "moved-from"),
    (In.IN_MOVED_TO, "moved-to"),
    (In.IN_CREATE, "create"),
    (In.IN_DELETE, "delete"),
    (In.IN_DELETE_SELF, "delete-self"),
    (In.IN_MOVE_SELF, "move-self"),
    (In.IN_UNMOUNT, "unmount"),
)
OVERFLOW, IGNORED, DIRECTORY = int(In.IN_Q_OVERFLOW), int(In.IN_IGNORED), int(In.IN_ISDIR)
CLOSED_WRITE, MODIFIED, ATTRIBUTE = int(In.IN_CLOSE_WRITE), int(In.IN_MODIFY), int(In.IN_ATTRIB)
MOVED_TO, CREATED = int(In.IN_MOVED_TO), int(In.IN_CREATE)
LEFT = int(In.IN_MOVED_FROM | In.IN_DELETE)
ITSELF_GONE = int(In.IN_DELETE_SELF | In.IN_MOVE_SELF | In.IN_UNMOUNT)


@dataclass(frozen=True)
class Raw:
    """One read's worth of events; ``buffer`` is empty where we dropped one."""

    at: float
    buffer: bytes


@dataclass(frozen=True)
class Event:
    """One inotify event with the places it concerns (more than one: the directory is mounted
    twice).
    """  # noqa: D205 - one sentence

    watch: int
    mask: int
    name: bytes
    directories: tuple[bytes, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The kernel's names of what happened."""
        return tuple(word for bit, word in WORDS if self.mask & bit)


class Reader(InotifyFD):
    """watchdog's inotify descriptor and thread, without its book-keeping of callbacks."""

    def __init__(self, hand_on: Callable[[Raw], None]) -> None:
        check_watchdog()
        try:
            super().__init__()
        except OSError as error:
            raise GuardError(
                f"cannot watch anything: {error.strerror}",
                hint="Raise fs.inotify.max_user_instances (sysctl) or end programs that watch.",
            ) from error
        os.set_inheritable(self._inotify_fd, False)  # noqa: FBT003 - the signature of os
        self._hand_on = hand_on
        self._read = 0
        self._done = 0

    def run(self) -> None:
        """Read and hand on until stopped."""
        while self.should_keep_running():
            buffer = self._read_event_buffer(READ)
            if not buffer:
                continue
            if self._read - self._done > BACKLOG:
                buffer = b""
            self._read += len(buffer)
            self._hand_on(Raw(time.monotonic(), buffer))

    def consumed(self, raw: Raw) -> None:
        """Say that a read's worth was dealt with."""
        self._done += len(raw.buffer)

    def parse(self, raw: Raw) -> Iterator[tuple[int, int, bytes]]:
        """Yield watch descriptor, mask and name of each event; a dropped read is an overflow."""
        if not raw.buffer:
            yield -1, OVERFLOW, b""
        for wd, mask, _, name in self._parse_event_buffer(raw.buffer):
            yield int(wd), int(mask), name

    def watch(self, path: bytes, mask: inotify_c.Mask) -> int:
        """Watch a path and return the descriptor; the same inode has the same one.

        Raises:
            OSError: ENOSPC at the limit of watches, EACCES, ENOENT, ENOTDIR.
        """
        with self._lock:
            wd = int(self._get_or_create_watch(path, mask).wd)
            if wd < 0:
                self._watch_for_wd.clear()
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            self._watch_for_wd.clear()  # the Observer keeps the books
        return wd

    def unwatch(self, wd: int) -> None:
        """End a watch; one that is gone already is fine."""
        inotify_c.inotify_rm_watch(self._inotify_fd, inotify_c.WatchDescriptor(wd))

    def kernel_watches(self) -> frozenset[int]:
        """Return the descriptors that the kernel lists for us."""
        text = Path(f"/proc/self/fdinfo/{self._inotify_fd}").read_bytes()
        return frozenset(
            int(number, 16)
            for number in re.findall(rb"^inotify wd:([0-9a-f]+)", text, re.MULTILINE)
        )


class Observer:
    """Keeps watches on directories and translates the stream of events into paths."""

    def __init__(
        self, cookie: Path, hand_on: Callable[[Raw], None], marks: Attribution | None = None
    ) -> None:
        self._marks = marks
        self.reader = Reader(hand_on)
        self.missing: dict[bytes, str] = {}
        self._cookie = os.open(cookie, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self.echo()  # takes its byte of the disk while nothing depends on it
            either = inotify_c.Mask(In.IN_ATTRIB | In.IN_MODIFY)
            self._cookie_watch = self.reader.watch(os.fsencode(cookie), either)
        except OSError as error:
            raise GuardError(
                f"cannot watch anything: {error.strerror}",
                hint="Raise fs.inotify.max_user_watches (sysctl) or end programs that watch.",
            ) from error
        self._paths: dict[int, set[bytes]] = {}
        self._watches: dict[bytes, int] = {}
        self._places: dict[int, bytes] = {}
        self._orphans: set[int] = set()

    def start(self) -> None:
        """Begin to read."""
        self.reader.start()

    def stop(self) -> None:
        """End every watch."""
        self.reader.stop()
        with contextlib.suppress(OSError):
            os.close(self._cookie)

    def touch_cookie(self) -> None:
        """Put a mark into the stream: its event follows those of every write before this call."""
        os.utime(self._cookie)

    def is_cookie(self, event: Event) -> bool:
        """Whether an event is the mark."""
        return event.watch == self._cookie_watch and bool(event.mask & ATTRIBUTE)

    def echo(self) -> None:
        """Put a mark of another kind into the stream; where the disk is full it may not come out."""
        with contextlib.suppress(OSError):
            os.pwrite(self._cookie, b".", 0)

    def is_echo(self, event: Event) -> bool:
        """Whether an event is the mark of the other kind."""
        return event.watch == self._cookie_watch and bool(event.mask & MODIFIED)

    @property
    def watched(self) -> int:
        """Number of directories with a watch."""
        return len(self._watches)

    def has(self, directory: bytes) -> bool:
        """Whether a directory has a watch, as far as we know."""
        return directory in self._watches

    def cover(self, directory: bytes) -> bool:
        """Watch a directory; what cannot be watched though it is there goes to ``missing``.

        Returns:
            Whether it is watched now. False also where no directory stands there: then its parent's
            watch tells when one does.
        """
        try:
            wd = self.reader.watch(directory, CONTENT)
        except OSError as error:
            self._forget(directory)
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self.missing.pop(directory, None)
            else:
                self.missing[directory] = error.strerror or str(error)
            return False
        self.missing.pop(directory, None)
        if self._watches.get(directory) != wd:
            self._forget(directory)
            self._watches[directory] = wd
            self._paths.setdefault(wd, set()).add(directory)
            if self._marks is not None:
                self._marks.cover(directory)
        self._orphans.discard(wd)
        return True

    def guard_place(self, directory: bytes) -> None:
        """Be told when a directory above a root is moved or removed."""
        with contextlib.suppress(OSError):
            self._places[self.reader.watch(directory, PLACE)] = directory

    def leave(self, directory: bytes) -> None:
        """A directory left its place: forget it and everything below.

        Its watches live on for a moment, because it may arrive elsewhere in the next event.
        """
        below = directory + b"/"
        for path in [p for p in self._watches if p == directory or p.startswith(below)]:
            self._forget(path)
        for path in [p for p in self.missing if p == directory or p.startswith(below)]:
            del self.missing[path]

    def uncover(self, directory: bytes) -> None:
        """Stop watching a directory."""
        self._forget(directory)
        self.missing.pop(directory, None)
        if self._marks is not None:
            self._marks.uncover(directory)

    def reap(self) -> None:
        """End the watches of directories that left and did not arrive."""
        for wd in self._orphans:
            self.reader.unwatch(wd)
        self._orphans.clear()
        if self._marks is not None:
            self._marks.reap()

    def verify(self) -> int:
        """Compare our books with the kernel's list; renew what it does not list.

        Returns:
            How many watches the kernel lists for directories of ours.
        """
        listed = self.reader.kernel_watches()
        for directory, wd in list(self._watches.items()):
            if wd not in listed:
                self._forget(directory)
                self.cover(directory)
        return len(listed & self._paths.keys())

    def events(self, raw: Raw) -> Iterator[Event]:
        """Translate a read's worth of events.

        An overflow has no directories; ``mask`` has ``OVERFLOW``. The event of a directory itself
        has an empty name. Events of unknown watches are left out.
        """
        paths = self._paths
        for wd, mask, name in self.reader.parse(raw):
            if mask & OVERFLOW or wd == self._cookie_watch:
                yield Event(wd, mask, name, ())
                continue
            if mask & IGNORED:
                for path in paths.pop(wd, ()):
                    if self._watches.get(path) == wd:
                        del self._watches[path]
                        if self._marks is not None:
                            self._marks.leave(path)
                self._orphans.discard(wd)
                self._places.pop(wd, None)
                continue
            known = paths.get(wd)
            if known:
                yield Event(wd, mask, name, tuple(known))
            elif wd in self._places and mask & ITSELF_GONE:
                yield Event(wd, mask, b"", (self._places[wd],))

    def _forget(self, directory: bytes) -> None:
        wd = self._watches.pop(directory, None)
        if wd is None:
            return
        if self._marks is not None:
            self._marks.leave(directory)
        known = self._paths.get(wd, set())
        known.discard(directory)
        if not known:
            self._paths.pop(wd, None)
            if wd not in self._places:
                self._orphans.add(wd)


def check_watchdog() -> None:
    """Hold the installed watchdog to what ``Reader`` builds on.

    Raises:
        GuardError: this version of watchdog is built differently.
    """
    wanted: Iterable[tuple[str, tuple[str, ...]]] = (
        ("_read_event_buffer", ("self", "event_buffer_size")),
        ("_parse_event_buffer", ("event_buffer",)),
        ("_get_or_create_watch", ("self", "path", "mask")),
        ("should_keep_running", ("self",)),
        ("stop", ("self",)),
    )
    for name, parameters in wanted:
        method = getattr(InotifyFD, name, None)
        if method is None or tuple(inspect.signature(method).parameters) != parameters:
            raise GuardError(
                f"this version of watchdog has another InotifyFD.{name} than sealrun builds on",
                hint="Install a watchdog that sealrun was tested with: pip install 'watchdog~=7.1'.",
            )
