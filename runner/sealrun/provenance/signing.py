"""Signs the statement about a run and puts it on record.

Rules that this module keeps:

- A run is signed after its end is in the ledger, with the ledger's head of then; that it was signed
  is an event of its own, so that a statement that disappears is missed.
- Without a key nothing happens, at no cost but one look; a signature that cannot be made is trouble
  of ours and takes nothing from the run's verdict, which is on record already.
- What is hashed lies in the run's own directory; links are not followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from typing import TYPE_CHECKING, Final

from sealrun.data import sha256_of, walk
from sealrun.git import GitFailed
from sealrun.image.store import write_atomically
from sealrun.ledger import Anchor, Signed
from sealrun.ledger.records import merge
from sealrun.provenance import statement as statements
from sealrun.provenance.keys import Keys
from sealrun.tree import blob_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sealrun.git import Repository
    from sealrun.ledger import Event, Ledger, Recorded, RunRecord
    from sealrun.state import Places

#: Name of the envelope in a run's directory.
FILE: Final = "provenance.intoto.json"
#: Output files that are hashed for a statement because their digest is not on record.
_HASHED = 10_000


def sign_run(
    run: str, ledger: Ledger, repository: Repository, places: Places, *, late: bool = False
) -> Signed | None:
    """Sign the statement about a run that has ended, where the caller has a key.

    Call it once the transaction that ended the run is written. The envelope is left in the run's
    directory and its digest in the ledger.

    Args:
        run: its id.
        ledger: open for writing.
        repository: that the run's commit is in.
        places: of the calling user.
        late: on demand, not at the run's end.

    Returns:
        What was put on record; None without a key.

    Raises:
        KeyFault: the key cannot be used.
        UsageError: the run has not ended.
        SealrunError: the statement cannot be made or written.
    """
    keys = Keys.of(places)
    if not keys.exists:
        return None
    from sealrun.provenance.envelope import seal

    signer = keys.signer()
    events = ledger.events(run=run)
    directory = places.run(ledger.repository, run)
    payload = statements.statement(
        events,
        Anchor(*ledger.head()),
        ledger.repository,
        left_by(events, directory, repository),
        late=late,
    )
    content = seal(payload, signer)
    signed = Signed(
        run=run,
        statement=hashlib.sha256(payload).hexdigest(),
        envelope=hashlib.sha256(content).hexdigest(),
        key=signer.public_key.keyid,
        late=late,
    )
    write_atomically(directory / FILE, content)
    ledger.append(signed)
    return signed


def is_signed(record: RunRecord, directory: Path) -> bool:
    """Tell whether the statement that was signed about a run is still there."""
    signed = record.signed
    return signed is not None and sha256_of(directory / FILE) == signed.envelope


def left_by(
    events: Sequence[Recorded[Event]], directory: Path, repository: Repository
) -> statements.Left:
    """Take the digests that a run's events do not hold.

    Args:
        events: of the run.
        directory: of the run.
        repository: that the run's commit is in.
    """
    record = merge(events)
    if record is None:
        return statements.Left()
    listed = record.ended.outputs if record.ended else ()
    known = {one.path for one in listed if one.sha256 is not None}
    return statements.Left(
        log=sha256_of(directory / "log"),
        outputs=_outputs(directory / "outputs", known),
        lock=lock_of(record, repository),
    )


def _outputs(directory: Path, known: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for raw, _ in itertools.islice(walk(directory), _HASHED):
            path = os.fsdecode(raw)
            digest = None if path in known else sha256_of(directory / path)
            if digest is not None:
                found[path] = digest
    return found


def lock_of(record: RunRecord, repository: Repository) -> dict[str, str]:
    """Return the digest set of a run's lock file; empty where it has none or git lost it."""
    source = record.progress.environment_source
    if source is None:
        return {}
    try:
        content = repository.git.run("cat-file", "blob", f"{record.commit}:{source}")
    except GitFailed:
        return {}
    return {
        "gitBlob": blob_id(content, repository.algorithm),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
