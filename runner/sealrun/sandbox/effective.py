"""Reads a container back from the kernel and the engine, and compares it with what was asked for.

Rules that this module keeps:

- The kernel's word comes first; where its files cannot be seen from here, that is said.
- A mount that nobody asked for is a problem, and so is a read-only one that can be written.
- Reading and comparing are apart: ``compare_status`` and ``compare_mounts`` take text.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun.devices.access import unexpected
from sealrun.devices.injected import device_files, is_injected, may_be_written
from sealrun.sandbox import spec
from sealrun.sandbox.cgroup import Accounts, accounts_of
from sealrun.sandbox.protocol import Effective

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.sandbox.protocol import Mount, Request

#: Capability sets of proc(5) that have to be empty.
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_FILTERED = "2"
#: What an engine mounts into every container by itself; with a slash at the end: anything below.
_ENGINE_MOUNTS = (
    "/proc",
    "/proc/",
    "/dev",
    "/dev/pts",
    "/dev/mqueue",
    "/dev/shm",  # noqa: S108 - a path inside the container
    "/sys",
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/etc/resolv.conf",
    "/etc/hostname",
    "/etc/hosts",
)


@dataclass(frozen=True)
class MountLine:
    """One line of ``/proc/PID/mountinfo``."""

    target: str
    options: frozenset[str]
    kind: str
    super_options: frozenset[str]


def read_mounts(text: str) -> Iterator[MountLine]:
    """Yield the mounts of a process, with octal escapes undone (proc(5), mountinfo)."""
    # Of the ends of lines the kernel escapes this one alone: others may stand in a name.
    for line in filter(None, text.split("\n")):
        front, _, back = line.partition(" - ")
        fields, rest = front.split(" "), back.split(" ")
        yield MountLine(
            _unescape(fields[4]),
            frozenset(fields[5].split(",")),
            rest[0],
            frozenset(rest[-1].split(",")),
        )


def _unescape(field: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, character)
    return field


def compare_status(text: str, request: Request, *, same_users: bool) -> list[str]:
    """Return what differs in ``/proc/PID/status``.

    Args:
        text: content of the file.
        request: what was asked for.
        same_users: user ids mean the same inside and outside.
    """
    values = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    problems = [
        f"the container has capabilities: {name} is {values.get(name, 'missing')}"
        for name in _CAPABILITIES
        if int(values.get(name, "1"), 16) != 0
    ]
    if values.get("NoNewPrivs", "").strip() != "1":
        problems.append("processes in the container can gain privileges (NoNewPrivs is not set)")
    if values.get("Seccomp", "").strip() != _FILTERED:
        problems.append("no system call filter is in force in the container")
    for name, wanted in zip(("Uid", "Gid"), request.user, strict=True):
        found = set(values.get(name, "").split())
        if same_users and found != {str(wanted)}:
            problems.append(f"{name} in the container is {sorted(found)}, not {wanted}")
    groups = set(values.get("Groups", "").split())
    strange = groups - {str(request.user[1]), *spec.groups(request)}
    if same_users and strange:
        problems.append(f"the container has supplementary groups: {', '.join(sorted(strange))}")
    return problems


def compare_mounts(text: str, request: Request, binds: Sequence[Mount]) -> list[str]:
    """Return what differs in ``/proc/PID/mountinfo``."""
    found = {mount.target: mount for mount in read_mounts(text)}
    scratch = spec.scratch(request)
    by_target = {mount.target: mount for mount in binds}
    problems = [
        f"{target} is not mounted in the container"
        for target in (*by_target, *scratch)
        if target not in found
    ]
    for target, mount in found.items():
        if target == "/":
            if request.writable_workdir == ("ro" in mount.options):
                problems.append(f"the container's root is mounted {sorted(mount.options)}")
            continue
        bind = by_target.get(_owner(target, by_target) or "")
        if bind is not None and target not in scratch:
            if bind.read_only and "ro" not in mount.options | mount.super_options:
                problems.append(f"{target} can be written in the container, against the request")
        elif target in scratch:
            if mount.kind != "tmpfs" or not {"nosuid", "nodev"} <= mount.options:
                problems.append(
                    f"{target} in the container is {mount.kind} {sorted(mount.options)}"
                )
        elif not _by_engine(mount, request):
            problems.append(f"nobody asked for the mount at {target} in the container")
    return problems


def _by_engine(mount: MountLine, request: Request) -> bool:
    """Tell whether an engine makes a mount by itself, or a GPU's toolkit for it."""
    target = mount.target
    if request.devices is not None and request.devices.injected and is_injected(target):
        return "ro" in mount.options or may_be_written(target)
    return any(
        target == known or (known.endswith("/") and target.startswith(known))
        for known in _ENGINE_MOUNTS
    )


