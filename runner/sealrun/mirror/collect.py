"""What of this machine goes into a segment: events, and the files that belong to them.

Rules that this module keeps:

- A run's files are taken once it has ended; an alert's evidence with the alert. What a segment held
  once stays in it, also when it is gone here.
- A file that is not what its event says (evidence, an output) is not mirrored as if it were: it is
  left out and named, as is what is too large. So whatever differs in a mirror was changed there.
- Files are read without following links, in pieces; only regular ones are taken.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sealrun.data import walk
from sealrun.git import GitFailed
from sealrun.ledger import Alert, Pin, RunEnded
from sealrun.ledger.codec import Misfit, fit, from_document, load, unfit
from sealrun.ledger.ulid import is_ulid
from sealrun.mirror.format import (
    PIECE,
    Blob,
    KeptFile,
    LeftOut,
    Row,
    Segment,
    blob_of,
    check_path,
    encode,
)
from sealrun.mirror.line import Piece, folder_of
from sealrun.moved import below_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from sealrun.git import Git
    from sealrun.ledger.chain import Link
    from sealrun.mirror.config import Mirroring

#: Made anew by whoever needs them, or of this process's life alone.
_NOT_TAKEN = frozenset({"lock", "manifest"})
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Unusable(Exception):
    """A file cannot be taken; says why."""


@dataclass(frozen=True)
class Origin:
    """Where a repository's things stand on this machine.

    Attributes:
        state: of the repository (``Places.repository``).
        git: scrubbed git in it.
        mirroring: what is taken.
    """

    state: Path
    git: Git
    mirroring: Mirroring


@dataclass
class Collected:
    """A segment with the bytes that it needs.

    Attributes:
        document: its own bytes, as the head names them.
        pieces: everything that stands in its folder and is new.
        pins: commit of each run that it pins and that is there.
    """

    segment: Segment
    document: Blob
    pieces: list[Piece]
    keep: frozenset[str]
    pins: dict[str, str] = field(default_factory=dict[str, str])


def collect(
    origin: Origin,
    number: int,
    links: Sequence[Link],
    before: Segment | None,
    *,
    earlier_pins: Iterable[str] = (),
    packed: bool,
    scratch: Path,
) -> Collected:
    """Return a segment as it is now.

    Args:
        origin: where everything stands.
        number: of the segment.
        links: all of its events.
        before: what the mirror has of it.
        earlier_pins: commits that segments before it pinned; packs build on them.
        packed: whether it has to hold the git objects of what it pins.
        scratch: where a pack may lie until it is written.
    """
    folder = folder_of(number)
    files = {file.path: file for file in (before.files if before else ())}
    left = {one.path: one for one in (before.left_out if before else ())}
    lost = dict.fromkeys(before.lost if before else ())
    known = len(before.events) if before else 0
    sources: dict[str, Path] = {}
    for link in links[known:]:
        for path, source, taken in _belonging(origin, link):
            if path in files:
                continue
            if isinstance(taken, str):
                left[path] = LeftOut(path=path, why=taken)
            else:
                files[path] = KeptFile(path=path, blob=taken)
                left.pop(path, None)
                sources[path] = source
    pieces = [
        piece
        for path, source in sources.items()
        for piece in pieces_of(folder, source, files[path].blob)
    ]
    pins, gone = _pins(origin, links)
    lost |= dict.fromkeys(gone)
    pack = before.pack if before else None
    if packed and any(link.kind == Pin.kind for link in links[known:]):
        pack = _pack(origin, pins.values(), earlier_pins, scratch)
        if pack is not None:
            pieces += pieces_of(folder, scratch, pack)
    segment = Segment(
        number=number,
        events=tuple(map(Row.of, links)),
        files=tuple(files.values()),
        left_out=tuple(left.values()),
        pack=pack,
        lost=tuple(lost),
    )
    content = encode(segment)
    document = blob_of(content)
    pieces += [
        Piece(folder, digest, len(part), lambda part=part: part)  # type: ignore[misc]  # bound now
        for digest, part in zip(document.pieces, _parts(content), strict=True)
    ]
    present = before.names() if before else set[str]()
    new = {piece.digest: piece for piece in pieces if piece.digest not in present}
    keep = frozenset(segment.names() | set(document.pieces))
    return Collected(segment, document, list(new.values()), keep, pins)


def _parts(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


def pieces_of(folder: str, source: Path, blob: Blob) -> Iterator[Piece]:
    """Yield the pieces of a file that was hashed before."""
    for index, digest in enumerate(blob.pieces):
        size = min(PIECE, blob.size - index * PIECE)
        yield Piece(folder, digest, size, partial(_slice, source, index * PIECE, size))


def _slice(source: Path, start: int, size: int) -> bytes:
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        stream.seek(start)
        return stream.read(size)


# -- files ------------------------------------------------------------------------------------------


def _belonging(origin: Origin, link: Link) -> Iterator[tuple[str, Path, Blob | str]]:
    """Yield what belongs to an event: path, where it stands, and its bytes or why it stays."""
    if link.kind == RunEnded.kind and link.run is not None and is_ulid(link.run):
        yield from _of_run(origin, link.run, _outputs(link))
    elif link.kind == Alert.kind:
        for file in evidence_of(link):
            relative = relative_path(file, origin.state.name)
            if relative is not None:
                source = origin.state / os.fsdecode(_raw(relative))
                if source.exists():
                    yield relative, source, _taken(source, relative, None, None)


def _of_run(
    origin: Origin, run: str, said: dict[str, str]
) -> Iterator[tuple[str, Path, Blob | str]]:
    mirroring = origin.mirroring
    directory = origin.state / "runs" / run
    try:
        found = [(os.fsdecode(raw), facts.size) for raw, facts in walk(directory)]
    except OSError:
        return
    left = mirroring.largest_run
    # The small ones first: one large output must not cost the log its place.
    for name, size in sorted(found, key=lambda one: (one[0] != "log", one[1], one[0])):
        top = name.partition("/")[0]
        if name in _NOT_TAKEN or (top == "outputs" and not mirroring.outputs):
            continue
        path = fit(f"runs/{run}/{name}")
        source = directory / name
        if top == "evidence":
            yield path, source, _taken(source, path, None, None)
            continue
        limit = min(mirroring.largest_file, left)
        digest = said.get(name.removeprefix("outputs/")) if top == "outputs" else None
        taken = _taken(source, path, digest, limit)
        if isinstance(taken, Blob):
            left -= size
        yield path, source, taken


def _taken(source: Path, path: str, digest: str | None, limit: int | None) -> Blob | str:
    try:
        check_path(path)
        blob = hashed(source, limit)
    except (OSError, ValueError, Unusable) as error:
        return f"it cannot be taken: {error}" if not isinstance(error, Unusable) else str(error)
    expected = digest if digest is not None else digest_of_evidence(path)
    if expected is not None and blob.sha256 != expected:
        return "it is not what the record says any more"
    return blob


def hashed(source: Path, limit: int | None) -> Blob:
    """Return the bytes of a regular file as they are named.

    Raises:
        OSError: it cannot be read.
        Unusable: it is no regular file, or too large.
    """
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    whole, pieces, size = hashlib.sha256(), list[str](), 0
    with os.fdopen(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Unusable("it is no regular file")
        if limit is not None and facts.st_size > limit:
            raise Unusable(f"it is too large: {facts.st_size} bytes")
        while piece := stream.read(PIECE):
            whole.update(piece)
            pieces.append(hashlib.sha256(piece).hexdigest())
            size += len(piece)
    return Blob(size=size, sha256=whole.hexdigest(), pieces=tuple(pieces))


def digest_of_evidence(path: str) -> str | None:
    """Return the digest that a kept state's file is named by; None for any other file."""
    parts = path.split("/")
    named = "evidence" in parts[:-1] and _SHA256.fullmatch(parts[-1]) is not None
    return parts[-1] if named else None


