"""Facts about the machine and the caller, for the record.

Rules: what cannot be found out is None; nothing here fails and nothing runs another program.
"""

from __future__ import annotations

import getpass
import os
import platform
import socket
from pathlib import Path

from sealrun.determinism import instruction_sets
from sealrun.ledger.events import Controller, HostFacts


def host() -> HostFacts:
    """Return what a record says about this machine."""
    uid = os.getuid()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = None
    return HostFacts(
        hostname=socket.gethostname(),
        system=_system(),
        kernel=platform.release(),
        architecture=platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        cpu_model=_field(Path("/proc/cpuinfo"), "model name"),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        user=user,
        uid=uid,
        details={"instruction_sets": instruction_sets(_text(Path("/proc/cpuinfo")))},
    )


def controller() -> Controller:
    """Return this process, told apart from later ones of its pid by its start time (proc(5))."""
    return Controller(pid=os.getpid(), started=start_time(os.getpid()))


def start_time(pid: int) -> int | None:
    """Return a process's start in clock ticks since boot, or None where it cannot be read."""
    try:
        # The second field is the program's name in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _system() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return platform.system() or None


def _field(file: Path, name: str) -> str | None:
    for line in _text(file).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""
