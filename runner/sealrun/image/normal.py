"""Turns an archive made by anybody into a layer whose bytes depend on its files alone.

Rules that this module keeps:

- Members stand in the order of their paths, parents before children; owner, time and everything
  else that a machine adds is constant (``tar``); set-user-id and set-group-id bits are dropped.
- Files, directories, symlinks and hard links between files; devices, sockets and FIFOs are left
  out, the engine brings its own.
- Of files that are one (hard links), the first in order carries the content.
- Which paths are kept, and what is put in their place, is decided by the caller, purely.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.image import tar

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from sealrun.image.model import Layer
    from sealrun.image.store import LayerStore

#: Type flag of a hard link ("Basic Tar Format" in GNU tar's manual); git trees have none.
HARD_LINK = b"1"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """One path of a layer.

    Attributes:
        path: relative, no leading slash, none at the end.
        kind: ``tar.FILE``, ``tar.DIRECTORY``, ``tar.SYMLINK`` or ``HARD_LINK``.
        mode: permission bits.
        size: bytes that ``open`` yields; 0 for anything but a file.
        target: of a symlink as it stands; of a hard link the other path in the layer.
        open: opens the content of a file.
    """

    path: bytes
    kind: bytes
    mode: int
    size: int = 0
    target: bytes = b""
    open: Callable[[], BinaryIO] | None = None


def directory(path: bytes, mode: int = 0o755) -> Member:
    """Return a directory."""
    return Member(path, tar.DIRECTORY, mode)


def file(path: bytes, content: bytes, mode: int = 0o644) -> Member:
    """Return a small file whose bytes are given."""
    return Member(path, tar.FILE, mode, len(content), open=lambda: io.BytesIO(content))


def file_at(path: bytes, source: Path, mode: int = 0o644) -> Member:
    """Return a file whose bytes stand in a file of this host."""

    def opened() -> BinaryIO:
        return source.open("rb")

    return Member(path, tar.FILE, mode, source.stat().st_size, open=opened)


def symlink(path: bytes, target: bytes) -> Member:
    """Return a symlink."""
    return Member(path, tar.SYMLINK, 0o777, target=target)


def members_of(archive: tarfile.TarFile, keep: Callable[[bytes], bool]) -> dict[bytes, Member]:
    """List an archive's members by path, those that ``keep`` accepts.

    The archive must stay open, and seekable, for as long as the members are read.
    """
    found: dict[bytes, Member] = {}
    links: dict[bytes, list[bytes]] = {}
    for info in archive:
        path = _plain(info.name)
        if info.islnk():
            links.setdefault(_plain(info.linkname), []).append(path)
        elif path and (member := _member(archive, info, path)):
            found[path] = member
    for source, others in links.items():
        _relink(found, source, others, keep)
    return {path: member for path, member in found.items() if keep(path)}


def _plain(name: str) -> bytes:
    """Return a member's path without ``./``, ``/`` at either end, or ``.`` alone."""
    path = name.encode("utf-8", "surrogateescape").strip(b"/")
    return b"" if path == b"." else path.removeprefix(b"./")


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, path: bytes) -> Member | None:
    mode = info.mode & 0o1777
    if info.isdir():
        return Member(path, tar.DIRECTORY, mode)
    if info.issym():
        return symlink(path, info.linkname.encode("utf-8", "surrogateescape"))
    if info.isreg():

        def opened() -> BinaryIO:
            content = archive.extractfile(info)
            if content is None:
                raise AssertionError(info.name)
            return content  # type: ignore[return-value]  # a BufferedReader in all but name

        return Member(path, tar.FILE, mode, info.size, open=opened)
    return None


def _relink(
    found: dict[bytes, Member], source: bytes, others: list[bytes], keep: Callable[[bytes], bool]
) -> None:
    """Let the first kept path of a set of hard links carry the content."""
    carrier = found.pop(source, None)
    if carrier is None:
        return
    paths = sorted({path for path in (source, *others) if keep(path)}, key=_order)
    for path in paths:
        if path == paths[0]:
            found[path] = Member(
                path, carrier.kind, carrier.mode, carrier.size, carrier.target, carrier.open
            )
        else:
            found[path] = Member(path, HARD_LINK, carrier.mode, target=paths[0])


def write_layer(
    members: Mapping[bytes, Member],
    layers: LayerStore,
    report: Callable[[int], None] = lambda _: None,
) -> Layer:
    """Write members as a layer into the store.

    Args:
        members: by path; parents that are missing are added with mode 0755.
        layers: where the layer goes.
        report: told the bytes of content as they are written.

    Raises:
        StorageFault: it cannot be stored.
        OSError: a member's content cannot be read or is shorter than it was.
    """
    with layers.writer() as writer:
        for member in in_order(with_parents(members).values()):
            name = member.path + b"/" if member.kind == tar.DIRECTORY else member.path
            writer.write(tar.header(name, member.kind, member.mode, member.size, member.target))
            if member.open is None:
                continue
            left = member.size
            with member.open() as content:
                while left:
                    chunk = content.read(min(left, _CHUNK))
                    if not chunk:
                        raise OSError(0, f"{member.path!r} became shorter while it was read")
                    writer.write(chunk)
                    left -= len(chunk)
            writer.write(tar.padding(member.size))
            report(member.size)
        writer.write(tar.END)
        return writer.commit()


def with_parents(members: Mapping[bytes, Member]) -> dict[bytes, Member]:
    """Return members with the directories above them that are missing, mode 0755."""
    complete = dict(members)
    for path in members:
        _add_parents(complete, path)
    return complete


def in_order(members: Iterable[Member]) -> list[Member]:
    """Return members sorted so that a directory precedes what it holds."""
    return sorted(members, key=lambda member: _order(member.path))


def _order(path: bytes) -> list[bytes]:
    return path.split(b"/")


def _add_parents(complete: dict[bytes, Member], path: bytes) -> None:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        if path in complete:
            return
        complete[path] = directory(path)