def relative_path(file: str, repository: str) -> str | None:
    """Return where a recorded file stands below the repository's state; None for any other.

    Args:
        file: absolute path, as it was on the machine of the record.
        repository: id.
    """
    below = below_state(file)
    if below is None or below[0] != repository:
        return None
    try:
        check_path(fit(below[1]))
    except ValueError:
        return None
    return fit(below[1])


def evidence_of(link: Link) -> Iterator[str]:
    """Yield the paths of the evidence that an alert names."""
    try:
        alert = from_document(Alert, load(link.payload))
    except (Misfit, KeyError):
        return
    named = [alert.evidence]
    for state in alert.states:
        named += [state.evidence, state.before_evidence]
    yield from dict.fromkeys(file for file in named if file is not None)


def _outputs(link: Link) -> dict[str, str]:
    """Return the digests that a run's record holds of its outputs, by path."""
    try:
        ended = from_document(RunEnded, load(link.payload))
    except (Misfit, KeyError):
        return {}
    return {one.path: one.sha256 for one in ended.outputs if one.sha256 is not None}


def outputs_said(link: Link) -> dict[str, str]:
    """Return the digest of each mirrored path of outputs that a run's end tells of."""
    return {fit(f"runs/{link.run}/outputs/{path}"): d for path, d in _outputs(link).items()}


