"""Whether the record would outlive this machine.

Rules that this module keeps:

- A mirror that is behind never keeps sealrun from working: it is a warning, whatever is wrong.
- Nobody is asked: what is remembered of the last try is what is known (``sealrun mirror status``
  asks).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sealrun.doctor.model import Check, Grade
from sealrun.errors import SealrunError
from sealrun.state import repository_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sealrun.git import Repository
    from sealrun.mirror.memory import Standing
    from sealrun.state import Places

_NAME = "mirror"


def mirrored(places: Places, found: Repository) -> Iterable[Check]:
    """Yield whether the record of a repository is mirrored, and how that went last."""
    from sealrun.mirror import config
    from sealrun.mirror.after import configuration
    from sealrun.mirror.memory import Memory

    file = configuration()
    try:
        _, destinations = config.read(file)
        identity = repository_id(found.common_dir, create=False) or ""
        memory = Memory(places)
        standings = [memory.standing(identity, one.key(identity), one.name) for one in destinations]
    except SealrunError as error:
        yield Check(_NAME, Grade.WARN, f"nothing is mirrored: {error.message}", error.hint)
        return
    yield judge(standings, str(file), time.time())


def judge(standings: Sequence[Standing], file: str, now: float) -> Check:
    """Grade how the mirrors stand.

    Args:
        standings: of each destination.
        file: the configuration, for the row.
        now: seconds since 1970.
    """
    if not standings:
        return Check(
            _NAME,
            Grade.OK,
            f"the record is kept on this machine alone: no destination in {file}",
        )
    bad = [one for one in standings if one.why is not None]
    if bad:
        words = "; ".join(f"{one.name}: {one.why}" for one in bad)
        return Check(_NAME, Grade.WARN, words, bad[0].hint or "sealrun mirror now tries it again.")
    words = ", ".join(f"{one.name} {_age(one, now)}" for one in standings)
    return Check(_NAME, Grade.OK, words)


def _age(one: Standing, now: float) -> str:
    if one.succeeded is None:
        return "was never mirrored to"
    return f"held {one.seq} events {max(now - one.succeeded, 0) / 60:.0f} min ago"
