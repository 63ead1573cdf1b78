"""Brings one line up to the ledger, segment by segment.

Rules that this module keeps:

- The mirror is the ledger's anchor: where the local chain does not continue what the mirror holds,
  nothing is written, and the difference is said. Nor is a mirror that lost events written over.
- Only what hashes as the chain says is mirrored.
- A step is at most ``TOGETHER`` segments, so that a process that is killed has lost little; the next
  one goes on from the head that it finds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import Fault
from sealrun.ledger import RunProgress, utc
from sealrun.ledger.chain import link_hash
from sealrun.mirror.collect import Origin, collect, hashed, pieces_of, pinned_by
from sealrun.mirror.format import (
    EVENTS,
    Blob,
    Damaged,
    Head,
    encode,
    first_of,
    line_name,
    segment_of,
)
from sealrun.mirror.line import LAYERS, Change, Piece, folder_of, read_head, read_segment
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealrun.git import Repository
    from sealrun.ledger import Ledger
    from sealrun.ledger.chain import Link
    from sealrun.mirror.collect import Collected
    from sealrun.mirror.config import Mirroring
    from sealrun.mirror.line import Writable
    from sealrun.mirror.memory import Standing
    from sealrun.state import Places

#: Segments written at once.
TOGETHER = 10


class ChainDiffers(Fault):
    """The local chain does not continue what the mirror holds: it was cut, or written anew."""


@dataclass(frozen=True)
class Source:
    """What is mirrored.

    Attributes:
        machine: what this machine's lines are called.
        scratch: a directory for packs on their way.
    """

    places: Places
    repository: Repository
    repository_id: str
    ledger: Ledger
    machine: str
    mirroring: Mirroring
    scratch: Path


@dataclass(frozen=True)
class Brought:
    """What a line holds now.

    Attributes:
        steps: writes that it took; 0: it was up to date.
    """

    seq: int
    hash: str
    steps: int
    left_out: int = 0


def difference(ledger: Ledger, seq: int, digest: str) -> str | None:
    """Say how the local chain differs from what a mirror holds; None where it continues it.

    Args:
        ledger: the local one.
        seq: number of the mirror's last event.
        digest: its hash, hexadecimal.
    """
    last, head = ledger.head()
    if seq == 0 or (last, head) == (seq, digest):
        return None
    if last < seq:
        return f"truncated: the mirror holds {seq} events, the ledger here ends with event {last}"
    found = next(ledger.links(seq - 1), None)
    if found is None or found.seq != seq or found.hash.hex() != digest:
        return f"rewritten: event {seq} here is not the one that the mirror holds"
    return None


def differs(words: str) -> ChainDiffers:
    """Return the error for a local chain that does not continue the mirror's."""
    return ChainDiffers(
        f"the ledger was {words}",
        hint="Nothing was mirrored and the mirror stays as it is. sealrun alerts --verify-chain "
        "with the mirror's head as --anchor says more; sealrun restore shows how to get it back.",
    )


def bring_up(line: Writable, source: Source, before: Standing, *, layers: bool) -> Brought:
    """Bring a line up to the ledger.

    Args:
        line: to be written.
        source: what is mirrored.
        before: what is remembered of the destination.
        layers: whether the layers that runs were made of are mirrored too.

    Raises:
        ChainDiffers: the local chain was cut or written anew.
        Damaged: the mirror is not what it was.
        Unreachable: the destination does not take it.
    """
    name = line_name(source.repository_id, source.machine)
    head = read_head(line, name)
    _check_memory(head, before)
    if head is not None and (words := difference(source.ledger, head.seq, head.hash)):
        raise differs(words)
    seq, digest = source.ledger.head()
    steps = 0
    writer = _Writer(line, source, head)
    for number in range(segment_of((head.seq if head else 0) + 1), segment_of(seq) + 1, TOGETHER):
        last = min(number + TOGETHER - 1, segment_of(seq))
        if head is not None and head.seq >= seq:
            break
        writer.segments(number, last, seq)
        steps += 1
    if layers:
        steps += writer.layers()
    return Brought(seq, digest, steps, writer.left_out)


def _check_memory(head: Head | None, before: Standing) -> None:
    if head is None and before.seq:
        raise Damaged(
            f"the mirror is gone: {before.seq} events were there",
            hint="Is the disk mounted, is it the right remote? To begin a new one, give the "
            "destination another name in mirror.toml.",
        )
    if head is not None and head.seq < before.seq:
        raise Damaged(
            f"the mirror was cut: it held {before.seq} events, now {head.seq}",
            hint="Look who can write there. To begin a new one, give the destination another name "
            "in mirror.toml.",
        )


