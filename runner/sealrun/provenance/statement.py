"""What is signed about a run: an in-toto Statement v1 with a SLSA Provenance v1 predicate.

Rules that this module keeps:

- Pure: the same events, head and digests give the same bytes, here and on any other machine.
- Fields, their names and their meaning are those of the in-toto attestation framework (``spec/v1``:
  Statement, ResourceDescriptor, DigestSet) and of SLSA's provenance 1.0; what they have no field
  for stands in ``sealrun_run``, named as SLSA names extension fields (vendor, underscore, field).
- Variables of the container appear by name alone: a statement is meant to be shown around.
- All text is what the ledger made safe (``codec.fit``), so that any JSON reader takes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from sealrun.errors import UsageError
from sealrun.ledger import Alert, document
from sealrun.ledger.codec import canonical, fit
from sealrun.ledger.records import merge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sealrun.ledger import Anchor, Event, Recorded, RunRecord
    from sealrun.ledger.codec import Json

#: What ``_type`` and ``predicateType`` must be (in-toto spec/v1/statement.md; SLSA provenance 1.0).
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
#: How to read our parameters; the manual's page on provenance describes it.
BUILD_TYPE: Final = "urn:x-sealrun:experiment:1"
#: Prefix of who vouches: protection level and isolation follow, as SLSA asks of each mode.
BUILDER: Final = "urn:x-sealrun"
#: Counts up with every change of what a statement says.
FORMAT: Final = 1
EXTENSION: Final = "sealrun_run"
#: Names of the subjects beside the outputs, whose names begin with ``outputs/``.
LOG: Final = "log"
RECORD: Final = "record"
OUTPUTS: Final = "outputs/"

_DIGITS = set("0123456789abcdef")


@dataclass(frozen=True)
class Left:
    """Digests that a run's events do not hold.

    Attributes:
        log: sha256 of the kept output; None where there is none.
        outputs: path below the outputs directory -> sha256, of files whose digest is not on record.
        lock: digest set of the lock file in the commit; empty where there is none.
    """

    log: str | None = None
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    lock: Mapping[str, str] = field(default_factory=dict[str, str])


def events_digest(events: Iterable[Recorded[Event]]) -> str:
    """Return one digest over events: sha256 over a line ``NUMBER HASH`` of each, in order."""
    lines = "".join(f"{one.seq} {one.hash}\n" for one in events)
    return hashlib.sha256(lines.encode()).hexdigest()


def until(events: Iterable[Recorded[Event]], head: Anchor) -> list[Recorded[Event]]:
    """Return the events that a statement made at a head tells of."""
    return [one for one in events if one.seq <= head.seq]


def statement(
    events: Sequence[Recorded[Event]],
    head: Anchor,
    repository: str,
    left: Left,
    *,
    late: bool = False,
) -> bytes:
    """Return the statement about a run, as the canonical JSON that is signed.

    Args:
        events: of the run, oldest first; later ones than the head are left out.
        head: of the ledger when the statement was made.
        repository: id of the repository.
        left: digests of what the run left.
        late: the statement was made on demand, some time after the run's end.

    Raises:
        UsageError: the run has not ended.
    """
    told = until(events, head)
    record = merge(told)
    if record is None or record.ended is None:
        raise UsageError(
            "only a run that has ended can be signed", hint="sealrun ps lists those under way."
        )
    said = document(record)
    made: dict[str, Json] = {
        "_type": STATEMENT_TYPE,
        "subject": list(_subjects(record, told, left)),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _external(said),
                "internalParameters": _internal(said),
                "resolvedDependencies": list(_dependencies(record, left)),
            },
            "runDetails": {
                "builder": {
                    "id": f"{BUILDER}:{record.opened.protection or 'unknown'}:"
                    f"{record.opened.tier or 'unknown'}",
                    "version": _versions(record),
                },
                "metadata": {
                    "invocationId": record.run,
                    "startedOn": record.opened_at,
                    "finishedOn": record.ended_at,
                },
                "byproducts": list(_evidence(record)),
            },
            EXTENSION: _extension(record, said, told, head, repository, late=late),
        },
    }
    return canonical(made).encode("ascii")


def _resource(name: str, digest: Mapping[str, str], **more: Json) -> dict[str, Json]:
    """Return a ResourceDescriptor; annotations are what ``more`` names."""
    made: dict[str, Json] = {"name": fit(name), "digest": {**digest}}
    known: dict[str, Json] = {key: value for key, value in more.items() if value is not None}
    if known:
        made["annotations"] = known
    return made


def _sha256(text: str | None) -> dict[str, str]:
    digits = (text or "").removeprefix("sha256:")
    return {"sha256": digits} if is_sha256(digits) else {}


def is_sha256(text: str | None) -> bool:
    """Tell whether a text is a sha256 in lower-case hexadecimal digits."""
    return text is not None and len(text) == 64 and set(text) <= _DIGITS  # noqa: PLR2004 - 256 bits


def _subjects(record: RunRecord, told: list[Recorded[Event]], left: Left) -> Iterator[Json]:
    if left.log is not None:
        yield _resource(LOG, {"sha256": left.log})
    listed = record.ended.outputs if record.ended else ()
    outputs = dict(left.outputs)
    outputs |= {one.path: one.sha256 for one in listed if one.sha256 is not None}
    for path in sorted(outputs):
        yield _resource(OUTPUTS + path, {"sha256": outputs[path]})
    # A statement needs a subject, and the record is one of what a run leaves.
    yield _resource(RECORD, {"sha256": events_digest(told)})


def _external(said: Mapping[str, Json]) -> dict[str, Json]:
    policy = cast("dict[str, Json]", said["policy"] or {})
    names: list[Json] = [*sorted(cast("dict[str, Json]", said["variables"] or {}))]
    return {
        "command": said["command"],
        "revision": said["revision"],
        "limits": said["limits"],
        "policy": {"digest": policy.get("digest"), "values": policy.get("values")},
        "variables": names,
    }


def _internal(said: Mapping[str, Json]) -> dict[str, Json]:
    engine = cast("dict[str, Json]", said["engine"] or {})
    names = ("name", "version", "api", "store", "details")
    return {
        "host": said["host"],
        "devices": said["devices"],
        "deviceFacts": said["device_facts"],
        "engine": {name: engine[name] for name in names if engine.get(name) is not None},
    }


def _versions(record: RunRecord) -> dict[str, Json]:
    found: dict[str, Json] = {"sealrun": fit(record.opened.version or "unknown")}
    if record.engine is not None and record.engine.version:
        found[fit(record.engine.name)] = fit(record.engine.version)
    return found


def _dependencies(record: RunRecord, left: Left) -> Iterator[Json]:
    opened, progress = record.opened, record.progress
    yield _resource("commit", {"gitCommit": opened.commit})
    yield _resource("tree", {"gitTree": opened.tree})
    if left.lock:
        path = fit(progress.environment_source or "")
        yield _resource("lock", left.lock, path=path)
    if progress.image_id is not None:
        yield _resource("image", _sha256(progress.image_id), of="image config")
    manifest = progress.loading.manifest_digest if progress.loading else None
    if manifest is not None:
        yield _resource("image-manifest", _sha256(manifest), of="OCI image manifest")
    for number, layer in enumerate(progress.layers or ()):
        origin = {"base": progress.base, "environment": progress.environment}.get(layer.role)
        yield _resource(
            f"{layer.role}-layer-{number}",
            _sha256(layer.diff_id),
            size=layer.size,
            origin=None if origin is None else fit(origin),
        )
    if progress.init is not None:
        yield _resource("init", _sha256(progress.init))
    for data in progress.data or ():
        yield _resource(
            f"data:{data.target}",
            _sha256(data.digest),
            of="sorted lines of sha256, two spaces, path",
            files=data.files,
        )
    if progress.caches is not None:
        yield _resource(
            "caches",
            _sha256(progress.caches.digest),
            of="manifest of compiled files",
            files=progress.caches.files,
            commit=progress.caches.commit,
        )


def _evidence(record: RunRecord) -> Iterator[Json]:
    found: dict[str, str] = {}
    for alert in (one.event for one in record.alerts):
        if alert.evidence is not None and is_sha256(alert.after):
            found[alert.after or ""] = alert.path
        for state in alert.states:
            if state.evidence is not None and is_sha256(state.sha256):
                found[state.sha256 or ""] = state.path
    for digest in sorted(found):
        yield _resource(f"evidence/{digest}", {"sha256": digest}, path=fit(found[digest]))


def _extension(
    record: RunRecord,
    said: Mapping[str, Json],
    told: list[Recorded[Event]],
    head: Anchor,
    repository: str,
    *,
    late: bool,
) -> dict[str, Json]:
    verdict = cast("dict[str, Json] | None", said["verdict"])
    alerts = [one for one in told if isinstance(one.event, Alert)]
    return {
        "format": FORMAT,
        "run": record.run,
        "repository": repository,
        "verdict": verdict["kind"] if verdict else None,
        "reasons": verdict["reasons"] if verdict else [],
        "fault": said["fault"],
        "outcome": said["outcome"],
        "exitStatus": said["exit_status"],
        "seconds": said["seconds"],
        "metric": said["metric"],
        "coverage": said["coverage"],
        "mutations": {"alerts": len(record.alerts), "digest": events_digest(alerts)},
        "ledger": {
            "seq": head.seq,
            "head": head.hash,
            "events": len(told),
            "digest": events_digest(told),
        },
        "protection": said["protection"],
        "isolation": said["tier"],
        "reproduces": said["reproduces"],
        "late": late,
    }
