"""Reads a bundle into a private place and checks everything that it says.

Rules that this module keeps:

- Contents are written under their digests into a directory made for this, never under a name from
  the bundle, until all of it was checked.
- Git's objects are taken into a repository made for this, with no configuration of anybody, and
  hashed again here; what they unfold to is bounded before it is read.
- A run holds when its events hash to what they say, a trusted key signed exactly these events, and
  commit, tree, image, log, outputs, evidence and manifests are those that the events and the
  statement name. A file that nothing names is refused.
- A run that nobody signed is refused, unless the caller asked to see such ones.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.errors import SealrunError, StorageFault
from sealrun.git import Git, Repository
from sealrun.image.tree_layer import TreeLayers
from sealrun.ledger.records import merge
from sealrun.provenance import envelope
from sealrun.provenance.bundle import container
from sealrun.provenance.bundle.export import evidence_of
from sealrun.provenance.bundle.index import LARGEST
from sealrun.provenance.bundle.links import parse
from sealrun.provenance.faults import BadBundle, BadEnvelope
from sealrun.provenance.statement import LOG
from sealrun.provenance.verification import Result, record_checks, subjects_of
from sealrun.state import free_room, private
from sealrun.tree import Spool, read_commit

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from sealrun.ledger import Event, Recorded, RunRecord
    from sealrun.provenance.bundle.index import ImageEntry, Index, RunEntry
    from sealrun.provenance.envelope import Statement
    from sealrun.provenance.keys import PublicKey
    from sealrun.tree import CommittedTree

#: Free bytes that unpacking leaves on the disk.
_RESERVE = 256 << 20
#: Bytes that the files of one commit may have in all, at most.
_TREE = 16 << 30


@dataclass(frozen=True)
class Unpacked:
    """A bundle whose file is whole: each content has its digest. What it says is not checked yet.

    Attributes:
        directory: contents, named by their digests.
    """

    index: Index
    directory: Path

    def path(self, digest: str) -> Path:
        """Return where a content stands."""
        return self.directory / digest

    def small(self, digest: str) -> bytes:
        """Return a content that is read into memory.

        Raises:
            BadBundle: it is too large for that.
        """
        path = self.path(digest)
        if path.stat().st_size > LARGEST:
            raise BadBundle(f"content {digest} is larger than anything that is read whole")
        return path.read_bytes()


@dataclass(frozen=True)
class CheckedRun:
    """A run of a bundle that holds.

    Attributes:
        key: that signed its statement; None where nobody did.
    """

    entry: RunEntry
    events: tuple[Recorded[Event], ...]
    record: RunRecord
    key: PublicKey | None


@dataclass(frozen=True)
class Checked:
    """A bundle that holds.

    Attributes:
        unpacked: its contents; they last as long as the context that made this.
    """

    unpacked: Unpacked
    runs: tuple[CheckedRun, ...]


def _room(directory: Path) -> int | None:
    """Return the bytes that a bundle may take; None where the file system does not tell."""
    free = free_room(directory)
    return None if free is None else free - _RESERVE


@contextmanager
def unpacked(file: Path, place: Path) -> Generator[Unpacked]:
    """Read a bundle whole into a private directory, which is removed at the end.

    Args:
        file: the bundle.
        place: where the directory is made.

    Raises:
        BadBundle: it is damaged, or would do harm.
        StorageFault: there is no room for it.
    """
    directory = Path(tempfile.mkdtemp(prefix="bundle-", dir=private(place)))
    try:
        with container.opened(file) as reader:
            total = sum(one.size for one in reader.index.contents)
            room = _room(directory)
            if room is not None and total > room:
                raise StorageFault(
                    f"the bundle unfolds to {total} bytes, {room} can be used in {directory}",
                    hint="Free space there, or set SEALRUN_HOME to another disk.",
                )
            for one, chunks in reader.contents():
                with (directory / one.digest).open("xb") as out:
                    for chunk in chunks:
                        out.write(chunk)
            yield Unpacked(reader.index, directory)
    except OSError as error:
        raise StorageFault(f"the bundle cannot be unpacked: {error.strerror}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def checked(
    file: Path, place: Path, keys: Sequence[PublicKey], *, unsigned: bool = False
) -> Generator[Checked]:
    """Read a bundle and check everything in it.

    Args:
        file: the bundle.
        place: where it is unpacked while this lasts.
        keys: any of which must have signed each run.
        unsigned: take runs that nobody signed.

    Raises:
        BadBundle: something in it does not hold; the message says what.
        BadEnvelope: a signature does not hold.
        StorageFault: there is no room for it.
    """
    with unpacked(file, place) as found:
        quarantine = _Quarantine(found)
        yield Checked(
            found,
            tuple(
                _run(run, found, quarantine, keys, unsigned=unsigned) for run in found.index.runs
            ),
        )


def _run(
    entry: RunEntry,
    found: Unpacked,
    quarantine: _Quarantine,
    keys: Sequence[PublicKey],
    *,
    unsigned: bool,
) -> CheckedRun:
    events = tuple(parse(found.small(entry.events), entry.run))
    record = merge(events)
    if record is None or record.ended is None:
        raise BadBundle(f"run {entry.run} is not on record whole: it has no beginning or no end")
    if record.commit != entry.commit:
        raise BadBundle(f"run {entry.run} is of commit {record.commit}, not of {entry.commit}")
    signed = _signed(entry, found, events, keys, unsigned=unsigned)
    _check_files(entry, record, signed)
    tree = quarantine.tree(entry.run, entry.commit)
    if tree.tree != record.opened.tree:
        raise BadBundle(
            f"run {entry.run}: its commit has the tree {tree.tree}, not {record.opened.tree}"
        )
    _check_image(entry, record, found, tree, quarantine)
    return CheckedRun(entry, events, record, signed.key if signed else None)


def _signed(
    entry: RunEntry,
    found: Unpacked,
    events: Sequence[Recorded[Event]],
    keys: Sequence[PublicKey],
    *,
    unsigned: bool,
) -> Statement | None:
    if entry.statement is None:
        if unsigned:
            return None
        raise BadBundle(
            f"run {entry.run} was not signed: nothing proves who made it",
            hint="Its maker can sign it and export it again.",
        )
    try:
        signed = envelope.opened(found.small(entry.statement), keys)
    except BadEnvelope as error:
        raise BadEnvelope(f"run {entry.run}: {error.message}", hint=error.hint) from error
    if signed.run["run"] != entry.run:
        raise BadBundle(f"the statement of run {entry.run} is about run {signed.run['run']}")
    for check in record_checks(signed, events, found.index.repository):
        if check.result is not Result.HOLDS:
            raise BadBundle(f"run {entry.run}: {check.text}")
    return signed


# -- files -----------------------------------------------------------------------------------------


def _check_files(entry: RunEntry, record: RunRecord, signed: Statement | None) -> None:
    """Compare the digests of a run's files with what names them; their bytes are hashed already."""
    said = _named(record, signed)
    there = {file.path: file.digest for file in entry.files}
    for path, digest in there.items():
        expected = said.get(path)
        if expected is None and (signed is not None or not path.startswith((LOG, "outputs/"))):
            raise BadBundle(f"run {entry.run}: nothing on record names its file {path[:200]!r}")
        if expected is not None and expected != digest:
            raise BadBundle(
                f"run {entry.run}: {path[:200]!r} was changed: sha256 {digest}, not {expected}"
            )
    for path in said:
        if path not in there and not path.startswith(("evidence/", "data/")):
            raise BadBundle(f"run {entry.run}: {path[:200]!r} is missing from the bundle")


