"""Data under a private home, the experiment's user, and whose the files are that come out."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _base import shared_base
from _cli import SEALRUN, Cli
from _user import USER, as_user
from sealrun.data import Dataset
from sealrun.errors import Refused
from sealrun.readable import access, mounted, needs
from sealrun.sandbox import idmapped, views
from sealrun.sandbox.protocol import Limits, Request
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

GROUP = 4321
REPORT = """\
import getpass, grp, json, os, pathlib, pwd
home = pathlib.Path.home()
def content(path):
    try: return path.read_text()
    except OSError as error: return type(error).__name__
open("new.txt", "w").write("n"); os.chmod("new.txt", 0o600)
open("/out/private.txt", "w").write("p"); os.chmod("/out/private.txt", 0o600)
entry = pwd.getpwuid(os.getuid())
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": sorted(os.getgroups()),
    "user": getpass.getuser(), "name": entry.pw_name, "group": grp.getgrgid(os.getgid()).gr_name,
    "homes": sorted({str(home), os.path.expanduser("~"), os.path.expanduser("~run"), entry.pw_dir}),
    "files": {str(p.relative_to(home)): content(p) for p in sorted(home.rglob("*")) if p.is_file()},
    "open": content(home / ".cache/closed/d/shard"),
}))
print("val_bpb: 1.5")
"""


def _status(mode: int, uid: int, gid: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "expected"),
    [
        (0o600, USER, 0, 0),
        (0o060, USER, 0, None),
        (0o640, 0, USER, 0),
        (0o604, 0, USER, None),
        (0o644, 0, 0, 0),
        (0o640, 0, 0, None),
        (0o640, 0, GROUP, GROUP),
        (0o644, 0, GROUP, 0),
        (0o604, 0, GROUP, None),
        (0o600, 0, GROUP, None),
    ],
)
def test_what_a_user_needs_to_read_a_file(
    mode: int, uid: int, gid: int, expected: int | None
) -> None:
    """The first class of bits that applies decides, as in the kernel; group 0 is never lent."""
    file = _status(stat.S_IFREG | mode, uid, gid)
    assert needs(file, (USER, USER), (GROUP, 0)) == expected
    # A directory that can be read and not searched is closed.
    directory = _status(stat.S_IFDIR | mode, uid, gid)
    assert needs(directory, (USER, USER), (GROUP, 0)) is None


def test_a_tree_is_looked_at_whole_and_links_are_not_followed(tmp_path: Path) -> None:
    """The first closed path is named; a link to a closed file elsewhere counts for nothing."""
    tmp_path.chmod(0o700)
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "d").mkdir(parents=True)
    for directory in (data, data / "d"):
        directory.chmod(0o755)
    elsewhere.touch(0o600)
    (data / "link").symlink_to(elsewhere)
    (data / "d" / "a").touch(0o644)
    assert access(data, (USER, USER)).closed is None
    (data / "d" / "b").touch(0o600)
    found = access(data, (USER, USER))
    assert found.closed == os.fsencode(data / "d" / "b")
    assert found.owners == {(os.getuid(), (data / "d" / "b").stat().st_gid)}


@given(st.integers(0, 70000), st.integers(0, 70000), st.integers(0, 2**32 - 2))
def test_two_ids_are_swapped_and_every_other_stays(one: int, other: int, probe: int) -> None:
    """The map is a permutation of all ids."""
    rows = [tuple(map(int, row.split())) for row in idmapped.swapped(one, other).splitlines()]
    assert sum(count for _, _, count in rows) == 2**32 - 1

    def mapped(number: int) -> int:
        (found,) = [out + number - own for own, out, n in rows if own <= number < own + n]
        return found

    assert (mapped(one), mapped(other)) == (other, one)
    assert mapped(probe) == {one: other, other: one}.get(probe, probe)


def test_what_a_death_left_mounted_is_removed_by_the_next(tmp_path: Path) -> None:
    """A process that is killed while its view stands leaves a mount; it goes, files untouched."""
    source = private(tmp_path / "source")
    (source / "file").write_text("kept")
    views = tmp_path / "views"
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom sealrun.sandbox import idmapped\n"
        f"with idmapped.shown(Path(sys.argv[1]), Path(sys.argv[2]), 'v', (0, 0), ({USER}, {USER})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, source, views], check=False)
    assert (views / "v" / "file").stat().st_uid == USER
    idmapped.clear(views)
    assert list(views.iterdir()) == []
    assert (source / "file").read_text() == "kept"
    assert (source / "file").stat().st_uid == os.getuid()


def test_clearing_up_takes_nothing_from_who_begins_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that was opened just before its holder ended says nothing of the next one of its name."""
    place, lock = tmp_path / "v", tmp_path / "v.lock"
    lock.touch()

    def late(handle: int, how: int) -> None:
        lock.unlink()
        lock.touch()
        place.mkdir()
        locking(handle, how)

    locking = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    idmapped.clear(tmp_path)
    assert sorted(tmp_path.iterdir()) == [place, lock]


