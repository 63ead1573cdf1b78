"""``sealrun warm``: told beforehand, resumable, safe twice at once, and one look at the real command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from _base import shared_base
from _cli import Cli
from _disk import small_disk
from _image import engine
from _wheels import make_wheel
from sealrun.errors import EnvironmentFault
from sealrun.image import estimate
from sealrun.image.lock import Wheel
from sealrun.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_httpserver import HTTPServer

    from _git import Repo
    from sealrun.progress import Task
    from sealrun.state import Places

#: Bytes of the package that is installed: some seconds of work in small steps, and no more.
HEAVY = 24 << 20


@pytest.fixture
def cli(repo: Repo, tmp_path: Path) -> Iterator[Cli]:
    """A command line with a base, in a repository whose lock names a package that a folder has."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    content = random.Random(1).randbytes(HEAVY)  # noqa: S311 - any bytes that do not shrink
    wheel = make_wheel(folder, "heavy", "1", {"heavy.py": b"VALUE = 7\n", "heavy.bin": content})
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = f"""lock-version = "1.0"
created-by = "a test"
[[packages]]
name = "heavy"
version = "1"
[[packages.wheels]]
name = "{wheel.name}"
url = "https://files.pythonhosted.org/{wheel.name}"
hashes = {{ sha256 = "{digest}" }}
"""
    repo.commit(
        {
            "pylock.toml": lock,
            "train.py": "import heavy\nprint('val_bpb:', heavy.VALUE)\n",
        },
        "baseline",
    )
    places = {"PIP_CONFIG_FILE": os.devnull, "UV_FIND_LINKS": str(folder), "UV_OFFLINE": "1"}
    home = repo.path.parent / "home"
    cli = Cli(repo.path, home, places)
    shared_base(cli.places)
    yield cli
    cli.stop_guard()


def wheel(folder: Path, **fields: object) -> Wheel:
    """Return a wheel of a lock, with some of its fields other."""
    values = {"name": "a", "version": "1", "filename": "a-1-py3-none-any.whl", "sha256": "0" * 64}
    return Wheel(**{**values, "url": f"{folder.as_uri()}/a-1-py3-none-any.whl", **fields})  # type: ignore[arg-type]


# -- what it takes ---------------------------------------------------------------------------------


def test_sizes_come_from_the_lock_the_file_or_the_server(
    tmp_path: Path, httpserver: HTTPServer
) -> None:
    """A file tells what it unpacks to; else the lock's size counts, else the server's; or none."""
    file = make_wheel(tmp_path, "heavy", "1", {"zeros.bin": bytes(1 << 20)})
    httpserver.expect_request("/b.whl", method="HEAD").respond_with_data(b"x" * 5000)
    httpserver.expect_request("/gone.whl", method="HEAD").respond_with_data(status=404)
    found = estimate.estimate(
        [
            wheel(tmp_path, path=file.name, url=None),
            wheel(tmp_path, url="https://example.invalid/c.whl", size=1000),
            wheel(tmp_path, url=httpserver.url_for("/b.whl")),
            wheel(tmp_path, url=httpserver.url_for("/gone.whl")),
        ],
        tmp_path,
        {},
    )
    assert (found.packages, found.unknown) == (4, 1)
    assert found.fetched == file.stat().st_size + 6000
    assert found.least > (1 << 20) + 6000
    assert found.unpacked > (1 << 20) + 3 * 6000
    assert found.peak > found.unpacked > found.kept
    assert "and 1 of unknown size" in found.words()


def test_what_no_server_tells_is_of_unknown_size_and_no_error(tmp_path: Path) -> None:
    """An address with a login, a server that speaks no HTTP, and a zip of a later version are unknown."""
    file = make_wheel(tmp_path, "later", "1", {"a": b"a"})
    content = file.read_bytes()
    at = content.index(b"PK\x01\x02") + 6
    file.write_bytes(content[:at] + b"\xff\x00" + content[at + 2 :])
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            stream, _ = listening.accept()
            with stream:
                stream.recv(4096)
                stream.sendall(b"\x00\xffno http\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        found = estimate.estimate(
            [
                wheel(tmp_path, url="https://user:word@example.invalid/a.whl"),
                wheel(tmp_path, url=f"http://127.0.0.1:{port}/b.whl"),
                wheel(tmp_path, path=file.name, url=None),
            ],
            tmp_path,
            {},
        )
        thread.join()
    assert (found.packages, found.unknown, found.least) == (3, 3, 0)


