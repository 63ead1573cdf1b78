"""The standing watch: what a guard keeps of the workspace while no run is armed.

Rules that this module keeps:

- It is an armed run of the guard's own, and every state of a tracked file that appears is a record with
  its evidence and its writer: the loop's ``git reset --hard`` comes later, and so does whoever asks.
- Agents edit for hours: memory, journal and evidence are bounded. Where a bound is reached the oldest
  states go and the report says how many. Evidence that was told of is never taken back.
- It outlives its client and its guard: what it watches for stands in the guard's directory, its records
  in a journal beside the evidence. The time in which nobody watched is a gap.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import GuardError
from sealrun.guard.armed import ArmedRun
from sealrun.guard.manifest import Manifest, read_manifest, write_manifest
from sealrun.guard.messages import decode, encode, moment
from sealrun.guard.mutations import PER_FILE, EvidenceStore, Mutation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.guard.attribution import Attribution
    from sealrun.guard.coverage import Moment

#: The name under which a standing watch is asked for; no run has it.
BETWEEN = "between"
#: States kept of one path and in all, and bytes of journal after which it is written anew.
VERSIONS, RECORDS, JOURNAL_SIZE = 64, 20_000, 16 << 20
#: Files in the guard's directory.
FILE, MANIFEST = "standing.json", "standing.manifest"


@dataclass(frozen=True)
class Standing:
    """What a standing watch watches for.

    Attributes:
        manifest: the files as they should be.
        evidence: directory of foreign bytes and the journal.
        since: when it began.
        root: device and inode of the workspace.
    """

    manifest: Manifest
    evidence: Path
    since: Moment
    root: tuple[int, int]

    def save(self, directory: Path) -> None:
        """Write it down for the guard that may come after this one.

        Raises:
            OSError: it cannot be written.
        """
        write_manifest(directory / MANIFEST, self.manifest.algorithm, self.manifest.files)
        document = {"evidence": os.fspath(self.evidence), "since": self.since, "root": self.root}
        draft = directory / f".{secrets.token_hex(8)}"
        draft.write_bytes(encode(document))
        draft.replace(directory / FILE)

    @classmethod
    def load(cls, directory: Path) -> Standing | None:
        """Return what an earlier guard watched for; None where it watched for nothing.

        Raises:
            GuardError: what stands there is not understood.
        """
        try:
            document = decode((directory / FILE).read_bytes())
            device, inode = document["root"]
            return cls(
                read_manifest(directory / MANIFEST),
                Path(str(document["evidence"])),
                moment(document["since"]),
                (int(device), int(inode)),
            )
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise GuardError(f"{directory / FILE} is not understood: {error!r}") from error

    @staticmethod
    def forget(directory: Path) -> None:
        """Let the next guard watch for nothing between runs."""
        with suppress(OSError):
            (directory / FILE).unlink()


class StandingRun(ArmedRun):
    """An armed run without end: it keeps the newest states.

    Args:
        workspace: top of the working directory.
        standing: what to watch for.
        versions: states kept of one path.
        records: states kept in all.
        store: keeps the evidence; made from ``standing`` where none is given.
    """

    def __init__(
        self,
        workspace: bytes,
        standing: Standing,
        *,
        versions: int = VERSIONS,
        records: int = RECORDS,
        store: EvidenceStore | None = None,
    ) -> None:
        store = store or EvidenceStore(standing.evidence)
        super().__init__(BETWEEN, workspace, standing.manifest, store, ())
        self.standing = standing
        self.since = standing.since
        self._versions = versions
        self._most = records
        self._told: set[tuple[bytes, str]] = set()
        self._journal = JOURNAL_SIZE

    def restore(self, mutations: Iterable[Mutation]) -> None:
        """Take over the records of a guard that ended."""
        for mutation in mutations:
            evidence = mutation.evidence
            if evidence is not None and evidence.file and not Path(evidence.file).exists():
                continue  # dropped, which the journal does not say
            digest = "" if evidence is None else evidence.sha256
            tracked = mutation.area == "tracked"
            state = f"{mutation.kind}:{digest}:{mutation.mode:o}" if tracked else mutation.kind
            key = (mutation.path, state)
            touched = self._touch(mutation.path, mutation.events)
            touched.states.append(state)
            touched.current = None if mutation.restored else state
            self._records[key] = mutation
            self._number = max(self._number, mutation.number)
            # They may have been told of already.
            self._told.add(key)
            if evidence is not None:
                self.store.adopt(evidence)

    def follow_on(self, before: ArmedRun) -> None:
        """Take what an earlier watch found last, and told, for what stands there: it is not news."""
        for path, state in before.foreign_states():
            if self.files.get(path) == before.files.get(path):
                self._touch(path, ()).current = state

    def mutations(self) -> tuple[Mutation, ...]:
        """Return every record; the evidence of what was told of stays where it is."""
        self._told.update(self._records)
        return super().mutations()

    def settle(self, attribution: Attribution, position: int) -> None:
        """Name writers and tell, as for every run; keep the journal short."""
        super().settle(attribution, position)
        if self.store.noted > self._journal:
            self.store.begin_journal(self.line(mutation) for mutation in super().mutations())
            self._journal = max(JOURNAL_SIZE, 2 * self.store.noted)

    def _publish(self, key: tuple[bytes, str], mutation: Mutation, *, entered: bool = True) -> None:
        if entered and key in self._records:
            # It is among the newest again.
            del self._records[key]
            states = self._touched[key[0]].states
            states.remove(key[1])
            states.append(key[1])
        super()._publish(key, mutation, entered=entered)

    def _has_room(self, path: bytes) -> bool:
        states = self._touched[path].states
        while len(states) >= self._versions:
            self._drop((path, states[0]))
        while self._records and (len(self._records) >= self._most or self.store.left < PER_FILE):
            self._drop(next(iter(self._records)))
        return True

    def _drop(self, key: tuple[bytes, str]) -> None:
        record = self._records.pop(key)
        self._news.pop(key, None)
        self.dropped += 1
        touched = self._touched[key[0]]
        touched.states.remove(key[1])
        if key not in self._told and record.evidence is not None:
            self.store.drop(record.evidence.sha256)
        self._told.discard(key)
        if not touched.states and touched.current == key[1]:
            touched.current = None
