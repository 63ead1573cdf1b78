"""A house-style fixer that rewrites files when they have been left alone for a moment.

It stands for whatever does that on a real machine: an editor's fix-on-save server, a formatter in a
sync job, a linter that somebody installed for the team. It means well, and it knows nothing of the
loop whose files it improves.

    python3 tidy.py DIRECTORY --idle 1.5

Its one rule of style: no learning rate of scalars above 0.3. Each fix is told on stdout. It ends
when its standard input does.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
import time
from pathlib import Path

RULE = re.compile(rb"^(SCALAR_LR = )(0\.[3-9]\d*|[1-9][\d.]*)", re.MULTILINE)
CEILING = b"0.3"


def fixed(source: bytes) -> bytes:
    """Return the source in house style."""
    return RULE.sub(rb"\g<1>" + CEILING, source)


def sweep(directory: Path, idle: float) -> None:
    """Fix each Python file that nobody has written for this many seconds."""
    for path in sorted(directory.glob("*.py")):
        source = path.read_bytes()
        better = fixed(source)
        if better == source or time.time() - path.stat().st_mtime < idle:
            continue
        # As editors save: a new file takes the place of the old one.
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(better)
        draft.replace(path)
        print(f"tidy[{os.getpid()}]: {path.name}: house style, SCALAR_LR = 0.3", flush=True)


def main() -> None:
    """Sweep until the standard input ends."""
    parser = argparse.ArgumentParser(description="Keep Python files in house style.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--idle", type=float, default=1.5, help="seconds since the last save")
    options = parser.parse_args()
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        sweep(options.directory, options.idle)


if __name__ == "__main__":
    main()
