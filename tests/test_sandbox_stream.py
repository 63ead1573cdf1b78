"""The bytes between a container and us, and what the kernel's files say; no engine needed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealrun.errors import SandboxError
from sealrun.sandbox import effective, files, spec
from sealrun.sandbox.cgroup import Accounts, accounts_of
from sealrun.sandbox.events import Watch
from sealrun.sandbox.protocol import Limits, Mount, Request
from sealrun.sandbox.stream import Frames, Log, Report, Until, new_marker

REQUEST = Request(
    name="n",
    image="i",
    argv=("true",),
    workdir="/workspace",
    environment={},
    user=(10001, 10001),
    mounts=(),
    limits=Limits(),
    labels={"sealrun.run": "r"},
    passwd=b"",
    group=b"",
    seccomp="{}",
    init=Path("/init/x/sealrun-init"),
    init_digest="",
)


def _frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=20),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20),
)
def test_frames_survive_any_cut(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """However a connection cuts the stream into pieces, each stream's bytes come out in order."""
    data = b"".join(_frame(kind, payload) for kind, payload in frames)
    decoder, found, turn = Frames(), {1: b"", 2: b""}, 0
    while data:
        size = cuts[turn % len(cuts)]
        for kind, part in decoder.feed(data[:size]):
            found[kind] += part
        data, turn = data[size:], turn + 1
    for kind in (1, 2):
        assert found[kind] == b"".join(payload for of, payload in frames if of == kind)


def test_what_is_no_frame_is_an_error() -> None:
    """Bytes that are not the engine's frames are an error, never output."""
    with pytest.raises(SandboxError):
        list(Frames().feed(b"HTTP/1.1 500 no"))


@given(
    output=st.binary(max_size=60).map(lambda data: data.replace(b"\0", b"\xff")),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=10),
)
def test_marker_is_found_in_any_cut(output: bytes, cuts: list[int]) -> None:
    """Everything before the marker is output, the line behind it is the init's."""
    marker = new_marker()
    until, found, turn = Until(marker), b"", 0
    data = output + marker[:7] + output + marker + b"0 1 2 3 0\n"
    while data:
        size = cuts[turn % len(cuts)]
        found += until.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert found == output + marker[:7] + output
    assert until.line == b"0 1 2 3 0"


def test_text_is_never_held_back() -> None:
    """What ends in a byte of text is passed on whole; without a marker the rest is not lost."""
    until = Until(new_marker())
    assert until.feed("loss 0.5 ≈ ok".encode()) == "loss 0.5 ≈ ok".encode()
    assert until.feed(b"x\xff") == b"x"
    assert until.rest() == b"\xff"


def test_unreadable_report_is_an_error() -> None:
    """A report that is not five numbers is an error."""
    assert Report.parse(b"3 1500000 500000 1024 0") == Report(3, 2.0, 1 << 20, 0)
    with pytest.raises(SandboxError):
        Report.parse(b"3 oops")


@given(
    parts=st.lists(st.binary(max_size=50), max_size=30),
    limit=st.integers(2, 200),
)
def test_log_keeps_first_and_last_part(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], limit: int
) -> None:
    """Within its limit the log is complete; beyond it, it says how much is missing."""
    path = tmp_path_factory.mktemp("log") / "log"
    log = Log(path, limit)
    for part in parts:
        log.write(part)
    log.close()
    log.close()
    data = b"".join(parts)
    head, tail = limit // 2, limit - limit // 2
    missing = len(data) - limit
    note = f"\n[sealrun] {missing} bytes are left out here\n".encode()
    expected = data if missing <= 0 else data[:head] + note + data[-tail:]
    assert path.read_bytes() == expected
    assert [file.name for file in path.parent.iterdir()] == ["log"]


def _hierarchy(tmp_path: Path, groups: str, mounts: str, content: dict[str, str]) -> Accounts:
    (tmp_path / "7").mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "7/cgroup").write_text(groups)
    (tmp_path / "self/mountinfo").write_text(mounts.format(top=tmp_path))
    for name, text in content.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return accounts_of(7, tmp_path)


def test_version_2_of_control_groups_is_read(tmp_path: Path) -> None:
    """Limits and use are read from a unified hierarchy."""
    accounts = _hierarchy(
        tmp_path,
        "0::/docker/abc\n",
        "30 20 0:26 / {top}/cg rw - cgroup2 cgroup2 rw\n",
        {
            "cg/docker/abc/memory.max": "1048576\n",
            "cg/docker/abc/memory.peak": "4096\n",
            "cg/docker/abc/memory.events": "low 0\noom 1\noom_kill 2\n",
            "cg/docker/abc/cpu.max": "150000 100000\n",
            "cg/docker/abc/cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
            "cg/docker/abc/pids.max": "max\n",
        },
    )
    assert (accounts.memory_limit(), accounts.peak_memory()) == (1 << 20, 4096)
    assert (accounts.memory_kills(), accounts.cpus(), accounts.cpu_seconds()) == (2, 1.5, 2.5)
    assert accounts.pids_limit() is None
    assert accounts.has("pids")
    request = replace(REQUEST, limits=Limits(memory=1 << 20, cpus=1.5, pids=64))
    problems, unseen = effective.compare_limits(accounts, request)
    assert (len(problems), unseen) == (1, [])
    assert "processes" in problems[0]


