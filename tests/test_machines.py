"""The kinds of machines that people have: what the doctor says of each, and what really runs there."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from _engine import INFO, speaking
from sealrun.doctor import Grade
from sealrun.doctor.situations import judge_engine, judge_limits, judge_machine
from sealrun.doctor.surroundings import Surroundings, container_of, wsl_of
from sealrun.engine import Engine, PathMapping, survey
from sealrun.engine.answer import ask
from sealrun.engine.endpoints import Candidate
from sealrun.guard.filesystem import REMOTE, Mount
from sealrun.ledger.faults import NETWORK_FILE_SYSTEMS
from sealrun.sandbox.protocol import Effective, Limits, Request
from sealrun.sandbox.unenforced import with_unenforced, without_unenforced
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import ModuleType

    from _git import Repo

DOCS = Path(__file__).parent.parent / "docs"
HERE = Surroundings(kernel="Linux", wsl=None, container=None, root=True)
ENGINE = Engine(
    id="E",
    endpoint="unix:///var/run/docker.sock",
    source="the default socket",
    version="20.10.24",
    api_version="1.41",
    store="classic",
    driver="overlay2",
    rootless=False,
    cgroup_version="1",
    private=False,
    root="/var/lib/docker",
    podman=False,
    system="Debian GNU/Linux 12 (bookworm)",
    unenforced=(),
    mapping=PathMapping(),
)
OURS, THEIRS = "pid:[4026531836]", "pid:[4026532201]"


# -- what kind of machine -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("4.4.0-19041-Microsoft", 1),
        ("5.15.90.1-microsoft-standard-WSL2", 2),
        ("6.6.87.2-microsoft-custom", 2),
        ("6.1.0-35-amd64", None),
    ],
)
def test_the_kernels_release_tells_windows_subsystem(release: str, version: int | None) -> None:
    """The Windows Subsystem for Linux is recognised in both versions, and nothing else as it."""
    assert wsl_of(release) == version


@pytest.mark.parametrize(
    ("namespace", "marks", "environment", "noted", "kind"),
    [
        (THEIRS, {"/.dockerenv"}, {}, "", "docker"),
        (THEIRS, {"/run/.containerenv"}, {}, "", "podman"),
        (THEIRS, {"/.dockerenv"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "", "kubernetes"),
        (THEIRS, set(), {"container": "lxc"}, "", "lxc"),
        (THEIRS, set(), {}, "systemd-nspawn\n", "systemd-nspawn"),
        (THEIRS, set(), {}, "", "of an unknown kind"),
        (OURS, {"/.dockerenv"}, {"container": "docker"}, "docker", None),
        ("", {"/.dockerenv"}, {}, "", None),
    ],
)
def test_the_process_namespace_tells_a_container(
    namespace: str, marks: set[str], environment: dict[str, str], noted: str, kind: str | None
) -> None:
    """A container has a process namespace of its own; marks of an image alone make none."""
    assert container_of(namespace, frozenset(marks), environment, noted) == kind


def test_this_machine_and_a_namespace_in_it_are_told_apart() -> None:
    """The same program outside and inside a new process namespace says what is around it."""
    code = "from sealrun.doctor.surroundings import Surroundings as S; print(S.here().container)"
    said = [
        subprocess.run(
            [*around, sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        for around in ((), ("unshare", "--pid", "--fork", "--mount-proc"))
    ]
    assert said[1] != "None"
    outside = str(Path("/proc/self/ns/pid").readlink()) == OURS
    assert (said[0] == "None") == outside


@pytest.mark.parametrize(
    ("here", "engine", "grade", "words"),
    [
        (HERE, ENGINE, Grade.OK, "names of writers are served"),
        (replace(HERE, root=False), ENGINE, Grade.OK, "without root: runs, events and contents"),
        (replace(HERE, kernel="Darwin"), ENGINE, Grade.FAIL, "macOS: not served"),
        (replace(HERE, kernel="Windows"), None, Grade.FAIL, "Windows: not served"),
        (replace(HERE, wsl=1), ENGINE, Grade.FAIL, "WSL 1: not served"),
        (replace(HERE, wsl=2), ENGINE, Grade.WARN, "WSL 2, untried"),
        (replace(HERE, container="kubernetes"), None, Grade.FAIL, "pods are rented"),
        (replace(HERE, container="docker"), ENGINE, Grade.WARN, "beside its engine"),
        (replace(HERE, container="lxc"), replace(ENGINE, private=True), Grade.OK, "of its own"),
    ],
)
def test_each_kind_of_machine_is_one_line(
    here: Surroundings, engine: Engine | None, grade: Grade, words: str
) -> None:
    """What is served is one line with its grade; what is not served comes with what helps."""
    check = judge_machine(here, engine)
    assert (check.name, check.grade) == ("machine", grade)
    assert words in check.detail
    assert "\n" not in check.detail + (check.fix or "")
    assert (check.fix is None) == (grade is Grade.OK)


@pytest.mark.parametrize(
    ("engine", "grade", "words"),
    [
        (ENGINE, Grade.OK, "Docker 20.10.24: served"),
        (replace(ENGINE, store="containerd"), Grade.OK, "containerd's image store: served"),
        (replace(ENGINE, rootless=True), Grade.WARN, "rootless: runs are served"),
        (replace(ENGINE, system="Docker Desktop"), Grade.WARN, "Docker Desktop, untried"),
        (replace(ENGINE, endpoint="tcp://build:2376"), Grade.WARN, "a network, untried"),
    ],
)
def test_each_kind_of_engine_is_one_line(engine: Engine, grade: Grade, words: str) -> None:
    """What an engine's kind means for a run is one line; what is not ok has a fix."""
    check = judge_engine(engine)
    assert (check.name, check.grade) == ("engine kind", grade)
    assert words in check.detail
    assert "\n" not in check.detail + (check.fix or "")
    assert (check.fix is None) == (grade is Grade.OK)


