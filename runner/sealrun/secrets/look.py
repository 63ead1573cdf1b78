"""Looks for keys where a run could carry them: its commit, its variables, what it left.

Rules that this module keeps:

- What was looked at once is not looked at again: answers are kept by blob id and by tree id, so that
  an unchanged commit costs one look-up. They hold where a key is, never the key.
- Time is bounded, and what was not looked at is said; a later look goes on where this one stopped.
- Files that a container left are hostile: no link is followed, nothing but regular files is opened,
  and a large one is looked at in parts.
- Data is known by its names: it is not read for this, for it can be terabytes.
- Trouble with reading is no finding, and never stops a run.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.nested import walk
from sealrun.reasons import Reason
from sealrun.regular import opened
from sealrun.secrets.detect import MOST, VERSION, Key, keys, variable
from sealrun.secrets.names import holder
from sealrun.tree import SYMLINK
from sealrun.verdict import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.data import Dataset
    from sealrun.policy import Policy
    from sealrun.state import Places
    from sealrun.tree import CommittedTree, Entry

#: Bytes of a file that are looked at whole; of a larger one so many from its beginning and its end.
WHOLE, PART = 4 << 20, 1 << 20
#: Bytes of a file that is no text, from its beginning: what frameworks write into a header.
BINARY = 256 << 10
#: Files of one place that are looked at.
FILES = 20_000
#: Seconds that files of a commit may take that were never looked at; `warm` looks at all of them.
NEW = 0.25
#: Seconds that looking at what a run left may take.
LEFT = 0.5
#: Findings of one look; lines of them that are told at once.
FOUND, TOLD = 100, 3


@dataclass(frozen=True)
class Found:
    """Something that looks like a key, and where it stands.

    Attributes:
        place: a path, or the name of a variable.
        key: what it looks like.
        lined: whether the key's line counts from the beginning of a file.
    """

    place: str
    key: Key
    lined: bool = True

    def words(self) -> str:
        """Return it as a sentence; the key itself is no part of it."""
        where = f"{self.place}:{self.key.line}" if self.lined else self.place
        return f"{where} holds what looks like a {self.key.words()}"


@dataclass(frozen=True)
class Looked:
    """What a look found, and what it covered.

    Attributes:
        what: was looked at, for people.
        found: at most ``FOUND``.
        read: bytes that were looked at, of ``size``.
        left: files that were not looked at, or in part.
        stopped: there are more, which were not even counted.
    """

    what: str
    found: tuple[Found, ...] = ()
    read: int = 0
    size: int = 0
    left: int = 0
    stopped: bool = False

    def findings(self) -> Iterator[Finding]:
        """Yield a note for each key."""
        for one in self.found:
            yield Finding(Reason.KEY_FOUND, one.words(), one.place)

    def warnings(self) -> Iterator[str]:
        """Yield a line for each of the first keys, and one for the others."""
        for one in self.found[:TOLD]:
            yield f"warning: {one.words()}"
        if len(self.found) > TOLD:
            yield f"warning: {self.what}: {len(self.found) - TOLD} more; sealrun show lists them"

    @property
    def sentence(self) -> str:
        """What was covered."""
        words = f"{self.what}, for keys"
        if self.size:
            words += f": {self.read} of {self.size} bytes"
        if self.left:
            words += f", {self.left} files in part or not at all"
        if self.stopped:
            words += ", and more that were not counted"
        return f"{words}; found {len(self.found)}"


#: Blobs that are asked for at once (SQLite's oldest limit on variables is 999).
_TOGETHER = 500
#: As what is remembered of a blob without a key.
_NOTHING = "[]"
#: Of a key, as it is remembered: its kind, its line, what may be shown of it.
_FIELDS = 3
#: File of what was found before, in the user's cache.
SEEN = "keys.sqlite"


class Seen:
    """What was found in blobs and trees before, in one SQLite file; it is a cache."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=5, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS seen (version TEXT, id TEXT, found TEXT, "
            "PRIMARY KEY (version, id)) STRICT, WITHOUT ROWID"
        )
        return connection

    def get(self, identity: str) -> str | None:
        """Return what is known of a tree; None where nothing is."""
        with suppress(sqlite3.Error), closing(self._connect()) as connection:
            row = connection.execute(
                "SELECT found FROM seen WHERE version = ? AND id = ?", (VERSION, identity)
            ).fetchone()
            return None if row is None else str(row[0])
        return None

    def some(self, identities: Sequence[str]) -> dict[str, str]:
        """Return what is known of blobs; those of which nothing is are not in it."""
        known: dict[str, str] = {}
        with suppress(sqlite3.Error), closing(self._connect()) as connection:
            for start in range(0, len(identities), _TOGETHER):
                part = identities[start : start + _TOGETHER]
                marks = ",".join("?" * len(part))
                known.update(
                    connection.execute(
                        f"SELECT id, found FROM seen WHERE version = ? AND id IN ({marks})",  # noqa: S608 - question marks
                        (VERSION, *part),
                    )
                )
        return known

    def put(self, rows: Mapping[str, str]) -> None:
        """Remember what was found; what an older table found is forgotten."""
        with suppress(sqlite3.Error), closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM seen WHERE version <> ?", (VERSION,))
            connection.executemany(
                "INSERT OR REPLACE INTO seen VALUES (?, ?, ?)",
                [(VERSION, identity, found) for identity, found in rows.items()],
            )
            connection.execute("COMMIT")