def test_version_1_of_control_groups_is_read(tmp_path: Path) -> None:
    """Limits and use are read from one hierarchy a controller; what is missing is None."""
    accounts = _hierarchy(
        tmp_path,
        "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n",
        "30 20 0:26 / {top}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "31 20 0:27 / {top}/memory rw - cgroup cgroup rw,memory\n",
        {
            "memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/docker/abc/memory.oom_control": "oom_kill_disable 0\noom_kill 0\n",
            "cpu/docker/abc/cpu.cfs_quota_us": "50000\n",
            "cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            "cpu/docker/abc/cpuacct.usage": "1500000000\n",
        },
    )
    assert (accounts.memory_limit(), accounts.memory_kills()) == (None, 0)
    assert (accounts.cpus(), accounts.cpu_seconds()) == (0.5, 1.5)
    assert accounts.peak_memory() is None
    request = replace(REQUEST, limits=Limits(memory=1 << 20, cpus=0.5, pids=64))
    problems, unseen = effective.compare_limits(accounts, request)
    assert "memory" in problems[0]
    assert "processes" in unseen[0]


MOUNTS = """\
1 0 0:1 / / rw - overlay overlay rw
2 1 0:2 / /proc rw,nosuid - proc proc rw
3 1 0:3 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw
4 1 0:3 / /var/tmp rw,nosuid,nodev - tmpfs tmpfs rw
5 1 0:3 / /run rw,nosuid,nodev - tmpfs tmpfs rw
6 1 0:3 / /home/run rw,nosuid,nodev - tmpfs tmpfs rw
7 1 8:1 /x /data ro - ext4 /dev/vda rw
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", None),
        ("8 7 8:2 / /data/inner rw - ext4 /dev/vdb rw", "/data/inner can be written"),
        ("8 7 8:2 / /data/inner ro - ext4 /dev/vdb rw", None),
        ("8 1 8:2 / /workspace/train.py rw - ext4 /dev/vdb rw", "nobody asked"),
        ("8 1 8:2 / /etc/hosts\\040x rw - ext4 /dev/vdb rw", "nobody asked"),
        ("8 3 8:2 / /tmp/x rw - ext4 /dev/vdb rw", "nobody asked"),
        ("7 1 8:1 /x /data rw - ext4 /dev/vda rw", "/data can be written"),
        ("1 0 0:1 / / ro - overlay overlay rw", "root is mounted"),
    ],
)
def test_unexpected_mount_is_found(line: str, said: str | None) -> None:
    """A mount that nobody asked for, or that can be written against the request, is named."""
    binds = [Mount(Path("/x"), "/data")]
    problems = effective.compare_mounts(MOUNTS + line, REQUEST, binds)
    assert (said is None and problems == []) or (said or "?") in " ".join(problems)


def test_paths_are_translated_for_the_engine() -> None:
    """Each bind mount's source is the engine's path of it, the init's and the accounts' too."""
    body = spec.specification(
        replace(REQUEST, mounts=(Mount(Path("/x"), "/data"),)),
        Path("/accounts"),
        "me",
        lambda path: f"/host{path}",
    )
    sources = {mount["Target"]: mount["Source"] for mount in body["HostConfig"]["Mounts"]}
    assert sources == {
        "/data": "/host/x",
        "/.sealrun": "/host/init/x",
        "/etc/passwd": "/host/accounts/passwd",
        "/etc/group": "/host/accounts/group",
    }
    assert body["Labels"] == {"sealrun.run": "r", "sealrun.owner": "me"}


class _Silence:
    """An event stream without events."""

    def __iter__(self) -> _Silence:
        return self

    def __next__(self) -> dict[str, object]:
        raise StopIteration

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("kind", "action", "actor", "found"),
    [
        ("container", "exec_create: sh -c x", {"ID": "abc"}, "exec_create"),
        ("container", "attach", {"ID": "abc"}, None),
        ("container", "pause", {"ID": "other"}, None),
        ("container", "die", {"ID": "abc"}, None),
        ("container", "teleport", {"ID": "abc"}, "teleport"),
        ("network", "disconnect", {"ID": "n", "Attributes": {"container": "abc"}}, None),
    ],
)
def test_events_are_told_apart(
    kind: str, action: str, actor: dict[str, object], found: str | None
) -> None:
    """Our own first acts and mere news are nothing; the unknown is interference."""
    watch = Watch(_Silence, "abc")
    watch.note({"Type": kind, "Action": action, "Actor": actor})
    assert [item.action for item in watch.found()] == ([found] if found else [])
    watch.close()


def test_second_network_is_interference() -> None:
    """The engine connects a container once; a second time it was somebody."""
    watch = Watch(_Silence, "abc")
    event = {
        "Type": "network",
        "Action": "connect",
        "Actor": {"ID": "n", "Attributes": {"container": "abc"}},
    }
    watch.note(event)
    assert watch.found() == ()
    watch.note(event)
    assert [item.action for item in watch.found()] == ["network connect"]
    watch.close()


def test_hostile_archive_stays_inside(tmp_path: Path) -> None:
    """Names that climb out are not written; garbage is an error of the sandbox."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("w/../../evil", "w/ok", "w//x"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.uid = 1, 10001
            tar.addfile(entry, io.BytesIO(b"x"))
    states = files.copy_archive([buffer.getvalue()], 10001, tmp_path / "into", 100)
    assert [state.path for state in states if state.kind == "file"] == [b"ok"]
    assert [path.name for path in tmp_path.iterdir()] == ["into"]
    with pytest.raises(SandboxError, match="archive"):
        list(files.list_archive([b"garbage" * 200]))


def test_depth_is_bounded(tmp_path: Path) -> None:
    """A tree deeper than any sane one is listed to a bound, and takes more than any limit."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(files.MAX_DEPTH + 20):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    top = os.open(tmp_path, os.O_RDONLY)
    states = list(files.list_files(top))
    assert states[-1].kind == "other"
    assert len(states) == files.MAX_DEPTH
    assert files.allocated(top) > 1 << 60
    os.close(top)
