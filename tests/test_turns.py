"""Locks whose files go with them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sealrun import leftovers
from sealrun.ledger import is_alive, new_ulid
from sealrun.state import Places, private
from sealrun.turns import turn

if TYPE_CHECKING:
    from pathlib import Path

#: Takes a turn a hundred times, and each time makes a directory that nobody else may have made.
_TAKING = """\
import os, pathlib, sys
from sealrun.turns import turn
lock, mark = map(pathlib.Path, sys.argv[1:])
for _ in range(100):
    with turn(lock):
        mark.mkdir()
        mark.rmdir()
"""
_DYING = """\
import os, pathlib, sys
from sealrun.turns import turn
with turn(pathlib.Path(sys.argv[1])):
    os._exit(7)
"""


def test_no_two_have_their_turn_at_once(tmp_path: Path) -> None:
    """Not even where the file is removed and made anew all the time; at the end it is gone."""
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", _TAKING, str(lock), str(tmp_path / "mark")]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, check=False).returncode, range(4)))
    assert done == [0, 0, 0, 0]
    assert not list(tmp_path.iterdir())


def test_the_turn_of_the_dead_is_over(tmp_path: Path) -> None:
    """Whoever dies leaves the file, which keeps nobody from anything."""
    lock = tmp_path / "lock"
    done = subprocess.run([sys.executable, "-c", _DYING, str(lock)], check=False)
    assert done.returncode == 7
    assert lock.exists()
    with turn(lock):
        pass
    assert not lock.exists()


def test_a_run_that_is_over_leaves_no_lock(tmp_path: Path) -> None:
    """While its controller lives others see that, and afterwards its directory holds no lock."""
    places = Places(*(tmp_path / name for name in ("state", "data", "cache", "runtime")))
    run = new_ulid()
    directory = private(places.run("0" * 32, run))
    with leftovers.lock(directory):
        assert is_alive(places, "0" * 32, run)
        assert list(directory.iterdir())
    assert not is_alive(places, "0" * 32, run)
    assert not list(directory.iterdir())
