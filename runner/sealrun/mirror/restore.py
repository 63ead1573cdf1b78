"""Brings a mirrored record back: everything is checked before anything is put in place.

Rules that this module keeps:

- The mirror was written by others: digests, chain, paths, sizes, commits are checked first, against
  each other and against an anchor where one is given; one fault refuses all of it, with the reason.
- A ledger is never replaced: where one stands, it is the same history or nothing is done. Nor is any
  file or ref that stands there already changed.
- What is put in place is put there in such an order that a death in between leaves nothing that
  looks whole: the repository's id, by which everything is found, comes last. Doing it again goes on.
- Nothing that a mirror holds is executed or believed to be a base or an environment: layers are
  taken by their own digests alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import Fault, LedgerError, SealrunError, StorageFault, UsageError
from sealrun.git import RUN_REFS, GitFailed
from sealrun.image.store import LayerStore
from sealrun.ledger import open_ledger
from sealrun.ledger.chain import genesis, verify
from sealrun.ledger.codec import unfit
from sealrun.ledger.events import KINDS
from sealrun.ledger.ulid import is_ulid
from sealrun.mirror import config, directory, gitline
from sealrun.mirror.collect import (
    digest_of_evidence,
    existing,
    hashed,
    outputs_said,
    pinned_by,
)
from sealrun.mirror.format import EVENTS, Damaged, Head, Segment, check_tree, first_of
from sealrun.mirror.line import LAYERS, contents, folder_of, read_head, read_segment
from sealrun.mirror.memory import Memory, scratch
from sealrun.mirror.replay import replay
from sealrun.state import ID_FILE, private, repository_id

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from sealrun.git import Repository
    from sealrun.ledger import Anchor, Ledger
    from sealrun.ledger.chain import Link
    from sealrun.mirror.format import KeptFile
    from sealrun.mirror.line import Readable
    from sealrun.progress import Progress
    from sealrun.state import Places


class OtherHistory(Fault):
    """Something stands where the record would go, and it is not the same."""


@dataclass(frozen=True)
class Restored:
    """What was brought back.

    Attributes:
        runs: how many.
        left_out: files that the mirror never got, each with the reason.
        lost: runs whose commits were gone already when they were mirrored.
        anchored: whether the chain was held against an anchor.
    """

    repository: str
    machine: str
    host: str
    seq: int
    hash: str
    runs: int
    files: int
    layers: int
    left_out: tuple[tuple[str, str], ...]
    lost: tuple[str, ...]
    anchored: bool


@dataclass
class Record:
    """A line, read and checked.

    Attributes:
        links: the whole chain.
        files: by path, with the folder that their pieces stand in.
        pins: commit of each run.
    """

    line: Readable
    head: Head
    links: list[Link] = field(default_factory=list["Link"])
    files: dict[str, tuple[str, KeptFile]] = field(
        default_factory=dict[str, "tuple[str, KeptFile]"]
    )
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    lost: list[str] = field(default_factory=list[str])
    packs: list[tuple[int, Segment]] = field(default_factory=list["tuple[int, Segment]"])
    pins: dict[str, str] = field(default_factory=dict[str, str])


# -- where from ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mirror:
    """A place that holds lines.

    Attributes:
        names: of the lines.
        open: returns one by its name; it also gets a directory of ours for what comes from git,
            and the algorithm of the clone's objects.
    """

    names: tuple[str, ...]
    open: Callable[[str, Path, str], Readable]


def find(
    source: str,
    configured: Sequence[config.Destination],
    environment: Mapping[str, str],
    algorithm: str,
) -> Mirror:
    """Return the mirror that a user names: a destination's name, a directory, or a git remote.

    Args:
        source: what the user named.
        configured: destinations of ``mirror.toml``.
        environment: where the variables of secrets are looked up.
        algorithm: of the clone's git objects.

    Raises:
        UsageError: it is none of these, or holds no mirror.
        Unreachable: nobody answers.
    """
    place = next((one.place for one in configured if one.name == source), None)
    if isinstance(place, config.Bucket) or (place is None and source.startswith("s3://")):
        return _in_bucket(place or config.bucket(source))
    root = Path(place.path if isinstance(place, config.Directory) else source).expanduser()
    if isinstance(place, config.Directory) or (place is None and directory.is_mirror(root)):
        if not directory.is_mirror(root):
            raise UsageError(f"{root} holds no mirror", hint="Is the disk mounted?")
        top = root.absolute()
        return Mirror(
            tuple(directory.lines(root)),
            lambda name, _staging, _algorithm: directory.DirectoryLine(top, name),
        )
    if place is not None and not isinstance(place, config.Directory):
        access = config.access(place, environment)
    else:
        where = str(root.absolute()) if root.is_dir() else source
        address = config.address(where)
        access = config.opened(address, user=address.user or "git", token=address.password)
    with tempfile.TemporaryDirectory(prefix="sealrun-") as scratch:
        remote = gitline.Remote(access, gitline.staging(Path(scratch) / "git", algorithm))
        names = tuple(gitline.lines(remote))
    return Mirror(
        names,
        lambda name, staging, algorithm: gitline.GitLine(
            gitline.Remote(access, gitline.staging(staging, algorithm)), name
        ),
    )


def _in_bucket(place: config.Bucket) -> Mirror:
    from sealrun.mirror import s3line

    store = s3line.connect(place)
    names = tuple(s3line.lines(store))
    if not names:
        raise UsageError(f"{place.url} holds no mirror", hint="Is the prefix the right one?")
    return Mirror(names, lambda name, _staging, _algorithm: s3line.S3Line(store, name))


def open_line(mirror: Mirror, name: str, staging: Path, algorithm: str) -> Readable:
    """Return one line of a mirror.

    Args:
        mirror: that holds it.
        name: of the line.
        staging: a bare repository of ours for what comes from git; made where it is needed.
        algorithm: of the clone's objects.
    """
    return mirror.open(name, staging, algorithm)


def describe(mirror: Mirror, algorithm: str) -> Iterator[str]:
    """Yield a line's name with what its head says, for a user who has to choose.

    Args:
        mirror: that holds the lines.
        algorithm: of the clone's git objects.
    """
    for name in mirror.names:
        with tempfile.TemporaryDirectory(prefix="sealrun-") as scratch:
            try:
                line = open_line(mirror, name, Path(scratch) / "git", algorithm)
                with contextlib.closing(line):
                    head = read_head(line, name)
            except SealrunError as error:
                yield f"{name}: {error.message}"
                continue
            if head is not None:
                yield f"{name}: {head.seq} events until {head.written_at[:19]}, {head.host}"


# -- reading and checking ------------------------------------------------------------------------------


def read(line: Readable, name: str, anchor: Anchor | None) -> Record:
    """Read a line and check its documents, its chain and its names.

    Raises:
        Damaged: something was changed, removed, moved or cut; says what.
        Unreachable: nobody answers.
    """
    head = read_head(line, name)
    if head is None:
        raise Damaged(f"the line {name} has no head")
    record = Record(line, head)
    for number in range(1, len(head.segments) + 1):
        _take(record, read_segment(line, head, number))
    _check_chain(record, anchor)
    _check_files(record)
    record.pins = pinned_by(record.links)
    unknown = set(record.lost) - set(record.pins)
    if unknown:
        raise Damaged(f"the mirror tells of a run that no event pins: {min(unknown)}")
    return record


def _take(record: Record, segment: Segment) -> None:
    first = first_of(segment.number)
    last = min(first + EVENTS - 1, record.head.seq)
    if (segment.events[0].seq, len(segment.events)) != (first, last - first + 1):
        raise Damaged(f"segment {segment.number} does not hold the events {first} to {last}")
    record.links += [row.link() for row in segment.events]
    for file in segment.files:
        known = record.files.get(file.path)
        if known is not None and known[1].blob != file.blob:
            raise Damaged(f"the mirror holds two different files {file.path}")
        record.files[file.path] = (folder_of(segment.number), file)
    record.left_out |= {one.path: one.why for one in segment.left_out}
    record.lost += segment.lost
    if segment.pack is not None:
        record.packs.append((segment.number, segment))


def _check_chain(record: Record, anchor: Anchor | None) -> None:
    head = record.head
    report = verify(genesis(head.repository), record.links, anchor)
    if report.breaks:
        words = "; ".join(f"{one.what}: {one.text}" for one in report.breaks[:5])
        raise Damaged(f"the mirrored chain does not hold: {words}")
    if (report.seq, report.head) != (head.seq, head.hash if head.seq else report.head):
        raise Damaged(
            f"the mirror was cut or changed: its head names event {head.seq}, its chain ends with "
            f"event {report.seq}"
        )
    for link in record.links:
        if link.kind not in KINDS:
            raise LedgerError(
                f"event {link.seq} is of a kind that this sealrun does not know: {link.kind!r}",
                hint="Use the newer sealrun that wrote it, or upgrade this one.",
            )


def _check_files(record: Record) -> None:
    """Hold the files against the chain: what the events say of them, and whose they are."""
    check_tree(record.files)
    opened = {link.run for link in record.links if link.run is not None}
    said: dict[str, str] = {}
    for link in record.links:
        if link.kind == "run-ended":
            said |= outputs_said(link)
    for path, (_, file) in record.files.items():
        root, name = path.split("/")[:2]
        if root == "runs" and not (is_ulid(name) and name in opened):
            raise Damaged(f"the mirror holds a file of a run that is not in its chain: {path}")
        expected = said.get(path) or digest_of_evidence(path)
        if expected is not None and file.blob.sha256 != expected:
            raise Damaged(f"{path} was changed: it is not what the chain says")


# -- putting in place ----------------------------------------------------------------------------------


def restore(
    mirror: Mirror,
    name: str,
    repository: Repository,
    places: Places,
    anchor: Anchor | None,
    progress: Progress,
) -> Restored:
    """Bring one line's record back into a clone.

    Args:
        mirror: that holds it.
        name: of the line.
        repository: the clone.
        places: of the calling user.
        anchor: a head that was kept elsewhere.
        progress: hears how far it is.

    Raises:
        Damaged: the mirror is not what was mirrored.
        OtherHistory: another record stands here.
        Unreachable: nobody answers.
        StorageFault: something cannot be written.
    """
    wanted = name.partition("/")[0]
    with Memory(places).mirroring(wanted), contextlib.ExitStack() as closing:
        staging = closing.enter_context(scratch(places, f"restore-{wanted}")) / "git"
        line = closing.enter_context(
            contextlib.closing(open_line(mirror, name, staging, repository.algorithm))
        )
        record = read(line, name, anchor)
        if record.head.algorithm != repository.algorithm:
            raise UsageError(
                f"the mirrored repository is of format {record.head.algorithm}, this clone of "
                f"{repository.algorithm}"
            )
        state = places.repository(record.head.repository)
        _check_place(record, repository, places)
        _check_commits(record, repository, staging)
        # Everything is read once before anything is put in place, so that a byte that was changed
        # in the last file refuses the first one too.
        drafts = state / ".restore"
        _remove(drafts)
        private(drafts)
        try:
            _fetch_files(record, drafts, progress)
            ledger = replay(record.links, record.head.repository, drafts)
            layers = _put_layers(record, places, progress)
            _put_files(record, drafts, state)
            _put_ledger(ledger, places.ledger(record.head.repository))
            _put_refs(record, repository, staging)
            _put_id(repository, record.head.repository)
        finally:
            _remove(drafts)
    head = record.head
    return Restored(
        repository=head.repository,
        machine=head.machine,
        host=head.host,
        seq=head.seq,
        hash=head.hash,
        runs=len({link.run for link in record.links if link.kind == "run-opened"}),
        files=len(record.files),
        layers=layers,
        left_out=tuple(record.left_out.items()),
        lost=tuple(record.lost),
        anchored=anchor is not None,
    )


def _check_place(record: Record, repository: Repository, places: Places) -> None:
    """Refuse to restore where another history stands."""
    wanted = record.head.repository
    known = repository_id(repository.common_dir, create=False)
    if known is not None and known != wanted and places.ledger(known).exists():
        raise OtherHistory(
            f"{repository.workspace} has a ledger of its own: it is repository {known}, the mirror "
            f"holds {wanted}",
            hint="Restore into a fresh clone.",
        )
    ledger_path = places.ledger(wanted)
    if ledger_path.exists():
        ledger = open_ledger(ledger_path, wanted, pinned_refs_exist=True)
        if ledger is None:
            raise LedgerError(f"the ledger {ledger_path} vanished while it was read")
        with ledger:
            _check_history(record, ledger)
    for run, commit in _refs(repository).items():
        if record.pins.get(run, commit if known == wanted else None) != commit:
            raise OtherHistory(
                f"{RUN_REFS}{run} in {repository.workspace} is not what the mirror says",
                hint="Restore into a fresh clone.",
            )


def _check_history(record: Record, ledger: Ledger) -> None:
    """Refuse a ledger that is not the mirror's history, or only its beginning."""
    head = record.head
    last, digest = ledger.head()
    keep = "Nothing was changed. Keep a copy of both; the owner of this loop decides which counts."
    if last < head.seq:
        common = last == 0 or record.links[last - 1].hash.hex() == digest
        raise OtherHistory(
            f"the ledger {ledger.path} ends with event {last}, the mirror holds {head.seq}: what "
            f"stands here {'was cut, or is an old copy' if common else 'tells another history'}",
            hint=keep,
        )
    found = next(ledger.links(head.seq - 1), None) if head.seq else None
    if found is not None and found.hash.hex() != head.hash:
        raise OtherHistory(
            f"the ledger {ledger.path} tells another history than the mirror", hint=keep
        )


