"""The fetches of a commit: found in the store, or made where somebody waits for them.

Rules that this module keeps:

- ``run`` only looks; ``warm`` makes. Where nobody is there to wait, what is missing is a
  ``ColdStart`` within seconds.
- What is handed out is data of the run: with a manifest by content, verified before the start and
  after the end, watched meanwhile, on record.
- What changed on disk is never handed out; fetched again it has to be what it was, or what the
  commit binds it to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun import nested
from sealrun.data import HashCache
from sealrun.errors import ColdStart, EnvironmentFault, Refused, SealRefused, StorageFault
from sealrun.fetch import hub, repository
from sealrun.fetch.store import FetchStore, Record, seal
from sealrun.fetch.transfer import Expected, Server, shown
from sealrun.fetch.wanted import file_name, folder, wanted
from sealrun.image.base import alone
from sealrun.policy import DataPolicy, HubFetch, UrlFetch
from sealrun.state import free_room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealrun.data import Dataset
    from sealrun.fetch.wanted import Wanted
    from sealrun.policy import GitFetch, Policy
    from sealrun.progress import Progress
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: Bytes of a disk that no download fills.
_LEFT_FREE = 1 << 28


@dataclass(frozen=True)
class Fetched:
    """One entry as it stands on this machine.

    Attributes:
        wanted: what the policy asks for.
        record: what was fetched for it.
        dataset: as a run mounts and verifies it.
        made: whether it was fetched just now.
    """

    wanted: Wanted
    record: Record
    dataset: Dataset
    made: bool


def datasets(
    policy: Policy, tree: CommittedTree, places: Places, progress: Progress, *, make: bool
) -> tuple[Dataset, ...]:
    """Return what a run mounts for its policy's ``[[fetch]]``; see ``prepare``."""
    found = prepare(policy, tree, places, progress, make=make)
    return tuple(one.dataset for one in found)


def prepare(
    policy: Policy,
    tree: CommittedTree,
    places: Places,
    progress: Progress,
    *,
    make: bool,
    tokens: bool = True,
) -> tuple[Fetched, ...]:
    """Return every fetch that a policy asks for.

    Args:
        policy: the one that judges.
        make: whether what is missing may be fetched now.
        tokens: whether a human stands behind the policy, so that it may give tokens away.

    Raises:
        ColdStart: something is missing or damaged and may not be fetched now.
        Refused: a target is taken, or the variable of a token is not set or may not be used.
        SealRefused: a server serves other bytes than were named, listed or recorded.
        EnvironmentFault: it could not be fetched.
    """
    return tuple(_each(policy, tree, places, progress, make=make, tokens=tokens))


def again(target: str, digest: str, places: Places, progress: Progress) -> Dataset:
    """Return what a run on record found at a target, from the store alone.

    Args:
        target: absolute path in the container.
        digest: of its manifest, as recorded.

    Raises:
        Refused: it is not here any more, or is not what it was.
    """
    source = FetchStore(places).item_of(digest)
    if source is not None:
        found = _dataset(target, source, places, progress)
        if found.digest == digest:
            return found
    state = "is not here any more" if source is None else "was changed on disk"
    raise Refused(
        f"what was fetched for {target} ({digest[:12]}) {state}",
        hint="sealrun warm with --rev and the run's commit fetches it again, if its server still "
        "has the same.",
    )


def _each(
    policy: Policy,
    tree: CommittedTree,
    places: Places,
    progress: Progress,
    *,
    make: bool,
    tokens: bool,
) -> Iterator[Fetched]:
    store = FetchStore(places) if policy.fetch else None
    for one in wanted(policy, tree):
        if store is None:  # pragma: no cover - nothing is wanted without entries
            return
        found = _stored(one, store, places, progress)
        if isinstance(found, Fetched):
            yield found
            continue
        if not make:
            raise ColdStart(
                f"{one.label} {found}",
                hint="Run sealrun warm once; it fetches what the policy names, with progress.",
            )
        with alone(places, f"fetch:{one.key}"):
            # Another warm may have fetched it while we waited.
            again = _stored(one, store, places, progress)
            if isinstance(again, Fetched):
                yield again
                continue
            token = _token(one, may=tokens)
            record = _Making(one, store, places, progress, token).make()
        dataset = _dataset(one.target, store.item(record), places, progress)
        if dataset.digest != record.digest:
            raise StorageFault(f"{one.label} changed on disk while it was fetched")
        yield Fetched(one, record, dataset, made=True)


def _stored(one: Wanted, store: FetchStore, places: Places, progress: Progress) -> Fetched | str:
    """Return an entry as it is stored, or why it has to be fetched."""
    record = _find(one, store)
    if record is None:
        return "is not here yet"
    try:
        dataset = _dataset(one.target, store.item(record), places, progress)
    except Refused:
        if store.item(record).exists():
            raise
        return "is not here any more"
    if dataset.digest != record.digest:
        return "was changed on disk since it was fetched"
    _check_pin(one, record.revision, record.digest)
    return Fetched(one, record, dataset, made=False)


def _find(one: Wanted, store: FetchStore) -> Record | None:
    record = store.find(one.key)
    if record is None and one.pin is not None:
        # Written into the lock after it was fetched: the same item, if it was that commit.
        earlier = store.find(replace(one, pin=None).key)
        if earlier is not None and earlier.revision == one.pin.commit:
            return earlier
    return record


