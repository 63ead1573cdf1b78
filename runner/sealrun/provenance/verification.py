"""Checks what was signed about a run: signature, record, chain, git, and what the run left.

Rules that this module keeps:

- Each check says what it compared and what came of it: it holds, it fails, or it could not be made
  here and why. What could not be made is never counted as holding.
- The signature comes first; nothing else is looked at where it does not hold.
- The statement is made again from the events on record and compared byte for byte, so that there is
  no field that nobody checks.
- Files are hashed, not looked up; git's objects are hashed again by ``tree.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sealrun.data import sha256_of
from sealrun.errors import SealrunError
from sealrun.ledger import Anchor, Signed
from sealrun.ledger.codec import load, unfit
from sealrun.ledger.records import merge
from sealrun.provenance import envelope
from sealrun.provenance.signing import lock_of
from sealrun.provenance.statement import (
    LOG,
    OUTPUTS,
    RECORD,
    Left,
    events_digest,
    statement,
    until,
)
from sealrun.reproduce.rebuild import tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sealrun.ledger import Event, Ledger, Recorded, RunRecord
    from sealrun.ledger.codec import Json
    from sealrun.provenance.envelope import Statement
    from sealrun.provenance.keys import PublicKey
    from sealrun.reproduce.rebuild import Stored

#: Differences and files that are named; more are counted.
_NAMED = 5


class Result(StrEnum):
    """What came of a check."""

    HOLDS = "holds"
    FAILS = "fails"
    UNKNOWN = "not-checked"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: ``signature``, ``record``, ``chain``, ``git``, ``log`` or ``outputs``.
        text: what was compared, or what is wrong, in a sentence.
    """

    name: str
    result: Result
    text: str


@dataclass(frozen=True)
class OnRecord:
    """What is here of a run.

    Attributes:
        events: of the run, oldest first.
        repository: id of the repository whose ledger they are of.
        directory: of the run.
        stored: where its commit is.
        ledger: the own one; None for a run that came in a bundle, whose chain is not here.
    """

    events: Sequence[Recorded[Event]]
    repository: str
    directory: Path
    stored: Stored
    ledger: Ledger | None


@dataclass(frozen=True)
class Verified:
    """What came of every check of a run.

    Attributes:
        run: its id; None where nothing signed says it.
        statement: None where the signature does not hold.
    """

    run: str | None
    checks: tuple[Check, ...]
    statement: Statement | None

    @property
    def holds(self) -> bool:
        """Whether no check failed."""
        return all(check.result is not Result.FAILS for check in self.checks)


def verify(
    content: bytes, keys: Sequence[PublicKey], on_record: OnRecord | None, expected: str | None
) -> Verified:
    """Check an envelope, and everything that it says against what is here.

    Args:
        content: the envelope.
        keys: that may have signed it.
        on_record: what is here of the run that it is about; None where nothing is.
        expected: id of the run that it must be about; None for any.
    """
    try:
        signed = envelope.opened(content, keys)
    except SealrunError as error:
        return Verified(expected, (Check("signature", Result.FAILS, error.message),), None)
    run = str(signed.run["run"])
    words = f"ed25519, by the key {signed.key.id[:16]} ({signed.key.name})"
    checks = [Check("signature", Result.HOLDS, words)]
    if expected is not None and run != expected:
        words = f"the statement is about run {run}, not about {expected}"
        checks.append(Check("record", Result.FAILS, words))
    elif on_record is None:
        words = f"run {run} is not on record here: neither its chain nor its files were compared"
        checks.append(Check("record", Result.UNKNOWN, words))
    else:
        checks += _against(signed, on_record)
    return Verified(run, tuple(checks), signed)


def _against(signed: Statement, on_record: OnRecord) -> Iterator[Check]:
    yield from record_checks(signed, on_record.events, on_record.repository)
    yield _chain(signed, on_record)
    record = merge(on_record.events)
    if record is not None:
        yield _git(signed, record, on_record.stored)
    yield from file_checks(signed, on_record.directory)


# -- the record ------------------------------------------------------------------------------------


def record_checks(
    signed: Statement, events: Sequence[Recorded[Event]], repository: str
) -> Iterator[Check]:
    """Make the statement again from a run's events and compare.

    Args:
        signed: the statement.
        events: of the run, oldest first.
        repository: id of the repository whose ledger they are of.
    """
    head = head_of(signed)
    told = until(events, head)
    if events_digest(told) != signed.run["ledger"]["digest"]:
        words = f"the {len(told)} events of the run are not those that were signed"
        yield Check("record", Result.FAILS, words)
        return
    try:
        again = statement(events, head, repository, _left(signed), late=bool(signed.run["late"]))
    except SealrunError as error:
        yield Check("record", Result.FAILS, error.message)
        return
    if again != signed.payload:
        differing = list(_differences(load(again.decode()), signed.document, ""))
        words = ", ".join(differing[:_NAMED]) or "its bytes"
        yield Check(
            "record", Result.FAILS, f"the statement says otherwise than the record: {words}"
        )
        return
    words = f"all that was signed follows from {len(told)} events on record"
    yield Check("record", Result.HOLDS, words)