def _named(record: RunRecord, signed: Statement | None) -> dict[str, str]:
    from sealrun.ledger.codec import unfit

    said: dict[str, str] = {f"evidence/{digest}": digest for digest in evidence_of(record)}
    said |= {f"data/{n}": one.digest for n, one in enumerate(record.progress.data or ())}
    if signed is not None:
        subjects = {unfit(name): digest for name, digest in subjects_of(signed).items()}
        subjects.pop("record", None)
        return said | subjects
    listed = record.ended.outputs if record.ended else ()
    return said | {f"outputs/{one.path}": one.sha256 for one in listed if one.sha256 is not None}


# -- git and the image -----------------------------------------------------------------------------


class _Quarantine:
    """A repository made for the commits of one bundle."""

    def __init__(self, found: Unpacked) -> None:
        self.directory = found.directory / "quarantine"
        self.algorithm = found.index.algorithm
        self.directory.mkdir()
        git = Git(self.directory)
        git.run("init", "--quiet", "--bare", f"--object-format={self.algorithm}", ".")
        self.refs = unbundle(git, found.path(found.index.git))
        _check_objects(git)
        spool = found.directory / "spool"
        spool.mkdir()
        self.spool = Spool(spool, self.algorithm)
        self.repository = Repository(
            self.directory, self.directory, self.directory, self.algorithm, None
        )

    def tree(self, run: str, commit: str) -> CommittedTree:
        if self.refs.get(run) != commit:
            raise BadBundle(f"run {run}: its commit {commit} is not in the bundle")
        size = 0
        listing = Git(self.directory).run("ls-tree", "-r", "-l", "-z", commit)
        for line in listing.split(b"\0")[:-1]:
            amount = line.split(b"\t", 1)[0].split()[-1]
            size += int(amount) if amount.isdigit() else 0
        room = _room(self.directory)
        if size > _TREE or (room is not None and size > room):
            raise BadBundle(f"run {run}: the files of its commit have {size} bytes, too many")
        return read_commit(self.repository, commit, self.spool)


