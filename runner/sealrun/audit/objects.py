"""Reads single objects of a repository for an audit, each hashed again before it is believed.

Rules that this module keeps:

- An object that git cannot serve is None; one that does not hash to its id is ``Damaged``. Neither
  ends an audit: a night is judged with what is left of it.
- Nothing is written: no spool, no repository id, no ref. The night was not ours.
- Sizes are bounded: an object that is too large is drained and counted as not known.
"""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sealrun.errors import SealrunError
from sealrun.tree import DIRECTORY, EXECUTABLE, FILE, object_id, parse_tree

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType
    from typing import IO

    from sealrun.git import Repository

#: Bytes of an object that is read: a training script, a tree, a commit.
SIZE_LIMIT = 16 << 20
_CHUNK = 1 << 20
_DATE = re.compile(rb"> (\d{1,15}) [-+]\d{4}$")


class Damaged(Exception):
    """Git serves other bytes than the object's id promises."""


@dataclass(frozen=True)
class Commit:
    """What a commit says about itself.

    Attributes:
        id: full.
        tree: id of its root tree.
        parents: ids, in order.
        at: seconds since 1970 of its committer's clock; None where it is malformed.
        subject: first line of its message.
    """

    id: str
    tree: str
    parents: tuple[str, ...]
    at: int | None
    subject: str


class Objects:
    """A reader of one repository's objects; a context manager that ends its git process."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._process: subprocess.Popen[bytes] | None = None
        self._trees: dict[str, dict[bytes, tuple[int, str]] | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def get(self, oid: str, kind: str) -> bytes | None:
        """Return an object's bytes; None where there is none, or none of this kind.

        Args:
            oid: full id.
            kind: ``commit``, ``tree`` or ``blob``.

        Raises:
            Damaged: they do not hash to the id.
        """
        process, header = self._ask(oid)
        if len(header) < 3 or not header[2].isdigit():  # noqa: PLR2004 - id kind size
            return None
        if process.stdout is None:  # pragma: no cover - popen pipes
            raise AssertionError
        size = int(header[2])
        kept: list[bytes] = []
        left = size + 1  # the line feed after it
        while left:
            chunk = process.stdout.read(min(left, _CHUNK))
            if not chunk:
                raise Damaged(oid)
            left -= len(chunk)
            if size <= SIZE_LIMIT:
                kept.append(chunk)
        if header[1] != kind.encode() or size > SIZE_LIMIT:
            return None
        content = b"".join(kept)[:size]
        if object_id(kind, content, self.repository.algorithm) != oid:
            raise Damaged(oid)
        return content

    def _ask(self, oid: str) -> tuple[subprocess.Popen[bytes], list[bytes]]:
        """Ask for an object; return the process that serves it and the header of its answer."""
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:  # pragma: no cover - popen pipes
            raise AssertionError
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(oid.encode() + b"\n")
            process.stdin.flush()
        header = process.stdout.readline().split()
        if not header:
            # Git ends at a loose object that it cannot unpack; the next call starts another.
            self._end()
            raise Damaged(oid)
        return process, header

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = self.repository.git.popen("cat-file", "--batch")
        if process.stderr is not None:
            # A full pipe of complaints about damaged objects would stop it.
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            self._process.wait()
            self._process = None

    def commit(self, oid: str) -> Commit | None:
        """Return a commit, or None where there is none.

        Raises:
            Damaged: it does not hash to its id.
        """
        content = self.get(oid, "commit")
        if content is None:
            return None
        head, _, message = content.partition(b"\n\n")
        fields = [line.partition(b" ") for line in head.split(b"\n")]
        named = {name: value for name, _, value in reversed(fields)}
        date = _DATE.search(named.get(b"committer", b""))
        return Commit(
            id=oid,
            tree=named.get(b"tree", b"").decode("ascii", "replace"),
            parents=tuple(
                v.decode("ascii", "replace") for name, _, v in fields if name == b"parent"
            ),
            at=int(date[1]) if date else None,
            subject=message.split(b"\n", 1)[0].decode("utf-8", "replace"),
        )

    def entries(self, tree: str) -> dict[bytes, tuple[int, str]]:
        """Return mode and id of each entry of a tree by its name; empty where it is not known."""
        if tree not in self._trees:
            try:
                content = self.get(tree, "tree")
                parsed = parse_tree(content or b"", self.repository.algorithm, b"")
                self._trees[tree] = {name: (mode, oid) for mode, name, oid in parsed}
            except (Damaged, SealrunError):
                self._trees[tree] = None
        return self._trees[tree] or {}

    def file(self, commit: Commit, path: bytes) -> bytes | None:
        """Return the bytes of a regular file of a commit; None where they are not known."""
        tree = commit.tree
        *folders, name = path.split(b"/")
        for folder in folders:
            mode, tree = self.entries(tree).get(folder, (0, ""))
            if mode != DIRECTORY:
                return None
        mode, blob = self.entries(tree).get(name, (0, ""))
        if mode not in (FILE, EXECUTABLE):
            return None
        try:
            return self.get(blob, "blob")
        except Damaged:
            return None

    def files(self, commit: Commit) -> dict[bytes, str]:
        """Return the id of each regular file at the root of a commit's tree, by name."""
        found = self.entries(commit.tree)
        return {name: oid for name, (mode, oid) in found.items() if mode in (FILE, EXECUTABLE)}


def _drain(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while pipe.read(_CHUNK):
            pass
