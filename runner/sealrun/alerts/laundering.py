"""Looks for the bytes of foreign changes in a commit. Pure, but for reading the trees it is given.

Rules that this module keeps:

- The same bytes are found again as a whole (``blob``), also under another name, and in parts
  (``hunk``): what the foreign writer put in or took out, where it did so or moved elsewhere, with the
  loop's own edits around it.
- What stood there before the foreign change is never found: each line is counted against the content
  that the change was made to, and another path against the commit that was current then.
- Lines that say nothing (blank, brackets, ``else:``) are never found alone.
- How much a line says decides how far away from its place it is still found: a short one only there.
- Who meant to write the same is not known here: a loop that chooses the foreign value later is found
  too. Only a human can tell, and accept.
- Time is bounded (see ``hunks``); what is too large to compare by lines is compared as a whole.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import TYPE_CHECKING

from sealrun.alerts.hunks import hunks, is_text, lines_of, pairs
from sealrun.tree import SYMLINK, blob_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sealrun.ledger import WriterFacts
    from sealrun.tree import CommittedTree, Entry

#: Bytes above which contents are compared as a whole only; evidence is cut at the same size.
MOST_BYTES = 1 << 20
#: Line numbers and lines of diff that are told of one path.
MOST_LINES, MOST_DIFF = 200, 40
#: Lines by which the loop's edits may have widened a hunk's place.
_NEAR = 40
#: Letters and digits that lines need to be found away from their place: where the lines that they
#: replaced are gone too, where they were only put in, and for a whole file under another name.
_REPLACED, _INSERTED, _WHOLE = 6, 24, 40
#: How alike two lines are of which one is an edit of the other (difflib's ratio); the longest lines,
#: in characters, that are compared so, and how often for one file.
_ALIKE, _LONG, _COMPARED = 0.6, 400, 1000
#: Digits of a hunk's digest.
_DIGITS = 32
#: Places of one line at which a whole hunk is tried.
_TRIED = 20

_WORD = re.compile(rb"[^\W_]|[\x80-\xff]")
_SAYS_NOTHING = re.compile(
    rb"[^\w\x80-\xff]*((else|try|finally|pass|break|continue|return|end|do|done|fi|then|begin|None)"
    rb"\b[^\w\x80-\xff]*)?"
)


@dataclass(frozen=True)
class Foreign:
    """One foreign state of one path.

    Attributes:
        alert: its id.
        path: relative to the workspace.
        before: what stood there; None where nothing did, or it is not known.
        after: what the foreign writer left; None where it was not kept, or not whole.
        writer: who it was, as far as it is known.
        blob: git's id of ``after``, for where the bytes were not kept.
        base: id of the commit that ``before`` is of; None where it is not known.
        removed: the foreign writer left nothing at the path.
        settled: digests of hunks (``hunk_digests``) that are not looked for: a human accepted them.
    """

    alert: str
    path: bytes
    before: bytes | None
    after: bytes | None
    writer: WriterFacts
    blob: str | None = None
    base: str | None = None
    removed: bool = False
    settled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Laundered:
    """Foreign bytes in a commit.

    Attributes:
        alert: id of the alert that told of them.
        path: in the commit.
        how: ``blob`` or ``hunk``.
        lines: numbers, from 1, of foreign lines in the commit's file; where lines were taken out, of
            the line after the gap. Empty where the file is not compared by lines.
        restore: a diff from the commit's file to one without the foreign change, or a sentence.
        writer: who brought them in, as far as it is known.
        origin: the path at which the foreign writer wrote.
    """

    alert: str
    path: bytes
    how: str
    lines: tuple[int, ...]
    restore: tuple[str, ...]
    writer: WriterFacts
    origin: bytes


def contained(
    tree: CommittedTree,
    foreign: Iterable[Foreign],
    base_of: Callable[[str], CommittedTree | None] = lambda _: None,
) -> tuple[Laundered, ...]:
    """Find foreign bytes in a commit.

    Args:
        tree: the commit.
        foreign: states of open alerts; of several with the same content the first is told.
        base_of: gives the tree of a ``Foreign.base``. Asked for only where a path other than the
            alert's is in question; where it answers None, such a path is compared as a whole alone.

    Returns:
        What was found, by path and then in the order given; at most one of each alert and path.
    """
    lookup = _Lookup(tree, base_of)
    known: set[tuple[object, ...]] = set()
    found: dict[tuple[str, bytes], Laundered] = {}
    for one in foreign:
        content = (one.path, one.before, one.after, one.blob, one.removed)
        if content in known:
            continue
        known.add(content)
        for hit in lookup.of(one):
            found.setdefault((hit.alert, hit.path), hit)
    return tuple(sorted(found.values(), key=lambda hit: hit.path))


def hunk_digests(before: bytes | None, after: bytes | None) -> tuple[str, ...]:
    """Return a short digest for each hunk of a change that says something, in order, each once.

    The same replacement elsewhere in the file, or in a later state of it, has the same digest.
    Contents that cannot be compared by lines have none.
    """
    if not _is_comparable(before, after):
        return ()
    found: dict[str, None] = {}
    for change in _changes(before or b"", after or b""):
        if change.taken or change.brought:
            found.setdefault(change.digest)
    return tuple(found)


# -- a commit ------------------------------------------------------------------------------------


class _Lookup:
    """One commit, asked about many foreign states."""

    def __init__(self, tree: CommittedTree, base_of: Callable[[str], CommittedTree | None]) -> None:
        self.tree = tree
        self.base_of = base_of
        self.by_blob: dict[str, list[Entry]] = {}
        for entry in tree.entries:
            self.by_blob.setdefault(entry.oid, []).append(entry)
        self.searches: dict[tuple[bytes, str], _Search | None] = {}
        self.new: dict[str, list[tuple[Entry, bytes]]] = {}

    def of(self, foreign: Foreign) -> Iterator[Laundered]:
        """Yield where one foreign state is found."""
        algorithm = self.tree.algorithm
        before = None if foreign.before is None else blob_id(foreign.before, algorithm)
        here = self.tree.get(foreign.path)
        if foreign.removed:
            if here is None and before is not None and before not in self.by_blob:
                yield _whole(foreign, foreign.path, (), _back(foreign))
            return
        blob = foreign.blob if foreign.after is None else blob_id(foreign.after, algorithm)
        if blob == before:
            return
        for entry in self.by_blob.get(blob or "", ()):
            if entry.path == foreign.path or self._is_copy(foreign, entry):
                yield _copy(foreign, entry)
        if here is None or here.oid not in (blob, before):
            yield from self._by_hunk(foreign, here)

    def _is_copy(self, foreign: Foreign, entry: Entry) -> bool:
        """Tell whether a whole file is the foreign one under another name."""
        if foreign.after is None or len(_WORD.findall(foreign.after)) < _WHOLE:
            return False
        base = self.base_of(foreign.base) if foreign.base else None
        return base is None or entry.oid not in {other.oid for other in base.entries}

    def _by_hunk(self, foreign: Foreign, here: Entry | None) -> Iterator[Laundered]:
        if not _is_comparable(foreign.before, foreign.after):
            return
        before, after = foreign.before or b"", foreign.after or b""
        changes = [c for c in _changes(before, after) if c.digest not in foreign.settled]
        if here is not None:
            search = self._search(before, here)
            if search is None:
                return
            cures = [(change, search.cure(change)) for change in changes]
            if found := [cure for _, cure in cures if cure is not None]:
                yield _hunk(foreign, here, found, self.tree.read(here))
            elif not (changes or foreign.settled) and (
                words := _ends(here.path, before, after, self.tree.read(here))
            ):
                yield Laundered(
                    *(foreign.alert, here.path, "hunk", (), (words,)), foreign.writer, foreign.path
                )
            # What was replaced here and is gone, though the foreign lines are not here: moved?
            changes = [c for c, cure in cures if cure is None and c.taken & search.missing]
        if changes:
            yield from self._elsewhere(foreign, changes, gone=here is None)

    def _elsewhere(
        self, foreign: Foreign, changes: list[_Change], *, gone: bool
    ) -> Iterator[Laundered]:
        for entry, stood in self._new_since(foreign.base):
            if entry.path == foreign.path:
                continue
            renamed = self._search(foreign.before or b"", entry) if gone and not stood else None
            search = self._search(stood, entry)
            if renamed is not None and renamed.is_successor:
                found = [cure for change in changes if (cure := renamed.cure(change))]
            elif search is not None:
                found = [cure for change in changes if (cure := search.moved(change, gone=True))]
            else:
                continue
            if found:
                yield _hunk(foreign, entry, found, self.tree.read(entry))

    def _new_since(self, base: str | None) -> list[tuple[Entry, bytes]]:
        """Return the files whose content a commit does not hold, and what it holds in their place."""
        if base is None:
            return []
        if base not in self.new:
            old = self.base_of(base)
            known = {entry.oid for entry in old.entries} if old else set[str]()
            fresh = [e for e in self.tree.entries if e.oid not in known] if old else []
            self.new[base] = [(e, _content(old, e.path)) for e in fresh]
        return self.new[base]

    def _search(self, before: bytes, entry: Entry) -> _Search | None:
        """Return a file beside what it was; None where it cannot be compared by lines."""
        key = (before, entry.oid)
        if key not in self.searches:
            search = None
            if entry.mode != SYMLINK and entry.size <= MOST_BYTES:
                committed = self.tree.read(entry)
                if _is_comparable(before, committed):
                    search = _Search(lines_of(before), lines_of(committed))
            self.searches[key] = search
        return self.searches[key]


def _content(tree: CommittedTree | None, path: bytes) -> bytes:
    entry = tree.get(path) if tree else None
    return tree.read(entry) if tree and entry and entry.size <= MOST_BYTES else b""


def _is_comparable(*contents: bytes | None) -> bool:
    return all(c is not None and len(c) <= MOST_BYTES and is_text(c) for c in contents)


# -- parts of a file -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """One hunk of a foreign change.

    Attributes:
        start: of the lines that it replaced, counting from 0; likewise ``end``.
        gone: the lines that it replaced.
        come: the lines that it put there.
        taken: lines of ``gone`` that say something and are not among ``come``.
        brought: the reverse.
    """

    start: int
    end: int
    gone: tuple[bytes, ...]
    come: tuple[bytes, ...]
    taken: Counter[bytes]
    brought: Counter[bytes]

    @property
    def digest(self) -> str:
        """Of what was replaced by what, wherever."""
        digest = hashlib.sha256(b"%d" % len(self.gone))
        for line in (*self.gone, *self.come):
            digest.update(b" %d " % len(line) + line)
        return digest.hexdigest()[:_DIGITS]


def _changes(before: bytes, after: bytes) -> Iterator[_Change]:
    old, new = lines_of(before), lines_of(after)
    for hunk in hunks(old, new):
        gone, come = tuple(old[hunk.start : hunk.end]), tuple(new[hunk.at : hunk.to])
        taken = Counter(filter(_says, gone)) - Counter(come)
        brought = Counter(filter(_says, come)) - Counter(gone)
        yield _Change(hunk.start, hunk.end, gone, come, taken, brought)


@dataclass(frozen=True)
class _Cure:
    """Lines ``start`` to ``end`` of the commit's file should be others.

    Attributes:
        lines: numbers, from 1, of what was found.
    """

    start: int
    end: int
    instead: tuple[bytes, ...]
    lines: tuple[int, ...]


class _Search:
    """One file of a commit beside what it was before the foreign change."""

    def __init__(self, before: list[bytes], committed: list[bytes]) -> None:
        self.before = before
        self.committed = committed
        was, now = Counter(before), Counter(committed)
        self.added, self.missing = now - was, was - now
        self.compared = 0

    @cached_property
    def same(self) -> tuple[list[int], list[int]]:
        """Numbers of the lines that stayed: before, and in the commit."""
        found = pairs(self.before, self.committed)
        return [one for one, _ in found], [other for _, other in found]

    @cached_property
    def places(self) -> dict[bytes, list[int]]:
        """Where each line stands in the commit."""
        places: dict[bytes, list[int]] = {}
        for number, line in enumerate(self.committed):
            places.setdefault(line, []).append(number)
        return places

    @property
    def is_successor(self) -> bool:
        """Whether most of what stood before stands in the commit's file."""
        return 2 * len(self.same[0]) > len(self.before) > 0

    def cure(self, change: _Change) -> _Cure | None:
        """Return what takes a foreign hunk back; None where it is not in the file."""
        # Most commits hold nothing of most alerts: that is seen without pairing any lines.
        if change.brought:
            possible = not self.places.keys().isdisjoint(change.brought)
        else:
            possible = bool(change.taken & self.missing)
        return (self._at_its_place(change) or self.moved(change)) if possible else None

    def moved(self, change: _Change, *, gone: bool = False) -> _Cure | None:
        """Do as ``cure`` for a hunk that is not at its place.

        Args:
            gone: what the hunk replaced is known to be gone from where it stood.
        """
        found = change.brought & self.added
        if not found:
            return None
        gone = gone and bool(change.taken)
        enough = _REPLACED if gone or change.taken & self.missing else _INSERTED
        if sum(len(_WORD.findall(line)) * count for line, count in found.items()) < enough:
            return None
        return self._cure(change, found, 0, len(self.committed))

    def _at_its_place(self, change: _Change) -> _Cure | None:
        (old_low, low), (old_high, high) = self._around(change)
        if high - low > len(change.come) + _NEAR or old_high - old_low > len(change.gone) + _NEAR:
            return None
        was = self.before[old_low:old_high]
        now = self.committed[low:high]
        if change.brought:
            found = change.brought & (Counter(now) - Counter(was))
            return self._cure(change, found, low, high) if found else None
        less = Counter(was) - Counter(now)
        # Not by subtraction: that would walk all of ``missing`` for each hunk.
        if not change.taken or change.taken & less & self.missing != change.taken:
            return None
        above, below = self.before[old_low : change.start], self.before[change.end : old_high]
        kept = [line for line in (*above, *below) if _says(line)]
        if not self._is_edit(kept, [line for line in now if _says(line)]):
            return None
        place = min(low + len(above), high)
        line = min(place + 1, max(len(self.committed), 1))
        return _Cure(place, place, change.gone, (line,))

    def _around(self, change: _Change) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return where the unchanged lines above and below a hunk's place end and begin."""
        old, new = self.same
        first, next_ = bisect_left(old, change.start), bisect_left(old, change.end)
        above = (old[first - 1] + 1, new[first - 1] + 1) if first else (0, 0)
        below = (old[next_], new[next_]) if next_ < len(old) else None
        return above, below or (len(self.before), len(self.committed))

    def _is_edit(self, kept: Sequence[bytes], now: Sequence[bytes]) -> bool:
        """Tell whether lines are others' edit, line for line."""
        return len(kept) == len(now) and all(map(self._is_alike, kept, now))

    def _is_alike(self, one: bytes, other: bytes) -> bool:
        if one == other:
            return True
        self.compared += 1
        if self.compared > _COMPARED:
            return False
        a, b = one.decode("latin-1")[:_LONG], other.decode("latin-1")[:_LONG]
        return SequenceMatcher(None, a, b, autojunk=False).ratio() >= _ALIKE

    def _cure(self, change: _Change, found: Counter[bytes], low: int, high: int) -> _Cure:
        places = {line: self._within(line, low, high) for line in found}
        rarest = min(places, key=lambda line: len(places[line]))
        offset, length = change.come.index(rarest), len(change.come)
        for place in places[rarest][:_TRIED]:
            start = place - offset
            if low <= start and tuple(self.committed[start : start + length]) == change.come:
                numbers = range(start, start + length)
                lines = tuple(n + 1 for n in numbers if self.committed[n] in found)
                return _Cure(start, start + length, change.gone, lines)
        alone = sorted(n for line, at in places.items() for n in at[: found[line]])
        run = next((k for k, n in enumerate(alone) if n != alone[0] + k), len(alone))
        lines = tuple(number + 1 for number in alone)
        return _Cure(alone[0], alone[0] + run, change.gone, lines)

    def _within(self, line: bytes, low: int, high: int) -> list[int]:
        at = self.places[line]
        return at[bisect_left(at, low) : bisect_left(at, high)]


