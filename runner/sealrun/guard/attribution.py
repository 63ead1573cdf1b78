"""Who made a mutation: joins the kernel's events about writers to what was found by content.

Rules that this module keeps:

- Never a guess. A writer is named when it alone touched the path, since the last look, in a way
  that can have led to what was found. Where several did, the last is named if their order is
  certain, and the others are candidates; where it is not, the name is ``partial``.
- Attribution explains, it never decides: what it loses costs names. Only that the witness itself was
  killed or stopped is told as ``absent``, because nobody does that without a purpose.
- The guard never waits long for the witness, and not at all for one that has fallen silent.
- Events belong to a directory and a name in it, wherever the directory stands by the time that we
  hear of it: one that moves away and comes back brings along what was done in it. Which directory
  stands at a path is asked of the file system, because of its moves we hear later.
- Who moved a directory here is certain to have made what is in it only if the directory was seen
  before it came: else somebody may have written there before it was.
- Without the privilege everything else works, and each record says what was missing.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sealrun.guard import fanotify
from sealrun.guard.address import stands_still
from sealrun.guard.mutations import Writer
from sealrun.guard.processes import Process
from sealrun.guard.procevents import LOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

log = logging.getLogger("sealrun.guard")

#: Seconds that a look waits at most for the events before it, and once for a witness that has just
#: been started: what happens meanwhile waits in the kernel's queue.
PATIENCE, START = 0.5, 3.0
#: Paths whose events are remembered, and events of one.
PATHS, EVENTS = 20_000, 64

UNHEARD = "its directory came at that time, and nobody was seen in it before"

#: Process and parents, how they are known, and why not better.
_Facts = tuple[list[Any], str, str]

_WELL = ("live", "cached")
_ARRIVED = fanotify.CREATE | fanotify.MOVED_TO
_GONE = fanotify.DELETE | fanotify.MOVED_FROM
_STRONG = _ARRIVED | fanotify.MODIFY
#: What can have led to each kind of mutation: on the path itself, and on a directory above it.
_ABLE: dict[str, tuple[int, int]] = {
    "modified": (_STRONG | fanotify.CLOSE_WRITE, fanotify.MOVED_TO),
    "created": (_STRONG | fanotify.CLOSE_WRITE, fanotify.MOVED_TO),
    "type-changed": (_ARRIVED, fanotify.MOVED_TO),
    "mode-changed": (_ARRIVED | fanotify.ATTRIBUTE, fanotify.MOVED_TO),
    "metadata-changed": (_STRONG | fanotify.ATTRIBUTE | fanotify.CLOSE_WRITE, fanotify.MOVED_TO),
    "deleted": (_GONE, _GONE),
    "detoured": (0, _ARRIVED),
    "unreadable": (_ARRIVED | fanotify.ATTRIBUTE, _ARRIVED | fanotify.ATTRIBUTE),
}


@dataclass(frozen=True)
class Seen:
    """One or more equal events of one process on one path.

    Attributes:
        position: among all events; the last one's.
        batch: events of one batch may have been merged by the kernel, so that their order is lost.
        mask: fanotify's.
        serial: the process; no other process has it.
        writer: what is known of it.
        unheard: why what others did after it may not have been heard.
    """

    position: int
    batch: int
    mask: int
    serial: int
    writer: Writer
    unheard: str | None = None


def judge(
    kind: str, own: Iterable[Seen], above: Iterable[Seen], *, steady: bool = True
) -> tuple[Writer | None, tuple[Writer, ...]]:
    """Say who can have made a mutation.

    Args:
        kind: of the mutation.
        own: events on the path since the last look at it.
        above: the same on the directories above it.
        steady: nothing changed the path between the look and the last of these events.

    Returns:
        The writer and who else might have been it. None where nobody can be named.
    """
    on_path, on_directory = _ABLE.get(kind, (0, 0))
    able = [one for one in own if one.mask & on_path]
    able += [one for one in above if one.mask & on_directory]
    able.sort(key=lambda one: one.position)
    strong = [one for one in able if one.mask & ~fanotify.CLOSE_WRITE & on_path or one in above]
    by_process = {one.serial: one for one in able}
    if not by_process:
        return None, ()
    chosen = (strong or able)[-1]
    others = [one for serial, one in by_process.items() if serial != chosen.serial]
    writer = _best(one.writer for one in able if one.serial == chosen.serial)
    if chosen.unheard is not None:
        writer = replace(writer, how="partial", why=chosen.unheard)
    if not others:
        return writer, ()
    candidates = tuple(one.writer for one in reversed(others))
    if not steady:
        if len({one.serial for one in strong}) == 1:
            # The others had it open for writing; they can have written by a mapping, unseen.
            why = "another process had it open for writing at that time"
            return replace(writer, how="partial", why=why), candidates
        several = Writer(why="several processes wrote at that time")
        return several, (writer, *candidates)
    ordered = all(one.position < chosen.position and one.batch != chosen.batch for one in others)
    if ordered:
        return writer, candidates
    why = "another process wrote at about that time"
    return replace(writer, how="partial", why=why), candidates


def _best(known: Iterable[Writer]) -> Writer:
    """Return what was known of one process at last, or before that where it was known better.

    One that has called exec since is known better by nothing that was seen before.
    """
    best = Writer()
    for writer in known:
        same = _program(best) == _program(writer)
        better = writer.how in _WELL and not (same and best.how == "live")
        became = writer.how == "partial" and _exe(writer) != _exe(best)
        if best.how not in _WELL or better or became:
            best = writer
    return best


def _exe(writer: Writer) -> str | None:
    return writer.process.exe if writer.process is not None else None


def _program(writer: Writer) -> tuple[str | None, tuple[str, ...] | None] | None:
    process = writer.process
    return None if process is None else (process.exe, process.cmdline)


class Attribution:
    """Keeps marks on directories and remembers who touched what in them."""

    def __init__(self) -> None:
        self._group = -1
        self._witness: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        # By key: where it stands as far as was heard, where it stood last, where it was marked first
        # and at which position.
        self._directories: dict[bytes, set[bytes]] = {}
        self._left: dict[bytes, bytes] = {}
        self._marked: dict[bytes, tuple[bytes, int]] = {}
        self._keys: dict[bytes, bytes] = {}
        self._unmarked: dict[bytes, str] = {}
        self._touched: OrderedDict[tuple[bytes, bytes], deque[Seen]] = OrderedDict()
        self._lock = threading.Condition()
        self._position = self._batch = self._asked = self._answered = 0
        self._silent = self._ready = False
        # The last loss of anything, and the last of which somebody may have written unheard.
        self._loss: tuple[int, str] | None = None
        self._unheard: tuple[int, str] | None = None
        self.why: str | None = None
        self.deaf: str | None = None

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to see writers, where we may."""
        try:
            self._group = fanotify.open_group()
        except OSError as error:
            needs = "naming writers needs CAP_SYS_ADMIN"
            self.why = (
                needs if isinstance(error, PermissionError) else f"fanotify: {error.strerror}"
            )
            log.info("writers are not named: %s", self.why)
            return
        self.revive()

    def revive(self) -> None:
        """Start the witness again if it ended or stands still."""
        if self._group < 0:
            return
        if self._witness is not None and self._witness.poll() is None:
            if not stands_still(self._witness.pid):
                return
            self._witness.kill()
            self._witness.wait()
        ours, theirs = socket.socketpair()
        try:
            self._witness = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-m", "sealrun.guard.witness"),
                    *(str(self._group), str(theirs.fileno())),
                ],
                stdin=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(self._group, theirs.fileno()),
            )
        except OSError as error:
            self.why = f"the process that names writers cannot start: {error.strerror}"
            ours.close()
            return
        finally:
            theirs.close()
        self.why, self._link, self._silent, self._ready = None, ours, False, False
        threading.Thread(target=self._listen, args=(ours,), daemon=True, name="writers").start()

    @property
    def absent(self) -> str | None:
        """What became of a witness that was at work; None while it can work, or where none could."""
        if self._witness is None or not self._ready:
            return None
        if self._witness.poll() is not None:
            return "the process that names writers ended"
        if stands_still(self._witness.pid):
            return "the process that names writers was stopped"
        return None

    def stop(self) -> None:
        """End the witness."""
        if self._link is not None:
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)
        if self._witness is not None:
            try:
                self._witness.wait(1)
            except subprocess.TimeoutExpired:
                self._witness.kill()
                self._witness.wait()
        if self._group >= 0:
            os.close(self._group)
            self._group = -1

    # -- marks -------------------------------------------------------------------------------

    def cover(self, directory: bytes) -> None:
        """See who changes something in a directory, where its file system can tell."""
        if self._group < 0:
            return
        try:
            key = fanotify.mark(self._group, directory)
        except OSError as error:
            self._unmarked[directory] = f"fanotify: {error.strerror}"
            return
        self._unmarked.pop(directory, None)
        with self._lock:
            old = self._drop(directory)
            if old is not None and old not in self._directories:
                self._left[old] = directory
            self._keys[directory] = key
            self._directories.setdefault(key, set()).add(directory)
            self._left.pop(key, None)
            if key not in self._marked:
                self._position += 1
                self._marked[key] = directory, self._position

    def leave(self, directory: bytes) -> None:
        """Forget where a directory stood; it may arrive elsewhere, so it is seen until ``reap``."""
        self._unmarked.pop(directory, None)
        with self._lock:
            key = self._drop(directory)
            if key is not None and key not in self._directories:
                self._left[key] = directory

    def uncover(self, directory: bytes) -> None:
        """Stop seeing a directory, unless it stands in another place as well."""
        self.leave(directory)
        with self._lock:
            gone = [key for key, last in self._left.items() if last == directory]
            for key in gone:
                del self._left[key], self._marked[key]
        for key in gone:
            with suppress(OSError):
                fanotify.unmark(self._group, directory, key)

    def reap(self) -> None:
        """Forget directories that left and did not arrive.

        One that stands where it stood has come back, of which we shall hear.
        """
        left = self._left.items()  # only the guard's own thread changes it
        gone = [key for key, directory in left if fanotify.key_of(directory) != key]
        with self._lock:
            for key in gone:
                del self._left[key], self._marked[key]

    def _drop(self, directory: bytes) -> bytes | None:
        key = self._keys.pop(directory, None)
        if key is not None:
            known = self._directories[key]
            known.discard(directory)
            if not known:
                del self._directories[key]
        return key

    # -- events ------------------------------------------------------------------------------

    def _listen(self, link: socket.socket) -> None:
        try:
            with link, link.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            log.warning("the process that names writers is not understood: %r", error)
        with self._lock:
            self._lose("the process that names writers ended")
            if self._link is link:
                self._link = None
            self._lock.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        with self._lock:
            if "ready" in message:
                self._ready = True
                self.deaf = message["ready"] or None
                if self.deaf:
                    log.info("writers that end at once are not named: %s", self.deaf)
            self._batch += 0 if "on" in message else 1
            for directory, name, mask, place, how, why in message.get("touched", ()):
                serial, *line = message["who"][place]
                self._touch(bytes.fromhex(directory), name, mask, serial, (line, how, why))
            for text in message.get("lost", ()):
                self._lose(str(text))
            if "sync" in message:
                self._answered = int(message["sync"])
                self._silent = False
                self._lock.notify_all()

    def _lose(self, text: str) -> None:
        self._position += 1
        self._loss = (self._position, text)
        if text != LOST:
            self._unheard = (self._position, text)
        log.warning("writers: %s", text)

    def _touch(self, key: bytes, name: str, mask: int, serial: int, facts: _Facts) -> None:
        if name == "." or key not in self._marked:
            return
        self._position += 1
        writer = _writer(*facts)
        place = key, name.encode("latin-1")
        events = self._touched.setdefault(place, deque(maxlen=EVENTS))
        self._touched.move_to_end(place)
        last = events[-1] if events else None
        if last is not None and (last.serial, last.mask) == (serial, mask):
            events.pop()
            writer = _best((last.writer, writer))
        events.append(Seen(self._position, self._batch, mask, serial, writer))
        while len(self._touched) > PATHS:
            self._touched.popitem(last=False)

    # -- answers -----------------------------------------------------------------------------

    def settle(self) -> int:
        """Wait until every event of a write before this call is known, within ``PATIENCE`` or ``START``.

        Returns:
            The position of the last event that is known now.
        """
        with self._lock:
            link = self._link
            if link is None or self._silent:
                return self._position
            self._asked += 1
            wanted = self._asked
        with suppress(OSError):
            link.sendall(b"%d\n" % wanted)
        with self._lock:
            self._lock.wait_for(
                lambda: self._answered >= wanted or self._link is not link,
                PATIENCE if self._ready else START,
            )
            if self._answered < wanted and self._link is link:
                self._silent = True
                self._lose("the process that names writers does not answer")
            return self._position

    def name(
        self, path: bytes, kind: str, since: int, *, steady: bool = True
    ) -> tuple[Writer, tuple[Writer, ...]]:
        """Say who made a mutation.

        Args:
            path: absolute.
            kind: of the mutation.
            since: position up to which events are explained by earlier looks.
            steady: nothing changed the path since it was looked at.
        """
        if self.why is not None:
            return Writer(why=self.why), ()
        below, _, name = path.rpartition(b"/")
        places = [(below, name)]
        while below:
            below, _, name = below.rpartition(b"/")
            places.append((below, name))
        standing = {directory: fanotify.key_of(directory) for directory, _ in places if directory}
        with self._lock:
            own = self._since(*places[0], standing, since)
            above: list[Seen] = []
            came: str | None = None
            for (directory, _), upper in pairwise(places):
                came = came or self._came(directory, standing, since)
                seen = self._since(*upper, standing, since)
                above += [replace(one, unheard=came or one.unheard) for one in seen]
            # What a silent witness has not told yet may be newer than the look, whenever it fell silent.
            lost, unheard = self._lost(self._loss, since), self._lost(self._unheard, since)
        writer, candidates = judge(kind, own, above, steady=steady)
        if writer is None:
            unmarked = self._unmarked.get(path.rpartition(b"/")[0])
            return Writer(why=lost or unmarked or "no event said who it was"), ()
        if lost is not None and writer.process is not None:
            writer = replace(writer, how="partial", why=lost)
        if unheard is not None and writer.process is not None:
            # Whoever's event was lost may have been the last: then it was not who is named here.
            candidates = (*candidates, Writer(why=unheard))
        return writer, candidates

    def _lost(self, loss: tuple[int, str] | None, since: int) -> str | None:
        return loss[1] if loss is not None and (self._silent or loss[0] > since) else None

    def _since(
        self, directory: bytes, name: bytes, standing: dict[bytes, bytes | None], since: int
    ) -> list[Seen]:
        key, unheard = standing.get(directory), None
        if key not in self._marked:
            # Nothing that was done in the one that stands there was heard; another stood there.
            unheard = UNHEARD if key is not None else None
            key = self._keys.get(directory) or next(
                (key for key, last in self._left.items() if last == directory), None
            )
        events = () if key is None else self._touched.get((key, name), ())
        return [replace(one, unheard=unheard) for one in events if one.position > since]

    def _came(
        self, directory: bytes, standing: dict[bytes, bytes | None], since: int
    ) -> str | None:
        """Say why writers may have been in a directory since then of whom nothing was heard."""
        key = standing.get(directory)
        if key is None:
            return None
        first, position = self._marked.get(key, (directory, self._position + 1))
        return UNHEARD if first == directory and position > since else None


def _writer(facts: Sequence[Sequence[Any]], how: str, why: str | None) -> Writer:
    process, *parents = map(_process, facts)
    return Writer(how=how, why=why, process=process, parents=tuple(parents))


def _process(values: Sequence[Any]) -> Process:
    known = dict(zip((field.name for field in fields(Process)), values, strict=True))
    if known["cmdline"] is not None:
        known["cmdline"] = tuple(known["cmdline"])
    return _shared(Process(**known))


@lru_cache(maxsize=8192)
def _shared(process: Process) -> Process:
    """Return the first of equal processes: thousands of records share their parents."""
    return process
