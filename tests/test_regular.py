"""Files of strangers: whatever stands in a file's place costs nothing but the file."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sealrun import determinism, regular, smallfile
from sealrun.audit.logs import read_logs
from sealrun.audit.table import Row
from sealrun.init.look import read
from sealrun.mirror.directory import DirectoryLine
from sealrun.mirror.format import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable


def _link(place: Path) -> None:
    (place.parent / "target").write_text("{}")
    place.symlink_to("target")


def _socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(place))


#: What can stand where a file is looked for.
STRANGE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "directory": lambda place: place.mkdir(),
    "link": _link,
    "dangling": lambda place: place.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "socket": _socket,
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_regular_file_is_none(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits, nothing is followed and nothing is raised, and no descriptor stays open."""
    monkeypatch.chdir(tmp_path)
    STRANGE[kind](tmp_path / "1.json")
    file = tmp_path / "1.json"
    before = set(Path("/proc/self/fd").iterdir())
    assert regular.opened(file) is None
    assert regular.beginning(os.fsencode(file), 9) is None
    assert regular.end(file, 9) is None
    assert smallfile.read(file) is None
    assert read(tmp_path, "1.json") is None
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_directory_in_place_of_a_mirrored_file_is_damage(tmp_path: Path) -> None:
    """Whoever else writes to the disk that a record is mirrored to: it is told, and nothing else."""
    line = DirectoryLine(tmp_path, f"{'a' * 32}/{'b' * 16}")
    (line.directory / "head.json").mkdir(parents=True)
    with pytest.raises(Damaged, match="is no regular file"):
        line.head()


def test_a_file_is_read_from_either_end(tmp_path: Path) -> None:
    """As much of it as is asked for, by its path or within a directory."""
    (tmp_path / "file").write_bytes(b"0123456789")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    assert regular.beginning("file", 4, within=directory) == b"0123"
    os.close(directory)
    assert regular.end(tmp_path / "file", 4) == b"6789"
    assert regular.end(tmp_path / "file", 40) == b"0123456789"


@pytest.mark.parametrize("kind", STRANGE)
def test_a_note_that_is_no_file_costs_no_verdict(tmp_path: Path, kind: str) -> None:
    """An experiment may put anything in place of the note of a process; the others count."""
    notes = tmp_path / determinism.NOTES
    notes.mkdir()
    STRANGE[kind](notes / "1.json")
    (notes / "2.json").write_text(json.dumps({"torch": {"version": "2"}}))
    assert determinism.take(tmp_path)["processes"] == 1


def test_a_directory_among_logs_is_a_problem_of_its_own(tmp_path: Path) -> None:
    """It is named, and the audit goes on."""
    (tmp_path / "1.log").mkdir()
    (tmp_path / "2.log").write_text("val_bpb: 1\n")
    rows = [Row(number, number + 1, "-", 1.0, 1, None, "keep", "") for number in (1, 2)]
    found = read_logs(tmp_path, rows)
    assert found.problems == ("1.log: cannot be read as a regular file",)
    assert list(found.by_row) == [2]