def compare_rlimits(text: str, request: Request) -> list[str]:
    """Return what differs in ``/proc/PID/limits``; fewer descriptors than asked for are fine."""
    wanted = {"Max core file size": 0, "Max open files": request.limits.open_files}
    if request.limits.file_size is not None:
        wanted["Max file size"] = request.limits.file_size
    problems: list[str] = []
    for line in text.splitlines():
        name, hard = line[:26].strip(), line[47:68].strip()
        if name in wanted and (not hard.isdigit() or int(hard) > wanted[name]):
            problems.append(f"{name.lower()} in the container is {hard}, not {wanted[name]}")
    return problems


def _owner(target: str, mounts: Mapping[str, object]) -> str | None:
    """Return the mount that a target is or stands below."""
    while target not in mounts:
        if target == "/":
            return None
        target = posixpath.dirname(target)
    return target


def compare_limits(accounts: Accounts, request: Request) -> tuple[list[str], list[str]]:
    """Return what differs in the control groups, and what could not be read."""
    problems: list[str] = []
    unseen: list[str] = []
    limits = request.limits
    checks: list[tuple[str, str, float | None, float | None]] = [
        ("memory", "bytes of memory", limits.memory, accounts.memory_limit()),
        ("pids", "processes", limits.pids, accounts.pids_limit()),
        ("cpu", "CPUs", limits.cpus, accounts.cpus()),
    ]
    for controller, what, wanted, found in checks:
        if wanted is None:
            continue
        if not accounts.has(controller):
            unseen.append(f"the container's limit of {what} cannot be read here")
        # Memory is counted in pages, CPU in microseconds of a period.
        elif found is None or abs(found - wanted) > max(1 << 16, 0) * (controller == "memory") + (
            0.01 * (controller == "cpu")
        ):
            problems.append(f"the container may use {found} {what}, not {wanted}")
    return problems, unseen


def compare_inspection(found: Mapping[str, Any], request: Request) -> list[str]:
    """Return what differs in the engine's own record of the container."""
    host: Mapping[str, Any] = found.get("HostConfig") or {}
    config: Mapping[str, Any] = found.get("Config") or {}
    expected: list[tuple[str, object, object]] = [
        ("network", host.get("NetworkMode"), request.network),
        ("privileged", host.get("Privileged"), False),
        ("added capabilities", host.get("CapAdd") or [], []),
        ("dropped capabilities", host.get("CapDrop"), ["ALL"]),
        ("memory", host.get("Memory") or None, request.limits.memory),
        ("memory with swap", host.get("MemorySwap") or None, request.limits.memory),
        ("process limit", host.get("PidsLimit"), request.limits.pids),
        ("IPC mode", host.get("IpcMode"), "private"),
        ("size of /dev/shm", host.get("ShmSize"), request.limits.shm),
        ("added groups", host.get("GroupAdd") or [], spec.groups(request)),
        ("devices", *_device_files(host.get("Devices") or [], request)),
        ("device requests", *_device_requests(host.get("DeviceRequests") or [], request)),
        ("process namespace", host.get("PidMode") or "", ""),
        ("user", config.get("User"), ":".join(map(str, request.user))),
        ("working directory", config.get("WorkingDir"), request.workdir),
        ("command", config.get("Cmd"), list(request.argv)),
        ("entry point", config.get("Entrypoint"), spec.entry_point(request)),
    ]
    problems = [
        f"the engine's record says {name} {got!r}, not {wanted!r}"
        for name, got, wanted in expected
        if got != wanted
    ]
    profile = f"seccomp={request.seccomp}"
    if request.seccomp is not None and profile not in (host.get("SecurityOpt") or []):
        problems.append("the engine's record holds another system call filter")
    return problems


