"""A run's events on their way from one ledger to another place.

Rules that this module keeps:

- One JSON object a line with every column of the chain, so that each event's hash can be made
  again; an event whose hash does not hold is refused with its number.
- What the events between had, of other runs, is not in it: that a run's events are all of them is
  what its signed statement says.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, cast

from sealrun.ledger.chain import Link, link_hash
from sealrun.ledger.codec import Misfit, canonical, cut_of, fit, from_document, load, unfit
from sealrun.ledger.events import KINDS
from sealrun.ledger.records import Recorded
from sealrun.provenance.faults import BadBundle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.ledger import Event
    from sealrun.ledger.codec import Json

_DIGEST = 32
_TEXTS = ("at", "boot_id", "kind")


def dump(links: Iterable[Link]) -> bytes:
    """Return events as lines of JSON."""
    lines: list[str] = []
    for link in links:
        row: dict[str, Json] = asdict(link)
        row |= {name: fit(value) for name, value in row.items() if isinstance(value, str)}
        row |= {"previous": link.previous.hex(), "hash": link.hash.hex()}
        lines.append(canonical(row) + "\n")
    return "".join(lines).encode("ascii")


def parse(content: bytes, run: str) -> list[Recorded[Event]]:
    """Return a run's events, each checked against its hash.

    Args:
        content: as ``dump`` wrote it.
        run: that they must belong to.

    Raises:
        BadBundle: one cannot be read, was changed, moved, or belongs to another run.
    """
    events: list[Recorded[Event]] = []
    before: Link | None = None
    for line in content.split(b"\n")[:-1]:
        link = _link(line, run)
        if link_hash(link) != link.hash:
            raise BadBundle(f"run {run}: event {link.seq} is not what was written")
        if link.run != run:
            raise BadBundle(f"run {run}: event {link.seq} belongs to another run")
        if before is not None and link.seq <= before.seq:
            raise BadBundle(f"run {run}: event {link.seq} stands after event {before.seq}")
        if before is not None and link.seq == before.seq + 1 and link.previous != before.hash:
            raise BadBundle(f"run {run}: event {link.seq} does not follow event {before.seq}")
        events.append(_recorded(link, run))
        before = link
    if not content.endswith(b"\n"):
        raise BadBundle(f"run {run}: its events are cut off")
    return events


def _link(line: bytes, run: str) -> Link:
    try:
        row = load(line.decode("ascii"))
        at, boot_id, kind = (unfit(cast("str", row[name]) + "") for name in _TEXTS)
        seq, monotonic_ns = (row[name] for name in ("seq", "monotonic_ns"))
        if type(seq) is not int or type(monotonic_ns) is not int:
            raise TypeError
        previous, digest = (bytes.fromhex(cast("str", row[name])) for name in ("previous", "hash"))
        if len(previous) != _DIGEST or len(digest) != _DIGEST:
            raise ValueError
        return Link(
            seq=seq,
            at=at,
            monotonic_ns=monotonic_ns,
            boot_id=boot_id,
            kind=kind,
            run=None if row["run"] is None else unfit(cast("str", row["run"]) + ""),
            payload=cast("str", row["payload"]) + "",
            previous=previous,
            hash=digest,
        )
    except (Misfit, ValueError, KeyError, TypeError) as error:
        raise BadBundle(f"run {run}: an event cannot be read: {type(error).__name__}") from error


def _recorded(link: Link, run: str) -> Recorded[Event]:
    try:
        kind = KINDS[link.kind]
        document = load(link.payload)
        event = replace(from_document(kind, document), run=link.run)
        truncated = cut_of(document)
    except (Misfit, KeyError, RecursionError) as error:
        raise BadBundle(
            f"run {run}: event {link.seq} cannot be read: {error}",
            hint="Use the newer sealrun that made it.",
        ) from error
    return Recorded(
        link.seq, link.at, link.monotonic_ns, link.boot_id, link.hash.hex(), event, truncated
    )
