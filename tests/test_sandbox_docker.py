"""The Docker sandbox against a real engine: gate, output, isolation, interference, outputs."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _guard import eventually
from _sandbox import COMMITTED, USER, Bench, bench
from sealrun.errors import EngineError, SandboxError
from sealrun.image.model import Layer
from sealrun.sandbox.contents import Witnesses
from sealrun.sandbox.docker import DockerContainer, DockerSandbox, default_owner
from sealrun.sandbox.protocol import Limits, Mount
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sealrun.sandbox.protocol import Ended, Request

pytestmark = pytest.mark.engine


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Bench]:
    """What it takes to ask for a container; what was made is removed."""
    made = bench(tmp_path)
    yield made
    DockerSandbox(made.api, owner=_owner(made)).clear(lambda _: False)
    made.api.close()


def _owner(asked: Bench) -> str:
    return default_owner(asked.places.state)


def _create(asked: Bench, request: Request) -> DockerContainer:
    return DockerSandbox(asked.api, owner=_owner(asked)).create(request)


@contextmanager
def _gate(asked: Bench, request: Request) -> Iterator[DockerContainer]:
    container = _create(asked, request)
    try:
        yield container
    finally:
        container.remove()


class Run:
    """A container that has run to its end, with what it wrote."""

    def __init__(
        self,
        asked: Bench,
        container: DockerContainer,
        meanwhile: Callable[[], None] | None = None,
        log_limit: int = 1 << 30,
    ) -> None:
        self.log = asked.out.parent / "log"
        out, err = asked.out.parent / "stdout", asked.out.parent / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            container.open_gate()
            thread = threading.Thread(target=meanwhile) if meanwhile else None
            if thread:
                thread.start()
            container.pump(stdout.fileno(), stderr.fileno(), self.log, log_limit)
            if thread:
                thread.join()
        self.ended: Ended = container.finish()
        self.stdout, self.stderr = out.read_bytes(), err.read_bytes()


def _run(asked: Bench, request: Request) -> Run:
    with _gate(asked, request) as container:
        return Run(asked, container)


def _answers(
    asked: Bench,
    source: str,
    **changes: Any,  # noqa: ANN401 - fields of Request
) -> Any:  # noqa: ANN401 - what JSON holds
    """Run Python that prints JSON; return what it printed."""
    run = _run(asked, asked.python(source, **changes))
    assert run.ended.exit_status == 0, run.stderr.decode()
    return json.loads(run.stdout)


# --- gate -----------------------------------------------------------------------------------------


def test_nothing_runs_before_the_gate_opens(asked: Bench) -> None:
    """Between create and open_gate the init is the only process and no file has appeared."""
    with _gate(asked, asked.python("open('/out/ran', 'w')")) as container:
        assert container.command == "ready"
        time.sleep(0.3)
        assert len(asked.api.top(container.id)["Processes"]) == 1
        assert not (asked.out / "ran").exists()
        Run(asked, container)
        assert (asked.out / "ran").exists()


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["nothing-of-this-name"], "not-found"),
        (["/workspace/nothing"], "not-found"),
        (["./notes.txt"], "not-executable"),
        (["/workspace"], "not-executable"),
        (["sh"], "ready"),
    ],
)
def test_command_is_resolved_before_the_gate(asked: Bench, argv: list[str], found: str) -> None:
    """The handshake says whether the command is there and executable, as a shell would find it."""
    with _gate(asked, asked.request(*argv)) as container:
        assert container.command == found
        if found != "ready":
            with pytest.raises(SandboxError, match=found):
                container.open_gate()


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(1)", 1),
        ("raise SystemExit(127)", 127),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 15)", 143),
    ],
)
def test_exit_status_is_the_experiments(asked: Bench, source: str, status: int) -> None:
    """The status passes through as a shell shows it, and 137 alone is not out of memory."""
    ended = _run(asked, asked.python(source)).ended
    assert (ended.exit_status, ended.out_of_memory, ended.stopped_for) == (status, False, None)


def test_what_the_experiment_leaves_running_ends_with_it(asked: Bench) -> None:
    """A process that lives on in a session of its own neither delays the end nor survives it."""
    source = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid(); open('/out/child', 'w').close(); time.sleep(600)\n"
        "while not os.path.exists('/out/child'): time.sleep(0.01)\n"
    )
    with _gate(asked, asked.python(source)) as container:
        started = time.monotonic()
        assert Run(asked, container).ended.exit_status == 0
        assert time.monotonic() - started < 10
        assert len(asked.api.top(container.id)["Processes"]) == 1


# --- output ---------------------------------------------------------------------------------------


def test_output_is_byte_exact_on_both_streams(asked: Bench) -> None:
    """Every byte value, frame-like headers and the marker's first byte pass in order, unchanged."""
    source = (
        "import os\n"
        "blob = bytes(range(256)) * 300 + b'\\x01\\0\\0\\0\\0\\0\\0\\x05' + b'\\xff' * 70\n"
        "for part in range(0, len(blob), 977): os.write(1, blob[part:part + 977])\n"
        "os.write(2, blob[::-1])\n"
    )
    blob = bytes(range(256)) * 300 + b"\x01\0\0\0\0\0\0\x05" + b"\xff" * 70
    run = _run(asked, asked.python(source))
    assert run.stdout == blob
    assert run.stderr == blob[::-1]
    assert sorted(run.log.read_bytes()) == sorted(blob * 2)