def _check_objects(git: Git) -> None:
    """Refuse commits and trees that only somebody who wants our memory would make."""
    listing = git.run(
        "cat-file",
        "--batch-all-objects",
        "--unordered",
        "--batch-check=%(objecttype) %(objectsize)",
    )
    for line in listing.splitlines():
        kind, _, size = line.partition(b" ")
        if kind != b"blob" and int(size) > LARGEST:
            raise BadBundle(f"a {kind.decode()} in the bundle has {int(size)} bytes, too many")


def unbundle(git: Git, file: Path) -> dict[str, str]:
    """Take the objects of a git bundle into a repository; return run -> commit.

    No ref is made: who calls this decides.

    Raises:
        BadBundle: git does not take it.
    """
    status, output, errors = git.attempt(
        "-c", "transfer.fsckObjects=true", "bundle", "unbundle", str(file)
    )
    if status != 0:
        words = errors.decode("utf-8", "replace").strip().splitlines()
        raise BadBundle(f"git does not take the commits in the bundle: {' '.join(words)[:300]}")
    found: dict[str, str] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        oid, _, ref = line.partition(" ")
        found[ref.rpartition("/")[2]] = oid
    return found


def _check_image(
    entry: RunEntry,
    record: RunRecord,
    found: Unpacked,
    tree: CommittedTree,
    quarantine: _Quarantine,
) -> None:
    recorded = record.progress.image_id
    if (entry.image is None) != (recorded is None):
        raise BadBundle(f"run {entry.run}: its image and its record do not fit")
    if entry.image is None:
        return
    if f"sha256:{entry.image.config}" != recorded:
        raise BadBundle(
            f"run {entry.run}: its image is {recorded}, not sha256:{entry.image.config}"
        )
    layers = [(f"sha256:{one.digest}", one.size) for one in entry.image.layers]
    if layers != [(part.diff_id, part.size) for part in record.progress.layers or ()]:
        raise BadBundle(f"run {entry.run}: its layers are not those on record")
    _check_config(entry.run, entry.image, found)
    try:
        made = TreeLayers(private(quarantine.directory / "trees")).layer(tree)
    except SealrunError as error:
        raise BadBundle(f"run {entry.run}: {error.message}") from error
    if made.layer.diff_id != layers[-1][0]:
        raise BadBundle(f"run {entry.run}: its tree layer does not follow from its commit")


def _check_config(run: str, image: ImageEntry, found: Unpacked) -> None:
    """See that config and manifest, whose digests hold, name the layers that the entry names."""
    try:
        config: Any = json.loads(found.small(image.config))
        manifest: Any = json.loads(found.small(image.manifest))
        diff_ids = list(config["rootfs"]["diff_ids"])
        in_manifest = [one["digest"] for one in manifest["layers"]]
        of = manifest["config"]["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadBundle(f"run {run}: its image cannot be read") from error
    expected = [f"sha256:{one.digest}" for one in image.layers]
    if diff_ids != expected or in_manifest != expected or of != f"sha256:{image.config}":
        raise BadBundle(f"run {run}: its image does not consist of its layers")


def summary(index: Index) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield each run with what a bundle says that it holds of it; nothing is checked."""
    there = {one.digest for one in index.contents}
    for run in index.runs:
        layers = run.image.layers if run.image else ()
        yield (
            run.run,
            {
                "commit": run.commit,
                "signed": run.statement is not None,
                "image_id": f"sha256:{run.image.config}" if run.image else None,
                "layers": len(layers),
                "layers_here": sum(layer.digest in there for layer in layers),
                "files": len(run.files),
                "bytes": sum(file.size for file in run.files),
            },
        )
