"""What NVIDIA's toolkit puts into a container beside device files: its driver's user space part.

Rules that this module keeps:

- Only the names that the toolkit mounts are its own (libnvidia-container, ``src/nvc_info.c``; CDI
  files of nvidia-ctk); any other mount stays one that nobody asked for.
- In the workdir, the environment and the experiment's own directories nothing is the toolkit's.
- A file of the driver that could be written in the container is none of the toolkit's.
- Links and the linker's cache, which its hooks make, are named one by one from what is mounted.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING

from sealrun.data import CONTAINER_HOME
from sealrun.image.model import ENVIRONMENT, WORKDIR

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LIBRARIES = re.compile(
    # Of CUDA the driver's two alone: libcudart and its like come with packages.
    r"lib(?:cuda|cudadebugger|dxcore|d3d12(?:core)?|"
    r"(?:nvidia|nvcuvid|nvoptix|GLX_nvidia|EGL_nvidia|GLESv1_CM_nvidia|GLESv2_nvidia|vdpau_nvidia)"
    r"[A-Za-z0-9_-]*)\.so(?:\.\d+)*"
)
_PROGRAMS = re.compile(
    r"nvidia-(?:smi|debugdump|persistenced|cuda-mps-(?:control|server)|imex(?:-ctl)?)"
)
#: Configuration of graphics and OpenCL loaders.
_SETTINGS = re.compile(r"(?:\d+_)?nvidia[A-Za-z0-9_.-]*\.(?:json|icd|conf|yaml)|nvoptix\.bin")
#: Directories that are the driver's alone.
_BELOW = (
    "/dev/nvidia",
    "/run/nvidia-",
    "/var/run/nvidia-",
    "/lib/firmware/nvidia/",
    "/usr/lib/firmware/nvidia/",
    "/usr/share/nvidia/",
    "/usr/lib/wsl/",
    "/etc/nvidia/",
    "/dev/dxg",
)
#: Where no driver has a place: what stands there was sealed, or is the experiment's.
_SEALED = (f"{WORKDIR}/", f"{ENVIRONMENT}/", f"{CONTAINER_HOME}/", "/out/", "/.sealrun/")
_PACKAGES = frozenset({"site-packages", "dist-packages"})
#: Sockets and device files, which are used by writing.
_WRITTEN = ("/dev/nvidia", "/dev/dxg", "/run/nvidia-", "/var/run/nvidia-")
#: Where its hooks tell the linker of the libraries.
_CACHE = "/etc/ld.so.cache"
_CONFIGURATION = "/etc/ld.so.conf.d"
_ITS_CONFIGURATION = re.compile(r"(?:00-|\d+-)?(?:nvcr|nvidia)-?[A-Za-z0-9._-]*\.conf")


def is_injected(target: str) -> bool:
    """Tell whether a mount in a container has a name that the toolkit gives."""
    if target.startswith(_SEALED) or _PACKAGES.intersection(target.split("/")):
        return False
    name = posixpath.basename(target)
    return target.startswith(_BELOW) or any(
        pattern.fullmatch(name) for pattern in (_LIBRARIES, _PROGRAMS, _SETTINGS)
    )


def may_be_written(target: str) -> bool:
    """Tell whether what the toolkit mounts there is used by writing: no file of the driver is."""
    return target.startswith(_WRITTEN)


def brought(root: Path, targets: Iterable[str]) -> tuple[str, ...]:
    """Return every path of a container that the toolkit made: mounts, links to them, its notes.

    Args:
        root: of the container, as this host sees it.
        targets: of the container's mounts.
    """
    mounts = [target for target in targets if is_injected(target)]
    found = [*mounts, *([_CACHE] if mounts else [])]
    for directory in sorted({posixpath.dirname(target) for target in mounts}):
        # A link to a link to a mounted library is one of them: libcuda.so, libcuda.so.1.
        found += (
            f"{directory}/{name}"
            for name in _links(root, directory)
            if _LIBRARIES.fullmatch(name) and f"{directory}/{name}" not in mounts
        )
    if mounts:
        found += (
            f"{_CONFIGURATION}/{name}"
            for name in _names(root, _CONFIGURATION)
            if _ITS_CONFIGURATION.fullmatch(name)
        )
    return tuple(found)


def device_files(root: Path) -> tuple[str, ...]:
    """Return the device files below ``/dev`` of a container, terminals of its own left out.

    Raises:
        OSError: they cannot be listed.
    """
    found: list[str] = []
    places = ["/dev"]
    while places:
        directory = places.pop()
        with os.scandir(f"{root}{directory}") as entries:
            for entry in entries:
                path = f"{directory}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    if path not in {"/dev/pts", "/dev/shm", "/dev/mqueue"}:  # noqa: S108 - in the container
                        places.append(path)
                elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                    found.append(path)
    return tuple(sorted(found))


def _names(root: Path, directory: str) -> list[str]:
    try:
        with os.scandir(f"{root}{directory}") as entries:
            return sorted(entry.name for entry in entries)
    except OSError:
        return []


def _links(root: Path, directory: str) -> list[str]:
    return [name for name in _names(root, directory) if os.path.islink(f"{root}{directory}/{name}")]  # noqa: PTH114 - bytes of a container's path stay text
