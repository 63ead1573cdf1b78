"""What becomes of a limit that an engine cannot enforce on its machine.

Rules that this module keeps:

- Pure: the engine's word and a request go in, problems and gaps come out.
- A limit that the policy asks for and nothing enforces is a problem: nothing is run.
- The limit of processes is asked for always, by us: where nothing enforces it, that is named as a gap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sealrun.sandbox.protocol import Effective, Request

_NO_PROCESSES = "nothing limits the number of processes: the engine cannot on this machine"


def without_unenforced(
    inspection: Mapping[str, Any], request: Request, unenforced: Sequence[str]
) -> dict[str, Any]:
    """Return an engine's record of a container, without its word on a limit that it dropped.

    Docker Engine 26.1 takes a limit of processes away where it has no controller for it, 20.10 keeps
    the number and does nothing about it. Both read the same afterwards.

    Args:
        inspection: the engine's record.
        request: what was asked for.
        unenforced: limits that the engine says it cannot enforce (``Engine.unenforced``).
    """
    host: dict[str, Any] = dict(inspection.get("HostConfig") or {})
    if "processes" in unenforced:
        host["PidsLimit"] = request.limits.pids
    return {**inspection, "HostConfig": host}


def with_unenforced(found: Effective, request: Request, unenforced: Sequence[str]) -> Effective:
    """Add the limits that nothing enforces to what was read back from a container.

    Args:
        found: what was read back.
        request: what was asked for.
        unenforced: limits that the engine says it cannot enforce (``Engine.unenforced``).
    """
    limits = request.limits
    asked = {"memory": limits.memory, "CPU time": limits.cpus}
    problems = [f"the engine cannot limit {what} here" for what in unenforced if asked.get(what)]
    unseen = [_NO_PROCESSES] if "processes" in unenforced else []
    return replace(found, problems=(*found.problems, *problems), unseen=(*found.unseen, *unseen))
