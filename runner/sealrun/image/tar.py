"""Tar headers, as few and as plain as a deterministic layer needs.

Rules that this module keeps:

- The same arguments give the same bytes: owner 0:0 without names, one constant time, no device
  numbers, nothing of this machine.
- GNU tar's format throughout ("Basic Tar Format" and "GNU Extensions" in its manual). A path of a
  git tree is any bytes but NUL; POSIX.1-2001 extended headers hold UTF-8 by definition, GNU's long
  names are bytes, and Go's archive/tar, which every engine unpacks with, reads them unchanged.
- Only what a git tree can hold: files, directories, symlinks.
"""

from __future__ import annotations

from sealrun.image.model import MTIME

BLOCK = 512
#: What ends an archive: two blocks of zeros.
END = bytes(2 * BLOCK)

FILE = b"0"
SYMLINK = b"2"
DIRECTORY = b"5"
_LONG_NAME = b"L"
_LONG_TARGET = b"K"

#: Bytes of a name or a target in the header itself.
_SHORT = 100
#: Eleven octal digits; a larger size is written in base 256 (GNU).
_OCTAL_SIZE = 1 << 33
_MAGIC = b"ustar  \0"
#: Magic, then user, group, device and unused fields, all empty.
_TAIL = _MAGIC.ljust(255, b"\0")
_PLACE = b"        "
#: User 0 and group 0.
_ROOT = b"0000000\0" * 2


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of ``size`` bytes of content."""
    return bytes(-size % BLOCK)


def header(name: bytes, kind: bytes, mode: int, size: int = 0, target: bytes = b"") -> bytes:
    """Return the header blocks of one member.

    Args:
        name: path in the archive, without a leading slash; a directory's ends in one.
        kind: ``FILE``, ``SYMLINK`` or ``DIRECTORY``.
        mode: permission bits.
        size: bytes of content that follow.
        target: of a symlink.
    """
    blocks = b""
    if len(target) > _SHORT:
        blocks += _long(_LONG_TARGET, target)
    if len(name) > _SHORT:
        blocks += _long(_LONG_NAME, name)
    return blocks + _block(name[:_SHORT], kind, b"%07o\0" % mode, size, MTIME, target[:_SHORT])


def _long(kind: bytes, value: bytes) -> bytes:
    content = value + b"\0"
    head = _block(b"././@LongLink", kind, b"0000644\0", len(content), 0, b"")
    return head + content + padding(len(content))


def _block(name: bytes, kind: bytes, mode: bytes, size: int, mtime: int, target: bytes) -> bytes:
    length = (
        b"%011o\0" % size if size < _OCTAL_SIZE else b"\x80" + size.to_bytes(11, byteorder="big")
    )
    front = b"%b%b%b%b%011o\0" % (name.ljust(_SHORT, b"\0"), mode, _ROOT, length, mtime)
    back = b"%b%b%b" % (kind, target.ljust(_SHORT, b"\0"), _TAIL)
    # The checksum is the sum of all bytes, its own field taken as spaces.
    return b"%b%06o\0 %b" % (front, sum(front) + sum(_PLACE) + sum(back), back)
