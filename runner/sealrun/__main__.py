"""Where the program starts, before anything foreign could be imported.

Rule: code of the workspace never runs in the judge. ``PYTHONPATH`` comes before what is installed, so
that a ``docker`` package in a repository would be imported in place of the real one; what it names
is taken off the path before the first import that could find it.
"""

import os
import sys


def main() -> None:
    """Run the command line."""
    _forget(os.environ.get("PYTHONPATH", ""))
    from sealrun.cli import main as command_line

    command_line()


def _forget(named: str) -> None:
    """Take off the path what ``PYTHONPATH`` put there (sys.path_init in Python's manual)."""
    # Kept where sealrun itself is run from there: whoever does so has chosen its code.
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib could be foreign here
    foreign = {os.path.abspath(entry) for entry in named.split(os.pathsep)} - {ours}  # noqa: PTH100 - likewise
    if named:
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) not in foreign]  # noqa: PTH100 - likewise


if __name__ == "__main__":
    main()
