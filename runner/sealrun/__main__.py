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
    if not named:
        return
    # Kept where sealrun itself is run from there: whoever does so has chosen its code.
    ours = os.path.dirname(os.path.dirname(_absolute(__file__)))  # noqa: PTH120 - pathlib could be foreign here
    foreign = {_absolute(entry) for entry in named.split(os.pathsep)} - {ours}
    sys.path[:] = [entry for entry in sys.path if _absolute(entry) not in foreign]


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)  # noqa: PTH100 - pathlib could be foreign here
    except FileNotFoundError:
        # The current directory is gone; nothing can be imported from it either.
        return path


if __name__ == "__main__":
    main()
