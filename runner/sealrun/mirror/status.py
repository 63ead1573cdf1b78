"""How the mirrors of a repository stand: what each holds, against the ledger here.

Rules that this module keeps:

- The mirror's head is an anchor that stands elsewhere: the whole local chain is held against it.
- Nothing is written, neither here nor there, and no secret is shown.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sealrun.errors import SealrunError
from sealrun.ledger import Anchor
from sealrun.mirror.format import Damaged, line_name
from sealrun.mirror.line import read_head
from sealrun.mirror.work import open_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sealrun.git import Repository
    from sealrun.ledger import ChainReport, Ledger
    from sealrun.mirror.config import Destination
    from sealrun.mirror.format import Head
    from sealrun.mirror.memory import Memory, Standing
    from sealrun.state import Places


class Health(StrEnum):
    """What a mirror is like."""

    WHOLE = "whole"
    BEHIND = "behind"
    NEW = "new"
    DIFFERS = "differs"
    DAMAGED = "damaged"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Mirrored:
    """One destination as it was found.

    Attributes:
        health: in one word.
        seq: number of the last event that it holds; ``hash`` its hash.
        written_at: UTC, as the mirror says.
        why: what is wrong, in a sentence.
        standing: what is remembered of it.
    """

    destination: Destination
    health: Health
    standing: Standing
    seq: int = 0
    hash: str = ""
    written_at: str | None = None
    why: str | None = None
    hint: str | None = None


def look(
    places: Places,
    repository: Repository,
    repository_id: str,
    ledger: Ledger | None,
    memory: Memory,
    destinations: Sequence[Destination],
    environment: Mapping[str, str],
) -> list[Mirrored]:
    """Ask each destination what it holds, and hold the local chain against it."""
    found: list[Mirrored] = []
    for destination in destinations:
        before = memory.standing(repository_id, destination.key(repository_id), destination.name)
        name = line_name(repository_id, memory.machine())
        try:
            with memory.mirroring(repository_id):
                line = open_line(destination, name, places, repository, environment)
                with contextlib.closing(line):
                    head = read_head(line, name)
        except Damaged as error:
            found.append(_bad(destination, Health.DAMAGED, before, error))
        except SealrunError as error:
            found.append(_bad(destination, Health.UNREACHABLE, before, error))
        else:
            found.append(_judged(destination, before, head, ledger))
    return found


def _bad(
    destination: Destination, health: Health, before: Standing, error: SealrunError
) -> Mirrored:
    return Mirrored(destination, health, before, why=error.message, hint=error.hint)


def _judged(
    destination: Destination, before: Standing, head: Head | None, ledger: Ledger | None
) -> Mirrored:
    last = ledger.head()[0] if ledger else 0
    if head is None:
        if before.seq:
            why = f"the mirror is gone: {before.seq} events were there"
            return Mirrored(destination, Health.DAMAGED, before, why=why)
        return Mirrored(destination, Health.NEW if not last else Health.BEHIND, before)
    facts = (head.seq, head.hash, head.written_at)
    if head.seq < before.seq:
        why = f"the mirror was cut: it held {before.seq} events, now {head.seq}"
        return Mirrored(destination, Health.DAMAGED, before, *facts, why)
    if ledger is None:
        why = f"the ledger here is gone, the mirror holds {head.seq} events"
        return Mirrored(destination, Health.DIFFERS, before, *facts, why)
    report = ledger.verify_chain(Anchor(head.seq, head.hash)) if head.seq else None
    if report is not None and not report.sound:
        return Mirrored(destination, Health.DIFFERS, before, *facts, words_of(report))
    health = Health.WHOLE if head.seq == last else Health.BEHIND
    return Mirrored(destination, health, before, *facts, before.why, before.hint)


def words_of(report: ChainReport) -> str:
    """Return what is wrong with a chain, in a sentence."""
    return "the ledger here: " + "; ".join(f"{one.what}: {one.text}" for one in report.breaks[:5])