def _says(line: bytes) -> bool:
    """Tell whether a line means anything by itself."""
    return _SAYS_NOTHING.fullmatch(line.strip()) is None


# -- what is told --------------------------------------------------------------------------------


def _hunk(foreign: Foreign, entry: Entry, cures: list[_Cure], committed: bytes) -> Laundered:
    lines = sorted({number for cure in cures for number in cure.lines})
    return Laundered(
        foreign.alert,
        entry.path,
        "hunk",
        tuple(lines[:MOST_LINES]),
        _diff(entry.path, lines_of(committed), cures),
        foreign.writer,
        foreign.path,
    )


def _copy(foreign: Foreign, entry: Entry) -> Laundered:
    before, after = foreign.before or b"", foreign.after or b""
    cures: list[_Cure] = []
    if entry.mode != SYMLINK and _is_comparable(foreign.before, foreign.after):
        old, new = lines_of(before), lines_of(after)
        for hunk in hunks(old, new):
            numbers = range(hunk.at + 1, hunk.to + 1) or (min(hunk.at + 1, max(len(new), 1)),)
            instead = tuple(old[hunk.start : hunk.end])
            cures.append(_Cure(hunk.at, hunk.to, instead, tuple(numbers)))
    if not cures:
        return _whole(foreign, entry.path, (), _back(foreign, entry.path))
    lines = tuple(number for cure in cures for number in cure.lines)[:MOST_LINES]
    return _whole(foreign, entry.path, lines, _diff(entry.path, lines_of(after), cures))


