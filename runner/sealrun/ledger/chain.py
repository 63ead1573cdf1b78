"""The chain of events: what each hash covers, and what a broken chain tells. No IO.

Rules that this module keeps:

- A hash covers every column of its event and the hash before it. Each field is preceded by its
  length, so that no two events share an encoding; a missing run differs from an empty one.
- The first event hangs on the repository's id: a ledger of another repository is no continuation.
- An edited, removed or moved event is found from the chain alone, and named by its number.
  A chain cut at its end, or rewritten as a whole, is found against an anchor kept elsewhere, and
  only so: we claim no more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_DOMAIN = b"sealrun ledger event 1\0"
#: More breaks than this tell nothing new.
_MOST_BREAKS = 100


@dataclass(frozen=True)
class Link:
    """One event as stored.

    Attributes:
        seq: 1, 2, 3, …
        at: UTC, ISO 8601.
        monotonic_ns: CLOCK_MONOTONIC.
        boot_id: of the kernel (``/proc/sys/kernel/random/boot_id``).
        kind: of the event.
        run: id, or None.
        payload: canonical JSON.
        previous: hash of the event before; 32 bytes.
        hash: of this event; 32 bytes.
    """

    seq: int
    at: str
    monotonic_ns: int
    boot_id: str
    kind: str
    run: str | None
    payload: str
    previous: bytes
    hash: bytes


@dataclass(frozen=True)
class Anchor:
    """A head of the chain as it was seen at some time, kept where the ledger's owner cannot write.

    Attributes:
        seq: number of the last event.
        hash: of that event, hexadecimal.
    """

    seq: int
    hash: str


@dataclass(frozen=True)
class Break:
    """One place where the chain does not hold.

    Attributes:
        seq: number of the event.
        what: ``edited``, ``removed``, ``moved``, ``truncated`` or ``rewritten``.
        text: what that means, in a sentence.
    """

    seq: int
    what: str
    text: str


@dataclass(frozen=True)
class ChainReport:
    """What a check of the whole chain found.

    Attributes:
        events: how many there are.
        seq: number of the last event; 0 when there is none.
        head: hash of the last event, hexadecimal.
        breaks: where the chain does not hold; at most a hundred.
        anchored: whether it was also held against an anchor.
    """

    events: int
    seq: int
    head: str
    breaks: tuple[Break, ...]
    anchored: bool = False

    @property
    def sound(self) -> bool:
        """Whether the chain holds everywhere."""
        return not self.breaks


def genesis(repository: str) -> bytes:
    """Return what the first event of a repository hangs on."""
    return hashlib.sha256(repository.encode()).digest()


def link_hash(link: Link) -> bytes:
    """Return the hash that an event must have; its ``hash`` field is not looked at."""
    digest = hashlib.sha256(_DOMAIN)
    fields: tuple[bytes, ...] = (
        str(link.seq).encode(),
        link.previous,
        link.kind.encode(),
        b"\0" if link.run is None else b"\1" + _raw(link.run),
        _raw(link.at),
        str(link.monotonic_ns).encode(),
        _raw(link.boot_id),
        _raw(link.payload),
    )
    for field in fields:
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.digest()


def verify(start: bytes, links: Iterable[Link], anchor: Anchor | None = None) -> ChainReport:
    """Check a whole chain.

    Args:
        start: what the first event hangs on (``genesis``).
        links: by rising ``seq``.
        anchor: a head that was seen earlier.
    """
    walk = _Walk(start)
    for link in links:
        walk.step(link, anchor)
    if anchor is not None and anchor.seq > walk.seq:
        walk.report(
            walk.seq + 1,
            "truncated",
            f"the anchor saw event {anchor.seq}, the ledger ends with event {walk.seq}",
        )
    breaks = sorted(walk.breaks, key=lambda found: found.seq)
    return ChainReport(
        walk.events, walk.seq, walk.head.hex(), tuple(breaks), anchored=anchor is not None
    )


class _Walk:
    """A walk along the chain: where it is, and what it found."""

    def __init__(self, start: bytes) -> None:
        self.seq = 0
        self.events = 0
        self.head = start
        self.known: dict[bytes, int] = {start: 0}
        self.breaks: list[Break] = []

    def report(self, seq: int, what: str, text: str) -> None:
        if len(self.breaks) < _MOST_BREAKS:
            self.breaks.append(Break(seq, what, text))

    def step(self, link: Link, anchor: Anchor | None) -> None:
        expected = self.seq + 1
        if link.seq != expected:
            gone = (
                f"event {expected} is"
                if link.seq - 1 == expected
                else (f"events {expected} to {link.seq - 1} are")
            )
            self.report(expected, "removed", f"{gone} gone")
        if link_hash(link) != link.hash:
            self.report(
                link.seq, "edited", f"the content of event {link.seq} is not what was written"
            )
        if link.previous != self.head and link.seq == expected:
            self.misplaced(link)
        if anchor is not None and anchor.seq == link.seq and anchor.hash != link.hash.hex():
            self.report(
                link.seq, "rewritten", f"event {link.seq} is not the one that the anchor saw"
            )
        self.known[link.hash] = link.seq
        self.seq, self.head = link.seq, link.hash
        self.events += 1

    def misplaced(self, link: Link) -> None:
        where = self.known.get(link.previous)
        text = f"event {link.seq} does not follow event {link.seq - 1}"
        if where is not None:
            text += f"; it was written after event {where}"
        self.report(link.seq, "moved", text)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
