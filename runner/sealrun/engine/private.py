"""A private engine: started by ``sealrun engine up``, stopped by ``down``, nobody else's.

Rules that this module keeps:

- It has its own data directory, sockets, bridge, configuration and container namespaces; no file
  of another engine is read or written (see ``bridge`` for the network).
- Sockets and pid file stand below ``/run``, in a directory of root's with a short name: a socket's
  path holds 108 bytes (unix(7)), and what a restart of the machine ends should not outlive it.
- A process is ours only if pid, start time and boot agree with the record and its command line
  names our data directory; nothing else is ever signalled.
- Two commands at once take turns; ``up`` and ``down`` are safe to repeat.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun import nested
from sealrun.engine import answer
from sealrun.engine.bridge import Bridge, make_bridge, remove_bridge
from sealrun.engine.endpoints import Candidate
from sealrun.engine.install import SBIN, System, advice, find_program, install
from sealrun.errors import EngineUnavailable, Fault
from sealrun.guard.filesystem import boot_id, mount_of, read_mounts
from sealrun.guard.processes import born

if TYPE_CHECKING:
    from collections.abc import Generator

    from sealrun.progress import Progress, Task
    from sealrun.state import Places

#: Seconds that a start may take; a cold one on two busy cores took 3.
_START = 60.0
#: Seconds that the engine gets for stopping its containers before we give up on it.
_STOP = 60.0
_LINES_SHOWN = 12
_LOG_LIMIT = 10 << 20
#: Since this major version an engine's id stands in its own data directory.
_OWN_ID = 23


@dataclass(frozen=True)
class Private:
    """Where the private engine of one installation keeps its things.

    Attributes:
        home: the directory of the record, the log and the data.
        runtime: the directory of the sockets, below ``/run``.
        bridge: the network device's name (15 bytes at most, IFNAMSIZ).
    """

    home: Path
    runtime: Path
    name: str

    @classmethod
    def of(cls, places: Places) -> Private:
        """Return the private engine's places; makes nothing."""
        home = places.data / "engine"
        key = hashlib.sha256(os.fsencode(home)).hexdigest()[:8]
        return cls(home, Path(f"/run/sealrun-{key}"), f"sealrun-{key[:7]}")

    @property
    def socket(self) -> Path:
        """The socket that it listens on."""
        return self.runtime / "docker.sock"

    @property
    def data(self) -> Path:
        """Its images and containers; ``down`` leaves them unless asked."""
        return self.home / "data"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.home / "dockerd.log"

    @property
    def record(self) -> Path:
        """What we started and changed, for ``down``."""
        return self.home / "engine.json"


def up(places: Places, progress: Progress) -> Private:
    """Start the private engine, unless it runs already; installs it first where that is possible.

    Args:
        places: whose engine.
        progress: hears what is done.

    Raises:
        EngineUnavailable: not root, no way to install one here, or it did not start.
    """
    ours = Private.of(places)
    system = System.here()
    if not system.root or system.kernel != "Linux":
        raise EngineUnavailable(
            "no engine answers, and only root on Linux can start a private one",
            hint=advice(system),
        )
    install(system, progress)
    with _turn(places.engine):
        if process_of(ours) is not None and _answers(ours):
            return ours
        _clear(ours)
        with progress.task("starting the private engine") as task:
            _start(ours, task)
    return ours


def down(places: Places, *, purge: bool = False) -> bool:
    """Stop what ``up`` started, and remove its bridge; its data stays unless ``purge``.

    Returns:
        Whether an engine was running.

    Raises:
        Fault: it did not stop, or its data could not be removed.
    """
    ours = Private.of(places)
    if not ours.home.is_dir():
        return False
    if os.geteuid() != 0:
        raise Fault("only root can stop the private engine", hint="Repeat the command as root.")
    with _turn(ours.home):
        pid = process_of(ours)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            if not _gone(ours, _STOP):
                raise Fault(
                    f"the private engine (pid {pid}) did not stop within {_STOP:.0f} s",
                    hint=f"Its log is {ours.log}. Repeat the command, or end that process.",
                )
        _clear(ours)
        if purge:
            _purge(ours)
    return pid is not None


