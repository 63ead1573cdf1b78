"""Experiment trackers: what a run logged offline, uploaded from the host with the caller's own login.

``tracker`` is what each of them offers, one module each; ``taking`` copies what a container wrote;
``wandb_log`` reads and writes the file that the client of Weights & Biases keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.errors import UsageError

if TYPE_CHECKING:
    from sealrun.trackers.tracker import Tracker

#: Names of the trackers that are known.
TRACKERS = ("wandb",)


def find(name: str) -> Tracker:
    """Return a tracker by its name.

    Raises:
        UsageError: it is not known.
    """
    if name == "wandb":
        from sealrun.trackers.wandb import WeightsAndBiases

        return WeightsAndBiases()
    raise UsageError(f"there is no tracker {name!r}", hint=f"Trackers are: {', '.join(TRACKERS)}.")
