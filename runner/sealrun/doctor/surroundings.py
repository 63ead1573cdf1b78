"""Reads what kind of machine this is: kernel, user, whether a container or Windows is around us.

Rules that this module keeps:

- Facts only: what they mean for a run is ``situations``' to say.
- Reading a text and finding a fact in it are apart, so that the text of any machine can be tried.
"""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Files that an engine leaves in its containers (podman-run(1), "/run/.containerenv"; Docker's is
#: nowhere described, and in every one of its containers).
_MARKS = {"/run/.containerenv": "podman", "/.dockerenv": "docker"}
#: Where systemd notes the container that it was started in (systemd-detect-virt(1)).
_SYSTEMD = Path("/run/systemd/container")
#: The machine's own process namespace (include/linux/proc_ns.h, ``PROC_PID_INIT_INO``).
_FIRST_NAMESPACE = "pid:[4026531836]"


@dataclass(frozen=True)
class Surroundings:
    """What kind of machine this is.

    Attributes:
        kernel: ``Linux``, ``Darwin`` or ``Windows``.
        wsl: version of the Windows Subsystem for Linux that we run in, or None.
        container: kind of the container that we run in (``docker``, ``kubernetes``, …), or None.
        root: we are uid 0.
    """

    kernel: str
    wsl: int | None
    container: str | None
    root: bool

    @classmethod
    def here(cls) -> Surroundings:
        """Look at this machine."""
        noted = namespace = ""
        with contextlib.suppress(OSError):
            noted = _SYSTEMD.read_text("utf-8", "replace")
        with contextlib.suppress(OSError):
            namespace = str(Path("/proc/self/ns/pid").readlink())
        marks = frozenset(path for path in _MARKS if Path(path).exists())
        return cls(
            kernel=platform.system(),
            wsl=wsl_of(platform.release()),
            container=container_of(namespace, marks, os.environ, noted),
            root=os.geteuid() == 0,
        )


def wsl_of(release: str) -> int | None:
    """Return the version of the Windows Subsystem for Linux, from the kernel's release.

    Version 1 says ``4.4.0-19041-Microsoft``, version 2 ``5.15.90.1-microsoft-standard-WSL2``;
    whoever builds a kernel for version 2 may leave the end out, but not the lower case.
    """
    if "microsoft" in release:
        return 2
    return 1 if "Microsoft" in release else None


def container_of(
    namespace: str, marks: frozenset[str], environment: Mapping[str, str], noted: str
) -> str | None:
    """Return the kind of the container that we run in, or None.

    The process namespace decides: a virtual machine made from a container's image has its marks.

    Args:
        namespace: what ``/proc/self/ns/pid`` leads to; empty where there is none.
        marks: the files in containers that are there.
        environment: our variables; Kubernetes sets ``KUBERNETES_SERVICE_HOST`` in each pod
            (Kubernetes, "Accessing the API from a Pod"), several others ``container``.
        noted: content of ``/run/systemd/container``.
    """
    if namespace in {"", _FIRST_NAMESPACE}:
        return None
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    for path, kind in _MARKS.items():
        if path in marks:
            return kind
    # Any text can stand there: a word of it is enough.
    words = (environment.get("container") or noted).split()
    return words[0][:40] if words else "of an unknown kind"