def head_of(signed: Statement) -> Anchor:
    """Return where the ledger stood when a statement was made."""
    ledger = signed.run["ledger"]
    return Anchor(int(ledger["seq"]), str(ledger["head"]))


def _left(signed: Statement) -> Left:
    subjects = subjects_of(signed)
    return Left(
        log=subjects.get(LOG),
        outputs={
            unfit(name.removeprefix(OUTPUTS)): digest
            for name, digest in subjects.items()
            if name.startswith(OUTPUTS)
        },
        lock=_lock(signed),
    )


def subjects_of(signed: Statement) -> dict[str, str]:
    """Return each subject's sha256 by its name."""
    listed = cast("list[dict[str, Any]]", signed.document["subject"])
    return {str(one["name"]): str(one["digest"]["sha256"]) for one in listed}


def _lock(signed: Statement) -> dict[str, str]:
    predicate = cast("dict[str, Any]", signed.document["predicate"])
    try:
        listed = predicate["buildDefinition"]["resolvedDependencies"]
        return next((dict(one["digest"]) for one in listed if one.get("name") == "lock"), {})
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _differences(one: Json, other: Json, at: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            if (name in one) != (name in other):
                yield f"{at}{name}"
            else:
                yield from _differences(one[name], other[name], f"{at}{name}.")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(left, right, f"{at}{number}.")
    elif one != other:
        yield at.rstrip(".")


# -- the chain -------------------------------------------------------------------------------------


def _chain(signed: Statement, on_record: OnRecord) -> Check:
    if on_record.ledger is None:
        words = "the run came in a bundle: the chain that it is part of is not here"
        return Check("chain", Result.UNKNOWN, words)
    try:
        report = on_record.ledger.verify_chain(head_of(signed))
    except SealrunError as error:
        return Check("chain", Result.FAILS, error.message)
    if not report.sound:
        return Check("chain", Result.FAILS, "; ".join(one.text for one in report.breaks[:_NAMED]))
    digest = hashlib.sha256(signed.payload).hexdigest()
    if not any(
        isinstance(one.event, Signed) and one.event.statement == digest for one in on_record.events
    ):
        words = "the ledger does not say that this statement was signed"
        return Check("chain", Result.FAILS, words)
    seq = head_of(signed).seq
    words = f"{report.events} events hold together, with event {seq} as it was when this was signed"
    return Check("chain", Result.HOLDS, words)


# -- git, and what the run left --------------------------------------------------------------------


def _git(signed: Statement, record: RunRecord, stored: Stored) -> Check:
    try:
        tree = tree_of(record, stored)
    except SealrunError as error:
        return Check("git", Result.FAILS, error.message)
    if tree.tree != record.opened.tree:
        words = f"commit {tree.commit} has the tree {tree.tree}, not {record.opened.tree}"
        return Check("git", Result.FAILS, words)
    if _lock(signed) != lock_of(record, stored.repository):
        words = f"the lock {record.progress.environment_source} is another one in git"
        return Check("git", Result.FAILS, words)
    words = f"commit {tree.commit[:12]} and its {len(tree.entries)} files hash to their ids"
    return Check("git", Result.HOLDS, words)


def file_checks(signed: Statement, directory: Path) -> Iterator[Check]:
    """Hash what a run left and compare it with the statement's subjects.

    Args:
        signed: the statement.
        directory: of the run.
    """
    subjects = subjects_of(signed)
    if LOG in subjects:
        wrong = list(_wrong({LOG: subjects[LOG]}, directory))
        text = "; ".join(wrong) or "it hashes to its digest"
        yield Check("log", Result.FAILS if wrong else Result.HOLDS, text)
    outputs = {name: digest for name, digest in subjects.items() if name not in (LOG, RECORD)}
    if outputs:
        wrong = list(_wrong(outputs, directory))
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        text = "; ".join(wrong[:_NAMED]) + more or f"{len(outputs)} files hash to their digests"
        yield Check("outputs", Result.FAILS if wrong else Result.HOLDS, text)


def _wrong(expected: Mapping[str, str], directory: Path) -> Iterator[str]:
    for name, digest in expected.items():
        place = Path(unfit(name))
        if place.is_absolute() or ".." in place.parts:
            yield f"{name} does not lie in the run's directory"
            continue
        found = sha256_of(directory / place)
        if found is None:
            yield f"{name} is gone"
        elif found != digest:
            yield f"{name} was changed: sha256 {found[:16]}… instead of {digest[:16]}…"