def test_joined_streams_keep_their_order(asked: Bench) -> None:
    """3,000 alternations between stdout and stderr arrive in the order they were written."""
    source = "import os\nfor i in range(3000): os.write(1 + i % 2, b'%d\\n' % i)\n"
    run = _run(asked, asked.python(source, join_stderr=True))
    assert run.stdout.split() == [b"%d" % number for number in range(3000)]
    assert run.stderr == b""


def test_output_is_passed_on_at_once(asked: Bench) -> None:
    """A line is here while the experiment that wrote it still runs."""
    source = (
        "import os, time\nos.write(1, b'step 1')\n"
        "while not os.path.exists('/out/seen'): time.sleep(0.01)\n"
    )
    reader, writer = os.pipe()

    def read() -> None:
        assert os.read(reader, 100) == b"step 1"
        (asked.out / "seen").touch()

    with _gate(asked, asked.python(source)) as container:
        container.open_gate()
        thread = threading.Thread(target=read)
        thread.start()
        container.pump(writer, writer, asked.out.parent / "log", 1 << 20)
        thread.join()
        assert container.finish().exit_status == 0


def test_forged_end_is_output(asked: Bench) -> None:
    """An experiment that prints something like the init's report is still running afterwards."""
    forged = "b'\\xff' + b'0' * 32 + b'0 0 0 0 0\\n'"
    run = _run(asked, asked.python(f"import os\nos.write(1, {forged})\nos._exit(3)"))
    assert run.ended.exit_status == 3
    assert run.stdout.endswith(b"0 0 0 0 0\n")


def test_much_output_costs_no_memory_and_log_is_bounded(asked: Bench) -> None:
    """200 MB pass without growth of our memory; the log keeps the first and the last part."""
    source = (
        "import os\nblock = bytes(range(256)) * 4096\n"
        "for i in range(200): os.write(1, block)\nos.write(1, b'the end')\n"
    )
    block = bytes(range(256)) * 4096
    digest = hashlib.sha256(block * 200 + b"the end").hexdigest()
    with _gate(asked, asked.python(source)) as container:
        before = _resident()
        run = Run(asked, container, log_limit=1 << 20)
        # The captured output itself is read back into memory after the pump.
        assert hashlib.sha256(run.stdout).hexdigest() == digest
        assert _peak() - before < len(run.stdout) + (64 << 20)
    log = run.log.read_bytes()
    total = 200 * len(block) + 7
    missing = f"\n[sealrun] {total - (1 << 20)} bytes are left out here\n".encode()
    assert log == block[: 1 << 19] + missing + (block + b"the end")[-(1 << 19) :]
    assert not run.log.with_name("log.tail").exists()


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text("ascii")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def _resident() -> int:
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # proc(5): resets VmHWM
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def test_caller_that_stops_reading_does_not_end_the_run(asked: Bench) -> None:
    """After EPIPE the run goes on, and the log has everything."""
    reader, writer = os.pipe()
    os.close(reader)
    source = "import os\nfor i in range(1000): os.write(1, b'x' * 1000)\n"
    with _gate(asked, asked.python(source)) as container:
        container.open_gate()
        log = asked.out.parent / "log"
        container.pump(writer, writer, log, 1 << 30)
        assert container.finish().exit_status == 0
    assert log.stat().st_size == 1_000_000


# --- isolation ------------------------------------------------------------------------------------


def test_container_is_as_asked(asked: Bench) -> None:
    """What kernel and engine say about the container is what was asked for, and nothing is unseen."""
    with _gate(asked, asked.request("true", limits=_tight(), groups=(4321,))) as container:
        effective = container.effective()
        assert effective.problems == ()
        assert effective.unseen == ()


