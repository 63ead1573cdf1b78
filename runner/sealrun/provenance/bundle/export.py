"""Makes a bundle from runs on record.

Rules that this module keeps:

- What goes in comes from the ledger's events, from git, and from the run's own directory; files are
  hashed when they are listed and again when they are written.
- Evidence goes in where its bytes are those that the alert names; data goes in as a manifest, never
  as content.
- What cannot go in is said, in words for the user; a run that cannot be carried whole is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.data import HashCache, sha256_of, walk
from sealrun.errors import SealrunError, StorageFault, UsageError
from sealrun.git import RUN_REFS
from sealrun.image.archive import stack
from sealrun.image.model import Layer
from sealrun.image.store import CHUNK, chunks
from sealrun.ledger.records import merge
from sealrun.progress import Silent
from sealrun.provenance.bundle import container, links
from sealrun.provenance.bundle.index import (
    LOG,
    Content,
    FileEntry,
    ImageEntry,
    Index,
    RunEntry,
)
from sealrun.provenance.bundle.links import parse
from sealrun.provenance.signing import FILE
from sealrun.provenance.statement import is_sha256
from sealrun.reproduce.rebuild import policy_of, rebuild, tree_of
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sealrun.ledger import Ledger, RunRecord
    from sealrun.ledger.chain import Link
    from sealrun.progress import Progress
    from sealrun.reproduce.rebuild import Stored

#: zlib's levels: a thin bundle is text and code, a full one is mostly wheels that hardly shrink.
_THIN, _FULL = 9, 1


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Attributes:
        size: bytes of the file.
        left_out: what is not in it, in a sentence each.
        variables: names of variables whose values are in it, other than those that sealrun sets.
    """

    file: Path
    size: int
    index: Index
    left_out: tuple[str, ...]
    variables: tuple[str, ...]


