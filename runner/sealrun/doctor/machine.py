"""This machine: disk, privileges, programs, GPUs.

Rules that this module keeps:

- Thresholds stand at the top with what they are for.
- About GPUs says what a run would find: ``sealrun.devices`` answers.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.devices.condition import condition
from sealrun.doctor.model import LIVING_NAMED, NAMED, UNNAMED, Check, Grade
from sealrun.state import free_room

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.engine import Engine
    from sealrun.state import Places

_GB = 10**9
#: A small base and its layers; below this nothing can be sealed.
_DISK_NEEDED = 1 * _GB
#: A torch environment with CUDA, twice: as a layer, and unpacked by the engine.
_DISK_WANTED = 20 * _GB
#: How an administrator lets a guard of another user name writers (setpriv(1), capabilities(7)).
_CAPABILITIES = "+sys_admin,+net_admin,+sys_ptrace,+sys_nice"
_NAMING = (
    "An administrator can start this workspace's guard with the capabilities for it: "
    "sudo env HOME={home} XDG_RUNTIME_DIR={runtime} setpriv --reuid {uid} --regid {gid} "
    f"--init-groups --inh-caps {_CAPABILITIES} --ambient-caps {_CAPABILITIES} sealrun guard start. "
    "The guide on privilege has a rule for sudo and a systemd unit, and says what to mind."
)
_OLDEST_UV = (0, 8)


def disks(places: Places, engine: Engine | None) -> Iterable[Check]:
    """Yield the free space under each of our directories, and under the engine's if it is here."""
    wanted = {"state": places.state, "data": places.data, "cache": places.cache}
    if engine is not None and engine.root and Path(engine.root).is_dir():
        wanted["engine"] = Path(engine.root)
    for name, directory in wanted.items():
        there = next(p for p in (directory, *directory.parents) if p.exists())
        yield judge_disk(name, directory, free_room(there))


def judge_disk(name: str, directory: Path, free: int | None) -> Check:
    """Grade free space.

    Args:
        name: of the directory, for the row.
        directory: whose file system it is.
        free: bytes that we may still write; None: its file system does not tell.
    """
    if free is None:
        detail = f"the file system of {directory} does not tell how much is free"
        return Check(f"disk: {name}", Grade.OK, detail)
    detail = f"{free / _GB:.1f} GB free at {directory}"
    needed = _DISK_NEEDED if name != "state" else _DISK_NEEDED // 10
    if free < needed:
        return Check(f"disk: {name}", Grade.FAIL, detail, f"Free at least {needed / _GB:g} GB.")
    if name in {"data", "engine"} and free < _DISK_WANTED:
        fix = f"An environment with torch and CUDA needs up to {_DISK_WANTED / _GB:g} GB here."
        return Check(f"disk: {name}", Grade.WARN, detail, fix)
    return Check(f"disk: {name}", Grade.OK, detail)


def writers() -> Iterable[Check]:
    """Yield whether alerts can name who wrote: tried, not concluded from who we are."""
    from sealrun.guard import fanotify, procevents

    try:
        os.close(fanotify.open_group())
    except OSError as error:
        forbidden = isinstance(error, PermissionError)
        why = "naming them needs CAP_SYS_ADMIN" if forbidden else f"fanotify: {error.strerror}"
        yield Check("writers", Grade.WARN, f"{UNNAMED} ({why})", _naming())
        return
    try:
        procevents.listen().close()
    except OSError as error:
        why = f"process events: {error.strerror}"
        yield Check("writers", Grade.WARN, f"{LIVING_NAMED} ({why})", _naming())
    else:
        yield Check("writers", Grade.OK, NAMED)


def _naming() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return _NAMING.format(home=Path.home(), runtime=runtime, uid=os.getuid(), gid=os.getgid())


def programs() -> Iterable[Check]:
    """Yield the programs that sealing needs beside the engine."""
    yield Check("python", Grade.OK, f"{platform.python_version()}, {platform.machine()}")
    version = metadata.version("uv")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST_UV:
        yield Check("uv", Grade.FAIL, version, "Install sealrun again: it needs uv 0.8 or later.")
    else:
        yield Check("uv", Grade.OK, version)
    path = shutil.which("mmdebstrap")
    if path:
        yield Check("mmdebstrap", Grade.OK, path)
    else:
        yield Check(
            "mmdebstrap",
            Grade.WARN,
            "not installed: the shipped bases cannot be made here",
            "apt-get install mmdebstrap (as root), or name a base by digest: [image] base.",
        )


def gpus(engine: Engine | None) -> Iterable[Check]:
    """Yield the GPUs and whether containers can have them."""
    found = condition(engine)
    yield Check("gpu", Grade.OK if found.usable else Grade.FAIL, found.detail, found.fix)
