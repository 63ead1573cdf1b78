"""What a tracker offers: find what a run logged, make a safe copy of it, upload the copy.

Rules that this module keeps:

- What a container wrote is never given to a client as it stands: the client gets a copy, in which
  nothing leads out of it.
- The verdict that goes along is the record's; what the experiment says of itself cannot replace it.
- A tracker's client is the caller's own program with the caller's own login; sealrun holds no key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sealrun.secrets import Found
    from sealrun.trackers.taking import Outputs


@dataclass(frozen=True)
class Target:
    """Where the caller wants it; None leaves it to what was logged and to the client.

    Attributes:
        project: of the tracker; likewise ``entity``, which is a user or a team.
    """

    project: str | None = None
    entity: str | None = None


@dataclass(frozen=True)
class Logged:
    """What a run logged to a tracker, as a copy that can be uploaded.

    Attributes:
        name: the tracker's id of it.
        project: that it was logged to, if it says; likewise ``entity``.
        directory: of the copy.
        files: how many; ``size`` their bytes.
        left_out: what is not in the copy, each with the reason.
        keys: what looks like a key in it.
    """

    name: str
    project: str | None
    entity: str | None
    directory: Path
    files: int
    size: int
    left_out: tuple[tuple[str, str], ...] = ()
    keys: tuple[Found, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What sealrun says of a run, for the tracker.

    Attributes:
        facts: JSON values: run, commit, image, verdict and reasons.
        tags: short words.
    """

    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tags: tuple[str, ...] = ()


class Tracker(Protocol):
    """One experiment tracker.

    Attributes:
        name: as the user calls it.
    """

    name: str

    def copy(self, outputs: Outputs, judged: Judged, into: Path) -> Sequence[Logged]:
        """Copy what a run logged, checked and with what sealrun says of the run.

        Args:
            outputs: that the run left.
            judged: what sealrun says of it.
            into: an empty directory of ours.

        Raises:
            Refused: the outputs are not what the run left, or cannot be copied safely.
            StorageFault: the copy cannot be written.
        """
        ...

    def upload(self, logged: Sequence[Logged], target: Target) -> None:
        """Upload copies with the caller's own client and login.

        Raises:
            UsageError: there is no client.
            Fault: it did not upload them.
        """
        ...
