"""Small files that processes of ours leave each other, and the one process of a kind that there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sealrun import detached, smallfile

if TYPE_CHECKING:
    from collections.abc import Callable


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """A file holds what was last written, is its owner's alone, and leaves no draft."""
    file = tmp_path / "one.json"
    smallfile.write(file, {"name": "é\udcff", "count": 1})
    smallfile.write(file, {"name": "é\udcff", "count": 2})
    assert smallfile.read(file) == {"name": "é\udcff", "count": 2}
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_what_stood_there(tmp_path: Path) -> None:
    """A failed write is an error, leaves no draft, and costs nothing that was there."""
    file = tmp_path / "one.json"
    file.mkdir()
    (file / "kept").touch()
    with pytest.raises(OSError, match=r"one\.json"):
        smallfile.write(file, {"count": 2})
    assert list(tmp_path.iterdir()) == [file]
    assert (file / "kept").exists()


def _linked(file: Path) -> None:
    file.with_name("other").write_text("{}")
    file.symlink_to("other")


def _holding(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


PLACES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "FIFO": os.mkfifo,
    "link": _linked,
    "directory": Path.mkdir,
    "no text": _holding(b"\xff{"),
    "too deep": _holding(b"[" * 100_000),
    "too large": _holding(json.dumps("x" * smallfile.LARGEST).encode()),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_none_of_ours_is_nothing(tmp_path: Path, place: str) -> None:
    """Whatever stands in a file's place is read as nothing, and holds nobody up."""
    file = tmp_path / "one.json"
    PLACES[place](file)
    assert smallfile.read(file) is None


def test_there_is_one_process_of_a_kind(tmp_path: Path) -> None:
    """A lock is one process's until it dies, however that is; asking takes and makes nothing."""
    lock = tmp_path / "lock"
    assert not detached.lives(lock)
    assert not lock.exists()
    program = (
        "import pathlib, sys; from sealrun import detached\n"
        "assert detached.become(pathlib.Path(sys.argv[1])) is not None\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        assert detached.lives(lock)
        assert detached.become(lock) is None
        holder.kill()
        holder.wait()
    assert not detached.lives(lock)
    descriptor = detached.become(lock)
    assert descriptor is not None
    os.close(descriptor)


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    """A lock that leads elsewhere is an error: nobody is made the one process by a link."""
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="lock"):
        detached.become(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()
