"""Sessions: their records, their start by ``sealrun session``, and whose writes they make."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sealrun.errors import UsageError
from sealrun.guard.filesystem import boot_id
from sealrun.guard.processes import born
from sealrun.ownership.sessions import COMMAND, KEPT, LARGEST, Session, Sessions, is_alive
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    """Sessions in an empty directory."""
    return Sessions(_directory(tmp_path))


def _directory(tmp_path: Path) -> Path:
    directory = tmp_path / "sessions"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_a_session_is_its_leader(sessions: Sessions, sleeper: subprocess.Popen[bytes]) -> None:
    """What is recorded of a leader is what the kernel says of it; it is read back as it was."""
    made = sessions.begin(sleeper.pid, ("agent", "caf\udce9"))
    assert (made.pid, made.boot, made.uid) == (sleeper.pid, boot_id(), os.geteuid())
    assert (made.started, made.attached, made.ended) == (born(sleeper.pid), False, None)
    assert made.above[0] == os.getpid()
    assert sessions.all() == (made,)
    assert is_alive(made)
    assert sessions.of_process(sleeper.pid) == made
    assert sessions.of_process(os.getpid()) is None


def test_the_first_end_stays(sessions: Sessions, sleeper: subprocess.Popen[bytes]) -> None:
    """An end is recorded once."""
    made = sessions.begin(sleeper.pid, ("agent",))
    sessions.end(made)
    (first,) = sessions.all()
    assert first.ended is not None
    assert first.ended >= made.begun
    sessions.end(made)
    assert sessions.all() == (first,)


def test_an_end_that_nobody_saw_is_noticed(
    sessions: Sessions, sleeper: subprocess.Popen[bytes]
) -> None:
    """A leader that is gone, or waits to be reaped, has ended; the moment of noticing stays."""
    sessions.begin(sleeper.pid, ("agent",))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    (noticed,) = sessions.all()
    assert noticed.ended is not None
    assert sessions.all() == (noticed,)
    assert sessions.of_process(sleeper.pid) is None


def test_a_reused_pid_is_not_the_leader(
    sessions: Sessions, sleeper: subprocess.Popen[bytes]
) -> None:
    """A living process of the same pid that began at another time, or in another boot, is another."""
    made = sessions.begin(sleeper.pid, ("agent",))
    assert not is_alive(replace(made, started=made.started - 1))
    assert not is_alive(replace(made, boot="another"))


@pytest.mark.parametrize("pid", [0, 1, -1, 1 << 40])
def test_who_cannot_lead(sessions: Sessions, pid: int) -> None:
    """A process that does not exist, and the one from which all descend, lead no session."""
    with pytest.raises(UsageError):
        sessions.begin(pid, ("agent",))
    assert sessions.all() == ()


def test_sessions_are_bounded(sessions: Sessions, tmp_path: Path) -> None:
    """Long commands are cut and say so; the oldest ended sessions go."""
    made = sessions.begin(os.getpid(), ["x" * 999] * 99)
    assert sum(map(len, made.command)) <= COMMAND + 1
    assert made.command[-1].endswith("…")
    directory = _directory(tmp_path)
    document = json.loads((directory / f"{made.id}.json").read_text())
    for number in range(KEPT + 5):
        old = f"01JD{number:022d}"
        (directory / f"{old}.json").write_text(json.dumps(document | {"id": old, "ended": 9.0}))
    sessions.begin(os.getpid(), ("agent",))
    assert len(list(directory.iterdir())) == KEPT
    assert made.id in {session.id for session in sessions.all()}


BAD: dict[str, object] = {
    "pid": 1,
    "started": "7",
    "boot": None,
    "uid": True,
    "command": "agent",
    "attached": 1,
    "begun": float("inf"),
    "ended": "now",
    "above": [None],
    "id": "../../x",
}


@pytest.mark.parametrize("key", BAD)
def test_a_malformed_record_is_no_session(sessions: Sessions, tmp_path: Path, key: str) -> None:
    """A record with an impossible value is passed over, and hides no other."""
    made = sessions.begin(os.getpid(), ("agent",))
    directory = _directory(tmp_path)
    document = json.loads((directory / f"{made.id}.json").read_text())
    other = directory / "01JD0000000000000000000000.json"
    other.write_text(json.dumps(document | {"id": other.stem} | {key: BAD[key]}))
    assert sessions.all() == (made,)


def test_what_is_no_file_of_ours_is_no_session(sessions: Sessions, tmp_path: Path) -> None:
    """Links, pipes, directories, another user's files, huge and deeply nested ones are passed over."""
    made = sessions.begin(os.getpid(), ("agent",))
    directory = _directory(tmp_path)
    whole = (directory / f"{made.id}.json").read_text()
    names = iter(f"01JD{number:022d}" for number in range(9))

    def fresh() -> tuple[Path, str]:
        name = next(names)
        return directory / f"{name}.json", whole.replace(made.id, name)

    file, text = fresh()
    (tmp_path / "elsewhere").write_text(text)
    file.symlink_to(tmp_path / "elsewhere")
    file, text = fresh()
    os.mkfifo(file)
    file, text = fresh()
    file.mkdir()
    file, text = fresh()
    file.write_text(text)
    os.chown(file, 65534, -1)
    file, text = fresh()
    file.write_text(text + " " * LARGEST)
    file, text = fresh()
    file.write_text("[" * 50_000)
    file, text = fresh()
    file.write_bytes(b"\xff")
    (directory / "note.txt").write_text(whole)
    assert sessions.all() == (made,)


def test_sessions_outside_of_repositories_count_everywhere(tmp_path: Path) -> None:
    """A repository's sessions are its own and those begun outside of any, not another's."""
    places = Places(*(tmp_path / name for name in ("s", "d", "c", "r")))
    one, other = "1" * 32, "2" * 32
    outside = Sessions.of(places, None).begin(os.getpid(), ("outside",))
    inside = Sessions.of(places, one).begin(os.getpid(), ("inside",))
    assert Sessions.of(places, one).all() == (outside, inside)
    assert Sessions.of(places, other).all() == (outside,)
    assert places.sessions(one).stat().st_mode & 0o777 == 0o700


def test_an_unended_session_of_an_earlier_boot_has_ended(
    sessions: Sessions, tmp_path: Path
) -> None:
    """A machine that went down ended its sessions."""
    made: Session = sessions.begin(os.getpid(), ("agent",))
    file = _directory(tmp_path) / f"{made.id}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot": "earlier"}))
    (found,) = sessions.all()
    assert found.ended is not None