def test_limits_that_nothing_enforces_are_named() -> None:
    """Each limit that the engine cannot enforce is named, with the fix for its control groups."""
    assert judge_limits(ENGINE).grade is Grade.OK
    nothing = replace(ENGINE, unenforced=("memory", "processes", "CPU time"))
    check = judge_limits(replace(nothing, rootless=True))
    assert check.grade is Grade.WARN
    assert "cannot limit memory, processes, CPU time (cgroup 1)" in check.detail
    assert "Boot with cgroup v2" in (check.fix or "")
    check = judge_limits(replace(nothing, cgroup_version="2"))
    assert "cgroup.subtree_control" in (check.fix or "")


# -- what engines say of themselves ---------------------------------------------------------------


def test_an_engines_answer_tells_its_kind(tmp_path: Path) -> None:
    """Podman, Docker Desktop, and limits without controllers are read from the engine's own words."""
    told = INFO | {
        "BuildahVersion": "1.28.2",
        "OperatingSystem": "Docker Desktop",
        "MemoryLimit": True,
        "PidsLimit": False,
        "CpuCfsQuota": False,
    }
    with speaking(tmp_path / "s", json.dumps(told).encode()) as endpoint:
        said = ask(Candidate(endpoint, "test"))
    assert (said.podman, said.system) == (True, "Docker Desktop")
    assert said.unenforced == ("processes", "CPU time")
    with speaking(tmp_path / "t") as endpoint:
        said = ask(Candidate(endpoint, "test"))
    assert (said.podman, said.unenforced) == (False, ())


def test_podman_is_refused_in_words(tmp_path: Path) -> None:
    """Podman answers as Docker does; it is named, and no run is begun that would break half-way."""
    told = INFO | {"BuildahVersion": "1.28.2", "ServerVersion": "4.3.1"}
    home = tmp_path / "home"
    places = Places(home / "state", home / "data", home / "cache", home / "runtime")
    with speaking(tmp_path / "s", json.dumps(told).encode(), api="1.41") as endpoint:
        found = survey(places, {"DOCKER_HOST": endpoint})
    assert found.error is not None
    assert "is podman 4.3.1, by which runs are not served" in found.error.message
    assert "rootless Docker" in (found.error.hint or "")