def _tight() -> Limits:
    return Limits(
        memory=256 << 20, cpus=1.5, pids=64, file_size=8 << 20, open_files=512, tmp=16 << 20
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seccomp": None}, None),
        ({"limits": replace(_tight(), memory=128 << 20)}, "memory"),
        ({"limits": replace(_tight(), pids=65)}, "processes"),
        ({"user": (10002, 10001)}, "Uid"),
        ({"groups": ()}, "the container has supplementary groups: 4321"),
        ({"writable_workdir": False}, "root"),
        ({"init_digest": "0" * 64}, "init"),
        ({"mounts": ()}, "/out"),
    ],
)
def test_difference_from_the_request_is_found(
    asked: Bench, changes: dict[str, Any], said: str | None
) -> None:
    """A container that is not what was asked for is a problem that names what differs."""
    with _gate(asked, asked.request("true", limits=_tight(), groups=(4321,))) as container:
        container._request = replace(container._request, **changes)
        if "mounts" in changes:
            container._binds = container._binds[1:]
        problems = " ".join(container.effective().problems)
    assert said is None or said in problems
    assert said is not None or not problems


def test_missing_filter_is_found(asked: Bench) -> None:
    """A container without a system call filter of ours is a problem."""
    request = asked.request("true")
    with _gate(asked, replace(request, seccomp=None)) as container:
        container._request = request
        assert "filter" in " ".join(container.effective().problems)


PROBES = """
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    return errno.errorcode.get(ctypes.get_errno(), 0) if libc.syscall(number, *arguments) < 0 else 'ok'
def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return 'ok'
arm = os.uname().machine == 'aarch64'
status = dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines())
print(json.dumps({
    'caps': [status[name] for name in ('CapEff', 'CapPrm', 'CapBnd', 'CapInh', 'CapAmb')],
    'seccomp': status['Seccomp'], 'privileges': status['NoNewPrivs'],
    'uid': os.getuid(), 'home': attempt(lambda: open(os.path.expanduser('~/x'), 'w')),
    'io_uring': call(425, 1, ctypes.c_void_p(0)),
    'ptrace': call(117 if arm else 101, 16, 1, 0, 0),
    'unshare': call(97 if arm else 272, 0x10000000),
    'clone_user': call(220 if arm else 56, 0x10000000 | 17, 0, 0, 0, 0),
    'keyctl': call(219 if arm else 250, 0, -3, 1),
    'bpf': call(280 if arm else 321, 0, 0, 0),
    'userfaultfd': call(282 if arm else 323, 0),
    'perf': call(241 if arm else 298, ctypes.c_void_p(0), 0, -1, -1, 0),
    'mount': call(40 if arm else 165, b'none', b'/tmp', b'tmpfs', 0, 0),
    'process_vm': call(270 if arm else 310, 1, 0, 0, 0, 0, 0),
    'prlimit_init': call(261 if arm else 302, 1, 0, 0, 0),
    'vsock': attempt(lambda: socket.socket(40, socket.SOCK_STREAM)),
    'alg': attempt(lambda: socket.socket(38, socket.SOCK_SEQPACKET)),
    'packet': attempt(lambda: socket.socket(17, socket.SOCK_RAW)),
    'inet': attempt(lambda: socket.socket(2, socket.SOCK_STREAM)),
    'unix': attempt(lambda: socket.socketpair()),
    'connect': attempt(lambda: socket.create_connection(('192.0.2.1', 80), 1)),
    'init_fd': attempt(lambda: os.listdir('/proc/1/fd')),
    'init_stdin': attempt(lambda: open('/proc/1/fd/0')),
    'init_mem': attempt(lambda: open('/proc/1/mem')),
    'init_root': attempt(lambda: os.listdir('/proc/1/root')),
    'init_score': attempt(lambda: open('/proc/1/oom_score_adj', 'w')),
    'init_file': attempt(lambda: open('/.sealrun/sealrun-init', 'r+b')),
    'passwd': attempt(lambda: open('/etc/passwd', 'r+')),
    'etc': attempt(lambda: open('/etc/new', 'w')),
    'bin': attempt(lambda: open('/bin/new', 'w')),
    'stdin': os.readlink('/proc/self/fd/0'),
    'descriptors': sorted(map(int, os.listdir('/proc/self/fd')))[:3],
}))
"""


