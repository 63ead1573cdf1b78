"""What the guard found, as records, and the store that keeps the foreign bytes.

Rules that this module keeps:

- Evidence is taken when the bytes appear and is named by its sha256, so that the same bytes are
  kept once, whatever wrote them and however often.
- Evidence is bounded, per file and in all; a record says what was kept and what was not.
- A full disk costs evidence, never the record and never the guard.
- An unknown writer is ``unavailable``; nobody is ever guessed.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sealrun.guard.coverage import Coverage, Moment
    from sealrun.guard.processes import Process

#: Bytes kept of one file, and of one run.
PER_FILE = 1 << 20
PER_RUN = 256 << 20


@dataclass(frozen=True)
class Writer:
    """The process that made a change.

    Attributes:
        how: how it was found: ``live`` (read while it lived), ``cached`` (remembered from process
            events), ``partial`` (not everything, or not everything certain), ``gone`` (its pid
            alone) or ``unavailable``.
        kind: ``loop``, ``experiment``, ``foreign`` or ``unknown``.
        why: why it is not known better, in a few words.
        process: the writer itself; None where it is unavailable.
        parents: nearest first.
    """

    how: str = "unavailable"
    kind: str = "unknown"
    why: str | None = None
    process: Process | None = None
    parents: tuple[Process, ...] = ()


UNAVAILABLE = Writer()


@dataclass(frozen=True)
class Evidence:
    """Bytes that were kept.

    Attributes:
        sha256: of the whole content.
        size: of the whole content.
        kept: bytes that the file holds; less than ``size`` where a bound or the disk cut it.
        file: where they are; None where nothing could be kept.
    """

    sha256: str
    size: int
    kept: int
    file: str | None


@dataclass(frozen=True)
class Mutation:
    """One foreign state of one path; the same state coming back counts up.

    Attributes:
        number: stable within a run; an update of a record has the number of the first.
        path: relative to the workspace, or absolute outside it; bytes, as the kernel has it.
        area: ``tracked``, ``data``, ``root`` or ``mount``.
        kind: ``modified``, ``mode-changed``, ``type-changed``, ``deleted``, ``created``,
            ``detoured`` (a parent directory became a link or a file), ``unreadable``,
            ``metadata-changed`` (data only), ``moved``, ``mounted``, ``unmounted``.
        before: digest that should stand there, with its algorithm: ``git-sha1:…``; None if none.
        after: digest in the same algorithm that stood there; None if there is no content.
        mode: git's mode of what stood there; 0 if none.
        events: what the kernel called it: ``modify``, ``moved-to``, … Empty when a comparison
            found the change and no event told of it.
        first: when it was found first.
        last: when it was found last.
        count: how often the path came into this state.
        restored: the path holds the expected content again.
        final: a comparison found it, not an event.
        earlier: nothing suggests that the file changed within the interval; it most likely stood
            so before.
        writer: who brought the path into this state last.
        candidates: who else might have; never more than that.
    """

    number: int
    path: bytes
    area: str
    kind: str
    before: str | None
    after: str | None
    mode: int
    events: tuple[str, ...]
    first: Moment
    last: Moment
    count: int = 1
    restored: bool = False
    final: bool = False
    earlier: bool = False
    evidence: Evidence | None = None
    writer: Writer = UNAVAILABLE
    candidates: tuple[Writer, ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """A guarded file was written, and whenever we looked its content was the expected one.

    Attributes:
        events: empty of writes when only metadata changed.
        content: whether its content was written; else only its metadata changed.
    """

    path: bytes
    events: tuple[str, ...]
    count: int
    last: Moment
    content: bool


@dataclass(frozen=True)
class GitChange:
    """A change of git's own state.

    Attributes:
        name: path below the git directory, e.g. ``HEAD`` or ``hooks/pre-commit``.
        area: ``head``, ``refs``, ``index``, ``configuration``, ``hooks``, ``info``, ``replace``.
        before: sha256 of what stood there, or for ``head`` the commit id; None if nothing did.
        after: the same of what stands there now.
        writer: who changed it last.
        candidates: who else may have.
    """

    name: str
    area: str
    before: str | None
    after: str | None
    at: Moment
    writer: Writer = UNAVAILABLE
    candidates: tuple[Writer, ...] = ()


@dataclass(frozen=True)
class GitState:
    """What happened to git's own state in an interval.

    Attributes:
        head: commit id that HEAD led to at the beginning; None on an unborn branch.
        head_now: the same at the end.
        branch: full name of the branch at the beginning; None when detached.
        branch_now: the same at the end.
        changes: in the order in which they were found.
    """

    head: str | None
    head_now: str | None
    branch: str | None
    branch_now: str | None
    changes: tuple[GitChange, ...] = ()

    @property
    def head_moved(self) -> bool:
        """Whether HEAD leads elsewhere than at the beginning."""
        return (self.head, self.branch) != (self.head_now, self.branch_now)


@dataclass(frozen=True)
class Report:
    """Everything that the guard knows of one run's interval."""

    coverage: Coverage
    mutations: tuple[Mutation, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    git: GitState | None = None


@dataclass(frozen=True)
class Happened:
    """One entry of the guard's memory of what happened while no run was armed."""

    path: bytes
    area: str
    events: tuple[str, ...]
    at: Moment


class EvidenceStore:
    """Keeps bytes below one directory, by their sha256."""

    def __init__(
        self, directory: Path, *, per_file: int = PER_FILE, per_run: int = PER_RUN
    ) -> None:
        self.directory = directory
        self._per_file = per_file
        #: Bytes that may still be kept.
        self.left = per_run
        #: Bytes of the journal that were written here.
        self.noted = 0
        self._kept: dict[str, Evidence] = {}
        self._uses: Counter[str] = Counter()
        self._made: set[str] = set()

    def keep(self, sha256: str, size: int, head: bytes) -> Evidence:
        """Keep the beginning of some content; the same content costs nothing the second time.

        Args:
            sha256: of the whole content.
            size: of the whole content, in bytes.
            head: its beginning.
        """
        self._uses[sha256] += 1
        known = self._kept.get(sha256)
        if known is not None:
            return known
        data = head[: min(self._per_file, max(self.left, 0))]
        file = self._write(sha256, data, whole=len(data) == size) if data or not size else None
        evidence = Evidence(sha256, size, len(data) if file else 0, str(file) if file else None)
        self.adopt(evidence)
        return evidence

    def adopt(self, evidence: Evidence) -> None:
        """Take over what was kept, here or by a guard that ended."""
        self.left -= evidence.kept
        self._kept[evidence.sha256] = evidence

    def drop(self, sha256: str) -> None:
        """Take back one ``keep``: the bytes were half of a write that went on."""
        self._uses[sha256] -= 1
        if self._uses[sha256] > 0:
            return
        evidence = self._kept.pop(sha256, None)
        if evidence is not None and evidence.file in self._made:
            # What stood there before is somebody else's evidence too.
            self.left += evidence.kept
            self._made.discard(evidence.file)
            with suppress(OSError):
                os.unlink(evidence.file)  # noqa: PTH108 - a name, as records hold it

    def note(self, line: str) -> bool:
        """Append a line to the journal, which outlives the guard; False where it cannot be."""
        return self._append(self.directory / JOURNAL, line.encode("ascii") + b"\n")

    def begin_journal(self, lines: Iterable[str]) -> None:
        """Put a journal of these lines alone in the place of the one so far."""
        draft = self.directory / f".{secrets.token_hex(8)}"
        self.noted = 0
        with suppress(OSError):
            if self._append(draft, b"".join(line.encode("ascii") + b"\n" for line in lines)):
                draft.replace(self.directory / JOURNAL)

    def _append(self, file: Path, data: bytes) -> bool:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(file, flags, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
        except OSError:
            return False
        self.noted += len(data)
        return True

    def _write(self, sha256: str, data: bytes, *, whole: bool) -> Path | None:
        # A cut-off copy is never stored under the name of the whole.
        target = self.directory / sha256[:2] / (sha256 if whole else f"{sha256}.head")
        draft = target.with_name(f".{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if target.exists():
                return target
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
            draft.rename(target)
            self._made.add(str(target))
        except OSError:
            with suppress(OSError):
                draft.unlink()
            return None
        return target


#: Name of the journal in an evidence directory: one JSON object a line, each a mutation.
JOURNAL = "mutations.jsonl"