def _device_files(
    found: Sequence[Mapping[str, Any]], request: Request
) -> tuple[list[object], list[object]]:
    wanted = request.devices.entries() if request.devices else []
    return [dict(one) for one in found], list(wanted)


def _device_requests(
    found: Sequence[Mapping[str, Any]], request: Request
) -> tuple[list[object], list[object]]:
    """Return found and wanted device requests, in what both sides always say."""
    wanted = request.devices.requests if request.devices else ()
    return (
        [(one.get("Driver"), one.get("Count") or 0, one.get("DeviceIDs")) for one in found],
        [(one["Driver"], 0, one["DeviceIDs"]) for one in wanted],
    )


def compare_devices(root: Path, request: Request) -> list[str]:
    """Return the device files of a container that nobody asked for.

    Raises:
        OSError: they cannot be listed.
    """
    return [
        f"nobody asked for the device {node} in the container"
        for node in unexpected(device_files(root), request.devices)
    ]


def sees(pid: int, container: str, request: Request, proc: Path) -> bool:
    """Tell whether a process of this host is the init of a container.

    An engine on another machine, or in another process namespace, names a pid that is somebody
    else's here.
    """
    directory = proc / str(pid)
    try:
        line = (directory / "cmdline").read_bytes()
        groups = (directory / "cgroup").read_text("utf-8", "replace")
    except OSError:
        return False
    expected = b"".join(os.fsencode(word) + b"\0" for word in spec.arguments(request))
    return line == expected and container in groups


def read_effective(
    pid: int | None,
    request: Request,
    binds: Sequence[Mount],
    inspection: Mapping[str, Any],
    proc: Path,
) -> Effective:
    """Read a container back.

    Args:
        pid: of its init on this host; None where this host does not see it.
        request: what was asked for.
        binds: every bind mount that was asked for, ours included.
        inspection: the engine's record.
        proc: where the kernel's process files stand.
    """
    problems = compare_inspection(inspection, request)
    details: dict[str, object] = {
        "image": inspection.get("Image"),
        "apparmor": inspection.get("AppArmorProfile") or None,
        "runtime": (inspection.get("HostConfig") or {}).get("Runtime"),
    }
    if pid is None:
        nothing = "the container's processes are not visible from here: capabilities, system call "
        return Effective(
            tuple(problems),
            (f"{nothing}filter, mounts and limits are as the engine says",),
            details,
        )
    directory = proc / str(pid)
    unseen: list[str] = []
    same_users = _same_users(directory)
    comparisons: dict[str, Callable[[str], list[str]]] = {
        "status": lambda text: compare_status(text, request, same_users=same_users),
        "limits": lambda text: compare_rlimits(text, request),
        "mountinfo": lambda text: compare_mounts(text, request, binds),
    }
    for name, compare in comparisons.items():
        try:
            problems += compare((directory / name).read_bytes().decode("utf-8", "surrogateescape"))
        except OSError as error:
            unseen.append(f"the container's {name} cannot be read: {error.strerror}")
    try:
        with (directory / "exe").open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != request.init_digest:
            problems.append("the first process of the container is not our init")
    except OSError as error:
        unseen.append(f"the container's first process cannot be hashed: {error.strerror}")
    try:
        problems += compare_devices(directory / "root", request)
    except OSError as error:
        unseen.append(f"the container's devices cannot be listed: {error.strerror}")
    different, missing = compare_limits(accounts_of(pid, proc), request)
    return Effective((*problems, *different), (*unseen, *missing), details)


def _same_users(directory: Path) -> bool:
    """Tell whether a process has the user ids of this host (user_namespaces(7), uid_map)."""
    try:
        return (directory / "uid_map").read_bytes() == (
            directory.parent / "self/uid_map"
        ).read_bytes()
    except OSError:
        return False