def test_experiment_has_no_way_out_or_up(asked: Bench) -> None:
    """No capability, no privilege, no forbidden call; the init is closed to code of its own uid."""
    found = _answers(asked, PROBES)
    assert {int(value, 16) for value in found.pop("caps")} == {0}
    assert found == {
        "seccomp": "2",
        "privileges": "1",
        "uid": USER[0],
        "home": "ok",
        "io_uring": "ENOSYS",
        "ptrace": "EPERM",
        "unshare": "EPERM",
        "clone_user": "EPERM",
        "keyctl": "EPERM",
        "bpf": "EPERM",
        "userfaultfd": "EPERM",
        "perf": "EPERM",
        "mount": "EPERM",
        "process_vm": "EPERM",
        "prlimit_init": "EPERM",
        "vsock": "EPERM",
        "alg": "EPERM",
        "packet": "EPERM",
        "inet": "ok",
        "unix": "ok",
        "connect": "ENETUNREACH",
        "init_fd": "EACCES",
        "init_stdin": "EACCES",
        "init_mem": "EACCES",
        "init_root": "EACCES",
        "init_score": "EACCES",
        "init_file": "EACCES",
        "passwd": "EACCES",
        "etc": "EACCES",
        "bin": "EACCES",
        "stdin": "/dev/null",
        "descriptors": [0, 1, 2],
    }


def test_init_survives_signals_of_its_own_uid(asked: Bench) -> None:
    """SIGKILL, SIGSTOP and SIGSEGV to PID 1 change nothing."""
    source = (
        "import os, signal, time\n"
        "for name in ('KILL', 'STOP', 'SEGV', 'ABRT', 'TRAP'):\n"
        "    os.kill(1, getattr(signal, 'SIG' + name))\n"
        "time.sleep(0.2)\nprint('alive')\n"
    )
    run = _run(asked, asked.python(source))
    assert run.stdout == b"alive\n"
    assert run.ended.exit_status == 0


def test_committed_files_stand_and_new_ones_can_be_made(asked: Bench) -> None:
    """Committed files cannot be written, renamed, replaced or removed; new files and names can."""
    source = (
        "import errno, json, os\n"
        "def attempt(action, *arguments):\n"
        "    try: action(*arguments)\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
        "    return 'ok'\n"
        "open('mine', 'w').close()\n"
        "print(json.dumps([attempt(*case) for case in (\n"
        "    (open, 'train.py', 'r+'), (os.chmod, 'train.py', 0o666), (os.unlink, 'train.py'),\n"
        "    (os.rename, 'train.py', 'x'), (os.rename, 'mine', 'train.py'),\n"
        "    (os.rename, 'pkg', 'x'), (os.rmdir, 'pkg'), (os.unlink, 'pkg/model.py'),\n"
        "    (os.utime, 'train.py'), (os.truncate, 'train.py', 0),\n"
        "    (os.mkdir, 'runs'), (open, 'runs/ckpt.pt', 'w'), (open, 'pkg/cache', 'w'),\n"
        "    (os.rename, 'mine', 'renamed'), (os.unlink, 'renamed'))]))\n"
    )
    found = _answers(asked, source)
    refused = ["EACCES", *["EPERM"] * 7, "EACCES", "EACCES"]
    assert found[:10] == refused
    assert found[10:] == ["ok"] * 5


def test_read_only_workdir(asked: Bench) -> None:
    """Where the policy closes the workdir, new files can be made in scratch places alone."""
    source = (
        "import errno, json\n"
        "def attempt(path):\n"
        "    try: open(path, 'w')\n"
        "    except OSError as error: return errno.errorcode[error.errno]\n"
        "    return 'ok'\n"
        "print(json.dumps([attempt(p + '/new') for p in\n"
        "    ('/workspace', '/out', '/tmp', '/var/tmp', '/run', '/home/run', '/dev/shm')]))\n"
    )
    assert _answers(asked, source, writable_workdir=False) == [
        "EROFS",
        *["ok"] * 6,
    ]


def test_data_below_home_leaves_its_neighbours_writable(asked: Bench) -> None:
    """A read-only mount at ~/.cache/data does not close ~/.cache to the experiment."""
    data = asked.out.parent / "data"
    data.mkdir()
    (data / "shard").write_bytes(b"0")
    request = asked.python(
        "import json, os\nos.makedirs('/home/run/.cache/torch')\n"
        "print(json.dumps(os.listdir('/home/run/.cache/data')))\n"
        "try: open('/home/run/.cache/data/shard', 'r+')\n"
        "except OSError: pass\nelse: raise SystemExit(1)\n"
    )
    request = replace(request, mounts=(*request.mounts, Mount(data, "/home/run/.cache/data")))
    with _gate(asked, request) as container:
        assert container.effective().problems == ()
        assert json.loads(Run(asked, container).stdout) == ["shard"]


