"""``sealrun verify-run``: check what was signed about a run.

Rules: exit status 0 when nothing fails, 121 when something does; each check is told with what it
compared; a check that could not be made is told as such and is no success.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.cli.reading import open_here, visible
from sealrun.errors import RepositoryError, Status, UsageError

if TYPE_CHECKING:
    from sealrun.cli.reading import Here
    from sealrun.provenance.keys import PublicKey
    from sealrun.provenance.verification import OnRecord, Verified
    from sealrun.reproduce.rebuild import Stored


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN|FILE", help="A run's id, or a file with a statement.")
    ],
    key: Annotated[
        Path | None,
        typer.Option(help="The only public key that counts; else all known.", metavar="PUB"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> Status:
    """Check the signed statement about a run: signature, record, chain, git, log and outputs.

    Exits with 121 when something does not hold.

    Example:  sealrun verify-run 01KAJ3 --key me.pem
    """
    from sealrun.provenance.keys import Keys, read_public
    from sealrun.state import Places

    keys = [read_public(key)] if key is not None else Keys.of(Places.of_user()).all()
    verified = of_file(Path(run), keys) if "/" in run or Path(run).is_file() else of_run(run, keys)
    screen = console.current()
    if json:
        screen.json(document(verified))
    else:
        tell(verified)
    return Status.OK if verified.holds else Status.REFUSED


def of_run(name: str, keys: list[PublicKey]) -> Verified:
    """Check what was signed about a run on record.

    Raises:
        UsageError: there is no such run, or it was not signed.
    """
    from sealrun.provenance import envelope
    from sealrun.provenance.signing import FILE
    from sealrun.provenance.verification import verify

    with open_here() as here:
        found = on_record(here, name)
        if found is None:
            raise UsageError(f"there is no run {name!r} here", hint="sealrun log lists the runs.")
        run = found.events[0].event.run
        file = found.directory / FILE
        if not file.exists():
            signed = any(one.event.kind == "signed" for one in found.events)
            gone = f"the signed statement about run {run} is gone: {file}"
            raise UsageError(
                gone if signed else f"run {run} was not signed",
                hint="sealrun key sign signs an earlier run as it is on record now.",
            )
        return verify(envelope.read(file), keys, found, run)


def of_file(file: Path, keys: list[PublicKey]) -> Verified:
    """Check an envelope, against the record too where the run is on record here."""
    from sealrun.provenance import envelope
    from sealrun.provenance.verification import verify

    content = envelope.read(file)
    alone = verify(content, keys, None, None)
    if alone.run is None:
        return alone
    try:
        with open_here() as here:
            found = on_record(here, alone.run)
            return alone if found is None else verify(content, keys, found, None)
    except RepositoryError:
        return alone


def on_record(here: Here, name: str) -> OnRecord | None:
    """Return what is here of a run; None where there is no such run."""
    from sealrun.git import Repository
    from sealrun.provenance.verification import OnRecord
    from sealrun.reproduce.rebuild import Stored

    if here.ledger is None:
        return None
    stored = Stored(Repository.here(), here.repository, here.places)
    try:
        run = here.ledger.resolve(name)
    except UsageError:
        return _imported(stored, name)
    directory = here.places.run(here.repository, run)
    events = here.ledger.events(run=run)
    return OnRecord(events, here.repository, directory, stored, here.ledger)


def _imported(stored: Stored, name: str) -> OnRecord | None:
    from sealrun.provenance.bundle.imported import find
    from sealrun.provenance.verification import OnRecord

    try:
        found = find(stored.places, stored.repository_id, name)
    except UsageError:
        return None
    return OnRecord(found.events, found.origin.repository, found.directory, stored, None)


def tell(verified: Verified) -> None:
    """Print each check."""
    screen = console.current()
    if verified.run is not None:
        screen.data(f"run {visible(verified.run)}")
    for check in verified.checks:
        screen.data(f"  {check.name:<10} {check.result.value:<12} {visible(check.text)}")


def document(verified: Verified) -> dict[str, Any]:
    """Return what came of every check, as JSON."""
    statement = verified.statement
    return {
        "run": verified.run,
        "holds": verified.holds,
        "key": statement.key.id if statement else None,
        "checks": [
            {"name": one.name, "result": one.result.value, "text": one.text}
            for one in verified.checks
        ],
        "statement": statement.document if statement else None,
    }
