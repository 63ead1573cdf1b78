"""Takes files out of a run's outputs for a program that trusts them.

Rules that this module keeps:

- Every path is opened from the outputs' directory down, one component after the other, and no link
  is followed by the kernel. A link whose text leads to another output is read as that output, because
  clients leave such links; every other one is left out.
- Only regular files are copied, and never more bytes together than the outputs hold.
- A file that is on record by its hash is what the record says, or nothing is taken.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Self

from sealrun.errors import Refused, StorageFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_CHUNK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = _FLAGS | os.O_DIRECTORY
#: Where a container saw what stands below the outputs' directory now.
_WITHIN = {"/workspace/": "workdir/", "/out/": "out/"}
#: Links that are followed one after the other; directories below one another.
_LINKS, _DEPTH = 4, 32


class Missing(Exception):
    """A path is no regular file among the outputs; the text says why."""


class Outputs:
    """The files that a run left.

    Args:
        root: their directory.
        recorded: sha256 of each file that is on record, by its path below the root.
    """

    def __init__(self, root: Path, recorded: Mapping[str, str]) -> None:
        self.root = root
        self.recorded = recorded
        self.left = sum(status.st_size for _, status in self._walk("", 0))

    def files(self, below: str) -> Iterator[str]:
        """Yield the path of each file and link at or below a directory, sorted."""
        yield from (path for path, _ in self._walk(below, 0))

    def _walk(self, below: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
        if depth > _DEPTH:
            return
        with suppress(Missing):
            with (
                closing(_Opened(self._open(below, _DIRECTORY))) as top,
                os.scandir(top.number) as listing,
            ):
                found = [(one.name, one.stat(follow_symlinks=False)) for one in listing]
            for name, status in sorted(found, key=lambda one: one[0]):
                path = f"{below}/{name}" if below else name
                if stat.S_ISDIR(status.st_mode):
                    yield from self._walk(path, depth + 1)
                elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                    yield path, status

    def _open(self, path: str, flags: int) -> int:
        """Open a path from the root down.

        Raises:
            Missing: a component is a link, or is not there.
        """
        try:
            at = os.open(self.root, _DIRECTORY & ~os.O_NOFOLLOW)
            parts = [part for part in path.split("/") if part]
            for number, part in enumerate(parts, 1):
                before = at
                try:
                    at = os.open(part, flags if number == len(parts) else _DIRECTORY, dir_fd=before)
                finally:
                    os.close(before)
        except OSError as error:
            raise Missing(error.strerror or "it cannot be opened") from error
        return at

    def _target(self, path: str) -> str | None:
        """Return which output a link's text names; None where the path is no link."""
        parent, _, name = path.rpartition("/")
        with closing(_Opened(self._open(parent, _DIRECTORY))) as top:
            try:
                text = os.readlink(name, dir_fd=top.number)
            except OSError:
                return None
        for seen, here in _WITHIN.items():
            if text.startswith(seen):
                text = here + text.removeprefix(seen)
                break
        else:
            text = "/" if text.startswith("/") else posixpath.join(parent, text)
        clean = posixpath.normpath(text)
        if clean.startswith(("/", "..")):
            raise Missing("it is a link that leads out of the outputs")
        return clean

    def open(self, path: str) -> Reading:
        """Open a file of the outputs.

        Raises:
            Missing: it is none, or a link to something else.
        """
        for _ in range(_LINKS):
            target = self._target(path)
            if target is None:
                break
            path = target
        number = self._open(path, _FLAGS)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise Missing("it is no regular file")
        return Reading(number, path, self.recorded.get(path))

    def copy(self, path: str, target: Path) -> int:
        """Copy a file; return its size in bytes.

        Raises:
            Missing: it is no file of the outputs.
            Refused: it is not what is on record, or more would be copied than the outputs hold.
            StorageFault: it cannot be written.
        """
        with self.open(path) as source:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as copy:
                    while chunk := source.read(_CHUNK):
                        self.left -= copy.write(chunk)
                        if self.left < 0:
                            raise Refused(
                                "the outputs hold links by which more would be copied than they are",
                                hint="sealrun outputs lists what the run left.",
                            )
                    return copy.tell()
            except OSError as error:
                raise StorageFault(
                    f"cannot copy {path!r}: {error.strerror}", hint="Free space."
                ) from error


class _Opened:
    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        os.close(self.number)


class Reading:
    """A file whose bytes are held against a digest when its end is reached."""

    def __init__(self, number: int, path: str, expected: str | None) -> None:
        self._file = os.fdopen(number, "rb")
        self._path, self._expected = path, expected
        self._digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer at the end, none behind it.

        Raises:
            Refused: they are not what is on record.
        """
        chunk = self._file.read(size)
        self._digest.update(chunk)
        if not chunk and self._expected not in (None, self._digest.hexdigest()):
            raise Refused(
                f"{self._path!r} is not what the run left: its sha256 is another than on record",
                hint="Somebody changed it after the run; nothing was uploaded.",
            )
        return chunk

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
