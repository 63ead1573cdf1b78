"""Runs that came from bundles: where they stand, how they get there, and how they are found.

Rules that this module keeps:

- Each has a directory of its own below the repository's ``imported``, made whole beside its place
  and then renamed; what was imported once is never changed. The own ledger says that it was
  imported, when, and whose signature it had.
- An imported run is never a run of the own ledger: it judges nothing, approves nothing, and is no
  best.
- Layers go into the content-addressed store, under their digests; no record of a base or an
  environment is taken over, because those decide what later runs are made of.
- Commits are pinned only once all that they belong to was checked; a ref that names something else
  is left as it is, and said.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun import nested
from sealrun.errors import StorageFault, UsageError
from sealrun.git import RUN_REFS
from sealrun.image.store import CHUNK
from sealrun.ledger import Imported, utc
from sealrun.ledger.records import merge
from sealrun.ledger.ulid import canonical_prefix, is_ulid
from sealrun.leftovers import writable_ledger
from sealrun.provenance.bundle.checking import unbundle
from sealrun.provenance.bundle.links import parse
from sealrun.provenance.faults import BadBundle
from sealrun.provenance.signing import FILE
from sealrun.state import private

if TYPE_CHECKING:
    from sealrun.ledger import Event, Ledger, Recorded, RunRecord
    from sealrun.provenance.bundle.checking import Checked, CheckedRun, Unpacked
    from sealrun.reproduce.rebuild import Stored
    from sealrun.state import Places

_EVENTS = "events.jsonl"
_ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """Where an imported run came from.

    Attributes:
        repository: id of the repository that it was made in.
        bundle: sha256 of the bundle's file.
        at: when it was imported; UTC, ISO 8601.
        key: id of the key that signed its statement; None where nobody did.
        signer: what that key was called here then.
    """

    repository: str
    bundle: str
    at: str
    key: str | None
    signer: str | None


@dataclass(frozen=True)
class ImportedRun:
    """A run that came in a bundle.

    Attributes:
        directory: log, outputs, evidence, statement.
    """

    record: RunRecord
    events: tuple[Recorded[Event], ...]
    origin: Origin
    directory: Path


@dataclass(frozen=True)
class Installed:
    """What came of an import.

    Attributes:
        runs: that are here now because of it.
        known: that were here already.
        layers: how many layers were added to the store.
    """

    runs: tuple[str, ...]
    known: tuple[str, ...]
    layers: int


# -- finding ---------------------------------------------------------------------------------------


def all_runs(places: Places, repository: str) -> list[ImportedRun]:
    """Return every imported run of a repository, the newest id first.

    Raises:
        BadBundle: the events of one were changed.
    """
    folder = places.imported(repository) / "runs"
    return [_read(folder / name) for name in reversed(_names(folder))]


def find(places: Places, repository: str, prefix: str) -> ImportedRun:
    """Return the imported run whose id begins like this.

    Raises:
        UsageError: there is none, or several.
        BadBundle: its events were changed.
    """
    folder = places.imported(repository) / "runs"
    wanted = canonical_prefix(prefix)
    found = [name for name in _names(folder) if wanted and name.startswith(wanted)]
    if len(found) > 1:
        raise UsageError(
            f"run {prefix!r} is ambiguous: {', '.join(found[:10])}",
            hint="Give more characters of its id.",
        )
    if not found:
        raise UsageError(f"there is no run {prefix!r} here", hint="sealrun log lists the runs.")
    return _read(folder / found[0])


def _names(folder: Path) -> list[str]:
    there = [place.name for place in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in there if is_ulid(name))


def _read(directory: Path) -> ImportedRun:
    run = directory.name
    try:
        events = tuple(parse((directory / _EVENTS).read_bytes(), run))
        origin: Any = json.loads((directory / _ORIGIN).read_bytes())
        told = Origin(**origin)
    except (OSError, ValueError, TypeError) as error:
        raise BadBundle(
            f"the imported run {run} cannot be read: {error}", hint="Import its bundle again."
        ) from error
    record = merge(events)
    if record is None:
        raise BadBundle(f"the imported run {run} has no beginning", hint="Import it again.")
    return ImportedRun(record, events, told, directory)


# -- importing -------------------------------------------------------------------------------------


def install(checked: Checked, file: Path, stored: Stored) -> Installed:
    """Take the runs of a checked bundle into a repository's places.

    Args:
        checked: the bundle.
        file: it was read from.
        stored: of the repository; its git objects must have the bundle's format.

    Raises:
        BadBundle: another repository's format, or a run of this id with other events is here.
        SealrunError: something cannot be written.
    """
    index = checked.unpacked.index
    if index.algorithm != stored.repository.algorithm:
        raise BadBundle(
            f"the bundle's commits are {index.algorithm}, this repository's are "
            f"{stored.repository.algorithm}",
            hint="Import it in a clone of the repository that it is of.",
        )
    digest = _digest(file)
    with writable_ledger(stored.repository, stored.places, stored.repository_id) as ledger:
        new = [run for run in checked.runs if not _is_here(run, ledger, stored)]
        _check_refs(new, stored)
        layers = _layers(checked, stored)
        unbundle(stored.repository.git, checked.unpacked.path(index.git))
        for run in new:
            origin = Origin(
                repository=index.repository,
                bundle=digest,
                at=utc(),
                key=run.key.id if run.key else None,
                signer=run.key.name if run.key else None,
            )
            _place(run, checked.unpacked, origin, stored)
            stored.repository.pin(run.entry.run, run.entry.commit)
        if new:
            ledger.append(
                Imported(
                    bundle=digest,
                    repository=index.repository,
                    runs=tuple(run.entry.run for run in new),
                    keys=tuple(sorted({run.key.id for run in new if run.key})),
                )
            )
    names = tuple(run.entry.run for run in new)
    known = tuple(run.entry.run for run in checked.runs if run.entry.run not in names)
    return Installed(names, known, layers)


def _is_here(run: CheckedRun, ledger: Ledger, stored: Stored) -> bool:
    name = run.entry.run
    hashes = [one.hash for one in run.events]
    own = [one.hash for one in ledger.events(run=name)]
    if not own:
        try:
            found = find(stored.places, stored.repository_id, name)
        except UsageError:
            return False
        own = [one.hash for one in found.events]
    # Either may tell more: a signature or a repetition can be later than the export.
    if hashes[: len(own)] != own[: len(hashes)]:
        raise BadBundle(f"run {name} is here already, and it is another one")
    return True


def _check_refs(new: list[CheckedRun], stored: Stored) -> None:
    for run in new:
        name = RUN_REFS + run.entry.run
        status, output, _ = stored.repository.git.attempt("rev-parse", "--verify", "--quiet", name)
        if status == 0 and output.decode().strip() != run.entry.commit:
            raise BadBundle(f"{name} names another commit here than in the bundle")


def _layers(checked: Checked, stored: Stored) -> int:
    there = {one.digest: one.size for one in checked.unpacked.index.contents}
    added: set[str] = set()
    for run in checked.runs:
        for part in run.record.progress.layers or ():
            digest = part.diff_id.removeprefix("sha256:")
            if part.role == "tree" or digest not in there or digest in added:
                continue
            if stored.layers.get(part.diff_id, there[digest]) is not None:
                continue
            _layer(checked.unpacked.path(digest), part.diff_id, there[digest], stored)
            added.add(digest)
    return len(added)


def _layer(file: Path, diff_id: str, size: int, stored: Stored) -> None:
    with file.open("rb") as stream, stored.layers.writer(expected=size) as writer:
        while chunk := stream.read(CHUNK):
            writer.write(chunk)
        if writer.commit().diff_id != diff_id:
            raise StorageFault(f"the layer {diff_id} changed while it was stored")


def _place(run: CheckedRun, unpacked: Unpacked, origin: Origin, stored: Stored) -> None:
    """Put a run's files where imported runs stand, all at once."""
    root = stored.places.imported(stored.repository_id)
    folder = private(root / "runs")
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
    try:
        shutil.copyfile(unpacked.path(run.entry.events), draft / _EVENTS)
        (draft / _ORIGIN).write_text(json.dumps(asdict(origin), indent=1))
        if run.entry.statement is not None:
            shutil.copyfile(unpacked.path(run.entry.statement), draft / FILE)
        for entry in run.entry.files:
            # The path was checked with the index: plain names in one of the run's own folders.
            target = draft / entry.path
            nested.make(target.parent)
            shutil.copyfile(unpacked.path(entry.digest), target)
        draft.rename(folder / run.entry.run)
    except OSError as error:
        raise StorageFault(
            f"run {run.entry.run} cannot be imported: {error.strerror}",
            hint="Free space in the state directory, then import again.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            nested.remove(draft)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def words(origin: Origin) -> str:
    """Return where an imported run came from, in a sentence's part."""
    signed = (
        f"signed by {origin.signer} ({(origin.key or '')[:16]})" if origin.key else "not signed"
    )
    return f"from repository {origin.repository[:12]}, {signed}, imported {origin.at[:16]}"