def test_ordinary_programs_work_under_the_filter(asked: Bench) -> None:
    """Threads, processes, pools, shared memory, subprocesses and executable scratch work."""
    source = (
        "import ctypes, multiprocessing, os, shutil, socket, subprocess, threading\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import shared_memory\n"
        "if __name__ == '__main__':\n"
        "    thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "    with ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as pool:\n"
        "        assert list(pool.map(abs, range(4))) == [0, 1, 2, 3]\n"
        "    memory = shared_memory.SharedMemory(create=True, size=4096); memory.close()\n"
        "    memory.unlink()\n"
        "    shutil.copy('/bin/true', '/tmp/true'); subprocess.run(['/tmp/true'], check=True)\n"
        "    subprocess.run(['sh', '-c', 'echo shell | cat'], check=True)\n"
        "    server = socket.create_server(('127.0.0.1', 0))\n"
        "    socket.create_connection(server.getsockname()).close()\n"
        "    os.sched_setaffinity(0, os.sched_getaffinity(0))\n"
    )
    run = _run(asked, asked.python(source))
    assert run.ended.exit_status == 0, run.stderr.decode()


def test_profile_is_what_its_script_writes() -> None:
    """The shipped JSON is the generator's output."""
    made = runpy.run_path(str(shipped("images", "seccomp", "make.py")))["text"]()
    assert shipped("images", "seccomp", "sealrun.json").read_text("utf-8") == made


# --- limits ---------------------------------------------------------------------------------------


def test_out_of_memory_is_the_kernels_word(asked: Bench) -> None:
    """An experiment that takes more memory than it may is out of memory, with its peak on record."""
    limits = Limits(memory=64 << 20, pids=64, tmp=1 << 20)
    ended = _run(asked, asked.python("b = b'x' * (1 << 30)", limits=limits)).ended
    assert ended.out_of_memory
    assert ended.exit_status == 137
    assert ended.peak_memory
    assert ended.peak_memory > 48 << 20


def test_fork_bomb_is_limited_and_ended(asked: Bench) -> None:
    """A fork bomb hits its limit, and the end of its first process ends all of it."""
    source = (
        "import os, time\n"
        "def bomb():\n"
        "    while True:\n"
        "        try: os.fork()\n"
        "        except OSError: time.sleep(0.01)\n"
        "if os.fork() == 0: bomb()\n"
        "time.sleep(1)\n"
    )
    with _gate(asked, asked.python(source, limits=Limits(pids=40, tmp=1 << 20))) as container:
        assert Run(asked, container).ended.exit_status == 0
        assert len(asked.api.top(container.id)["Processes"]) == 1


def test_zombies_are_reaped(asked: Bench) -> None:
    """Three thousand orphans under a limit of 100 processes: each is reaped when it ends."""
    source = (
        "import os, time\n"
        "for i in range(3000):\n"
        "    while True:\n"
        "        try: pid = os.fork(); break\n"
        "        except OSError: time.sleep(0.005)\n"
        "    if pid == 0:\n"
        "        try: os.fork()\n"
        "        except OSError: pass\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "print('done')\n"
    )
    run = _run(asked, asked.python(source, limits=Limits(pids=100, tmp=1 << 20)))
    assert run.stdout == b"done\n"


def test_too_many_new_bytes_end_the_run(asked: Bench) -> None:
    """New files beyond the limit end the experiment, and the record says why."""
    source = (
        "import os, time\n"
        "with open('big', 'wb') as f:\n    while True: f.write(b'x' * 4096); f.flush()\n"
        "    time.sleep(0.001)\n"
    )
    limits = Limits(pids=64, tmp=1 << 20, outputs=1 << 20, file_size=64 << 20)
    source = source.replace("while True:", "while f.tell() < 20 << 20:") + "time.sleep(60)\n"
    ended = _run(asked, asked.python(source, limits=limits)).ended
    assert ended.stopped_for == "outputs"
    assert ended.exit_status is None


