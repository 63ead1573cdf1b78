"""What a hardened container looks like in the engine's words.

Rules that this module keeps:

- Pure: a ``Request`` goes in, the body of the engine's create call comes out.
- Nothing is left to an engine's default that could be weaker on another engine.
- Nothing of the output is stored by the engine: we are attached, and its log would be a second,
  unbounded copy.
- Every directory that has to be writable is a tmpfs of its own, so that no new file hides among
  the image's: ``/tmp``, ``/var/tmp``, ``/run``, HOME, and ``/dev/shm``.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any

from sealrun.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sealrun.sandbox.protocol import Mount, Request

#: Where the directory of the init is mounted, read-only.
INIT_DIRECTORY = "/.sealrun"
INIT = f"{INIT_DIRECTORY}/sealrun-init"
HOME = "/home/run"
#: Where the init finds what it copies: on a scratch file system that no data can cover.
SEED = "/var/tmp/sealrun-seed"  # noqa: S108 - a path inside the container
#: Scratch directories with the sticky bit, as on any system.
SCRATCH: tuple[str, ...] = ("/tmp", "/var/tmp", "/run")  # noqa: S108 - paths inside the container
#: Labels that say whose a container is; ``clear`` removes nothing without both.
RUN_LABEL, OWNER_LABEL = "sealrun.run", "sealrun.owner"
#: Shown by programs; an engine's own choice is the container's id, another one in every run.
HOSTNAME = "sealrun"


def arguments(request: Request) -> list[str]:
    """Return the whole command line of PID 1."""
    return [*entry_point(request), *request.argv]


def entry_point(request: Request) -> list[str]:
    """Return the init's own part of the command line."""
    mode = "join" if request.join_stderr else "split"
    seed = [] if request.seed is None else [SEED, request.seed.target]
    return [INIT, mode, str(request.limits.open_files), *seed, "--"]


def mounts(request: Request, accounts: Path) -> tuple[Mount, ...]:
    """Return every bind mount of a container: those asked for, the init's, the accounts', the seed.

    Args:
        request: what was asked for.
        accounts: directory that holds ``passwd`` and ``group``.
    """
    from sealrun.sandbox.protocol import Mount

    return (
        *request.mounts,
        Mount(request.init.parent, INIT_DIRECTORY),
        Mount(accounts / "passwd", "/etc/passwd"),
        Mount(accounts / "group", "/etc/group"),
        *(() if request.seed is None else (Mount(request.seed.source, SEED),)),
    )


def scratch(request: Request) -> dict[str, str]:
    """Return the options of every tmpfs, by its target.

    A directory between HOME and a mount below it becomes a tmpfs too: the engine would make it on
    HOME as root's, and ``~/.cache`` would be closed to the experiment.
    """
    uid, gid = request.user
    # The owner counts: runc 1.1 gives a tmpfs the mode of the image's directory below it.
    common = f"rw,exec,nosuid,nodev,size={request.limits.tmp},uid={uid},gid={gid}"
    own = f"{common},mode=0700"
    found = dict.fromkeys(SCRATCH, f"{common},mode=1777")
    found[HOME] = own
    for mount in request.mounts:
        for parent in _ancestors(mount.target):
            if parent.startswith(f"{HOME}/"):
                found[parent] = own
    for mount in request.mounts:
        # A mount of the caller's choice at one of these places takes it.
        found.pop(posixpath.normpath(mount.target), None)
    return found


def _ancestors(path: str) -> Iterator[str]:
    parent = posixpath.dirname(posixpath.normpath(path))
    while parent not in ("", "/"):
        yield parent
        parent = posixpath.dirname(parent)


def ulimits(request: Request) -> list[dict[str, int | str]]:
    """Return resource limits (getrlimit(2)) in the engine's words.

    The number of descriptors is our init's to set: an engine that has fewer itself would refuse.
    """
    wanted: list[tuple[str, int]] = [("core", 0)]
    if request.limits.file_size is not None:
        wanted.append(("fsize", request.limits.file_size))
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in wanted]


def groups(request: Request) -> list[str]:
    """Return the supplementary groups of a container: what its data and its devices need."""
    devices = () if request.devices is None else request.devices.groups
    return [str(group) for group in sorted({*request.groups, *devices})]


def specification(
    request: Request,
    accounts: Path,
    owner: str,
    translate: Callable[[Path], str],
) -> dict[str, Any]:
    """Return the body of the engine's create call (Engine API 1.41, ``/containers/create``).

    Args:
        request: what was asked for.
        accounts: directory that holds ``passwd`` and ``group``.
        owner: value of the label that says whose container this is.
        translate: turns a path of ours into the engine's path of the same file.

    Raises:
        SandboxError: a mount target that cannot be, or a command with a NUL byte.
    """
    if not request.argv:
        raise SandboxError("there is no command to run")
    if any("\0" in text for text in (*request.argv, *request.environment.values())):
        raise SandboxError(
            "a command or a variable holds a NUL byte, which no process can be given"
        )
    all_mounts = mounts(request, accounts)
    _check_targets(all_mounts)
    limits = request.limits
    host: dict[str, Any] = {
        "NetworkMode": request.network,
        "CapAdd": [],
        "GroupAdd": groups(request),
        "CapDrop": ["ALL"],
        "Privileged": False,
        "SecurityOpt": [
            "no-new-privileges:true",
            *([f"seccomp={request.seccomp}"] if request.seccomp is not None else []),
        ],
        "PidsLimit": limits.pids,
        "Ulimits": ulimits(request),
        "ShmSize": limits.shm,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "Init": False,
        # We remove it: an engine that does so itself takes the way it ended with it.
        "AutoRemove": False,
        "ReadonlyRootfs": not request.writable_workdir,
        "PublishAllPorts": False,
        "Tmpfs": scratch(request),
        "Mounts": [
            {
                "Type": "bind",
                "Source": translate(mount.source),
                "Target": mount.target,
                "ReadOnly": mount.read_only,
                "BindOptions": {"Propagation": "rprivate"},
            }
            for mount in all_mounts
        ],
    }
    if request.network == "none":
        # Without a network no engine lists the name, and torchrun meets its ranks under it.
        host["ExtraHosts"] = [f"{HOSTNAME}:127.0.0.1"]
    if limits.memory is not None:
        # Equal: no swap. A swapping experiment measures the disk.
        host |= {"Memory": limits.memory, "MemorySwap": limits.memory}
    if limits.cpus is not None:
        host["NanoCpus"] = round(limits.cpus * 1e9)
    if request.devices is not None:
        host["DeviceRequests"] = list(request.devices.requests)
        host["Devices"] = request.devices.entries()
    uid, gid = request.user
    environment = {"HOME": HOME, **request.environment}
    return {
        "Image": request.image,
        "Hostname": HOSTNAME,
        "Entrypoint": entry_point(request),
        "Cmd": list(request.argv),
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "WorkingDir": request.workdir,
        "User": f"{uid}:{gid}",
        "Labels": {**request.labels, OWNER_LABEL: owner},
        "Tty": False,
        "OpenStdin": True,
        # The engine closes the init's standard input when our connection ends: the dead man's switch.
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _check_targets(all_mounts: Sequence[Mount]) -> None:
    seen: set[str] = set()
    for mount in all_mounts:
        target = mount.target
        if not target.startswith("/") or posixpath.normpath(target) != target or target == "/":
            raise SandboxError(f"{target!r} cannot be the target of a mount in a container")
        if target in seen:
            raise SandboxError(f"two mounts have the target {target}")
        seen.add(target)