def _whole(
    foreign: Foreign, path: bytes, lines: tuple[int, ...], restore: tuple[str, ...]
) -> Laundered:
    return Laundered(foreign.alert, path, "blob", lines, restore, foreign.writer, foreign.path)


def _back(foreign: Foreign, path: bytes | None = None) -> tuple[str, ...]:
    name, origin = _text(path or foreign.path), _text(foreign.path)
    if foreign.base is not None and name == origin and foreign.before is not None:
        return (f"{name}: its bytes before the foreign change are those of commit {foreign.base}",)
    return (f"{name}: all of it is what the foreign writer left at {origin}",)


def _ends(path: bytes, before: bytes, after: bytes, committed: bytes) -> str | None:
    """Return a sentence where a commit has the line ends that a foreign change gave to a file."""
    was, now = _end_of(before), _end_of(after)
    if was == now or _end_of(committed) != now:
        return None
    return (
        f"{_text(path)}: its lines end with {now} as the foreign writer left them, not with {was}"
    )


def _end_of(content: bytes) -> str:
    return "CRLF" if 2 * content.count(b"\r\n") > content.count(b"\n") else "LF"


def _diff(path: bytes, committed: Sequence[bytes], cures: Iterable[_Cure]) -> tuple[str, ...]:
    """Return the diff from a commit's file to the cured one, with a line around each change."""
    diff = [f"--- {_text(path)} (commit)", f"+++ {_text(path)} (restored)"]
    for cure in sorted(cures, key=lambda cure: cure.start):
        above = max(cure.start - 1, 0)
        diff.append(f"@@ line {cure.start + 1} @@")
        diff += [" " + _text(line) for line in committed[above : cure.start]]
        diff += ["-" + _text(line) for line in committed[cure.start : cure.end]]
        diff += ["+" + _text(line) for line in cure.instead]
        diff += [" " + _text(line) for line in committed[cure.end : cure.end + 1]]
    if len(diff) > MOST_DIFF:
        return (*diff[: MOST_DIFF - 1], f"… {len(diff) - MOST_DIFF + 1} more lines")
    return tuple(diff)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")
