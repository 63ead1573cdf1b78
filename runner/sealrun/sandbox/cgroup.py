"""What the kernel accounts to a container: limits, peak memory, CPU time, kills for memory.

Rules that this module keeps:

- Read from the kernel's files, version 1 and 2 of control groups (cgroups(7); the kernel's
  ``admin-guide/cgroup-v1`` and ``cgroup-v2.rst``); never from an engine's word.
- What cannot be read is None, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: "No limit" in version 1 is the largest number of pages that a counter holds.
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Accounts:
    """Directories of one process's control groups, by controller; ``""`` is version 2's."""

    directories: dict[str, Path]

    def memory_limit(self) -> int | None:
        """Return the memory limit in bytes; None where there is none or it cannot be read."""
        number = self._number("memory", "memory.limit_in_bytes", "memory.max")
        return number if number is not None and number < _UNLIMITED else None

    def pids_limit(self) -> int | None:
        """Return how many processes there may be; None: no limit, or it cannot be read."""
        return self._number("pids", "pids.max", "pids.max")

    def cpus(self) -> float | None:
        """Return CPU time per wall time; None where there is no limit or it cannot be read."""
        text = self._text("", "cpu.max")
        if text is not None:
            quota, _, period = text.partition(" ")
            return (
                int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() else None
            )
        quota_us = self._number("cpu", "cpu.cfs_quota_us", None)
        period_us = self._number("cpu", "cpu.cfs_period_us", None)
        return quota_us / period_us if quota_us and quota_us > 0 and period_us else None

    def has(self, controller: str) -> bool:
        """Tell whether a controller's files can be read."""
        names = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max",) * 2}
        first, second = names.get(controller, ("cpu.cfs_quota_us", "cpu.max"))
        return self._text(controller, first) is not None or self._text("", second) is not None

    def peak_memory(self) -> int | None:
        """Return the highest memory use in bytes, file cache included."""
        return self._number("memory", "memory.max_usage_in_bytes", "memory.peak")

    def cpu_seconds(self) -> float | None:
        """Return the CPU time used so far, user and system."""
        nanoseconds = self._number("cpuacct", "cpuacct.usage", None)
        if nanoseconds is not None:
            return nanoseconds / 1e9
        microseconds = self._field("", "cpu.stat", "usage_usec")
        return None if microseconds is None else microseconds / 1e6

    def memory_kills(self) -> int | None:
        """Return how many processes the kernel killed at the memory limit."""
        killed = self._field("memory", "memory.oom_control", "oom_kill")
        return killed if killed is not None else self._field("", "memory.events", "oom_kill")

    def _number(self, controller: str, first: str, second: str | None) -> int | None:
        text = self._text(controller, first)
        if text is None and second is not None:
            text = self._text("", second)
        try:
            return None if text is None else int(text)
        except ValueError:  # "max"
            return None

    def _field(self, controller: str, file: str, name: str) -> int | None:
        for line in (self._text(controller, file) or "").splitlines():
            key, _, value = line.partition(" ")
            if key == name and value.strip().isdigit():
                return int(value)
        return None

    def _text(self, controller: str, file: str) -> str | None:
        directory = self.directories.get(controller)
        if directory is None:
            return None
        try:
            return (directory / file).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None


def accounts_of(pid: int, proc: Path = Path("/proc")) -> Accounts:
    """Find the control groups of a process; empty where this host cannot see them."""
    try:
        groups = (proc / str(pid) / "cgroup").read_text("utf-8", "replace")
        mounts = (proc / "self/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return Accounts({})
    hierarchies = _hierarchies(mounts)
    directories: dict[str, Path] = {}
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            if controller in hierarchies:
                root, point = hierarchies[controller]
                directories[controller] = point / path.removeprefix(root).lstrip("/")
    return Accounts(directories)


def _hierarchies(mounts: str) -> dict[str, tuple[str, Path]]:
    """Return root and mount point of each controller's hierarchy (proc(5), mountinfo)."""
    found: dict[str, tuple[str, Path]] = {}
    for line in mounts.splitlines():
        front, _, back = line.partition(" - ")
        fields, kinds = front.split(" "), back.split(" ")
        if kinds[0] == "cgroup2":
            found.setdefault("", (fields[3], Path(fields[4])))
        elif kinds[0] == "cgroup":
            for option in kinds[-1].split(","):
                found.setdefault(option, (fields[3], Path(fields[4])))
    return found
