"""The process that mirrors: ``python -I -m sealrun.mirror CONFIGURATION``.

Rules that this module keeps:

- It belongs to nobody's terminal and holds nobody's descriptors; its working directory is ``/``.
- Whatever goes wrong ends it with a line in its log; what waits stays where it is.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    """Mirror what waits; return the exit status."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from sealrun.errors import SealrunError
    from sealrun.mirror.background import run
    from sealrun.state import Places

    # A terminal that closes is no reason to lose the record.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(Places.of_user(), Path(sys.argv[1]), os.environ)
    except (OSError, SealrunError) as error:
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        sys.stderr.write(f"{moment} mirroring ended: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
