"""What a bundle holds: its first member, ``bundle.json``.

Rules that this module keeps:

- Pure. Contents are named by their sha256; the index says what each is for.
- Everything that is read is checked before anything is done with it: types, digests, ids, counts,
  sizes, and paths, which must be plain names below a run's directory.
- A content that nothing refers to is refused: a bundle carries nothing unseen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sealrun.ledger.codec import Misfit, canonical, from_document, load, to_document
from sealrun.ledger.ulid import is_ulid
from sealrun.provenance.faults import BadBundle
from sealrun.provenance.statement import is_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Says what the file is, and counts up when what it holds changes its meaning.
KIND: Final = "sealrun bundle"
VERSION: Final = 1
#: Bytes of the index, and of what is read into memory, at most.
LARGEST: Final = 64 << 20
#: Runs, and files of all runs, at most.
RUNS: Final = 10_000
FILES: Final = 200_000
#: Bytes of one name, and of a whole path (limits.h).
_NAME, _PATH = 255, 4095
#: Where a run's files may stand, below its directory.
LOG: Final = "log"
FOLDERS: Final = ("outputs", "evidence", "data")
_OIDS = {"sha1": 40, "sha256": 64}
#: Digests are many; nothing that we write is cut.
_UNCUT = {"bounds": (1 << 20, 1 << 40)}


@dataclass(frozen=True, kw_only=True)
class Content:
    """Some bytes in the bundle, or of a layer that may be in it.

    Attributes:
        digest: sha256, hexadecimal.
        size: bytes.
    """

    digest: str
    size: int


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file that a run left.

    Attributes:
        path: below the run's directory: ``log``, or in ``outputs``, ``evidence`` or ``data``.
    """

    path: str
    digest: str
    size: int


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """The image of a run.

    Attributes:
        config: digest of the image config, which is the image's id.
        manifest: digest of the OCI manifest.
        layers: from the bottom up; base and environment are in a full bundle alone.
    """

    config: str
    manifest: str
    layers: tuple[Content, ...] = field(metadata=_UNCUT)


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run.

    Attributes:
        events: digest of its events, as ``links`` writes them.
        statement: digest of the envelope with its signed statement; None if it was not signed.
        image: None where the run never came so far.
    """

    run: str
    commit: str
    events: str
    statement: str | None = None
    image: ImageEntry | None = None
    files: tuple[FileEntry, ...] = field(default=(), metadata=_UNCUT)


@dataclass(frozen=True, kw_only=True)
class Index:
    """Everything in a bundle.

    Attributes:
        repository: id of the repository that the runs were made in.
        algorithm: of its git objects, ``sha1`` or ``sha256``.
        full: layers of base and environment are in it.
        git: digest of a git bundle with the commits.
        contents: in the order in which they stand in the file.
    """

    kind: str = KIND
    version: int = VERSION
    repository: str
    algorithm: str
    full: bool
    git: str
    runs: tuple[RunEntry, ...] = field(metadata=_UNCUT)
    contents: tuple[Content, ...] = field(metadata=_UNCUT)


def to_json(index: Index) -> bytes:
    """Return an index as it stands in a bundle."""
    document, cut = to_document(index)
    if cut:
        raise BadBundle(f"the bundle would be too large: {', '.join(sorted(cut)[:3])}")
    return canonical(document).encode("ascii")


def from_json(content: bytes) -> Index:
    """Return the index that a bundle claims, checked.

    Raises:
        BadBundle: it is none, of another version, or not consistent; the message says how.
    """
    try:
        document = load(content.decode("utf-8"))
        if document.get("kind") != KIND:
            raise BadBundle("this is no bundle of sealrun")
        if document.get("version") != VERSION:
            raise BadBundle(
                f"the bundle is of version {str(document.get('version'))[:20]}, this sealrun "
                f"knows {VERSION}",
                hint="Use the newer sealrun that made it.",
            )
        index = from_document(Index, document)
    except (Misfit, UnicodeDecodeError) as error:
        raise BadBundle(f"the bundle's index cannot be read: {error}") from error
    _check(index)
    return index


def _check(index: Index) -> None:
    if len(index.repository) != 32 or not set(index.repository) <= set("0123456789abcdef"):  # noqa: PLR2004 - 128 bits
        raise BadBundle("the bundle names no repository")
    if index.algorithm not in _OIDS:
        raise BadBundle(
            f"the bundle's git objects are of no known format: {index.algorithm[:20]!r}"
        )
    if not 0 < len(index.runs) <= RUNS:
        raise BadBundle(f"the bundle holds {len(index.runs)} runs; from 1 to {RUNS} can be read")
    files = sum(len(run.files) for run in index.runs)
    if files > FILES or len(index.contents) > FILES + 8 * RUNS:
        raise BadBundle(f"the bundle holds {files} files; up to {FILES} can be read")
    _check_contents(index)
    twice = [run for run, count in Counter(run.run for run in index.runs).items() if count > 1]
    if twice:
        raise BadBundle(f"run {twice[0]!r} stands twice in the bundle")
    for run in index.runs:
        _check_run(run, index.algorithm)


def _check_contents(index: Index) -> None:
    sizes: dict[str, int] = {}
    for one in index.contents:
        if not is_sha256(one.digest):
            raise BadBundle(f"a content is named {one.digest[:80]!r}, which is no sha256")
        if one.digest in sizes:
            raise BadBundle(f"content {one.digest} stands twice in the bundle")
        if one.size < 0:
            raise BadBundle(f"content {one.digest} has the size {one.size}")
        sizes[one.digest] = one.size
    _check_references(index, sizes)


def _check_references(index: Index, sizes: Mapping[str, int]) -> None:
    used: set[str] = set()
    for digest, size in references(index):
        if digest in sizes and size not in (None, sizes[digest]):
            raise BadBundle(f"content {digest} has {sizes[digest]} bytes in one place, {size} else")
        if digest not in sizes and size is None:
            raise BadBundle(f"content {digest[:80]!r} is referred to, but not in the bundle")
        used.add(digest)
    unused = sizes.keys() - used
    if unused:
        raise BadBundle(f"nothing in the bundle refers to content {min(unused)}")
    for run in index.runs:
        for file in run.files:
            if sizes.get(file.digest) != file.size:
                raise BadBundle(f"the content of {file.path[:200]!r} is not in the bundle")


def references(index: Index) -> Iterator[tuple[str, int | None]]:
    """Yield every digest that an index refers to, with its size where that is said.

    A layer may be missing from the bundle: it comes with a size, whatever else has none must be
    there.
    """
    yield index.git, None
    for run in index.runs:
        yield run.events, None
        if run.statement is not None:
            yield run.statement, None
        if run.image is not None:
            yield run.image.config, None
            yield run.image.manifest, None
            yield from ((layer.digest, layer.size) for layer in run.image.layers)
        yield from ((file.digest, file.size) for file in run.files)


def _check_run(run: RunEntry, algorithm: str) -> None:
    if not is_ulid(run.run):
        raise BadBundle(f"{run.run[:80]!r} is no run's id")
    if len(run.commit) != _OIDS[algorithm] or not set(run.commit) <= set("0123456789abcdef"):
        raise BadBundle(f"run {run.run}: {run.commit[:80]!r} is no commit's id")
    taken: set[str] = set()
    above: set[str] = set()
    for file in run.files:
        check_path(file.path, run.run)
        if file.path in taken:
            raise BadBundle(f"run {run.run}: {file.path!r} stands twice in the bundle")
        taken.add(file.path)
        parts = file.path.split("/")
        above.update("/".join(parts[:end]) for end in range(1, len(parts)))
    both = taken & above
    if both:
        raise BadBundle(f"run {run.run}: {min(both)!r} is a file and a directory at once")


def check_path(path: str, run: str) -> None:
    """Refuse a path that is no plain name below a run's directory.

    Raises:
        BadBundle: it is absolute, climbs, hides something, or stands where none of a run's files do.
    """
    raw = path.encode("utf-8", "surrogateescape") if _encodes(path) else b""
    parts = raw.split(b"/")
    plain = all(
        part not in (b"", b".", b"..") and len(part) <= _NAME and b"\0" not in part
        for part in parts
    )
    if not plain or len(raw) > _PATH:
        raise BadBundle(f"run {run}: {path[:200]!r} is no plain path below the run's directory")
    if path != LOG and (len(parts) == 1 or path.split("/", 1)[0] not in FOLDERS):
        raise BadBundle(f"run {run}: {path[:200]!r} is none of the files that a run leaves")


def _encodes(path: str) -> bool:
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