def process_of(ours: Private) -> int | None:
    """Return the pid of the engine that ``up`` started, if it still runs."""
    recorded = _read_record(ours)
    pid, started = recorded.get("pid"), recorded.get("started")
    if not isinstance(pid, int) or recorded.get("boot") != boot_id():
        return None
    if born(pid) != started or str(ours.data) not in _command_line(pid):
        return None
    return pid


def command(ours: Private, bridge: str, storage: str | None) -> list[str]:
    """Return the engine's command line.

    Args:
        ours: its places.
        bridge: name of the network device made for it.
        storage: the storage driver, or None for its own choice.
    """
    # Without these dockerd would share containers with another engine on a system's containerd.
    namespaces = [
        f"--containerd-namespace={ours.name}",
        f"--containerd-plugins-namespace={ours.name}-plugins",
    ]
    return [
        find_program("dockerd") or "dockerd",
        f"--config-file={ours.home / 'daemon.json'}",
        f"--data-root={ours.data}",
        f"--exec-root={ours.runtime / 'exec'}",
        f"--pidfile={ours.runtime / 'docker.pid'}",
        f"--host=unix://{ours.socket}",
        "--group=root",
        f"--bridge={bridge}",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-masq=false",
        "--ip-forward=false",
        *namespaces,
        *([f"--storage-driver={storage}"] if storage else []),
    ]


def configuration(ours: Private, version: int) -> str:
    """Return the text of the engine's configuration file.

    Args:
        ours: its places.
        version: major version of the installed dockerd.
    """
    # Older ones derive their id from a key below /etc/docker: two engines would have one id.
    # There is no flag for it, and newer ones refuse the unknown key.
    own = {"deprecated-key-path": str(ours.home / "key.json")} if version < _OWN_ID else {}
    return json.dumps(own) + "\n"


def storage_for(file_system: str | None, *, fuse: bool) -> str | None:
    """Return the storage driver for a data directory, or None for the engine's own choice.

    Args:
        file_system: type of the data directory's; the kernel mounts no overlay with its upper
            directory on another overlay (overlayfs.rst, "Permission model" and upper requirements).
        fuse: ``fuse-overlayfs`` and ``/dev/fuse`` are there.
    """
    if file_system != "overlay":
        return None
    return "fuse-overlayfs" if fuse else "vfs"


def _start(ours: Private, task: Task) -> None:
    ours.data.mkdir(mode=0o711, exist_ok=True)
    ours.runtime.mkdir(mode=0o700, exist_ok=True)
    # A configuration of our own: the system's may name another data directory.
    (ours.home / "daemon.json").write_text(configuration(ours, _version()), "utf-8")
    if ours.log.exists() and ours.log.stat().st_size > _LOG_LIMIT:
        ours.log.replace(ours.log.with_suffix(".log.1"))
    mount = mount_of(os.fsencode(ours.data), read_mounts())
    fuse = find_program("fuse-overlayfs") is not None and Path("/dev/fuse").exists()
    storage = storage_for(mount.type if mount else None, fuse=fuse)
    if storage:
        task.describe(f"storage driver {storage}: {ours.data} is on an overlay file system")
    bridge = make_bridge(ours.name)
    try:
        process = _spawn(ours, command(ours, bridge.name, storage))
        document = {
            "pid": process.pid,
            "started": born(process.pid),
            "boot": boot_id(),
            "storage": storage,
            "bridge": bridge.record(),
        }
        ours.record.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        _await(ours, process, task)
    except BaseException:
        pid = process_of(ours)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            _gone(ours, _STOP)
        _clear(ours)
        raise


def _version() -> int:
    """Return the major version of the installed dockerd; 0 where it does not tell."""
    program = find_program("dockerd") or "dockerd"
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, timeout=_START
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"{program} cannot be run: {error}") from error
    found = re.search(r"version (\d+)\.", said)
    return int(found[1]) if found else 0


def _spawn(ours: Private, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
    environment["PATH"] = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    with ours.log.open("ab") as log:
        log.write(f"\n== {time.strftime('%F %T%z')} {' '.join(arguments)}\n".encode())
        log.flush()
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            # A terminal that closes must not take the engine along.
            start_new_session=True,
            umask=0o022,
        )


