"""Whether the controller of a run still lives.

Rules that this module keeps:

- A controller holds an exclusive flock(2) on ``lock`` in its run's directory from before the run is
  opened until after it has ended; the kernel gives the lock back however it dies. A pid proves
  nothing: it can be somebody else's by now.
- Asking takes a shared lock for an instant and changes nothing.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sealrun.state import Places

#: Name of the lock file in a run's directory.
LOCK = "lock"


def is_alive(places: Places, repository: str, run: str) -> bool:
    """Tell whether a process holds the lock of a run.

    Args:
        places: of the user who runs it.
        repository: id of the repository.
        run: whole id of the run.
    """
    try:
        descriptor = os.open(places.run(repository, run) / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
