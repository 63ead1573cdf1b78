"""A layer's bytes, compressed on our disk: half the room or less, and any part of it can be read.

Rules that this module keeps:

- The form is gzip (RFC 1952), many members of one chunk each, so that every engine and tool can read
  it. An extra field of each member's header says how long the member is, packed and plain; a last,
  empty member says both for the whole file.
- The last member and the file's length tell at once whether the file is whole as far as its size
  goes; whether its bytes are right only their hash tells, which whoever reads all of them checks.
- What is damaged is ``Corrupt``, never other bytes: each member has its checksum. A member that
  would unpack to more than it says is damaged too.
- How well it compresses decides nothing but room: a layer is named by its plain bytes.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future, ThreadPoolExecutor
    from pathlib import Path

#: What names of packed files end in.
SUFFIX = ".gz"
#: Plain bytes of each member but the last.
MEMBER = 1 << 20
#: zlib's fastest: the others take three times as long for a tenth less.
_LEVEL = 1
#: Magic, method deflate, flag "extra field", no time, no hint, unknown system (RFC 1952, 2.3).
_HEAD = struct.pack("<HBBIBB", 0x8B1F, 8, 4, 0, 0, 255)
#: Length of the extra field, our mark, length of its content, packed and plain length.
_EXTRA = struct.Struct("<H2sHQQ")
_MARK, _END_MARK = b"sM", b"sE"
_CONTENT = 16
_START = len(_HEAD) + _EXTRA.size
#: Checksum and plain length of a member.
_TAIL = struct.Struct("<II")
#: An empty deflate stream (RFC 1951, 3.2.6).
_NOTHING = b"\x03\x00"
_END_SIZE = _START + len(_NOTHING) + _TAIL.size
_LARGEST = 1 << 26


class Corrupt(OSError):
    """A packed file is not what it was written as."""


class Member(NamedTuple):
    """One member of a packed file.

    Attributes:
        at: where it begins in the file.
        packed: its bytes in the file.
        start: where its content begins in the plain bytes.
        plain: bytes of its content.
    """

    at: int
    packed: int
    start: int
    plain: int


def pack(content: bytes) -> bytes:
    """Return some bytes as one member."""
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = engine.compress(content) + engine.flush()
    size = _START + len(body) + _TAIL.size
    extra = _EXTRA.pack(_EXTRA.size - 2, _MARK, _CONTENT, size, len(content))
    return b"".join((_HEAD, extra, body, _TAIL.pack(zlib.crc32(content), len(content))))


def end(packed: int, plain: int) -> bytes:
    """Return the last member of a file: bytes before it, and plain bytes in all."""
    extra = _EXTRA.pack(_EXTRA.size - 2, _END_MARK, _CONTENT, packed, plain)
    return b"".join((_HEAD, extra, _NOTHING, _TAIL.pack(0, 0)))


class Packer:
    """Packs a stream on several cores; hand its output on in order.

    Call ``feed`` any number of times, then ``finish``; ``close`` gives the threads back.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._pending: deque[Future[bytes]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._workers = min(4, len(os.sched_getaffinity(0)))
        self._packed = 0
        self._plain = 0

    def feed(self, content: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Take plain bytes; yield packed ones that are ready."""
        self._held += content
        while len(self._held) >= MEMBER:
            chunk = bytes(self._held[:MEMBER])
            del self._held[:MEMBER]
            self._plain += len(chunk)
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(self._workers)
            self._pending.append(self._pool.submit(pack, chunk))
            while len(self._pending) > 2 * self._workers:
                yield self._taken(self._pending.popleft().result())

    def finish(self) -> Iterator[bytes]:
        """Yield the rest."""
        while self._pending:
            yield self._taken(self._pending.popleft().result())
        if self._held:
            self._plain += len(self._held)
            yield self._taken(pack(bytes(self._held)))
            self._held.clear()
        yield end(self._packed, self._plain)

    def _taken(self, member: bytes) -> bytes:
        self._packed += len(member)
        return member

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def plain_size(path: Path) -> int:
    """Return the plain bytes of a packed file, from its last member alone.

    Raises:
        Corrupt: it is cut off, or no packed file.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _plain_size(file)


def _plain_size(file: io.RawIOBase | io.FileIO) -> int:
    size = file.seek(0, os.SEEK_END)
    if size < _END_SIZE:
        raise Corrupt("it is cut off")
    file.seek(size - _END_SIZE)
    tail = _exactly(file, _END_SIZE)
    packed, plain = _lengths(tail, _END_MARK)
    if packed != size - _END_SIZE:
        raise Corrupt("it is cut off")
    if tail != end(packed, plain):
        raise Corrupt("it is not as it was written")
    return plain


def _lengths(head: bytes, mark: bytes) -> tuple[int, int]:
    length, found, content, packed, plain = _EXTRA.unpack_from(head, len(_HEAD))
    if not head.startswith(_HEAD) or (length, found, content) != (_EXTRA.size - 2, mark, _CONTENT):
        raise Corrupt("it is not as it was written")
    return packed, plain


def _exactly(file: io.RawIOBase | io.FileIO, size: int) -> bytes:
    pieces: list[bytes] = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    if size:
        raise Corrupt("it is cut off")
    return b"".join(pieces)


class Reader(io.RawIOBase):
    """The plain bytes of a packed file, from any place on.

    Args:
        path: of the file.

    Raises:
        Corrupt: it is cut off, or no packed file; reading raises it too.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        try:
            self.size = _plain_size(self._file)
        except BaseException:
            self._file.close()
            raise
        self._members: list[Member] = []
        self._position = 0
        self._loaded: Member | None = None
        self._content = b""

    def members(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each member as it stands in the file, with its plain bytes; the last has none."""
        number = 0
        while (member := self._member(number)) is not None:
            self._file.seek(member.at)
            packed = _exactly(self._file, member.packed)
            yield packed, _unpacked(packed, member)
            number += 1
        last = self._members[-1] if self._members else Member(0, 0, 0, 0)
        self._file.seek(last.at + last.packed)
        yield _exactly(self._file, _END_SIZE), b""

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read from any place."""
        return True

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place of the plain bytes."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError("a place before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what io hands over
        """Read up to a member's end."""
        if self._position >= self.size or not len(buffer):
            return 0
        member = self._holding(self._position)
        if member is not self._loaded:
            self._file.seek(member.at)
            self._content = _unpacked(_exactly(self._file, member.packed), member)
            self._loaded = member
        offset = self._position - member.start
        piece = self._content[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _holding(self, position: int) -> Member:
        """Return the member that holds a plain byte."""
        # All members but the last hold the same number of bytes; what does not is found by walking.
        number = position // MEMBER
        while (member := self._member(number)) is not None:
            if member.start <= position < member.start + member.plain:
                return member
            number += 1 if member.start + member.plain <= position else -1
            if number < 0:
                break
        raise Corrupt("it holds less than it says")

    def _member(self, number: int) -> Member | None:
        """Return a member by its number; None after the last."""
        while len(self._members) <= number:
            before = self._members[-1] if self._members else Member(0, 0, 0, 0)
            at, start = before.at + before.packed, before.start + before.plain
            if start >= self.size:
                return None
            self._file.seek(at)
            packed, plain = _lengths(_exactly(self._file, _START), _MARK)
            if not (_START + _TAIL.size < packed <= _LARGEST and 0 < plain <= _LARGEST):
                raise Corrupt("it is not as it was written")
            self._members.append(Member(at, packed, start, plain))
        return self._members[number]


def _unpacked(packed: bytes, member: Member) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = engine.decompress(packed[_START : -_TAIL.size], member.plain + 1)
    except zlib.error as error:
        raise Corrupt(f"it cannot be unpacked: {error}") from error
    whole = engine.eof and not engine.unused_data and len(content) == member.plain
    if not whole or (zlib.crc32(content), len(content)) != _TAIL.unpack(packed[-_TAIL.size :]):
        raise Corrupt("its checksum is wrong")
    return content
