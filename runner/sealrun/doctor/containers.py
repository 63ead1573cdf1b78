"""The engine: whether one answers, what it is, and whether paths mean the same to it.

Rules that this module keeps:

- The row named ``engine`` is ok exactly when a run could use an engine now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.doctor.model import Check, Grade
from sealrun.doctor.situations import judge_engine, judge_limits
from sealrun.engine import survey
from sealrun.errors import SealrunError

if TYPE_CHECKING:
    from sealrun.engine import Engine
    from sealrun.state import Places


def engine(places: Places) -> tuple[Engine | None, list[Check]]:
    """Return the engine, if there is one, and the rows about it."""
    try:
        found = survey(places, fresh=True)
    except SealrunError as error:
        return None, [Check("engine", Grade.FAIL, error.message, error.hint)]
    here = found.engine
    if here is None or found.error is not None:
        problem = found.error
        detail = problem.message if problem else "none answers"
        return here, [Check("engine", Grade.FAIL, detail, problem.hint if problem else None)]
    kind = "private, " if here.private else "rootless, " if here.rootless else ""
    rows = [
        Check(
            "engine",
            Grade.OK,
            f"{here.endpoint} ({here.source}): {kind}version {here.version},"
            f" API {here.api_version}, cgroup {here.cgroup_version}",
        ),
        Check("engine store", Grade.OK, f"{here.store}, driver {here.driver}"),
        Check(
            "engine paths",
            Grade.OK,
            f"mapped as declared: {here.mapping}" if here.mapping.rules else "the same as ours",
        ),
    ]
    if here.driver == "vfs":
        rows[1] = Check(
            "engine store",
            Grade.WARN,
            f"{here.store}, driver vfs: every layer is a full copy, slow and large",
            "Put the engine's data on a file system that is not an overlay (SEALRUN_HOME).",
        )
    return here, [*rows, judge_engine(here), judge_limits(here)]
