"""Whether runs of this caller get their GPUs, in one sentence, for ``sealrun doctor``.

Rules that this module keeps:

- The same functions answer as before a run: what is said here is what a run does.
- Nothing is held or waited for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun import state
from sealrun.devices import lease
from sealrun.devices.access import Toolkit, access
from sealrun.devices.assign import look, toolkit
from sealrun.errors import SealrunError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.devices.model import Device
    from sealrun.engine import Engine


@dataclass(frozen=True)
class Condition:
    """What a run would get.

    Attributes:
        usable: a run can have every GPU that the caller sees; so where it sees none.
        detail: a sentence.
        fix: what to do where it cannot.
    """

    usable: bool
    detail: str
    fix: str | None = None


def condition(engine: Engine | None, environ: Mapping[str, str] | None = None) -> Condition:
    """Return what a run of this caller would get of the machine's GPUs.

    Args:
        engine: None where no engine answers; then only the GPUs are told.
        environ: the caller's variables; None for this process's.
    """
    variables = os.environ if environ is None else environ
    try:
        seen = look(variables)
        selection = seen.selection
        if not selection.devices:
            why = "; ".join(selection.remarks) or "runs use the CPU"
            return Condition(usable=True, detail=f"none visible: {why}")
        said = Toolkit(here=False) if engine is None else toolkit(engine)
        asked = access(selection, said, {}, variables)
    except SealrunError as error:
        return Condition(usable=False, detail=error.message, fix=error.hint)
    taken = lease.holders([device.uuid for device in selection.devices], state.leases())
    named = ", ".join(_named(device, taken) for device in selection.devices)
    versions = ", ".join(f"driver {driver.version}" for driver in seen.drivers() if driver.version)
    how = ", ".join(asked.how) if asked else ""
    return Condition(usable=True, detail=f"{named}; {versions or 'driver not known'}; by {how}")


def _named(device: Device, taken: Mapping[str, lease.Holder]) -> str:
    holder = taken.get(device.uuid)
    return f"{device.label} {device.name}{f' (taken: {holder})' if holder else ''}"
