"""What a mirror holds: the documents, and what is believed of them. No IO.

Rules that this module keeps:

- A *line* is what one machine mirrored of one repository. Its head names its segments by their
  sha256; a segment holds a hundred events and what belongs to them; every byte of a mirror hangs on
  its head.
- Everything else is a piece named by its own sha256, of at most ``PIECE`` bytes: hosts of git
  repositories refuse large ones.
- Whatever is read was written by others: types, names, paths, sizes and counts are checked before
  anything is made of them, and each fault says where.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sealrun.errors import Fault
from sealrun.ledger.chain import Link
from sealrun.ledger.codec import fit, unfit

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Counts up when older readers would misread a mirror.
FORMAT = 1
#: Bytes of one piece, at most.
PIECE = 32 << 20
#: Events of one segment.
EVENTS = 100
#: Bytes of a head; of a segment.
HEAD_LIMIT, SEGMENT_LIMIT = 64 << 20, 512 << 20
#: Below a repository's state, what may be mirrored and put back.
ROOTS = ("runs", "between")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Text = Annotated[str, Field(max_length=1 << 16)]
_LINE = re.compile(r"[0-9a-f]{32}/[0-9a-f]{16}")
_NAME_BYTES, _DEPTH = 255, 64


class Damaged(Fault):
    """What a mirror holds is not what was mirrored: changed, incomplete, or of another version."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Blob(_Document):
    """Bytes by their digest, in the pieces that they are kept in."""

    size: Count
    sha256: Sha256
    pieces: tuple[Sha256, ...] = ()

    @model_validator(mode="after")
    def _as_many_as_needed(self) -> Blob:
        if len(self.pieces) != -(-self.size // PIECE):
            raise ValueError("its pieces are not as many as its size needs")
        if len(self.pieces) == 1 and self.pieces[0] != self.sha256:
            raise ValueError("its only piece is another one")
        return self


class KeptFile(_Document):
    """A file below the repository's state."""

    path: Text
    blob: Blob

    @model_validator(mode="after")
    def _stays_below(self) -> KeptFile:
        check_path(self.path)
        return self


class LeftOut(_Document):
    """Something that was not mirrored, and why."""

    path: Text
    why: Text


class Row(_Document):
    """One event as the ledger stores it; digests in hexadecimal."""

    seq: Count
    at: str
    monotonic_ns: int
    boot_id: str
    kind: str
    run: str | None
    payload: str
    previous: Sha256
    hash: Sha256

    @classmethod
    def of(cls, link: Link) -> Row:
        """Return a link of the chain as it is mirrored."""
        return cls(
            seq=link.seq,
            at=fit(link.at),
            monotonic_ns=link.monotonic_ns,
            boot_id=fit(link.boot_id),
            kind=fit(link.kind),
            run=None if link.run is None else fit(link.run),
            payload=fit(link.payload),
            previous=link.previous.hex(),
            hash=link.hash.hex(),
        )

    def link(self) -> Link:
        """Return the link of the chain."""
        return Link(
            seq=self.seq,
            at=unfit(self.at),
            monotonic_ns=self.monotonic_ns,
            boot_id=unfit(self.boot_id),
            kind=unfit(self.kind),
            run=None if self.run is None else unfit(self.run),
            payload=unfit(self.payload),
            previous=bytes.fromhex(self.previous),
            hash=bytes.fromhex(self.hash),
        )


class Segment(_Document):
    """Up to a hundred events, and what belongs to them.

    Attributes:
        number: 1, 2, 3, …; it holds the events from ``first_of(number)``.
        events: in order, without a gap.
        files: logs, outputs and evidence.
        left_out: files that are not among them.
        pack: git objects of the commits that these events pin, where git does not carry them.
        lost: runs whose commit was gone already.
    """

    format: Literal[1] = 1
    number: Annotated[int, Field(ge=1, le=1 << 40)]
    events: Annotated[tuple[Row, ...], Field(min_length=1, max_length=EVENTS)]
    files: tuple[KeptFile, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    pack: Blob | None = None
    lost: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Segment:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("it names a file twice")
        return self

    def names(self) -> set[str]:
        """Return the digests of the pieces that it needs."""
        blobs = [file.blob for file in self.files] + ([self.pack] if self.pack else [])
        return {piece for blob in blobs for piece in blob.pieces}


class Head(_Document):
    """What one machine mirrored of one repository, by digests.

    Attributes:
        algorithm: of the repository's git objects.
        host: name of the machine, for people.
        written_at: UTC.
        seq: number of the last event; ``hash`` its hash: the anchor.
        segments: in order.
        layers: of bases and environments.
    """

    format: Literal[1] = 1
    repository: Identity
    algorithm: Literal["sha1", "sha256"]
    machine: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    host: Text
    written_at: Text
    seq: Count
    hash: Sha256
    segments: tuple[Blob, ...]
    layers: tuple[Blob, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Head:
        if len(self.segments) != -(-self.seq // EVENTS):
            raise ValueError("its segments are not as many as its events need")
        if any(segment.size > SEGMENT_LIMIT for segment in self.segments):
            raise ValueError("a segment is too large")
        return self

    @property
    def line(self) -> str:
        """What its line is called: repository and machine."""
        return line_name(self.repository, self.machine)


D = TypeVar("D", Head, Segment)


def line_name(repository: str, machine: str) -> str:
    """Return the name of a line."""
    return f"{repository}/{machine}"


def is_line(name: str) -> bool:
    """Tell whether a name is one of a line."""
    return _LINE.fullmatch(name) is not None


def first_of(number: int) -> int:
    """Return the number of the first event of a segment."""
    return (number - 1) * EVENTS + 1


def segment_of(seq: int) -> int:
    """Return the number of the segment that an event belongs to."""
    return (seq - 1) // EVENTS + 1


def encode(document: Head | Segment) -> bytes:
    """Return a document's bytes."""
    return json.dumps(document.model_dump(mode="json"), separators=(",", ":")).encode("ascii")


def decode(kind: type[D], content: bytes, where: str) -> D:
    """Return a document from its bytes.

    Args:
        kind: what it must be.
        content: its bytes.
        where: it comes from, for messages.

    Raises:
        Damaged: it is none, or of a newer version.
    """
    try:
        values = json.loads(content)
        if isinstance(values, dict) and isinstance(values.get("format"), int):
            version = values["format"]
            if version > FORMAT:
                raise Damaged(
                    f"{where} is of version {version}, this sealrun knows up to {FORMAT}",
                    hint="Use the newer sealrun that wrote it, or upgrade this one.",
                )
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Damaged(f"{where} cannot be believed: {place}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is no JSON: {error}") from None


def check_path(path: str) -> None:
    """Refuse a path that does not stay below the places of a repository's state.

    Raises:
        ValueError: why it is refused.
    """
    parts = unfit(path).split("/")
    if parts[0] not in ROOTS or len(parts) < 3 or len(parts) > _DEPTH:  # noqa: PLR2004 - root, run, file
        raise ValueError("a path leads elsewhere")
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")
        if part in ("", ".", "..") or "\0" in part or len(raw) > _NAME_BYTES:
            raise ValueError("a path leads elsewhere")


def check_tree(paths: Iterable[str]) -> None:
    """Refuse paths of which one would have to be a file and a directory, or that come twice.

    Raises:
        Damaged: it does.
    """
    files: set[str] = set()
    for path in paths:
        if path in files:
            raise Damaged(f"the mirror names the file {path} twice")
        files.add(path)
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in files:
                raise Damaged(f"the mirror names {path} below a file")


def sha256(content: bytes) -> str:
    """Return the hexadecimal digest of some bytes."""
    return hashlib.sha256(content).hexdigest()


def blob_of(content: bytes) -> Blob:
    """Return a document's or file's bytes as they are named."""
    view = memoryview(content)
    pieces = [
        hashlib.sha256(view[start : start + PIECE]).hexdigest()
        for start in range(0, len(content), PIECE)
    ]
    return Blob(size=len(content), sha256=sha256(content), pieces=tuple(pieces))
