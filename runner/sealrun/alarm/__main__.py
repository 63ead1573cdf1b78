"""The sender's process: ``python -I -m sealrun.alarm DIRECTORY CONFIGURATION``.

Rules that this module keeps:

- Whatever goes wrong, the notices stay where they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sealrun import detached


def main() -> int:
    """Deliver what the spool holds; return the exit status."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from sealrun.alarm.sender import send
    from sealrun.alarm.spool import Spool

    directory, file = map(Path, sys.argv[1:])
    return detached.live(lambda: send(Spool(directory), file, os.environ), "the sender")


if __name__ == "__main__":
    sys.exit(main())