def before_run(
    tree: CommittedTree, policy: Policy, datasets: Sequence[Dataset], places: Places
) -> tuple[Looked, ...]:
    """Look for keys in what a run takes along, for a quarter of a second at most.

    Args:
        tree: of the run's commit.
        policy: that judges it, and names the variables that the container gets.
        datasets: that are mounted.
        places: of the calling user.
    """
    box = policy.sandbox
    passed = {name: os.environ[name] for name in box.pass_variables if name in os.environ}
    return (
        in_commit(tree, Seen(places.cache / SEEN), NEW),
        in_variables({**box.variables, **passed}),
        *((in_names(datasets),) if datasets else ()),
    )


def after_run(log: Path, outputs: Path) -> tuple[Looked, ...]:
    """Look for keys in what a run printed and left, for half a second at most.

    Args:
        log: file of what it printed.
        outputs: directory of its files, beside the log.
    """
    return (in_files((log, outputs), log.parent, LEFT),)


def in_commit(tree: CommittedTree, seen: Seen, seconds: float | None = None) -> Looked:
    """Look for keys in a commit.

    Args:
        tree: of the commit.
        seen: what is known already, and where what is found is remembered.
        seconds: that new files may take; None looks at all of them.
    """
    what, size = "the commit", sum(entry.size for entry in tree.entries)
    # Submodules hang on commits, not on the tree alone.
    identity = " ".join((tree.tree, *(commit for _, commit in tree.submodules)))
    known = _found(seen.get(identity))
    if known is not None:
        return Looked(what, known, size, size)
    answers = seen.some([entry.oid for entry in tree.entries])
    until = None if seconds is None else time.monotonic() + seconds
    new: dict[str, str] = {}
    found: list[Found] = []
    read = left = 0
    for entry in tree.entries:
        answer = answers.get(entry.oid) or new.get(entry.oid)
        keyed = _keys(answer)
        if keyed is None:
            if until is not None and time.monotonic() > until:
                left += 1
                continue
            new[entry.oid] = _of_blob(tree, entry)
            keyed = _keys(new[entry.oid]) or ()
        read += entry.size
        if keyed:
            place = entry.path.decode("utf-8", "backslashreplace")
            found += [Found(place, key) for key in keyed]
    looked = Looked(what, tuple(found[:FOUND]), read, size, left)
    if not left:
        new[identity] = json.dumps(
            [[f.place, f.key.kind, f.key.line, f.key.shown] for f in looked.found]
        )
    if new:
        seen.put(new)
    return looked


def _found(known: str | None) -> tuple[Found, ...] | None:
    """Return what is remembered of a tree; None where nothing is, or rubbish."""
    rows = _rows(known)
    if rows is None or any(len(row) != 1 + _FIELDS for row in rows):
        return None
    return tuple(
        Found(str(place), Key(str(kind), int(line), str(shown)))
        for place, kind, line, shown in rows
    )


def _keys(known: str | None) -> tuple[Key, ...] | None:
    """Return what is remembered of a blob; None where nothing is, or rubbish."""
    if known == _NOTHING:
        # Nearly every blob: not even parsed.
        return ()
    rows = _rows(known)
    if rows is None or any(len(row) != _FIELDS for row in rows):
        return None
    return tuple(Key(str(kind), int(line), str(shown)) for kind, line, shown in rows)