def _limited(memory: int | None = None, cpus: float | None = None) -> Request:
    nowhere = Path("/nowhere")
    return Request(
        name="c",
        image="i",
        argv=("true",),
        workdir="/workspace",
        environment={},
        user=(10001, 10001),
        mounts=(),
        limits=Limits(memory=memory, cpus=cpus),
        labels={},
        passwd=b"",
        group=b"",
        seccomp=None,
        init=nowhere,
        init_digest="",
    )


def test_a_limit_of_the_policy_that_nothing_enforces_is_a_problem() -> None:
    """Memory and CPUs that were asked for are problems, the limit of processes is a gap in coverage."""
    nothing = ("memory", "processes", "CPU time")
    asked = _limited(memory=1 << 30, cpus=2.0)
    found = with_unenforced(Effective(()), asked, nothing)
    assert found.problems == (
        "the engine cannot limit memory here",
        "the engine cannot limit CPU time here",
    )
    assert len(found.unseen) == 1
    found = with_unenforced(Effective(()), _limited(), nothing)
    assert (found.problems, len(found.unseen)) == ((), 1)
    assert with_unenforced(Effective(()), asked, ()) == Effective(())


@pytest.mark.parametrize("said", [None, 0, 4096])
def test_an_engines_word_on_a_limit_that_it_dropped_counts_for_nothing(said: int | None) -> None:
    """Engines record such a limit as asked for or not at all; both read the same."""
    record = {"Id": "c", "HostConfig": {"PidsLimit": said, "Memory": 0}}
    asked = _limited()
    heard = without_unenforced(record, asked, ("processes",))
    assert heard == {"Id": "c", "HostConfig": {"PidsLimit": asked.limits.pids, "Memory": 0}}
    assert without_unenforced(record, asked, ()) == record


# -- a file system that others write to -----------------------------------------------------------

#: What mountinfo calls a file system, where statfs(2)'s number goes by another name here.
TYPES = {"smb": "smbfs", "smb2": "smb3", "ncp": "ncpfs"}
#: These answer statfs(2) with FUSE's number, or with that of what they succeeded.
UNDER_ANOTHER = {"glusterfs", "virtiofs", "davfs", "nfs4", "pvfs2"}


def test_both_ways_of_knowing_a_network_file_system_know_the_same() -> None:
    """What the ledger tells by statfs(2)'s number the guard tells by the mount's type."""
    by_number = {TYPES.get(name, name) for name in NETWORK_FILE_SYSTEMS.values()}
    assert all(Mount(1, b"/", type_, b"").remote for type_ in by_number)
    assert by_number - {"fuse"} == REMOTE - UNDER_ANOTHER
    assert all(Mount(1, b"/", f"fuse.{name}", b"").remote for name in ("sshfs", "juicefs"))
    assert not any(Mount(1, b"/", name, b"").remote for name in ("ext4", "overlay", "fuseblk"))


SLOW = """import time
for step in range(40):
    print("step", step, flush=True)
    time.sleep(0.1)
print("val_bpb: 1.5")
"""


@contextlib.contextmanager
def _served(directory: Path, at: Path) -> Generator[Path]:
    """Mount a directory as a file server would: what is written behind it makes no event (FUSE)."""
    at.mkdir()
    options = ["-f", "-o", "attr_timeout=0,entry_timeout=0"]
    with subprocess.Popen(["bindfs", *options, str(directory), str(at)]) as server:
        while not at.is_mount():
            assert server.poll() is None, "the file system could not be mounted"
            time.sleep(0.02)
        try:
            yield at
        finally:
            subprocess.run(["umount", "--lazy", str(at)], check=True)
            # One that lost its mount in a bad moment was seen to spin for ever.
            server.kill()


@pytest.fixture
def remote(repo: Repo, tmp_path: Path) -> Iterator[Cli]:
    """A warm command line in a workspace on a file system that somebody else serves."""
    repo.commit({"train.py": "SCALAR_LR = 0.5\n", "slow.py": SLOW})
    with _served(repo.path, tmp_path / "served") as workspace:
        cli = Cli(workspace, tmp_path / "home").with_base()
        yield cli
        cli.stop_guard()


