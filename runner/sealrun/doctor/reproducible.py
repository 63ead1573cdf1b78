"""Whether the runs on record could be rebuilt today, from what is stored.

Rules that this module keeps:

- A run is proved by doing it, short of running: its commit is read and re-hashed, its layers are
  hashed, its image is assembled to the recorded id, its data is compared with its manifest.
- A layer that many runs share is hashed once.
- Nothing is changed, made or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import SealrunError
from sealrun.reproduce.rebuild import missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sealrun.ledger import RunRecord
    from sealrun.reproduce.rebuild import Stored


@dataclass(frozen=True)
class Rebuildable:
    """One run, and what keeps it from being rebuilt.

    Attributes:
        missing: a clause each; empty when nothing does.
    """

    run: RunRecord
    missing: tuple[str, ...]


def examine_runs(runs: Iterable[RunRecord], stored: Stored) -> Iterator[Rebuildable]:
    """Yield for each run what is missing; every one of them must have had an image."""
    whole: set[str] = set()
    for run in runs:
        try:
            found = missing(run, stored, Path.home(), whole)
        except SealrunError as error:
            found = (error.message,)
        yield Rebuildable(run, found)