def test_a_file_system_that_does_not_tell_its_size_is_not_called_full() -> None:
    """Some network and FUSE file systems report no blocks at all, as procfs does: no reason to refuse."""
    silent = Path("/proc/sys/fs")
    assert shutil.disk_usage(silent).total == 0
    estimate.require_room(estimate.Estimate(1, 1, 1 << 30, 2 << 30, 0), silent, "it")


def test_what_the_disk_cannot_hold_is_refused_with_exact_numbers(tmp_path: Path) -> None:
    """The message has the bytes that are needed and those that are free; what fits passes."""
    disk = tmp_path / "disk"
    needed = estimate.Estimate(1, 4 << 20, 9 << 20, 12 << 20, 0)
    with small_disk(disk, 8 << 20):
        with pytest.raises(EnvironmentFault, match=str(9 << 20)) as caught:
            estimate.require_room(needed, disk, "the environment of uv.lock")
        assert str(8 << 20) in caught.value.message
        assert "gc" in (caught.value.hint or "")
        estimate.require_room(estimate.Estimate(1, 1, 7 << 20, 9 << 20, 0), disk, "less")


def test_what_stands_there_already_is_not_needed_again(tmp_path: Path) -> None:
    """A second try on a disk that the first one filled is not refused for what it will reuse."""
    disk = tmp_path / "disk"
    with small_disk(disk, 8 << 20):
        (disk / "fetched").write_bytes(bytes(6 << 20))
        estimate.require_room(estimate.Estimate(1, 1, 7 << 20, 9 << 20, 0), disk, "the rest")


