"""Gives a run the seed that its caches begin with, and sees that it got just that.

Rules that this module keeps:

- A seed that is missing, changed, too large or made for something else is no trouble: the run's
  caches are empty, and one line says so.
- Hashed before the container is made; looked at again when its init has copied it: what was copied
  is then what was hashed. Where the container's files can be seen, the copy is compared too.
- What a run writes stays in its container. Nothing here writes to a seed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.caches import CACHES
from sealrun.caches.store import SeedStore, Unusable
from sealrun.data import Identity, walk
from sealrun.errors import SandboxError
from sealrun.ledger import CacheFacts
from sealrun.sandbox.protocol import Seed as Copied

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sealrun.caches.store import Seed
    from sealrun.policy import Policy
    from sealrun.progress import Listener
    from sealrun.sandbox.protocol import Container
    from sealrun.state import Places


@dataclass(frozen=True)
class Given:
    """A seed on its way into one run.

    Attributes:
        identities: of its files, from before they were hashed.
    """

    seed: Seed
    identities: dict[bytes, Identity]

    @property
    def copied(self) -> Copied:
        """What the sandbox is asked for."""
        return Copied(self.seed.directory, CACHES, self.seed.size)

    @property
    def facts(self) -> CacheFacts:
        """What the record says."""
        seed = self.seed
        return CacheFacts(
            digest=seed.digest,
            files=seed.files,
            size=seed.size,
            commit=seed.origin.commit,
            command=seed.origin.command,
            ended=seed.origin.ended,
            made=seed.origin.made,
        )

    def check(self, container: Container) -> str:
        """Compare what stands in a container at its gate with what was warmed.

        Returns:
            What was verified, as a sentence of the coverage.

        Raises:
            SandboxError: somebody was in between.
        """
        try:
            touched = _identities(self.seed.directory) != self.identities
        except OSError:
            touched = True
        if touched:
            raise _disturbed("they were changed on disk while they were copied")
        if container.root is None:
            return (
                f"the caches: {self.seed.files} files, by content before they were copied, and "
                "untouched until the copy was made"
            )
        wanted = {
            os.fsencode(entry.path): (entry.sha256, entry.size, _mode(entry.executable))
            if entry.sha256
            else (None, 0, 0o755)
            for entry in self.seed.entries
        }
        found = {
            state.path: (state.sha256, state.size, state.mode)
            for state in container.files(CACHES, self.seed.largest)
        }
        if found != wanted:
            paths = sorted(found.keys() | wanted.keys())
            first = next(path for path in paths if found.get(path) != wanted.get(path))
            raise _disturbed(f"{os.fsdecode(first)!r} is not as it was warmed")
        return f"in the container: {self.seed.files} cached files, by content, set equality"


def _mode(executable: bool) -> int:  # noqa: FBT001 - a field of an entry
    # As images/init/init.c makes them.
    return 0o755 if executable else 0o644


def _disturbed(why: str) -> SandboxError:
    return SandboxError(
        f"the caches in the container are not those that were warmed: {why}",
        hint="Nothing was run. Find out who writes below sealrun's data directory.",
    )


def _identities(directory: Path) -> dict[bytes, Identity]:
    return dict(walk(directory, links=True))


def for_run(
    policy: Policy, key: Mapping[str, object], places: Places, listener: Listener
) -> Given | None:
    """Return the newest seed of a key; None where a run's caches begin empty.

    Args:
        policy: of the run.
        key: what the run is made of (``key.parts``).
    """
    if policy.sandbox.caches != "warmed":
        return None
    store = SeedStore(places)
    digest = store.newest(key)
    try:
        if digest is None:
            raise Unusable(
                "nothing was warmed for this environment, these data and sources, on this machine"
            )
        return _given(store, digest, policy)
    except Unusable as why:
        listener.say(f"the compile caches begin empty: {why}; sealrun warm -- COMMAND fills them")
        return None


def again(
    recorded: CacheFacts | None,
    policy: Policy,
    key: Mapping[str, object],
    places: Places,
    listener: Listener,
) -> Given | None:
    """Return the seed that a run on record began with; None where it had none, or it is no use here.

    Args:
        recorded: of the run that is repeated.
        policy: of that run.
        key: what the repetition is made of.
    """
    if recorded is None:
        return None
    store = SeedStore(places)
    try:
        found = _given(store, recorded.digest, policy)
        others = [name for name, part in key.items() if found.seed.key.get(name) != part]
        if others:
            raise Unusable(f"the warmed ones were made for another {others[0].replace('_', ' ')}")
    except Unusable as why:
        listener.say(
            f"the compile caches begin empty, then they began with {recorded.digest[:12]} of commit "
            f"{recorded.commit[:7]}: {why}"
        )
        return None
    return found


def _given(store: SeedStore, digest: str, policy: Policy) -> Given:
    box = policy.sandbox
    try:
        before = _identities(store.files(digest))
    except OSError as error:
        raise Unusable("the warmed ones are not here any more") from error
    seed = store.open(digest)
    for name, most in (("tmp", box.tmp), ("memory", box.memory)):
        if most is not None and seed.room > most // 2:
            raise Unusable(
                f"the warmed ones take {seed.room} bytes, more than half of [sandbox] {name}"
            )
    if box.file_size is not None and seed.largest > box.file_size:
        raise Unusable(
            f"the largest of the warmed ones has {seed.largest} bytes, [sandbox] file_size allows less"
        )
    return Given(seed, before)
