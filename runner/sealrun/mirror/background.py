"""The process in the background: waits a moment, mirrors what waits, tries again, and ends.

Rules that this module keeps:

- Each try is a line in its log.
- One at a time; whoever ends a run while it lives leaves a file that it finds.
- A repository that was asked for is left alone until nobody asked for ``settle`` seconds.
- A destination that fails is tried again after twice the time; after ``PATIENCE`` the process ends,
  and the repository waits for the next run or for ``sealrun mirror now``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun import detached
from sealrun.alarm.schedule import delay
from sealrun.errors import SealrunError
from sealrun.git import Repository
from sealrun.mirror import config
from sealrun.mirror.memory import Memory
from sealrun.mirror.work import failed, mirror

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.mirror.memory import Due
    from sealrun.state import Places

#: Seconds after the last request for which a destination that fails is tried again.
PATIENCE = 3600.0
#: Seconds until the second try.
FIRST = 2.0
#: Seconds between two looks for new requests.
LOOK = 1.0


def run(places: Places, file: Path, environment: Mapping[str, str]) -> None:
    """Mirror until nothing waits that can be mirrored; return at once where a process does so.

    Args:
        places: of the calling user.
        file: the configuration.
        environment: where the variables of secrets are looked up.

    Raises:
        OSError: what is remembered cannot be written.
        SealrunError: likewise.
    """
    memory = Memory(places)
    while True:
        lock = memory.become_background()
        if lock is None:
            return
        try:
            left = _work(places, memory, file, environment)
        finally:
            os.close(lock)
        # Who asked in between saw the lock held and started nobody.
        if set(memory.waiting()) <= left:
            return


def _work(places: Places, memory: Memory, file: Path, environment: Mapping[str, str]) -> set[Due]:
    tries: dict[Due, tuple[int, float]] = {}
    given_up: set[Due] = set()
    while waiting := [due for due in memory.waiting() if due not in given_up]:
        now = time.time()
        wakes = [now + LOOK]
        for due in waiting:
            mirroring, destinations = _configuration(memory, file)
            failures, again = tries.get(due, (0, due.at + mirroring.settle))
            # A clock that was put back must not keep a repository waiting.
            if now < again <= now + max(PATIENCE, mirroring.settle):
                wakes.append(again)
                continue
            if not destinations:
                given_up.add(due)
                continue
            if _is_whole(places, memory, due, destinations, mirroring, environment):
                memory.done(due)
                tries.pop(due, None)
            elif time.time() - due.at > PATIENCE:
                given_up.add(due)
            else:
                tries[due] = (failures + 1, time.time() + delay(failures + 1, FIRST))
        time.sleep(max(min(min(wakes) - time.time(), LOOK), 0.01))
    return given_up


def _configuration(
    memory: Memory, file: Path
) -> tuple[config.Mirroring, tuple[config.Destination, ...]]:
    try:
        found = config.read(file)
    except SealrunError as error:
        memory.note(error.message)
        return config.Mirroring(), ()
    memory.note(None)
    return found


def _is_whole(
    places: Places,
    memory: Memory,
    due: Due,
    destinations: tuple[config.Destination, ...],
    mirroring: config.Mirroring,
    environment: Mapping[str, str],
) -> bool:
    try:
        repository = Repository.find(Path(due.workspace))
        found = mirror(
            places, repository, due.repository, memory, destinations, mirroring, environment
        )
    except SealrunError as error:
        for destination in destinations:
            key = destination.key(due.repository)
            before = memory.standing(due.repository, key, destination.name)
            memory.remember(due.repository, key, failed(before, error))
        detached.note("not mirrored", workspace=due.workspace, why=error.message)
        return False
    for name, standing in found.items():
        event = "mirrored" if standing.why is None else "not mirrored"
        detached.note(
            event, workspace=due.workspace, destination=name, seq=standing.seq, why=standing.why
        )
    return all(standing.why is None for standing in found.values())
