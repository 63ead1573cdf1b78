"""Mirrors a repository to each of its destinations, and remembers how that went.

Rules that this module keeps:

- Destinations are independent: one that fails holds up no other.
- Every failure ends as words that are remembered and shown; none of them stops a run.
- One process at a time mirrors a repository.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import SealrunError, StorageFault
from sealrun.ledger import open_ledger
from sealrun.mirror import config
from sealrun.mirror.directory import DirectoryLine
from sealrun.mirror.format import line_name
from sealrun.mirror.gitline import GitLine, Remote, staging
from sealrun.mirror.memory import scratch
from sealrun.mirror.step import ChainDiffers, Source, bring_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sealrun.git import Repository
    from sealrun.mirror.config import Destination, Mirroring
    from sealrun.mirror.line import Writable
    from sealrun.mirror.memory import Memory, Standing
    from sealrun.state import Places


def open_line(
    destination: Destination,
    name: str,
    places: Places,
    repository: Repository,
    environment: Mapping[str, str],
) -> Writable:
    """Return a line of a destination.

    Args:
        destination: where it is.
        name: of the line.
        places: of the calling user.
        repository: whose objects a git remote is brought.
        environment: where the variables of secrets are looked up.

    Raises:
        MirrorError: a secret is not where it is said to be.
        StorageFault: the staging repository cannot be made.
    """
    place = destination.place
    if isinstance(place, config.Directory):
        return DirectoryLine(Path(place.path), name)
    if isinstance(place, config.Bucket):
        from sealrun.mirror.s3line import S3Line, connect

        return S3Line(connect(place), name)
    access = config.access(place, environment)
    key = destination.key(name)
    git = staging(
        places.cache / "mirror" / f"{key}.git",
        repository.algorithm,
        repository.common_dir / "objects",
    )
    return GitLine(Remote(access, git), name)


def mirror(
    places: Places,
    repository: Repository,
    repository_id: str,
    memory: Memory,
    destinations: Sequence[Destination],
    mirroring: Mirroring,
    environment: Mapping[str, str],
) -> dict[str, Standing]:
    """Mirror a repository everywhere; return what is known of each destination by its name.

    Raises:
        OSError: what became of it cannot be written down.
        StorageFault: likewise.
    """
    found: dict[str, Standing] = {}
    with memory.mirroring(repository_id):
        for destination in destinations:
            key = destination.key(repository_id)
            before = memory.standing(repository_id, key, destination.name)
            after = _attempt(
                places,
                repository,
                repository_id,
                memory,
                destination,
                mirroring,
                environment,
                before,
            )
            memory.remember(repository_id, key, after)
            found[destination.name] = after
    return found


def _attempt(
    places: Places,
    repository: Repository,
    repository_id: str,
    memory: Memory,
    destination: Destination,
    mirroring: Mirroring,
    environment: Mapping[str, str],
    before: Standing,
) -> Standing:
    try:
        machine = memory.machine()
        ledger = open_ledger(
            places.ledger(repository_id),
            repository_id,
            pinned_refs_exist=bool(before.seq) or bool(repository.pinned()),
        )
        if ledger is None:
            return before
        with ledger, scratch(places, f"packs-{repository_id}") as packs:
            source = Source(
                places,
                repository,
                repository_id,
                ledger,
                machine,
                mirroring,
                packs,
            )
            name = line_name(repository_id, machine)
            line = open_line(destination, name, places, repository, environment)
            with contextlib.closing(line):
                brought = bring_up(line, source, before, layers=destination.place.layers)
    except SealrunError as error:
        return failed(before, error)
    except OSError as error:
        return failed(before, StorageFault(f"{error.filename or 'the mirror'}: {error.strerror}"))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown and nothing stops
        return failed(before, StorageFault(f"unforeseen {type(error).__name__}: {error}"))
    return replace(
        before,
        succeeded=time.time(),
        seq=brought.seq,
        hash=brought.hash,
        failures=0,
        why=None,
        hint=None,
        differs=False,
        left_out=before.left_out + brought.left_out,
    )


def failed(before: Standing, error: SealrunError) -> Standing:
    """Return what is known of a destination after a try that failed."""
    return replace(
        before,
        failed=time.time(),
        failures=before.failures + 1,
        why=error.message,
        hint=error.hint,
        differs=isinstance(error, ChainDiffers),
    )