@pytest.mark.parametrize("stubborn", [False, True])
def test_stop_ends_politely_then_by_force(asked: Bench, stubborn: bool) -> None:  # noqa: FBT001 - a case
    """A deadline sends SIGTERM; what ignores it is killed after the grace, children included."""
    source = (
        "import os, signal, time\n"
        "def handler(*_): os._exit(7)\n"  # at once: the second SIGTERM would meet no handler
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN if {stubborn} else handler)\n"
        "os.fork()\nopen('/out/up', 'w')\ntime.sleep(600)\n"
    )
    with _gate(asked, asked.python(source)) as container:

        def deadline() -> None:
            while not (asked.out / "up").exists():
                time.sleep(0.01)
            time.sleep(0.2)
            for _ in range(2):
                container.stop(0.5 if stubborn else 60)

        ended = Run(asked, container, deadline).ended
        assert ended.exit_status == (None if stubborn else 7)
        assert container.interference() == ()


def test_stop_works_when_the_caller_stopped_reading(asked: Bench) -> None:
    """A full pipe that nobody reads does not keep a run from being ended."""
    reader, writer = os.pipe()
    source = "import os\nwhile True: os.write(1, b'x' * 65536)\n"
    with _gate(asked, asked.python(source)) as container:
        container.open_gate()
        thread = threading.Timer(0.5, container.stop, (0.2,))
        thread.start()
        container.pump(writer, writer, asked.out.parent / "log", 1 << 20)
        assert container.finish().exit_status is None
        thread.join()
    os.close(reader)


# --- others ---------------------------------------------------------------------------------------


def _exec(asked: Bench, container: DockerContainer) -> None:
    made = asked.api.exec_create(container.id, ["true"])
    asked.api.exec_start(made["Id"])


def _put(asked: Bench, container: DockerContainer) -> None:
    asked.api.put_archive(container.id, "/tmp", b"\0" * 1024)  # noqa: S108 - in the container


def _pause(asked: Bench, container: DockerContainer) -> None:
    asked.api.pause(container.id)
    asked.api.unpause(container.id)


def test_an_engine_that_refuses_to_report_at_first_is_asked_again(asked: Bench) -> None:
    """It reports nothing of a paused container; of one that goes on again it does."""
    with _gate(asked, asked.request("sleep", "0.1")) as container:
        asked.api.pause(container.id)
        timer = threading.Timer(0.3, asked.api.unpause, (container.id,))
        timer.start()
        assert "pause" in [found.action for found in container.interference()]
        timer.join()
        assert container.unseen() == ()


@pytest.mark.parametrize(
    ("act", "action"),
    [
        (_exec, "exec_create"),
        (_put, "extract-to-dir"),
        (_pause, "pause"),
        (lambda asked, c: asked.api.update_container(c.id, cpu_shares=512), "update"),
        (lambda asked, c: asked.api.rename(c.id, f"{c._request.name}-x"), "rename"),
        (lambda asked, c: b"".join(asked.api.get_archive(c.id, "/etc")[0]), "archive-path"),
        (lambda asked, c: asked.api.kill(c.id, "SIGUSR2"), "kill"),
    ],
)
def test_interference_through_the_engine_is_found(
    asked: Bench, act: Callable[[Bench, DockerContainer], Any], action: str
) -> None:
    """Each act of somebody else on the container is reported by its name."""
    with _gate(asked, asked.request("sleep", "0.1")) as container:
        act(asked, container)
        assert action in [found.action for found in container.interference()]
        assert container.unseen() == ()


def test_own_acts_are_no_interference(asked: Bench) -> None:
    """What we do ourselves, archives and stops included, is never taken for somebody else's."""
    with _gate(asked, asked.python("open('new', 'w')")) as container:
        root, container.root = container.root, None
        listed = list(container.files("/workspace"))
        Run(asked, container)
        container.collect("/workspace", asked.out.parent / "a", 1 << 20)
        container.root = root
        assert listed
        assert container.interference() == ()


def test_broken_event_stream_is_said(asked: Bench) -> None:
    """When the engine's events cannot be followed any more, the record says so."""
    with _gate(asked, asked.request("true")) as container:
        eventually(lambda: container._watch._stream is not None)
        container._watch._stream.close()
        container.interference()
        assert "events" in " ".join(container.unseen())


def test_container_ended_by_somebody_else_is_lost_not_failed(asked: Bench) -> None:
    """A container killed through the engine has no exit status, and the kill is interference."""
    with _gate(asked, asked.request("sleep", "600")) as container:
        ended = Run(asked, container, lambda: asked.api.kill(container.id)).ended
        assert (ended.exit_status, ended.stopped_for) == (None, "lost")
        assert "kill" in [found.action for found in container.interference()]