def _refs(repository: Repository) -> dict[str, str]:
    output = repository.git.run("for-each-ref", "--format=%(refname) %(objectname)", RUN_REFS)
    rows = [line.decode().split(" ") for line in output.split(b"\n") if line]
    return {name.removeprefix(RUN_REFS): oid for name, oid in rows}


def _check_commits(record: Record, repository: Repository, staging: Path) -> None:
    """Bring the pinned commits into our bare repository; each must be whole."""
    git = gitline.staging(staging, repository.algorithm, repository.common_dir / "objects")
    packs = [(number, one.pack) for number, one in record.packs if one.pack is not None]
    record.line.unpack(staging, packs)
    wanted = {run: oid for run, oid in record.pins.items() if run not in record.lost}
    missing = set(wanted.values()) - existing(git, wanted.values())
    if missing:
        run = min(run for run, oid in wanted.items() if oid in missing)
        raise Damaged(f"the mirror was cut: commit {wanted[run]} of run {run} is missing")
    listed = "".join(f"{oid}\n" for oid in dict.fromkeys(wanted.values())).encode()
    status, _, errors = git.attempt("rev-list", "--objects", "--quiet", "--stdin", stdin=listed)
    if status != 0:
        words = errors.decode("utf-8", "replace").strip().splitlines()
        raise Damaged(f"the commits of the mirror are not whole: {words[-1] if words else status}")
    updates = "".join(f"create {RUN_REFS}{run} {oid}\n" for run, oid in wanted.items())
    git.run("update-ref", "--stdin", stdin=updates.encode())