def _await(ours: Private, process: subprocess.Popen[bytes], task: Task) -> None:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        if _answers(ours):
            return
        if process.poll() is not None:
            raise EngineUnavailable(
                f"the private engine ended with status {process.returncode}:\n{_last_lines(ours)}",
                hint=remedy(_last_lines(ours), ours),
            )
        task.describe("waiting for its answer")
        time.sleep(0.1)
    raise EngineUnavailable(
        f"the private engine did not answer within {_START:.0f} s:\n{_last_lines(ours)}",
        hint=f"Its whole log is {ours.log}.",
    )


def remedy(log: str, ours: Private) -> str:
    """Return what to do about an engine that did not start, from what it said last."""
    unprivileged = (
        "This machine does not let even root start an engine (a container without privileges)."
        " Use one from outside: mount its socket, or set DOCKER_HOST."
    )
    for sign, cure in (
        ("no space left", f"Free disk space on the file system of {ours.data}."),
        ("operation not permitted", unprivileged),
        ("permission denied", unprivileged),
        ("cgroup", "Mount the cgroup file systems (package cgroupfs-mount), then repeat."),
        ("graphdriver", f"Move the data to another file system: SEALRUN_HOME (now {ours.data})."),
    ):
        if sign in log.lower():
            return f"{cure} The whole log is {ours.log}."
    return f"The whole log is {ours.log}."


def _last_lines(ours: Private) -> str:
    lines = ours.log.read_text("utf-8", "replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("== ")]
    lines = lines[starts[-1] + 1 :] if starts else lines
    return "\n".join(lines[-_LINES_SHOWN:])


def _answers(ours: Private) -> bool:
    try:
        answer.ask(Candidate(f"unix://{ours.socket}", "private", private=True))
    except answer.NoAnswer:
        return False
    return True


def _gone(ours: Private, patience: float) -> bool:
    """Wait for our engine's end, and reap it where it is our own child."""
    import psutil

    pid = process_of(ours)
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        if pid is not None:
            psutil.Process(pid).wait(patience)
    return process_of(ours) is None


def _clear(ours: Private) -> None:
    """Remove what a stopped or killed engine of ours leaves: helpers, mounts, bridge, sockets."""
    for pid in _helpers(ours):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    roots = tuple(os.fsencode(p) for p in (ours.runtime, ours.data))
    below = tuple(root + b"/" for root in roots)
    for mount in sorted(read_mounts(), key=lambda m: m.point, reverse=True):
        # dockerd mounts its data directory onto itself, to decide about propagation.
        if mount.point in roots or mount.point.startswith(below):
            subprocess.run(["umount", "-l", os.fsdecode(mount.point)], check=False)
    recorded = _read_record(ours).get("bridge")
    remove_bridge(ours.name, Bridge(**recorded) if isinstance(recorded, dict) else None)
    shutil.rmtree(ours.runtime, ignore_errors=True)
    ours.record.unlink(missing_ok=True)


def _helpers(ours: Private) -> list[int]:
    """Return containerd and its shims whose command lines name our runtime directory."""
    import psutil

    found: list[int] = []
    marks = (f"{ours.runtime}/", f"-namespace\0{ours.name}\0")
    for pid in psutil.pids():
        line = _command_line(pid)
        program = Path(line.partition("\0")[0]).name
        if program.startswith("containerd") and any(mark in line for mark in marks):
            found.append(pid)
    return found


def _purge(ours: Private) -> None:
    for mount in read_mounts():
        if mount.point.startswith(os.fsencode(ours.home) + b"/"):
            raise Fault(
                f"{os.fsdecode(mount.point)} is still mounted; nothing was removed",
                hint=f"Unmount it, then repeat: umount {os.fsdecode(mount.point)}",
            )
    try:
        # Containers and images left any tree in it.
        nested.remove(ours.data)
    except OSError as error:
        raise Fault(f"cannot remove {ours.data}: {error}") from error


def _read_record(ours: Private) -> dict[str, Any]:
    try:
        document: Any = json.loads(ours.record.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _command_line(pid: int) -> str:
    """Return a process's arguments, each with a NUL after it; nothing where it cannot be seen."""
    import psutil

    try:
        return "".join(f"{argument}\0" for argument in psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def _turn(folder: Path) -> Generator[None]:
    # O_CLOEXEC is Python's default: the engine does not inherit the lock.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
