"""The list of guarded files that a run hands to the guard, as a file.

Rules that this module keeps:

- Paths are bytes, relative to the workspace, and need not be UTF-8; records end in NUL, which no
  path holds.
- The header names the digest: ``git-sha1`` and ``git-sha256`` are blob ids (the digest of
  ``blob <size>``, NUL and the bytes), ``raw-sha256`` is the digest of the bytes alone.
- What does not parse, leaves the workspace or lists a path twice is refused as a whole: a guard
  that silently guards less is worse than none.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sealrun.errors import GuardError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAGIC = b"sealrun-manifest 1 "
#: Git's modes of what a guard compares: file, executable file, symbolic link.
FILE, EXECUTABLE, LINK = 0o100644, 0o100755, 0o120000
_SUBMODULE = 0o160000
ALGORITHMS = {"git-sha1": 40, "git-sha256": 64, "raw-sha256": 64}
_RECORD = re.compile(rb"(1[0-7]{5}) ([0-9]{1,18}) ([0-9a-f]{40,64})\t(.+)", re.DOTALL)


class Listed(Protocol):
    """What ``sealrun.tree.Entry`` looks like."""

    @property
    def path(self) -> bytes:
        """Relative to the tree's top."""
        ...

    @property
    def mode(self) -> int:
        """Git's mode."""
        ...

    @property
    def oid(self) -> str:
        """Digest in hexadecimal."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the content."""
        ...


class Hasher(Protocol):
    """What hashlib's objects offer of use here."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the digest so far in hexadecimal."""
        ...


@dataclass(frozen=True)
class Guarded:
    """One file as it should be."""

    path: bytes
    mode: int
    size: int
    digest: str

    @property
    def oid(self) -> str:
        """The digest, as ``Listed`` calls it."""
        return self.digest


@dataclass(frozen=True)
class Manifest:
    """All files as they should be, sorted by path."""

    algorithm: str
    files: tuple[Guarded, ...]

    def hasher(self, size: int) -> Hasher:
        """Start a digest of this manifest's kind over content of a known size."""
        if self.algorithm == "raw-sha256":
            return hashlib.sha256()
        digest = (
            hashlib.sha256()
            if self.algorithm == "git-sha256"
            else hashlib.sha1(usedforsecurity=False)
        )
        digest.update(b"blob %d\0" % size)
        return digest


def write_manifest(file: Path, algorithm: str, entries: Iterable[Listed]) -> None:
    """Write a manifest for the guard; submodules (mode 160000) are left out.

    Args:
        file: where; replaced if it exists.
        algorithm: ``sha1`` or ``sha256`` of git's object format, or one of ``ALGORITHMS``.
        entries: tree entries in any order.
    """
    name = {"sha1": "git-sha1", "sha256": "git-sha256"}.get(algorithm, algorithm)
    chosen = sorted((e for e in entries if e.mode != _SUBMODULE), key=lambda e: e.path)
    records = [b"%o %d %s\t%s\0" % (e.mode, e.size, e.oid.encode(), e.path) for e in chosen]
    file.write_bytes(MAGIC + name.encode("ascii") + b"\0" + b"".join(records))


def read_manifest(file: Path) -> Manifest:
    """Read a manifest.

    Raises:
        GuardError: it cannot be read, or is malformed.
    """
    try:
        header, *records = file.read_bytes().split(b"\0")
    except OSError as error:
        raise GuardError(f"cannot read the manifest {file}: {error.strerror}") from error
    algorithm = header[len(MAGIC) :].decode("ascii", "replace")
    if not header.startswith(MAGIC) or algorithm not in ALGORITHMS or records[-1:] != [b""]:
        raise GuardError(f"{file} is not a manifest of this version, or was cut short")
    files: list[Guarded] = []
    last = b""
    for record in records[:-1]:
        match = _RECORD.fullmatch(record)
        if match is None:
            raise GuardError(f"{file} holds a malformed record: {record[:80]!r}")
        mode, size, digest, path = int(match[1], 8), int(match[2]), match[3], match[4]
        if (
            len(digest) != ALGORITHMS[algorithm]
            or mode not in (FILE, EXECUTABLE, LINK)
            or path <= last
            or set(path.split(b"/")) & {b"", b".", b".."}
        ):
            raise GuardError(f"{file} holds an impossible record: {record[:80]!r}")
        last = path
        files.append(Guarded(path, mode, size, digest.decode("ascii")))
    return Manifest(algorithm, tuple(files))