def _raw(path: str) -> bytes:
    return unfit(path).encode("utf-8", "surrogateescape")


# -- commits -----------------------------------------------------------------------------------------


def pinned_by(links: Iterable[Link]) -> dict[str, str]:
    """Return the commit of each run that these events pin."""
    found: dict[str, str] = {}
    for link in links:
        if link.kind == Pin.kind and link.run is not None:
            try:
                found[link.run] = from_document(Pin, load(link.payload)).commit
            except (Misfit, KeyError):
                continue
    return found


def _pins(origin: Origin, links: Iterable[Link]) -> tuple[dict[str, str], list[str]]:
    pins = pinned_by(links)
    present = existing(origin.git, pins.values())
    return (
        {run: oid for run, oid in pins.items() if oid in present},
        [run for run, oid in pins.items() if oid not in present],
    )


def existing(git: Git, oids: Iterable[str]) -> set[str]:
    """Return which of these are commits that git has."""
    wanted = list(dict.fromkeys(oids))
    if not wanted:
        return set()
    output = git.run("cat-file", "--batch-check", stdin="".join(f"{o}\n" for o in wanted).encode())
    rows = [line.split(b" ") for line in output.split(b"\n")]
    return {row[0].decode("ascii") for row in rows if len(row) == 3 and row[1] == b"commit"}  # noqa: PLR2004 - id, type, size


def _pack(
    origin: Origin, commits: Iterable[str], earlier: Iterable[str], scratch: Path
) -> Blob | None:
    """Write the objects of commits that earlier ones do not reach to a file."""
    wanted = list(dict.fromkeys(commits))
    if not wanted:
        return None
    known = existing(origin.git, earlier)
    lines = "".join(f"{oid}\n" for oid in wanted) + "".join(f"^{oid}\n" for oid in sorted(known))
    with origin.git.popen(
        "pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset"
    ) as process:
        assert process.stdin is not None  # noqa: S101 - popen makes pipes
        assert process.stdout is not None  # noqa: S101 - likewise
        assert process.stderr is not None  # noqa: S101 - likewise
        try:
            # git reads all of it before it writes anything.
            process.stdin.write(lines.encode())
            process.stdin.close()
            with scratch.open("wb") as file:
                shutil.copyfileobj(process.stdout, file, PIECE)
        except BaseException:
            process.kill()
            raise
        words = process.stderr.read().decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise GitFailed(f"git cannot pack the commits of runs: {words}")
    return hashed(scratch, None)