def _dataset(target: str, source: Path, places: Places, progress: Progress) -> Dataset:
    mount = DataPolicy(source=str(source), target=target)
    cache = HashCache(places.cache / "hashes.sqlite")
    (found,) = cache.manifest([mount], Path.home(), progress)
    return found


def _check_pin(one: Wanted, commit: str, digest: str) -> None:
    pin = one.pin
    if pin is not None and (pin.commit != commit or pin.digest not in (None, digest)):
        raise SealRefused(
            f"{one.label} has the digest {digest} at {commit}, but sealrun.lock binds it to "
            f"{pin.digest} at {pin.commit}",
            hint="Find out who serves other bytes under this commit before you change the lock.",
        )


def _token(one: Wanted, *, may: bool) -> str | None:
    name = one.entry.token
    if name is None:
        return None
    if not may:
        raise Refused(
            f"{one.label}: the policy of this commit names the variable {name} for a token, and is "
            "not the approved one",
            hint="Which server gets a token is decided by the person who owns this loop; sealrun "
            "policy diff shows what this commit changes.",
        )
    value = os.environ.get(name, "").strip()
    if not value.isascii() or not value.isprintable() or not value:
        raise Refused(
            f"{one.label}: the policy names the variable {name} for a token, and it is "
            f"{'not a token' if value else 'not set'}",
            hint=f"Set {name} where sealrun warm runs; it is used for this download alone.",
        )
    return value


class _Making:
    """Fetches one entry."""

    def __init__(
        self,
        one: Wanted,
        store: FetchStore,
        places: Places,
        progress: Progress,
        token: str | None,
    ) -> None:
        self.one = one
        self.store = store
        self.places = places
        self.progress = progress
        self.token = token
        self.known = _find(one, store)
        self.scratch = store.scratch(one.key)

    def make(self) -> Record:
        """Fetch the item, check it, keep it."""
        entry = self.one.entry
        if isinstance(entry, HubFetch):
            record, grown = self._hub(entry)
        elif isinstance(entry, UrlFetch):
            record, grown = self._url(entry)
        else:
            record, grown = self._git(entry)
        _check_pin(self.one, record.revision, record.digest)
        known = self.known
        if (
            known is not None
            and known.revision == record.revision
            and known.digest != record.digest
        ):
            raise SealRefused(
                f"{self.one.label}: {record.server} serves other bytes under {record.revision[:12]} "
                f"than those on record ({record.digest[:12]}, not {known.digest[:12]})",
                hint="Runs on record read the other bytes. Find out who changed them.",
            )
        self.store.keep(record, grown)
        return record

    def _hub(self, entry: HubFetch) -> tuple[Record, Path]:
        at = hub.endpoint()
        asked = hub.Hub(entry, at, self.token)
        revision = self.one.pin.commit if self.one.pin else entry.revision
        # Fetched again it is the same commit, wherever the branch went since.
        commit = self.known.revision if self.known else asked.resolve(revision)
        files = asked.files(commit)
        size = sum({file.blob: file.size for file in files}.values())
        self._check_room(size)
        grown = self.scratch / "item"
        grown.mkdir(exist_ok=True)
        title = f"fetching {self.one.label}: {len(files)} files"
        with self.progress.task(title, sum(file.size for file in files)) as task:
            asked.download(commit, files, grown / "blobs", task)
        hub.lay_out(entry, commit, files, grown)
        where = f"hub/{folder(entry)}/{commit}"
        return self._record(grown, where, shown(at), commit, len(files), size), grown

    def _url(self, entry: UrlFetch) -> tuple[Record, Path]:
        grown = self.scratch / "item"
        with self.progress.task(f"fetching {self.one.label}") as task:
            expected = Expected(largest=entry.limit, sha256=entry.sha256)
            server = Server(entry.url, self.token)
            server.file(entry.url, grown, expected, task, file_name(entry.url))
        where = f"url/{file_name(entry.url)}"
        size = grown.stat().st_size
        return self._record(grown, where, shown(entry.url), entry.sha256, 1, size), grown

    def _git(self, entry: GitFetch) -> tuple[Record, Path]:
        grown = self.scratch / "item"
        nested.remove(grown)
        grown.mkdir()
        with self.progress.task(f"fetching {self.one.label}") as task:
            repository.fetch(entry, self.token, self.scratch, grown, task)
        sizes = [
            os.lstat(f"{at}/{name}").st_size
            for at, _, names in nested.walk(grown)
            for name in names
        ]
        where = f"git/{file_name(entry.url)}/{entry.commit}"
        server = shown(entry.url)
        return self._record(grown, where, server, entry.commit, len(sizes), sum(sizes)), grown

    def _record(
        self, grown: Path, where: str, server: str, revision: str, files: int, size: int
    ) -> Record:
        # Sealed first: what is hashed now is then known by its identity where it is mounted.
        seal(grown)
        found = _dataset(self.one.target, grown, self.places, self.progress)
        path = f"{where}/{found.digest}"
        return Record(
            self.one.key, self.one.label, server, revision, path, found.digest, files, size
        )

    def _check_room(self, size: int) -> None:
        here = sum(
            os.lstat(f"{at}/{name}").st_size
            for at, _, names in nested.walk(self.scratch)
            for name in names
        )
        free = free_room(self.scratch)
        if free is not None and size - here + _LEFT_FREE > free:
            raise EnvironmentFault(
                f"{self.one.label} needs {size - here} bytes on the disk of {self.scratch}, "
                f"{free} are free",
                hint="Free space there, or set SEALRUN_HOME to another disk.",
            )
