"""What a destination offers: lines to read and one to write; how pieces are read back.

Rules that this module keeps:

- A destination is told bytes and digests, and knows nothing of what they mean: a new kind of
  destination is one class.
- A write is complete or not there: its head is replaced last, and names nothing that is missing.
- What is read back is hashed before anybody uses it; more bytes than were promised are not read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sealrun.errors import Fault
from sealrun.mirror.format import HEAD_LIMIT, PIECE, SEGMENT_LIMIT, Damaged, Head, Segment, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.mirror.format import Blob

#: What a directory or a bucket holds, and how it is recognised.
TOP = "sealrun-mirror-1"
#: Folder of the pieces of layers.
LAYERS = "layers"


class Unreachable(Fault):
    """A destination does not answer, is full, or may not be written: it is tried again."""


def folder_of(number: int) -> str:
    """Return the folder of a segment's pieces."""
    return f"parts/{number:06d}"


@dataclass(frozen=True)
class Piece:
    """Bytes to be written.

    Attributes:
        folder: that they stand in.
        digest: their sha256, which is their name.
        size: how many.
        load: reads them; whoever writes them hashes them again.
    """

    folder: str
    digest: str
    size: int
    load: Callable[[], bytes]


@dataclass(frozen=True)
class Change:
    """One step of a line.

    Attributes:
        pieces: that it needs and that were not there before.
        keep: names that stay in each folder that it touches.
        head: the new head.
        pins: commit of each run that it brings.
        words: what it is, for people.
    """

    pieces: Sequence[Piece]
    keep: Mapping[str, frozenset[str]]
    head: bytes
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    words: str = ""


class Readable(Protocol):
    """A line to read."""

    def head(self) -> bytes | None:
        """Return the bytes of its head; None where there is none.

        Raises:
            Unreachable: nobody answers.
        """
        ...

    def piece(self, folder: str, digest: str, limit: int) -> bytes:
        """Return a piece as it is stored, not hashed.

        Args:
            folder: that it stands in.
            digest: its name.
            limit: bytes at most.

        Raises:
            Damaged: it is not there, or larger.
            Unreachable: nobody answers.
        """
        ...

    def close(self) -> None:
        """Give back what reading needed. Safe to repeat."""
        ...

    def unpack(self, repository: Path, packs: Sequence[tuple[int, Blob]]) -> None:
        """Bring the commits that this line carries into a bare repository of ours.

        Args:
            repository: that gets them.
            packs: segments that say that they hold git objects, by number.

        Raises:
            Damaged: git does not take them.
        """
        ...


class Writable(Readable, Protocol):
    """The line that this machine writes.

    Attributes:
        carries_commits: whether ``Change.pins`` is enough, or segments have to hold packs.
    """

    carries_commits: bool

    def write(self, change: Change) -> None:
        """Take one step.

        Raises:
            Unreachable: it was not taken; what stood there still stands.
        """
        ...


def read_head(line: Readable, name: str) -> Head | None:
    """Return the head of a line, checked against the line's name.

    Raises:
        Damaged: it is none of this line.
        Unreachable: nobody answers.
    """
    content = line.head()
    if content is None:
        return None
    if len(content) > HEAD_LIMIT:
        raise Damaged(f"the head of {name} is larger than {HEAD_LIMIT} bytes")
    head = decode(Head, content, f"the head of {name}")
    if head.line != name:
        raise Damaged(f"the head of {name} is the one of {head.line}")
    return head


def read_segment(line: Readable, head: Head, number: int) -> Segment:
    """Return a segment, hashed and checked.

    Raises:
        Damaged: it is missing or not what the head names.
        Unreachable: nobody answers.
    """
    where = f"segment {number}"
    parts = contents(line, folder_of(number), head.segments[number - 1], where, SEGMENT_LIMIT)
    segment = decode(Segment, b"".join(parts), where)
    if segment.number != number:
        raise Damaged(f"{where} says that it is segment {segment.number}")
    return segment


def contents(
    line: Readable, folder: str, blob: Blob, what: str, limit: int | None = None
) -> Iterator[bytes]:
    """Yield the bytes of a blob by pieces, each hashed before it is given away.

    Args:
        line: that holds it.
        folder: that its pieces stand in.
        blob: what it must be.
        what: it is, for messages.
        limit: bytes at most, where there is a bound.

    Raises:
        Damaged: a piece is missing, larger than promised, or not the one that it is named by.
        Unreachable: nobody answers.
    """
    if limit is not None and blob.size > limit:
        raise Damaged(f"{what} is larger than {limit} bytes")
    whole, left = hashlib.sha256(), blob.size
    for digest in blob.pieces:
        expected = min(left, PIECE)
        piece = line.piece(folder, digest, expected)
        if len(piece) != expected:
            raise Damaged(f"{what} was cut: {len(piece)} of {expected} bytes are there")
        if hashlib.sha256(piece).hexdigest() != digest:
            raise Damaged(f"{what} was changed: its bytes do not hash to {digest[:12]}")
        whole.update(piece)
        left -= len(piece)
        yield piece
    if whole.hexdigest() != blob.sha256:
        raise Damaged(f"{what} was changed: its pieces do not make {blob.sha256[:12]}")