def test_progress_follows_what_appears_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task counts bytes on the disk, each inode once, and never more than were told."""
    monkeypatch.setattr(estimate, "_EVERY", 0.01)
    told: list[int] = []

    class Counting:
        def advance(self, amount: int) -> None:
            told.append(amount)

        def describe(self, text: str) -> None:
            raise AssertionError(text)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    class Listening(Silent):
        def task(self, title: str, total: int | None = None) -> Task:
            assert (title, total) == ("fetching 2 packages", 1 << 20)
            return Counting()

    needed = estimate.Estimate(2, 1, 1, 1 << 20, 0)
    with estimate.shown(needed, tmp_path, Listening()):
        (tmp_path / "one").write_bytes(b"x" * (700 << 10))
        os.link(tmp_path / "one", tmp_path / "same")
        while sum(told) < 700 << 10:
            time.sleep(0.01)
        assert sum(told) < 800 << 10
        (tmp_path / "two").write_bytes(b"x" * (900 << 10))
        while sum(told) < 1 << 20:
            time.sleep(0.01)
    assert sum(told) == 1 << 20


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.engine
def test_what_it_takes_is_said_before(cli: Cli) -> None:
    """The first warm says packages, bytes and time; a second one makes nothing and says nothing."""
    first = cli("warm")
    assert "packages: 25 MB to fetch" in first.stderr
    assert "to fetch" not in cli("warm").stderr


@pytest.mark.engine
def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    cli: Cli,
) -> None:
    """Exit 125 with both numbers; nothing was unpacked."""
    scratch = cli.places.cache / "environments"
    with small_disk(scratch, 8 << 20):
        done = cli("warm", status=125)
        assert "needs at least" in done.stderr
        assert "are free" in done.stderr
        assert not list(scratch.glob("*/uv/archive-v0/*"))


@pytest.mark.engine
def test_two_at_once_do_the_work_once(cli: Cli) -> None:
    """Of three real processes one installs; all name the same image."""
    running = [cli.start("warm", "--json") for _ in range(3)]
    ends = [one.communicate() for one in running]
    assert [one.returncode for one in running] == [0, 0, 0], ends
    images = {json.loads(out)["image_id"] for out, _ in ends}
    assert len(images) == 1
    assert sum(b"to fetch" in err for _, err in ends) == 1
    assert not list(cli.places.layers.glob("*.draft"))


@pytest.mark.engine
def test_killed_at_any_moment_it_goes_on_to_the_same_image(cli: Cli, tmp_path: Path) -> None:
    """SIGKILL at four moments of one warm: the next try begins from there, to the same id."""
    clean = Cli(cli.directory, tmp_path / "clean", cli.extra)
    shared_base(clean.places)
    began = time.monotonic()
    wanted = clean.json("warm")["image_id"]
    whole = time.monotonic() - began
    moments = random.Random(4)  # noqa: S311 - moments, not secrets
    for _ in range(4):
        process = cli.start("warm", start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.1, 1.0) * whole)
        process.kill()
        process.communicate()
    assert cli.json("warm")["image_id"] == wanted
    cli.run("python3", "train.py")
    runs = cli.json("doctor", "--reproducible")["runs"]
    assert [one["rebuildable"] for one in runs] == [True]
    # What the dead left is found, once it is old.
    drafts = list(cli.places.layers.glob("*.draft"))
    assert len(drafts) <= 4


@pytest.mark.engine
def test_a_tool_ends_with_the_warm_that_started_it(cli: Cli) -> None:
    """After SIGKILL to warm no uv of its own works on."""
    for delay in (0.5, 1.0, 1.5):
        process = cli.start("warm", start_new_session=True)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        until = time.monotonic() + 60
        while _working(cli.places) and time.monotonic() < until:
            time.sleep(0.1)
        assert not _working(cli.places)


def _working(places: Places) -> list[str]:
    """Return the command lines of tools that work in our environments."""
    mark = os.fsencode(places.cache / "environments")
    found: list[str] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = open(f"/proc/{entry.name}/cmdline", "rb").read()  # noqa: PTH123, SIM115 - of a process that may be gone
                if mark in line:
                    found.append(line.decode("utf-8", "replace"))
    return found


# -- one look at the real command ------------------------------------------------------------------


@pytest.mark.engine
def test_a_command_is_ended_after_its_first_line_and_is_no_run(cli: Cli, repo: Repo) -> None:
    """It starts sealed as a run would, is ended, leaves no container and no line of the record."""
    repo.commit(
        {
            "train.py": "import os, time, heavy\n"
            "open('left.txt', 'w').write('x')\nopen('/out/left', 'w').write('x')\n"
            "print('up', os.getcwd(), os.getuid(), flush=True)\ntime.sleep(3600)\n"
        },
        "long",
    )
    found = json.loads(cli("warm", "--json", "--", "python3", "train.py").stdout)
    assert found["smoke"]["line"].startswith("up /workspace ")
    assert found["smoke"]["exit_status"] is None
    assert cli.json("log")["runs"] == []
    assert not repo.git("for-each-ref", "refs/sealrun")
    runs = cli.places.state / "repositories"
    assert not list(runs.glob("*/runs/*"))
    label = f"sealrun.commit={repo.git('rev-parse', 'HEAD')}"
    assert engine().containers(all=True, filters={"label": label}) == []
    assert not list((cli.places.cache / "scratch").iterdir())
    done = cli("warm", "--", "python3", "train.py")
    assert "printed its first line" in done.stderr
    assert "up /workspace" in done.stderr
    assert done.stdout == ""


@pytest.mark.engine
def test_a_command_that_fails_is_125_and_shows_its_last_lines(cli: Cli, repo: Repo) -> None:
    """What fails right after its first line, a missing command and silence each say what happened."""
    repo.commit({"train.py": "print('first')\nraise SystemExit('no data')\n"}, "broken")
    done = cli("warm", "--", "python3", "train.py", status=125)
    assert "no data" in done.stderr
    assert "ended with status 1" in done.stderr
    assert "127" in cli("warm", "--", "no-such-command", status=125).stderr
    repo.commit({"train.py": "import time\ntime.sleep(3600)\n"}, "silent")
    quiet = cli("warm", "--seconds", "1", "--", "python3", "train.py")
    assert "printed no line within" in quiet.stderr


@pytest.mark.engine
def test_what_a_command_left_goes_with_it_however_deep(cli: Cli, repo: Repo) -> None:
    """Directories below one another by the thousand end the command, and are gone afterwards."""
    deep = "import os\nos.chdir('/out')\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')\n"
    repo.commit({"train.py": deep}, "deep")
    done = cli("warm", "--", "python3", "train.py", status=125)
    assert "more new files, or deeper directories, than" in done.stderr
    assert not list((cli.places.cache / "scratch").glob("smoke-*"))
    assert not list((cli.places.cache / "gone").glob("*"))


@pytest.mark.engine
def test_a_policy_that_nobody_approved_starts_no_command(cli: Cli, repo: Repo) -> None:
    """A commit that loosens its own policy gets no container that way."""
    cli("warm")
    cli.run("python3", "train.py")
    repo.commit({"sealrun.toml": '[sandbox]\nnetwork = "bridge"\n'}, "looser")
    done = cli("warm", "--", "python3", "train.py", status=121)
    assert "not the approved one" in done.stderr
