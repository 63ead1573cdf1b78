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
- Who moved a directory here, or removed one, is certain to have made what is in it, or is not any
  more, only where everybody who was in it was seen (``sealrun.guard.directories``).
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
import time
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sealrun.guard import fanotify
from sealrun.guard.address import stands_still
from sealrun.guard.directories import UNHEARD, Directories
from sealrun.guard.mutations import Writer
from sealrun.guard.processes import Process
from sealrun.guard.procevents import LOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sealrun.guard.directories import Level

log = logging.getLogger("sealrun.guard")

#: How often a look waits at most for the events before it, and once for a witness that has just been
#: started: what happens meanwhile waits in the kernel's queue. Waits are counted, not seconds: on a
#: machine that stood still for long the witness has not been silent.
PATIENCE, START = 5, 30
#: Seconds of each wait.
WAIT = 0.1
#: Seconds for which a directory that left is remembered.
LINGER = 1.0
#: Paths whose events are remembered, and events of one.
PATHS, EVENTS = 20_000, 64

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
    seen = [(one, False) for one in own] + [(one, True) for one in above]
    seen.sort(key=lambda pair: pair[0].position)
    if kind == "deleted":
        seen = _removed(seen, steady=steady)
    able = [
        (one, of_directory)
        for one, of_directory in seen
        if one.mask & (on_directory if of_directory else on_path)
    ]
    strong = [pair for pair in able if pair[1] or pair[0].mask & ~fanotify.CLOSE_WRITE & on_path]
    if not able:
        return None, ()
    # What is gone cannot be removed again; else the last to write is who made it what it is.
    chosen, of_directory = able[0] if kind == "deleted" else (strong or able)[-1]
    by_process = {one.serial: one for one, _ in able}
    others = [one for serial, one in by_process.items() if serial != chosen.serial]
    candidates = tuple(one.writer for one in reversed(others))
    writer = _best(one.writer for one, _ in able if one.serial == chosen.serial)
    why = chosen.unheard
    if steady:
        close = any(one.batch == chosen.batch for one in others)
        if close or (kind != "deleted" and any(one.position > chosen.position for one in others)):
            why = "another process wrote at about that time"
    elif others and len({one.serial for one, _ in strong}) > 1:
        several = Writer(why="several processes wrote at that time")
        return several, (writer, *candidates)
    elif others:
        # They can have written by a mapping, unseen.
        why = "another process had it open for writing at that time"
    elif of_directory:
        why = "it changed again at that time"
    return (writer if why is None else replace(writer, how="partial", why=why)), candidates


def _removed(seen: list[tuple[Seen, bool]], *, steady: bool) -> list[tuple[Seen, bool]]:
    """Leave out what cannot have removed a file: it was there again later, or had to be gone before.

    Args:
        seen: events, and whether each is of a directory above the file; in their order.
        steady: it is still gone.
    """
    back = {False: -1, True: -1}
    for one, of_directory in seen:
        if steady and one.mask & _ARRIVED and not one.mask & _GONE:
            back[of_directory] = one.position
    back[True] = max(back.values())
    gone = [
        (one, of_directory)
        for one, of_directory in seen
        if one.mask & _GONE and one.position > back[of_directory]
    ]
    # Who removes a directory has removed what was in it, or found it empty.
    sure = [pair for pair in gone if not pair[1] or pair[0].mask & fanotify.MOVED_FROM]
    why = "it removed the directory, and who removed what was in it was not seen"
    return sure or [(replace(one, unheard=one.unheard or why), above) for one, above in gone]


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
        self._directories = Directories()
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
            self._position += 1
            self._directories.cover(directory, key, self._position, time.monotonic())

    def leave(self, directory: bytes) -> None:
        """Hear that a directory left its place; it may arrive elsewhere, so it is seen for ``LINGER``."""
        self._unmarked.pop(directory, None)
        with self._lock:
            self._directories.leave(directory, time.monotonic())

    def uncover(self, directory: bytes) -> None:
        """Stop seeing a directory, unless it stands in another place as well."""
        self._unmarked.pop(directory, None)
        with self._lock:
            key = self._directories.leave(directory, time.monotonic())
        if key is not None:
            self._forget(key, directory)

    def reap(self) -> None:
        """Stop seeing directories that left long ago and did not arrive."""
        for key, directory in self._directories.left(time.monotonic() - LINGER):
            self._forget(key, directory)

    def _forget(self, key: bytes, directory: bytes) -> None:
        with self._lock:
            self._directories.forget(key)
        with suppress(OSError):
            fanotify.unmark(self._group, directory, key)

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
        if name == "." or key not in self._directories:
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
            for _ in range(PATIENCE if self._ready else START):
                if self._lock.wait_for(
                    lambda: self._answered >= wanted or self._link is not link, WAIT
                ):
                    break
            if self._answered < wanted and self._link is link:
                self._silent = True
                self._lose("the process that names writers does not answer")
            return self._position

    def name(
        self, path: bytes, kind: str, since: int, *, steady: Callable[[], bool] = lambda: True
    ) -> tuple[Writer, tuple[Writer, ...]]:
        """Say who made a mutation.

        Args:
            path: absolute.
            kind: of the mutation.
            since: position up to which events are explained by earlier looks.
            steady: tells whether nothing changed the path since it was looked at.
        """
        if self.why is not None:
            return Writer(why=self.why), ()
        directory = path.rpartition(b"/")[0]
        standing = fanotify.keys_along(directory)
        # Asked now, so that what stands there is what was looked at.
        still = steady()
        with self._lock:
            levels = self._directories.levels(
                path,
                standing,
                since,
                # Of what does not exist, nothing tells where it did not.
                surely=still and kind != "deleted",
                why=self._unmarked,
            )
            own, above = self._seen(levels, since, gone=kind == "deleted")
            # What a silent witness has not told yet may be newer than the look, whenever it fell silent.
            lost, unheard = self._lost(self._loss, since), self._lost(self._unheard, since)
        writer, candidates = judge(kind, own, above, steady=still)
        if writer is None:
            unmarked = self._unmarked.get(directory)
            return Writer(why=lost or unmarked or "no event said who it was"), ()
        if lost is not None and writer.process is not None:
            writer = replace(writer, how="partial", why=lost)
        if unheard is not None and writer.process is not None:
            # Whoever's event was lost may have been the last: then it was not who is named here.
            candidates = (*candidates, Writer(why=unheard))
        return writer, candidates

    def _lost(self, loss: tuple[int, str] | None, since: int) -> str | None:
        return loss[1] if loss is not None and (self._silent or loss[0] > since) else None

    def _seen(
        self, levels: Sequence[Level], since: int, *, gone: bool
    ) -> tuple[list[Seen], list[Seen]]:
        """Return what was seen on a path and on the directories above it.

        Args:
            levels: its own directory first.
            since: position.
            gone: nothing stands there, so that nobody can have filled it unseen.
        """
        own: list[Seen] = []
        above: list[Seen] = []
        came: str | None = None
        for depth, level in enumerate(levels):
            for key in level.keys:
                marked = self._directories.since(key)
                for one in self._touched.get((key, level.name), ()):
                    spoiled = one.mask & _ARRIVED if depth else one.mask == fanotify.CLOSE_WRITE
                    unheard = UNHEARD if one.position < marked else None
                    if not gone:
                        unheard = unheard or level.unheard
                        if spoiled:
                            unheard = unheard or (came if depth else level.came)
                    if one.position > since:
                        (above if depth else own).append(replace(one, unheard=unheard))
            came = came or level.came
        return own, above


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
