"""What the command line imports before it knows what is wanted."""

from __future__ import annotations

import subprocess
import sys

#: Runs a command line and prints the modules that it took.
_ASKED = (
    "import os, sys\n"
    "os._exit = lambda status: print('\\nsealrun:', *sorted(sys.modules))\n"
    "from sealrun.__main__ import main\n"
    "main()\n"
)


def _imported(*words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _ASKED, *words], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("\nsealrun: ")[2].split())


def test_the_version_is_told_without_any_command() -> None:
    """Nothing of the core and no command is imported for it."""
    ours = {name for name in _imported("--version") if name.startswith("sealrun.")}
    assert ours == {"sealrun.__main__", "sealrun.cli", "sealrun.cli.console", "sealrun.errors"}


def test_the_help_imports_nothing_slow() -> None:
    """Neither models of policies and records nor the clients of engines are needed for it."""
    slow = {"pydantic", "docker", "sqlite3", "sealrun.ledger", "sealrun.policy", "watchdog"}
    assert not slow & _imported("--help")