def _rows(known: str | None) -> list[list[str | int]] | None:
    """Return the rows of an answer, each ending in a key's kind, line and public part."""
    if known is None:
        return None
    try:
        rows = json.loads(known)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or not all(
        isinstance(row, list)
        and len(row) >= _FIELDS
        and isinstance(row[-2], int)
        and all(isinstance(one, str) for one in (*row[:-2], row[-1]))
        for row in rows
    ):
        return None
    return rows


def _of_blob(tree: CommittedTree, entry: Entry) -> str:
    if entry.mode == SYMLINK:
        return _NOTHING
    content = tree.read(entry)
    rows: list[tuple[str, int, str]] = []
    for start, part in _parts(content):
        before = content.count(b"\n", 0, start)
        rows += [(key.kind, key.line + before, key.shown) for key in keys(part)]
    return json.dumps(rows[:MOST])


def _parts(content: bytes) -> Iterator[tuple[int, bytes]]:
    if b"\0" in content[:8000]:
        yield 0, content[:BINARY]
    elif len(content) <= WHOLE:
        yield 0, content
    else:
        yield 0, content[:PART]
        yield len(content) - PART, content[-PART:]


def in_variables(variables: Mapping[str, str]) -> Looked:
    """Look for keys in what a container gets as its environment."""
    found = [
        Found(f"the variable {name}", key, lined=False)
        for name, value in variables.items()
        if (key := variable(name, value)) is not None
    ]
    size = sum(len(value) for value in variables.values())
    return Looked("the variables", tuple(found[:FOUND]), size, size)


def in_names(datasets: Sequence[Dataset]) -> Looked:
    """Look for files that hold keys by their name in what is mounted."""
    found: list[Found] = []
    for dataset in datasets:
        root = str(dataset.source)
        for file in dataset.files:
            path = f"{root}/{os.fsdecode(file.path)}" if file.path else root
            whose = holder(path)
            if whose is not None:
                place = path.encode("utf-8", "backslashreplace").decode()
                found.append(
                    Found(f"the data file {place}", Key("key", 1, f"of {whose}"), lined=False)
                )
    count = sum(len(dataset.files) for dataset in datasets)
    return Looked(f"the names of {count} data files", tuple(found[:FOUND]))


def in_files(places: Sequence[Path], below: Path, seconds: float | None = None) -> Looked:
    """Look for keys in files that a run left.

    Args:
        places: files and directories.
        below: what their names are shown relative to.
        seconds: that it may take.
    """
    until = None if seconds is None else time.monotonic() + seconds
    found: list[Found] = []
    read = size = left = 0
    stopped = False
    for number, path in enumerate(_files(places)):
        shown = os.path.relpath(path, below)
        file = opened(path)
        if file is None:
            continue
        with file:
            late = until is not None and time.monotonic() > until
            if late or number >= FILES or len(found) >= FOUND:
                # Nor counted: a run may leave millions.
                stopped = True
                break
            whole = os.fstat(file.fileno()).st_size
            size += whole
            try:
                some, more = _in_file(file.fileno(), whole, shown)
            except OSError:
                left += 1
                continue
        found += more
        read += some
        left += some < whole
    return Looked("what the run left", tuple(found[:FOUND]), read, size, left, stopped)


def _files(places: Iterable[Path]) -> Iterator[str]:
    for place in places:
        if place.is_dir() and not place.is_symlink():
            for directory, below, files in walk(str(place)):
                below.sort()
                yield from (f"{directory}/{name}" for name in sorted(files))
        else:
            yield str(place)


def _in_file(descriptor: int, size: int, shown: str) -> tuple[int, list[Found]]:
    """Return how many bytes of a file were looked at, and what was found in them."""
    head = os.pread(descriptor, WHOLE if size <= WHOLE else PART, 0)
    if b"\0" in head[:8000]:
        head = head[:BINARY]
    found = [Found(shown, key) for key in keys(head)]
    if size <= WHOLE or len(head) < PART:
        return len(head), found
    tail = os.pread(descriptor, PART, size - PART)
    found += [Found(f"{shown}, near its end,", key, lined=False) for key in keys(tail)]
    return len(head) + len(tail), found
