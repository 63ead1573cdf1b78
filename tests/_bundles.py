"""Takes bundles apart and puts them together again as somebody with bad intentions would.

Rules: nothing here uses the package's own reader; digests are made right again unless a test wants
them wrong, so that each tampering meets the check that is meant for it.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from _signed import sha256
from sealrun.image import tar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_BLOBS = "blobs/sha256/"
#: What does not belong in any place of a document.
WRONG: list[Any] = [None, 1, -1, True, "x", "", [], {}, [[]], {"a": {}}, 1e308, "9" * 5000]


@dataclass
class Parts:
    """A bundle in parts.

    Attributes:
        index: the document of ``bundle.json``.
        blobs: contents by digest.
        rest: members after the contents, by name.
    """

    index: dict[str, Any]
    blobs: dict[str, bytes]
    rest: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @classmethod
    def of(cls, file: Path) -> Parts:
        """Read a bundle with Python's own tar reader."""
        with tarfile.open(file) as archive:
            members = {
                one.name: (archive.extractfile(one) or io.BytesIO()).read() for one in archive
            }
        index = json.loads(members.pop("bundle.json"))
        blobs = {
            name.removeprefix(_BLOBS): members.pop(name)
            for name in list(members)
            if name.startswith(_BLOBS)
        }
        return cls(index, blobs, members)

    @property
    def run(self) -> dict[str, Any]:
        """The first run's entry."""
        entry: dict[str, Any] = self.index["runs"][0]
        return entry

    def file(self, path: str) -> dict[str, Any]:
        """Return the entry of one of the first run's files."""
        return next(one for one in self.run["files"] if one["path"] == path)

    def add(self, content: bytes) -> str:
        """Put a content in; return its digest."""
        digest = sha256(content)
        self.blobs[digest] = content
        self.index["contents"] = [
            *(one for one in self.index["contents"] if one["digest"] != digest),
            {"digest": digest, "size": len(content)},
        ]
        return digest

    def drop(self, digest: str) -> None:
        """Take a content out."""
        del self.blobs[digest]
        self.index["contents"] = [x for x in self.index["contents"] if x["digest"] != digest]

    def exchange(self, digest: str, content: bytes) -> str:
        """Put a content in the place of another, wherever that is referred to."""
        self.drop(digest)
        text = json.dumps(self.index).replace(digest, new := sha256(content))
        self.index = json.loads(text)
        self.add(content)
        for run in self.index["runs"]:
            layers = (run["image"] or {"layers": []})["layers"]
            for one in (*run["files"], *layers):
                if one["digest"] == new:
                    one["size"] = len(content)
        return new

    def members(self) -> list[tuple[bytes, bytes]]:
        """Return name and content of each member, in order."""
        index = json.dumps(self.index, sort_keys=True, separators=(",", ":")).encode()
        listed = [
            (one["digest"], self.blobs.get(one["digest"], b"")) for one in self.index["contents"]
        ]
        return [
            (b"bundle.json", index),
            *((f"{_BLOBS}{digest}".encode(), content) for digest, content in listed),
            *((name.encode(), content) for name, content in self.rest.items()),
        ]

    def members_as_they_are(self) -> list[tuple[bytes, bytes]]:
        """Return the index beside contents that it may not name any more."""
        front = json.dumps(self.index, sort_keys=True, separators=(",", ":")).encode()
        named = [(f"{_BLOBS}{digest}".encode(), content) for digest, content in self.blobs.items()]
        rest = [(name.encode(), content) for name, content in self.rest.items()]
        return [(b"bundle.json", front), *named, *rest]

    def write(self, file: Path) -> None:
        """Write it as a bundle."""
        file.write_bytes(packed(self.members()))


def spots_of(value: object, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each place in a document."""
    items: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for step, inner in items:
        yield (*way, step)
        yield from spots_of(inner, (*way, step))


def packed(
    members: list[tuple[bytes, bytes]],
    change: Callable[[bytes, bytes], bytes] | None = None,
    *,
    end: bytes = tar.END,
) -> bytes:
    """Return members as a compressed archive.

    Args:
        members: name and content of each.
        change: makes another header of a member's name and header.
        end: of the archive.
    """
    out = bytearray()
    for name, content in members:
        header = tar.header(name, tar.FILE, 0o644, len(content))
        out += change(name, header) if change else header
        out += content + tar.padding(len(content))
    return gzip.compress(bytes(out) + end, mtime=0)


def checksummed(header: bytes) -> bytes:
    """Return a tar header with its checksum made right (POSIX ustar)."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]