@pytest.mark.engine
def test_a_remote_write_is_found_by_content_and_never_clean(remote: Cli, repo: Repo) -> None:
    """A write on the server's side makes no event, and is caught; the record says content-only."""
    running = remote.start("run", "--", "python3", "slow.py")
    assert running.stdout is not None
    assert running.stdout.readline() == b"step 0\n"
    (repo.path / "train.py").write_text("SCALAR_LR = 0.3\n")
    running.communicate(timeout=240)
    (run,) = remote.json("log")["runs"]
    codes = {reason["code"] for reason in run["verdict"]["reasons"]}
    assert run["verdict"]["kind"] == "flagged"
    assert {"remote-file-system", "edit-unattributed"} <= codes
    assert run["coverage"]["complete"] is False
    assert any(text.startswith("content-only: ") for text in run["coverage"]["missing"])
    (alert,) = remote.json("alerts")["alerts"]
    assert alert["path"] == "train.py"


@pytest.mark.engine
def test_a_quiet_run_on_a_network_file_system_is_not_clean(remote: Cli) -> None:
    """Where remote writes could not be seen, a run without any is flagged for just that reason."""
    remote("run", "--", "python3", "-c", "print('val_bpb: 1.5')")
    (run,) = remote.json("log")["runs"]
    flags = {r["code"] for r in run["verdict"]["reasons"] if r["severity"] == "flag"}
    assert (run["verdict"]["kind"], flags) == ("flagged", {"remote-file-system"})
    said = {check["name"]: check for check in remote.json("doctor")["checks"]}
    assert said["file system: workspace"]["status"] == "warn"
    assert "content-only" in said["file system: workspace"]["detail"]


@pytest.mark.engine
def test_state_on_a_network_file_system_has_no_write_ahead_log(repo: Repo, tmp_path: Path) -> None:
    """The ledger keeps a rollback journal there; the run itself is clean, the doctor says it."""
    repo.commit({"train.py": "print('val_bpb: 1.5')\n"})
    (tmp_path / "disk").mkdir()
    with _served(tmp_path / "disk", tmp_path / "served") as home:
        cli = Cli(repo.path, home).with_base()
        cli("run", "--", "python3", "train.py")
        (run,) = cli.json("log")["runs"]
        assert run["verdict"]["kind"] == "clean"
        said = {check["name"]: check for check in cli.json("doctor")["checks"]}
        assert "no write-ahead log" in said["file system: state"]["detail"]
        cli.stop_guard()
        (ledger,) = home.glob("state/repositories/*/ledger.sqlite")
        assert not list(ledger.parent.glob("ledger.sqlite-wal"))
        with contextlib.closing(sqlite3.connect(ledger)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


# -- a stranger's first hour ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger() -> ModuleType:
    """The script that makes the page about a stranger's first hour."""
    spec = importlib.util.spec_from_file_location("stranger", DOCS / "_stranger.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_stranger_types_what_the_readme_says(stranger: ModuleType) -> None:
    """Every command of the README's section is typed, in its order, and stands on the page."""
    said = stranger.commands((DOCS.parent / "README.md").read_text("utf-8"))
    page = (DOCS / "explanation" / "stranger.md").read_text("utf-8")
    typed = [line[2:] for line in page.splitlines() if line.startswith("# ")][1:]
    found = [command for command in typed if command in said]
    assert [c for c in said if c != "sealrun show RUN"] == found[: len(said) - 1]
    assert any(command.startswith("sealrun show ") for command in typed)
    assert "(exit status 121)" in page


def test_commands_of_a_readme_come_without_their_comments(stranger: ModuleType) -> None:
    """The section's indented lines are the commands; what follows a hash is for the reader."""
    readme = "## Install and start\n\nSay:\n\n    one -x    # once\n    two '#1'\n\n## Next\n\n    three\n"
    assert stranger.commands(readme) == ["one -x", "two '#1'"]


def test_a_long_output_loses_its_middle_visibly(stranger: ModuleType) -> None:
    """What fits on a screen is whole; what does not says how many lines are left out."""
    short = "\n".join(map(str, range(24)))
    assert stranger.shortened(short) == short
    lines = stranger.shortened("\n".join(map(str, range(100)))).splitlines()
    assert lines == ["0", "1", "[… 94 lines …]", "96", "97", "98", "99"]