def test_what_is_mounted_below_data_is_shown_with_it(tmp_path: Path) -> None:
    """A view holds the whole tree: a file system mounted below it is no empty directory in it."""
    source, views = private(tmp_path / "source"), tmp_path / "views"
    (source / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", source / "disk"], check=True)
    try:
        (source / "disk" / "shard").write_text("tokens")
        with idmapped.shown(source, views, "v", (0, 0), (USER, USER)) as view:
            shard = view / "disk" / "shard"
            assert (shard.read_text(), shard.stat().st_uid) == ("tokens", USER)
            with pytest.raises(OSError, match="Read-only"):
                shard.write_text("other")
        assert (source / "disk" / "shard").read_text() == "tokens"
        assert list(views.iterdir()) == []
    finally:
        subprocess.run(["umount", source / "disk"], check=True)


@pytest.mark.parametrize(
    ("mode", "owner", "reading"),
    [(0o600, (0, 0), True), (0o600, (USER, USER), False), (0o640, (USER + 1, USER), False)],
)
def test_a_view_is_looked_at_as_it_will_be(
    tmp_path: Path, mode: int, owner: tuple[int, int], *, reading: bool
) -> None:
    """Who is shown root's files as their own loses their own: those would be closed in the view."""
    data = private(tmp_path / "data")
    for name, (uid, gid), bits in (("a", (0, 0), 0o600), ("b", owner, mode)):
        (data / name).touch()
        os.chown(data / name, uid, gid)
        (data / name).chmod(bits)
    dataset = Dataset(data, "/data", (), "0" * 64, 0)
    if reading:
        assert mounted(dataset, (USER, USER))[0].shown_from == (0, 0)
        return
    with pytest.raises(Refused, match="cannot read") as refused:
        mounted(dataset, (USER, USER))
    assert str(data / "b") in refused.value.message


def test_a_directory_that_not_even_its_owner_can_read_is_refused(tmp_path: Path) -> None:
    """A view gives an owner's rights, and no more."""
    data = private(tmp_path / "data")
    (data / "none").touch()
    (data / "none").chmod(0)
    with pytest.raises(Refused, match="none"):
        mounted(Dataset(data, "/data", (), "0" * 64, 0), (USER, USER))


def test_what_the_refusal_advises_opens_the_data(tmp_path: Path) -> None:
    """An access list that names the experiment's user counts, as far as its mask lets it."""
    data = private(tmp_path / "data")
    theirs = data / "theirs"
    theirs.touch()
    os.chown(theirs, USER + 1, USER + 1)
    theirs.chmod(0o600)
    for bits, mask, opens in ((5, 5, True), (5, 3, False), (3, 7, False)):
        for path in (data, theirs):
            os.setxattr(path, "system.posix_acl_access", _access_list(USER, bits, mask))
        assert (access(data, (USER, USER)).closed is None) is opens
    assert access(data, (GROUP, GROUP)).closed is not None


def _access_list(uid: int, bits: int, mask: int) -> bytes:
    """Return an access list with one named user (posix_acl_xattr.h)."""
    nobody = 2**32 - 1
    entries = ((1, 6, nobody), (2, bits, uid), (4, 0, nobody), (16, mask, nobody), (32, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_a_deep_tree_is_looked_at_whole(tmp_path: Path) -> None:
    """Directories may be nested deeper than Python nests calls."""
    at = tmp_path
    for _ in range(1200):
        at /= "d"
        at.mkdir(mode=0o755)
    (at / "closed").touch(0o600)
    tmp_path.chmod(0o755)
    try:
        assert access(tmp_path, (USER, USER)).closed == os.fsencode(at / "closed")
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_the_next_container_removes_what_a_death_left(tmp_path: Path) -> None:
    """Whatever it mounts: a view that stays keeps a disk from being unmounted."""
    source, places = private(tmp_path / "source"), private(tmp_path / "places")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom sealrun.sandbox import idmapped\n"
        f"with idmapped.shown(Path(sys.argv[1]), Path(sys.argv[2]), 'v', (0, 0), ({USER}, {USER})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, source, places / "views"], check=False)
    assert (places / "views" / "v").stat().st_uid == USER
    request = Request(
        name="sealrun-test",
        image="sha256:0",
        argv=("true",),
        workdir="/workspace",
        environment={},
        user=(USER, USER),
        mounts=(),
        limits=Limits(),
        labels={},
        passwd=b"",
        group=b"",
        seccomp=None,
        init=places / "init" / "sealrun-init",
        init_digest="",
    )
    with views.of(request) as given:
        assert given.mounts == request.mounts
    assert list((places / "views").iterdir()) == []


def _report(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.splitlines()[0])
    return found


@pytest.fixture
def cli(repo: Repo, tmp_path: Path) -> Iterator[Cli]:
    """A command line of root's with a home of mode 0700 and data in it that is root's alone."""
    home = private(tmp_path / "root")
    closed = private(home / ".cache" / "closed" / "d")
    (closed / "shard").write_text("tokens")
    (closed / "shard").chmod(0o600)
    repo.commit(
        {"train.py": REPORT, "sealrun.toml": '[[data]]\nsource = "~/.cache/closed"\n'}, "baseline"
    )
    cli = Cli(repo.path, tmp_path / "state", {"HOME": str(home)}).with_base()
    yield cli
    cli.stop_guard()


@pytest.mark.engine
def test_what_only_root_can_read_is_read_by_the_experiment(cli: Cli, tmp_path: Path) -> None:
    """Modes and owners of the data stay, no mount is left, and the experiment is not root."""
    closed = tmp_path / "root" / ".cache" / "closed"
    before = [(p, p.stat().st_mode, p.stat().st_uid, p.stat().st_ctime_ns) for p in _all(closed)]
    result, done = cli.run("python3", "train.py")
    assert result["verdict"] == "clean", done.stderr
    found = _report(done.stdout)
    assert found["files"] == {".cache/closed/d/shard": "tokens"}
    assert (found["uid"], found["gid"], found["groups"]) == (10001, 10001, [10001])
    assert (found["user"], found["name"], found["group"]) == ("run", "run", "run")
    assert found["homes"] == ["/home/run"]
    assert before == [
        (p, p.stat().st_mode, p.stat().st_uid, p.stat().st_ctime_ns) for p in _all(closed)
    ]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    (data,) = cli.json("show", result["run"])["run"]["data"]
    assert (data["source"], data["target"]) == (str(closed), "/home/run/.cache/closed")


def _all(directory: Path) -> list[Path]:
    return [directory, *sorted(directory.rglob("*"))]


@pytest.mark.engine
def test_one_closed_file_is_shown_as_data_too(cli: Cli, repo: Repo, tmp_path: Path) -> None:
    """A single file of mode 0600 is a mount of its own, and what it shows is that file."""
    shard = tmp_path / "root" / ".cache" / "closed" / "d" / "shard"
    repo.commit({"sealrun.toml": f'[[data]]\nsource = "{shard}"\n'}, "one file")
    result, done = cli.run("python3", "train.py")
    assert result["verdict"] == "clean", done.stderr
    assert _report(done.stdout)["open"] == "tokens"


@pytest.mark.engine
def test_without_the_privilege_it_is_refused_and_says_what_opens_it(
    cli: Cli, tmp_path: Path
) -> None:
    """Root without CAP_SYS_ADMIN cannot show files as another's: nothing runs, nothing is changed."""
    command = f"{SEALRUN} run -- python3 train.py"
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all", "sh", "-c", command],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 121, done.stderr
    closed = tmp_path / "root" / ".cache" / "closed"
    assert "which cannot read" in done.stderr
    assert f"setfacl -R -m u:10001:rX {shlex.quote(str(closed))}" in done.stderr
    assert stat.S_IMODE((closed / "d" / "shard").stat().st_mode) == 0o600
    assert "val_bpb" not in done.stdout


@pytest.mark.engine
def test_data_of_several_owners_that_stays_closed_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Half of the data is no data: the first closed file is named."""
    closed = tmp_path / "root" / ".cache" / "closed"
    (closed / "theirs").write_text("x")
    (closed / "theirs").chmod(0o600)
    os.chown(closed / "theirs", USER, USER)
    done = cli("run", "--", "python3", "train.py", status=121)
    assert "uid 10001, which cannot read" in done.stderr


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user gets to; pytest's own is closed by each session that begins."""
    with tempfile.TemporaryDirectory(prefix="sealrun-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.engine
def test_what_root_copies_out_is_its_places_owners(
    cli: Cli, reachable: Path, tmp_path: Path
) -> None:
    """In a directory of somebody else's the copies are theirs; in root's own they are root's."""
    run = cli.run("python3", "train.py")[0]["run"]
    theirs = reachable / "theirs"
    theirs.mkdir()
    os.chown(theirs, USER, GROUP)
    cli("outputs", run, str(theirs / "night" / "best"))
    made = [p for p in _all(theirs) if p != theirs]
    assert {(p.stat().st_uid, p.stat().st_gid) for p in made} == {(USER, GROUP)}
    assert (theirs / "night/best/out/private.txt").read_text() == "p"
    assert (theirs / "night/best/workdir/new.txt").read_text() == "n"
    cli("outputs", run, str(tmp_path / "mine"))
    assert {p.stat().st_uid for p in _all(tmp_path / "mine")} == {0}
    # Where its owner does not get to, root's copies are as good.
    unreachable = private(tmp_path / "root" / "theirs")
    os.chown(unreachable, USER, GROUP)
    cli("outputs", run, str(unreachable))
    assert (unreachable / "out/private.txt").read_text() == "p"


@pytest.mark.engine
def test_what_root_leaves_in_a_repository_is_its_owners(reachable: Path, tmp_path: Path) -> None:
    """As under sudo: the owner can pack the refs and remove the repository afterwards."""
    work = reachable / "work"
    work.mkdir()
    (work / "train.py").write_text('print("val_bpb: 1.5")\n')
    (work / ".gitignore").write_text("state\n")
    os.chown(work, USER, USER)
    os.chown(work / "train.py", USER, USER)
    theirs = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
    theirs += ["git", "-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-qm", "baseline")):
        subprocess.run([*theirs, *arguments], cwd=work, check=True)
    cli = Cli(work, tmp_path / "state").with_base()
    try:
        assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
        made = [p for p in _all(work / ".git") if p.lstat().st_uid != USER]
        assert made == []
        subprocess.run([*theirs, "pack-refs", "--all"], cwd=work, check=True)
        refs = [*theirs, "for-each-ref", "refs/sealrun/runs"]
        assert (
            subprocess.run(refs, cwd=work, check=True, capture_output=True).stdout.count(b"\n") == 1
        )
    finally:
        cli.stop_guard()


@pytest.fixture
def theirs(reachable: Path) -> Iterator[Path]:
    """A repository and a home of mode 0700 of a user who may use the engine and is not root."""
    home = reachable / "home"
    work = reachable / "work"
    for directory in (work, home / ".cache/closed/d", home / ".cache/lab"):
        directory.mkdir(parents=True)
    (work / "train.py").write_text(REPORT)
    (work / "sealrun.toml").write_text(
        '[[data]]\nsource = "~/.cache/closed"\n[[data]]\nsource = "~/.cache/lab"\n'
    )
    (home / ".cache/closed/d/shard").write_text("own")
    (home / ".cache/closed/d/shard").chmod(0o600)
    (home / ".cache/lab/shard").write_text("shared")
    shared_base(Cli(work, reachable / "state").places)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", reachable], check=True)
    subprocess.run(["chown", "-R", f"0:{GROUP}", home / ".cache/lab"], check=True)
    (home / ".cache/lab").chmod(0o750)
    (home / ".cache/lab/shard").chmod(0o640)
    home.chmod(0o700)
    _as_user(reachable, "git init -q . && git add . && git commit -qm baseline")
    yield reachable
    _as_user(reachable, f"{SEALRUN} guard stop || true")


def _as_user(root: Path, script: str) -> str:
    socket = Path("/var/run/docker.sock").stat().st_gid
    return as_user(root, script, state=root / "state", groups=(socket, GROUP))


@pytest.mark.engine
def test_an_ordinary_user_and_their_group_read_their_data(theirs: Path) -> None:
    """The experiment has the caller's uid and, of the caller's groups, only the one that opens data."""
    output = _as_user(
        theirs,
        f"{SEALRUN} run --result-file ../result.json -- python3 train.py\n"
        f"{SEALRUN} outputs $(python3 -c \"print(__import__('json').load(open('../result.json'))"
        "['run'])\") ../outputs >/dev/null",
    )
    found = _report(output)
    assert (found["uid"], found["gid"], found["groups"]) == (USER, USER, [USER, GROUP])
    assert (found["user"], found["name"], found["homes"]) == ("run", "run", ["/home/run"])
    assert found["files"] == {".cache/closed/d/shard": "own", ".cache/lab/shard": "shared"}
    result = json.loads((theirs / "result.json").read_text())
    assert result["verdict"] == "clean"
    copies = [p for p in (theirs / "outputs").rglob("*") if p.is_file()]
    assert {(p.name, p.stat().st_uid) for p in copies} == {("new.txt", USER), ("private.txt", USER)}