class _Writer:
    """One line while it is written."""

    def __init__(self, line: Writable, source: Source, head: Head | None) -> None:
        self.line, self.source = line, source
        self.left_out = 0
        self.head = head or Head(
            repository=source.repository_id,
            algorithm="sha256" if source.repository.algorithm == "sha256" else "sha1",
            machine=source.machine,
            host=os.uname().nodename,
            written_at=utc(),
            seq=0,
            hash="0" * 64,
            segments=(),
        )
        self.origin = Origin(
            source.places.repository(source.repository_id),
            source.repository.git,
            source.mirroring,
        )

    def segments(self, first: int, last: int, seq: int) -> None:
        """Write segments from one number to another, up to an event."""
        begun = self.head.segments[first - 1 :]
        before = read_segment(self.line, self.head, first) if begun else None
        links = self._links(first_of(first) - 1, seq)
        segments = list(self.head.segments[: first - 1])
        with tempfile.TemporaryDirectory(dir=self.source.scratch) as scratch:
            made: list[Collected] = []
            earlier = self._earlier(first_of(first)) if not self.line.carries_commits else []
            for number in range(first, last + 1):
                own = list(itertools.islice(links, EVENTS))
                one = collect(
                    self.origin,
                    number,
                    own,
                    before if number == first else None,
                    earlier_pins=tuple(earlier),
                    packed=not self.line.carries_commits,
                    scratch=Path(scratch) / str(number),
                )
                made.append(one)
                earlier += one.pins.values()
                known = len(before.left_out) if before is not None and number == first else 0
                self.left_out += len(one.segment.left_out) - known
                segments.append(one.document)
            final = made[-1].segment.events[-1]
            self._write(
                pieces=[piece for one in made for piece in one.pieces],
                keep={folder_of(one.segment.number): one.keep for one in made},
                pins={run: oid for one in made for run, oid in one.pins.items()},
                head=self.head.model_copy(
                    update={
                        "seq": final.seq,
                        "hash": final.hash,
                        "segments": tuple(segments),
                        "written_at": utc(),
                    }
                ),
            )

    def _earlier(self, first: int) -> list[str]:
        """Return the commits that were pinned before an event."""
        links = itertools.takewhile(lambda link: link.seq < first, self.source.ledger.links())
        return list(pinned_by(links).values())

    def _links(self, after: int, seq: int) -> Iterator[Link]:
        """Yield the chain from an event on, each link checked."""
        previous: bytes | None = None
        expected = after + 1
        for link in self.source.ledger.links(after):
            if link.seq > seq:
                return
            broken = previous is not None and link.previous != previous
            if link.seq != expected or broken or link_hash(link) != link.hash:
                raise ChainDiffers(
                    f"the local chain does not hold at event {expected}: it is not mirrored",
                    hint="sealrun alerts --verify-chain says what is wrong with it.",
                )
            previous, expected = link.hash, expected + 1
            yield link

    def layers(self) -> int:
        """Write layers that are not there yet; return how many steps that took."""
        from sealrun.image.store import Damaged, LayerStore, plain_file

        store = LayerStore(self.source.places.layers)
        known = {one.sha256 for one in self.head.layers}
        wanted: dict[str, int] = {}
        for recorded in self.source.ledger.events(RunProgress):
            for part in recorded.event.layers or ():
                digest = part.diff_id.removeprefix("sha256:")
                if part.role != "tree" and digest not in known:
                    wanted[digest] = part.size or 0
        steps = 0
        for digest, size in wanted.items():
            layer = store.get(f"sha256:{digest}", size)
            if layer is None:
                continue
            with contextlib.ExitStack() as stack:
                scratch = private(self.source.places.cache / "scratch")
                try:
                    file = stack.enter_context(plain_file(layer, scratch))
                except Damaged:
                    continue
                blob = _blob_of_layer(file, digest, size)
                if blob is None:
                    continue
                layers = (*self.head.layers, blob)
                self._write(
                    pieces=list(pieces_of(LAYERS, file, blob)),
                    keep={LAYERS: frozenset(p for one in layers for p in one.pieces)},
                    pins={},
                    head=self.head.model_copy(update={"layers": layers, "written_at": utc()}),
                )
            steps += 1
        return steps

    def _write(
        self,
        *,
        pieces: list[Piece],
        keep: dict[str, frozenset[str]],
        pins: dict[str, str],
        head: Head,
    ) -> None:
        words = f"{head.repository}: {head.seq} events on {head.host}"
        self.line.write(Change(pieces, keep, encode(head), pins, words))
        self.head = head


def _blob_of_layer(path: Path, digest: str, size: int) -> Blob | None:
    """Return a layer as it is named; None where its bytes are others."""
    blob = hashed(path, None)
    return blob if (blob.sha256, blob.size) == (digest, size) else None
