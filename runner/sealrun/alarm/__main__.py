"""The sender's process: ``python -I -m sealrun.alarm DIRECTORY CONFIGURATION``.

Rules that this module keeps:

- It belongs to nobody's terminal and holds nobody's descriptors; its working directory is ``/``.
- Whatever goes wrong ends it with a line in its log; the notices stay where they are.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    """Deliver what the spool holds; return the exit status."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from sealrun.alarm.sender import send
    from sealrun.alarm.spool import Spool
    from sealrun.errors import SealrunError

    # A terminal that closes is no reason to stop telling what happened.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send(Spool(Path(sys.argv[1])), Path(sys.argv[2]), os.environ)
    except (OSError, SealrunError) as error:
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        sys.stderr.write(f"{moment} the sender ended: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
