"""What has to stay: everything that any run on record was made of, or that its alerts point to.

Rules that this module keeps:

- Every ledger below every state directory that uses the data is read, and the imported runs beside
  them; whatever of that cannot be read whole, or whose chain does not hold, ends everything:
  nothing is removed on half a record.
- Read are the events themselves, not the tables made from them.
- An outcome or verdict plays no part: kept, discarded, aborted and refused runs count alike.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun.errors import SealrunError, StorageFault
from sealrun.gc.keeping import noted, states
from sealrun.image.archive import lower_references, tree_reference
from sealrun.image.model import Platform
from sealrun.ledger import Alert, RunEnded, RunOpened, RunProgress, is_alive, open_ledger
from sealrun.ledger.alive import LOCK
from sealrun.moved import below_state
from sealrun.sandbox.init import ARCHITECTURES
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from sealrun.ledger import Event, Ledger, Recorded

_REPOSITORY = re.compile(r"[0-9a-f]{32}")


@dataclass
class Needed:
    """What has to stay, and what is known to be ours.

    Attributes:
        layers: digests of layers of bases and environments, without prefix.
        data: digests of what was mounted.
        caches: digests of what compile caches began with.
        between: names of directories of evidence, by repository.
        alive: repositories with a run under way.
        repositories: every repository with a state directory.
        images: what our runs called their images, and those below them, in an engine, with the time
            of the last run that used each (ISO 8601).
        runs: how many were read.
    """

    layers: set[str] = field(default_factory=set[str])
    data: set[str] = field(default_factory=set[str])
    caches: set[str] = field(default_factory=set[str])
    between: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    alive: set[str] = field(default_factory=set[str])
    repositories: set[str] = field(default_factory=set[str])
    images: dict[str, str] = field(default_factory=dict[str, str])
    runs: int = 0


def read_needed(places: Places) -> Needed:
    """Read what has to stay from every ledger.

    Raises:
        StorageFault: something of the record cannot be read.
    """
    needed = Needed()
    used = noted(places)
    for state in states(places):
        for repository in _repositories(state, new=state not in used):
            seen = Places(state, places.data, places.cache, places.runtime)
            try:
                _read(seen, repository, needed)
            except SealrunError as error:
                raise _unreadable(error.message, error.hint) from error
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _unreadable(f"the record of {repository} in {state}: {error!r}") from error
    return needed


def _unreadable(words: str, hint: str | None = None) -> StorageFault:
    return StorageFault(
        f"nothing was removed, because not every record can be read: {words}",
        hint=hint or "Repair or restore it; what its runs need is not known without it.",
    )


def _repositories(state: Path, *, new: bool) -> Iterator[str]:
    root = state / "repositories"
    try:
        names = sorted(entry.name for entry in root.iterdir())
    except FileNotFoundError:
        if new and not state.is_symlink():
            return
        raise _unreadable(
            f"{state} is gone, and its runs used this data",
            "Bring it back. If it was removed for good, remove its name from the file used-by in "
            "sealrun's data directory.",
        ) from None
    except OSError as error:
        raise _unreadable(f"{root}: {error.strerror}") from error
    for name in names:
        if _REPOSITORY.fullmatch(name) is None:
            raise _unreadable(f"{root / name} is no repository's state")
        yield name


def _read(places: Places, repository: str, needed: Needed) -> None:
    needed.repositories.add(repository)
    needed.between.setdefault(repository, set())
    root = places.state / "repositories" / repository
    path = root / "ledger.sqlite"
    ledger = open_ledger(path, repository, pinned_refs_exist=_has_record(root))
    if ledger is not None:
        with contextlib.closing(ledger):
            _check(ledger)
            _take(places, repository, ledger.events(), needed)
    from sealrun.provenance.bundle.imported import all_runs

    if (root / "imported").is_dir():
        for run in all_runs(places, repository):
            _take(places, repository, run.events, needed)


def _has_record(root: Path) -> bool:
    """Tell whether runs left anything: a directory and its lock are made before a run is opened."""
    files = (*root.glob("runs/*/*"), *root.glob("imported/runs/*"))
    return any(file.name != LOCK for file in files)


def _check(ledger: Ledger) -> None:
    report = ledger.verify_chain()
    if not report.sound:
        raise _unreadable(
            f"the chain of {ledger.path} does not hold at event {report.breaks[0].seq}",
            "sealrun alerts --verify-chain says what is wrong with it.",
        )


def _take(
    places: Places, repository: str, events: Iterable[Recorded[Event]], needed: Needed
) -> None:
    platforms: dict[str | None, Platform] = {}
    ended: set[str | None] = set()
    opened: set[str] = set()
    for recorded in events:
        event = recorded.event
        if isinstance(event, RunOpened):
            needed.runs += 1
            opened.add(event.run or "")
            machine = (event.host.architecture if event.host else None) or ""
            platforms[event.run] = Platform(architecture=ARCHITECTURES.get(machine, machine))
        elif isinstance(event, RunEnded):
            ended.add(event.run)
        elif isinstance(event, RunProgress):
            _take_progress(event, platforms.get(event.run, Platform()), recorded.at, needed)
        elif isinstance(event, Alert):
            _take_alert(event, repository, needed)
    if any(is_alive(places, repository, run) for run in opened - ended):
        needed.alive.add(repository)


def _take_progress(event: RunProgress, platform: Platform, at: str, needed: Needed) -> None:
    needed.data.update(one.digest for one in event.data or ())
    if event.caches is not None:
        needed.caches.add(event.caches.digest)
    layers = event.layers or ()
    needed.layers.update(
        part.diff_id.removeprefix("sha256:") for part in layers if part.role != "tree"
    )
    if event.image_id is None:
        return
    base = [part.diff_id for part in layers if part.role == "base"]
    middle = [part.diff_id for part in layers if part.role == "environment"]
    names = [tree_reference(event.image_id)]
    if base:
        names += lower_references(base, middle[0] if middle else None, platform)
    for name in names:
        needed.images[name] = max(at, needed.images.get(name, ""))


def _take_alert(event: Alert, repository: str, needed: Needed) -> None:
    files = [event.evidence]
    for state in event.states:
        files += [state.evidence, state.before_evidence]
    for file in files:
        below = below_state(file) if file else None
        if below is None:
            continue
        place, _, rest = below[1].partition("/")
        if place == "between":
            # Of a restored record, the names are those of the machine that it came from.
            for owner in {repository, below[0]}:
                needed.between.setdefault(owner, set()).add(rest.partition("/")[0])