@dataclass
class _Gathered:
    """Contents on their way into a bundle: where each is read from."""

    stored: Stored
    full: bool
    progress: Progress
    places: dict[str, Path | bytes | Layer] = field(
        default_factory=dict[str, "Path | bytes | Layer"]
    )
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    left_out: list[str] = field(default_factory=list[str])
    variables: set[str] = field(default_factory=set[str])

    def content(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.places.setdefault(digest, content)
        self.sizes[digest] = len(content)
        return digest

    def file(self, place: Path, digest: str) -> int:
        self.places.setdefault(digest, place)
        return self.sizes.setdefault(digest, place.stat().st_size)

    def layer(self, layer: Layer, digest: str) -> int:
        self.places.setdefault(digest, layer)
        return self.sizes.setdefault(digest, layer.size)

    def read(self, content: Content) -> Iterator[bytes]:
        place = self.places[content.digest]
        if isinstance(place, bytes):
            yield place
            return
        if isinstance(place, Layer):
            yield from chunks(place)
            return
        try:
            handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb", buffering=0) as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise StorageFault(f"{place} cannot be read: {error.strerror}") from error


def export(
    runs: Sequence[str],
    ledger: Ledger,
    stored: Stored,
    file: Path,
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write runs into one file.

    Args:
        runs: their ids.
        ledger: that they are on record in.
        stored: where they are kept.
        file: of the bundle; nothing may stand there.
        full: with the layers of base and environment, so that it can be run again anywhere.
        progress: told while layers are made.

    Raises:
        UsageError: one has not ended, its commit has submodules, or the file exists.
        SealrunError: something that belongs in it is missing or damaged.
    """
    if os.path.lexists(file):
        raise UsageError(f"{file} is there already", hint="Give another name with -o.")
    wanted = list(dict.fromkeys(runs))
    gathered = _Gathered(stored, full, progress or Silent())
    of_run: dict[str, list[Link]] = {run: [] for run in wanted}
    for link in ledger.links():
        if link.run in of_run:
            of_run[link.run].append(link)
    entries = tuple(_run(run, of_run[run], gathered) for run in wanted)
    with tempfile.TemporaryDirectory(dir=stored.places.repository(stored.repository_id)) as folder:
        commits = _commits(wanted, stored, Path(folder))
        git = sha256_of(commits) or ""
        gathered.file(commits, git)
        return _written(file, _index(entries, git, ledger, gathered), gathered)


def _index(entries: tuple[RunEntry, ...], git: str, ledger: Ledger, gathered: _Gathered) -> Index:
    return Index(
        repository=ledger.repository,
        algorithm=gathered.stored.repository.algorithm,
        full=gathered.full,
        git=git,
        runs=entries,
        contents=tuple(
            Content(digest=digest, size=size) for digest, size in gathered.sizes.items()
        ),
    )


def _written(file: Path, index: Index, gathered: _Gathered) -> Exported:
    level = _FULL if gathered.full else _THIN
    size = container.write(file, index, gathered.read, level=level)
    left_out = tuple(dict.fromkeys(gathered.left_out))
    return Exported(file, size, index, left_out, tuple(sorted(gathered.variables)))


def _run(run: str, chain: list[Link], gathered: _Gathered) -> RunEntry:
    dumped = links.dump(chain)
    record = merge(parse(dumped, run))
    if record is None or record.ended is None:
        raise UsageError(f"run {run} has not ended", hint="sealrun ps lists those under way.")
    gathered.variables |= _passed(record)
    directory = gathered.stored.places.run(gathered.stored.repository_id, run)
    statement = None
    if (directory / FILE).exists():
        statement = gathered.content((directory / FILE).read_bytes())
    else:
        gathered.left_out.append(f"run {run} was not signed: nothing proves who made this")
    return RunEntry(
        run=run,
        commit=record.commit,
        events=gathered.content(dumped),
        statement=statement,
        image=_image(record, gathered),
        files=tuple(_files(record, directory, gathered)),
    )


def _passed(record: RunRecord) -> set[str]:
    values = record.opened.policy.values if record.opened.policy else {}
    names = values.get("sandbox.pass_variables", ())
    there = record.progress.variables or {}
    return {str(n) for n in names if n in there} if isinstance(names, list | tuple) else set()


def _commits(runs: Sequence[str], stored: Stored, folder: Path) -> Path:
    """Write a git bundle with the commits of some runs and all that they come from."""
    file = folder / "commits"
    refs = [RUN_REFS + run for run in runs]
    stored.repository.git.run("bundle", "create", "--quiet", str(file), *refs)
    return file


def _image(record: RunRecord, gathered: _Gathered) -> ImageEntry | None:
    tree = tree_of(record, gathered.stored)
    if tree.submodules:
        raise UsageError(
            f"run {record.run}: its commit has submodules, which a bundle cannot carry",
            hint="Export the other runs without it.",
        )
    if record.progress.image_id is None or not record.progress.layers:
        return None
    image = rebuild(record, tree, gathered.stored, gathered.progress).image
    whole = stack(image)
    for part, layer in zip(record.progress.layers, image.layers, strict=True):
        digest = layer.diff_id.removeprefix("sha256:")
        if part.role == "tree":
            gathered.layer(layer, digest)
        elif gathered.full:
            if gathered.stored.layers.get(layer.diff_id, layer.size) is None:
                raise StorageFault(
                    f"the {part.role} layer {layer.diff_id} of run {record.run} is not stored whole",
                    hint="sealrun doctor --reproducible says what is missing.",
                )
            gathered.layer(layer, digest)
    if not gathered.full:
        gathered.left_out.append(
            "layers of base and environment are left out: who runs it again needs the same ones"
        )
    return ImageEntry(
        config=gathered.content(whole.config),
        manifest=gathered.content(whole.manifest),
        layers=tuple(
            Content(digest=layer.diff_id.removeprefix("sha256:"), size=layer.size)
            for layer in image.layers
        ),
    )


def _files(record: RunRecord, directory: Path, gathered: _Gathered) -> Iterator[FileEntry]:
    for path, place in _left(directory):
        digest = sha256_of(place)
        if digest is None:
            gathered.left_out.append(f"run {record.run}: {path} cannot be read")
            continue
        yield FileEntry(path=path, digest=digest, size=gathered.file(place, digest))
    yield from _evidence(record, gathered)
    yield from _data(record, gathered)


def _left(directory: Path) -> Iterator[tuple[str, Path]]:
    if (directory / LOG).is_file():
        yield LOG, directory / LOG
    with contextlib.suppress(FileNotFoundError):
        for raw, _ in walk(directory / "outputs"):
            path = f"outputs/{os.fsdecode(raw)}"
            yield path, directory / path


def _evidence(record: RunRecord, gathered: _Gathered) -> Iterator[FileEntry]:
    for digest, place in sorted(evidence_of(record).items()):
        found = None if place is None else sha256_of(place)
        if place is None or found != digest:
            gathered.left_out.append(f"run {record.run}: evidence {digest} is gone or was changed")
            continue
        yield FileEntry(path=f"evidence/{digest}", digest=digest, size=gathered.file(place, digest))


def evidence_of(record: RunRecord) -> dict[str, Path | None]:
    """Return where the kept bytes of a run's alerts stand, by their sha256."""
    found: dict[str, Path | None] = {}
    for alert in (one.event for one in record.alerts):
        kept = [(alert.after, alert.evidence)]
        for state in alert.states:
            kept += [(state.sha256, state.evidence), (state.before_sha256, state.before_evidence)]
        for digest, place in kept:
            if digest is not None and is_sha256(digest) and place is not None:
                found[digest] = Path(place)
    return found


def _data(record: RunRecord, gathered: _Gathered) -> Iterator[FileEntry]:
    facts = record.progress.data or ()
    if not facts:
        return
    stored = gathered.stored
    try:
        policy = policy_of(record).policy
        cache = HashCache(private(stored.places.cache) / "hashes.sqlite")
        now = {one.target: one for one in cache.manifest(policy.data, Path.home(), Silent())}
    except SealrunError as error:
        gathered.left_out.append(f"run {record.run}: manifests of its data: {error.message}")
        return
    for number, known in enumerate(facts):
        there = now.get(known.target)
        if there is None or there.digest != known.digest:
            gathered.left_out.append(
                f"run {record.run}: the manifest of {known.source}, which is not what it was"
            )
            continue
        lines = b"".join(f.sha256.encode() + b"  " + f.path + b"\n" for f in there.files)
        digest = gathered.content(lines)
        yield FileEntry(path=f"data/{number}", digest=digest, size=len(lines))