def _fetch_files(record: Record, drafts: Path, progress: Progress) -> None:
    total = sum(file.blob.size for _, file in record.files.values())
    with progress.task("reading the mirror's files", total) as task:
        for number, (path, (folder, file)) in enumerate(record.files.items()):
            with _new(drafts / str(number)) as descriptor:
                for chunk in contents(record.line, folder, file.blob, path):
                    _write(descriptor, chunk)
                    task.advance(len(chunk))


@contextlib.contextmanager
def _new(file: Path) -> Generator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(file, flags, 0o600)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageFault(
            f"cannot write {file}: {error.strerror}", hint="Free space or fix the permissions."
        ) from error


def _write(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _put_layers(record: Record, places: Places, progress: Progress) -> int:
    store = LayerStore(places.layers)
    total = sum(blob.size for blob in record.head.layers)
    done = 0
    with progress.task("layers", total) as task:
        for blob in record.head.layers:
            task.advance(blob.size)
            if store.get(f"sha256:{blob.sha256}", blob.size) is not None:
                continue
            with store.writer(expected=blob.size) as writer:
                for chunk in contents(record.line, LAYERS, blob, f"layer {blob.sha256[:12]}"):
                    writer.write(chunk)
                writer.commit()
            done += 1
    return done


def _put_files(record: Record, drafts: Path, state: Path) -> None:
    for number, (path, (_, file)) in enumerate(record.files.items()):
        target = state / os.fsdecode(unfit(path).encode("utf-8", "surrogateescape"))
        private(target.parent)
        try:
            # link, not rename: what stands there already stays.
            os.link(drafts / str(number), target)
        except FileExistsError:
            if hashed(target, None) != file.blob:
                raise OtherHistory(
                    f"{target} is not what the mirror holds",
                    hint="Nothing was changed there. Move it away, then restore again.",
                ) from None
        except OSError as error:
            raise StorageFault(f"cannot write {target}: {error.strerror}") from error


def _put_ledger(draft: Path, target: Path) -> None:
    try:
        # One that stands there was checked before: the same history, or a longer one.
        with contextlib.suppress(FileExistsError):
            os.link(draft, target)
    except OSError as error:
        raise StorageFault(f"cannot write {target}: {error.strerror}") from error


def _put_refs(record: Record, repository: Repository, staging: Path) -> None:
    wanted = [run for run in record.pins if run not in record.lost]
    if not wanted:
        return
    try:
        repository.git.run(
            *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"),
            *("--no-recurse-submodules", "--", str(staging), f"{RUN_REFS}*:{RUN_REFS}*"),
            extra={"GIT_ALLOW_PROTOCOL": "file"},
        )
    except GitFailed as error:
        raise StorageFault(f"the pinned commits could not be put in place: {error}") from error


def _put_id(repository: Repository, wanted: str) -> None:
    file = repository.common_dir / ID_FILE
    try:
        file.parent.mkdir(exist_ok=True)
        draft = file.with_name(f"id.{secrets.token_hex(4)}")
        draft.write_text(wanted + "\n", "ascii")
        draft.replace(file)
    except OSError as error:
        raise StorageFault(f"cannot write {file}: {error.strerror}") from error


def _remove(drafts: Path) -> None:
    with contextlib.suppress(OSError):
        for entry in drafts.iterdir():
            entry.unlink()
        drafts.rmdir()
