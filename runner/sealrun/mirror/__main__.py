"""The process that mirrors: ``python -I -m sealrun.mirror CONFIGURATION``.

Rules that this module keeps:

- Whatever goes wrong, what waits stays where it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sealrun import detached


def main() -> int:
    """Mirror what waits; return the exit status."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from sealrun.mirror.background import run
    from sealrun.state import Places

    (file,) = map(Path, sys.argv[1:])
    return detached.live(lambda: run(Places.of_user(), file, os.environ), "mirroring")


if __name__ == "__main__":
    sys.exit(main())
