"""Whether somebody would be told.

Rules that this module keeps:

- A dead channel never keeps sealrun from working: it is a warning, whatever is wrong with it.
- Nothing is sent: what a channel did last is what is known of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sealrun.alarm.tell import Alarm
from sealrun.doctor.model import Check, Grade
from sealrun.errors import SealrunError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.alarm.standing import Standing
    from sealrun.state import Places

_NAME = "alarm"


def told(places: Places) -> Iterable[Check]:
    """Yield whether channels are configured, and whether they carry what they are given."""
    from sealrun.alarm.standing import look

    alarm = Alarm.of_user(places)
    try:
        standing = look(alarm, os.environ)
    except SealrunError as error:
        yield Check(_NAME, Grade.WARN, f"nobody is told: {error.message}", error.hint)
        return
    yield judge(standing, str(alarm.file))


def judge(standing: Standing, file: str) -> Check:
    """Grade how the alarm stands.

    Args:
        standing: what was found.
        file: the configuration, for the row.
    """
    from sealrun.alarm.standing import Health

    if not standing.channels:
        return Check(
            _NAME,
            Grade.WARN,
            f"nobody is told when a run is refused, flagged or aborted: no channel in {file}",
            "Name one there: how-to guides, Be told.",
        )
    dead = [
        f"{one.told.name}: {one.why}"
        for one in standing.channels
        if one.health in (Health.FAILS, Health.UNUSABLE)
    ]
    lost = sum(one.state.given_up for one in standing.channels)
    named = ", ".join(f"{one.told.name} {one.health.value}" for one in standing.channels)
    waits = f"; {standing.waiting} notices wait" if standing.waiting else ""
    gone = f"; {lost} were never delivered" if lost else ""
    if dead:
        detail = f"{named}{waits}{gone} ({'; '.join(dead)})"
        return Check(_NAME, Grade.WARN, detail, "sealrun alarm test tries each channel now.")
    return Check(_NAME, Grade.OK, f"{named}{waits}{gone}")