CONTROLLER = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from _sandbox import Bench, client
from sealrun.sandbox.docker import DockerSandbox, default_owner
from sealrun.state import Places
home = Path({home!r})
api = client()
places = Places(*(home / name for name in ('state', 'data', 'cache', 'runtime')))
asked = Bench(api, {image!r}, places, Path({out!r}))
container = DockerSandbox(api, owner=default_owner(places.state)).create(asked.python(
    "import os, time\\n"
    "if os.fork() == 0: os.setsid()\\n"
    "open('/out/up%d' % os.getpid(), 'w')\\n"
    "time.sleep(600)"))
container.open_gate()
print(container.id, container._pid, container._request.labels['sealrun.run'], flush=True)
container.pump(2, 2, home / 'log', 1 << 20)
"""


def test_killed_controller_takes_the_container_with_it(asked: Bench) -> None:
    """After SIGKILL of the controller its container's processes are gone within a second or so.

    The next start clears it by its label, and only when its controller is dead.
    """
    source = CONTROLLER.format(
        tests=str(Path(__file__).parent),
        home=str(asked.out.parent / "home"),
        image=asked.image,
        out=str(asked.out),
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as controller:
        assert controller.stdout
        container, pid, run = controller.stdout.readline().decode().split()
        while len(list(asked.out.glob("up*"))) < 2:
            time.sleep(0.01)
        controller.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() - killed < 5
            time.sleep(0.01)
    sandbox = DockerSandbox(asked.api, owner=_owner(asked))
    assert sandbox.clear(lambda name: name == run) == []
    assert asked.api.inspect_container(container)
    assert sandbox.clear(lambda _: False) == [run]


def test_clear_touches_only_what_is_ours(asked: Bench) -> None:
    """Containers of another owner, and those of nobody, stay."""
    other = DockerSandbox(asked.api, owner="somebody-else").create(asked.request("true"))
    plain = asked.api.create_container(asked.image, ["true"])["Id"]
    try:
        assert DockerSandbox(asked.api, owner=_owner(asked)).clear(lambda _: False) == []
        assert asked.api.inspect_container(other.id)["State"]["Running"]
        assert asked.api.inspect_container(plain)
    finally:
        other.remove()
        asked.api.remove_container(plain)


def test_name_is_a_lock(asked: Bench) -> None:
    """A second container of the same name is refused and does not disturb the first."""
    with _gate(asked, asked.request("true")) as container:
        with pytest.raises(SandboxError, match=container._request.name):
            _create(asked, replace(container._request))
        assert Run(asked, container).ended.exit_status == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "sealrun-no-such-image:none"}, "image"),
        ({"mounts": (Mount(Path("/nonexistent/data"), "/data"),)}, "nonexistent"),
        ({"mounts": (Mount(Path("/usr"), "data/../x"),)}, "target"),
        ({"argv": ()}, "command"),
    ],
)
def test_impossible_request_is_refused_and_leaves_nothing(
    asked: Bench, changes: dict[str, Any], said: str
) -> None:
    """A request that cannot be fulfilled is an error with its reason; no container stays behind."""
    request = replace(asked.request("true"), **changes)
    with pytest.raises(SandboxError, match=said):
        _create(asked, request)
    assert not asked.api.containers(all=True, filters={"name": request.name})


def test_engine_that_is_away_is_an_engine_error(asked: Bench) -> None:
    """No engine is an error of the engine's, never of the experiment's."""
    import docker

    away = docker.APIClient("unix:///nonexistent/engine.sock", version="1.41")
    with pytest.raises(EngineError):
        DockerSandbox(away, owner="x").create(asked.request("true"))
    with pytest.raises(EngineError):
        DockerSandbox(away, owner="x").clear(lambda _: False)


# --- files ----------------------------------------------------------------------------------------

PLANT = r"""
import os, socket
os.symlink('/etc/shadow', 'link'); os.symlink('/proc/1/root', 'loop')
os.mkfifo('fifo'); socket.socket(socket.AF_UNIX).bind('socket')
os.mkdir('runs'); open('runs/ckpt.pt', 'wb').write(b'weights')
os.makedirs(b'\xff\xfe dir/in'); open(b'\xff\xfe dir/in/\x1b[2J\n', 'wb').write(b'odd')
with open('sparse', 'wb') as f: f.truncate(1 << 40); f.seek(1 << 39); f.write(b'middle')
open('secret', 'wb').write(b'closed'); os.chmod('secret', 0)
open('suid', 'wb').close(); os.chmod('suid', 0o4755)
open('pkg/new', 'wb').write(b'beside')
os.mkdir('deep'); os.chdir('deep')
for i in range(150): os.mkdir('d'); os.chdir('d')
"""


@pytest.mark.parametrize("by_archive", [False, True])
def test_collect_takes_new_plain_files_and_follows_nothing(asked: Bench, by_archive: bool) -> None:  # noqa: FBT001 - a case
    """Only what the experiment made comes out; links, pipes, sockets and holes do no harm."""
    # An archive carries holes as zeros.
    smaller = PLANT.replace("1 << 40", "1 << 22").replace("1 << 39", "1 << 21")
    source = smaller if by_archive else PLANT
    with _gate(asked, asked.python(source)) as container:
        assert Run(asked, container).ended.exit_status == 0
        into = asked.out.parent / "collected"
        if by_archive:
            container.root = None
        states = {state.path: state for state in container.collect("/workspace", into, 64 << 20)}
    assert not set(states) & {name.encode() for name in COMMITTED}
    assert states[b"link"].kind == "symlink"
    assert states[b"fifo"].kind == "other"
    assert {path for path in into.rglob("*") if not (path.is_file() or path.is_dir())} == set()
    assert not (into / "link").exists()
    assert (into / "runs/ckpt.pt").read_bytes() == b"weights"
    assert (into / "pkg/new").read_bytes() == b"beside"
    assert (into / "secret").read_bytes() == b"closed"
    odd = into / os.fsdecode(b"\xff\xfe dir/in/\x1b[2J\n")
    assert odd.read_bytes() == b"odd"
    assert states[b"\xff\xfe dir/in/\x1b[2J\n"].sha256 == hashlib.sha256(b"odd").hexdigest()
    assert (into / "suid").stat().st_mode & 0o7000 == 0
    assert (into / "sparse").stat().st_size == 1 << (22 if by_archive else 40)
    assert by_archive or (into / "sparse").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("by_archive", [False, True])
def test_collect_is_bounded(asked: Bench, by_archive: bool) -> None:  # noqa: FBT001 - a case
    """More bytes than allowed end the collection with an error; nothing beyond is written."""
    with _gate(asked, asked.python("open('big', 'wb').write(b'x' * (4 << 20))")) as container:
        Run(asked, container)
        if by_archive:
            container.root = None
        into = asked.out.parent / "collected"
        with pytest.raises(SandboxError, match="more than"):
            container.collect("/workspace", into, 2 << 20)
        assert (into / "big").stat().st_size <= 2 << 20


@pytest.mark.parametrize("by_archive", [False, True])
def test_files_lists_what_stands_there(asked: Bench, by_archive: bool) -> None:  # noqa: FBT001 - a case
    """The list before the gate is the committed tree, and afterwards shows what is new."""
    with _gate(asked, asked.python(PLANT.replace("150", "3").replace("1 << 40", "1 << 39"))) as c:
        if by_archive:
            c.root = None
        before = {s.path: s.sha256 for s in c.files("/workspace") if s.kind == "file"}
        assert before == {
            name.encode(): hashlib.sha256(content).hexdigest()
            for name, content in COMMITTED.items()
        }
        if by_archive:
            return
        Run(asked, c)
        after = {s.path: s for s in c.files("/workspace", largest=1 << 20)}
    assert after[b"sparse"].sha256 is None
    assert after[b"link"].sha256 == hashlib.sha256(b"/etc/shadow").hexdigest()
    assert after[b"deep/d/d/d"].kind == "directory"
    assert set(before) < set(after)


def test_files_never_enters_through_a_link(asked: Bench) -> None:
    """A directory that the experiment replaced by a link is refused, not followed."""
    with _gate(asked, asked.python("import os; os.symlink('/root', 'runs')")) as container:
        Run(asked, container)
        with pytest.raises(SandboxError, match="plain directory"):
            list(container.files("/workspace/runs"))


def test_each_set_of_mounts_has_a_listing_of_its_own(tmp_path: Path) -> None:
    """Runs that mount different data into one image do not make each other compare everything anew."""
    layers = (Layer("sha256:" + "1" * 64, 1, tmp_path / "layer"),)
    witnesses = Witnesses(tmp_path, "ENGINE")
    witnesses.remember(layers, ("/data", "/more"), "one")
    witnesses.remember(layers, (), "other")
    assert witnesses.known(layers, ("/more", "/data")) == "one"
    assert witnesses.known(layers, ()) == "other"
    assert witnesses.known(layers, ("/data",)) is None
    assert Witnesses(tmp_path, "ANOTHER").known(layers, ()) is None
