"""Installs an engine from the distribution, or says how to.

Rules that this module keeps:

- Only as root, only on Debian and its descendants, only what is missing, never asking anything.
- The distribution's own service is not started: its start script is kept from it while packages
  are being installed (invoke-rc.d(8), policy-rc.d), and nothing else of the system is changed.
- Advice names exact commands for the system at hand; deciding it is pure.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

    from sealrun.progress import Progress

_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_MARK = "# by sealrun engine up, for the time of one installation"
#: Where administrators' programs are; a minimal environment leaves them out of PATH.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_LINES_SHOWN = 12


@dataclass(frozen=True)
class System:
    """What decides how an engine can be had here.

    Attributes:
        kernel: ``Linux`` or ``Darwin``.
        families: ``ID`` and ``ID_LIKE`` of os-release(5).
        root: we are uid 0.
        systemd: systemd is the init that runs (sd_booted(3)).
        wsl: the kernel is the one of the Windows Subsystem for Linux.
        programs: those of ``dockerd``, ``apt-get`` that are there.
    """

    kernel: str
    families: frozenset[str]
    root: bool
    systemd: bool
    wsl: bool
    programs: frozenset[str]

    @classmethod
    def here(cls) -> System:
        """Look at this machine."""
        release = ""
        with contextlib.suppress(OSError):
            release = Path("/etc/os-release").read_text("utf-8", "replace")
        return cls(
            kernel=platform.system(),
            families=parse_families(release),
            root=os.geteuid() == 0,
            systemd=Path("/run/systemd/system").is_dir(),
            wsl="microsoft" in platform.release().lower(),
            programs=frozenset(p for p in ("dockerd", "apt-get") if find_program(p)),
        )

    @property
    def debian(self) -> bool:
        """Whether packages are Debian's."""
        return bool(self.families & {"debian", "ubuntu"}) and "apt-get" in self.programs


def parse_families(release: str) -> frozenset[str]:
    """Return ``ID`` and the words of ``ID_LIKE`` in the text of an os-release file."""
    found: set[str] = set()
    for line in release.splitlines():
        key, _, value = line.partition("=")
        if key in {"ID", "ID_LIKE"}:
            found |= set(value.strip().strip("\"'").lower().split())
    return frozenset(found)


def find_program(name: str) -> str | None:
    """Return the path of a program, also where PATH lacks the administrator's directories."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


def advice(system: System) -> str:
    """Return what a person does to get an engine here: exact commands."""
    if system.kernel == "Darwin":
        return "Install Docker Desktop (brew install --cask docker), start it, and repeat."
    if system.wsl:
        return (
            "Switch on Docker Desktop's WSL integration for this distribution, or as root:"
            " apt-get install -y docker.io && service docker start"
        )
    if system.root and system.debian:
        return "sealrun engine up"
    if "dockerd" in system.programs:
        start = "systemctl enable --now docker" if system.systemd else "sealrun engine up"
        join = "" if system.root else " && sudo usermod -aG docker $USER, then log in again"
        return f"{'' if system.root else 'sudo '}{start}{join}"
    sudo = "" if system.root else "sudo "
    start = f" && {sudo}systemctl enable --now docker" if system.systemd else ""
    for family, install in (
        ("debian", "apt-get update && {sudo}apt-get install -y docker.io"),
        ("ubuntu", "apt-get update && {sudo}apt-get install -y docker.io"),
        ("fedora", "dnf install -y moby-engine"),
        ("rhel", "dnf install -y docker-ce (from Docker's repository)"),
        ("arch", "pacman -S --noconfirm docker"),
        ("alpine", "apk add docker && {sudo}rc-service docker start"),
        ("suse", "zypper --non-interactive install docker"),
        ("opensuse", "zypper --non-interactive install docker"),
    ):
        if family in system.families:
            join = "" if system.root else " && sudo usermod -aG docker $USER, then log in again"
            return f"{sudo}{install.format(sudo=sudo)}{start}{join}"
    return (
        "Install Docker Engine 20.10 or newer with this system's package manager and start it,"
        " or set DOCKER_HOST to an engine that answers."
    )


def install(system: System, progress: Progress) -> None:
    """Install ``dockerd`` and ``iptables`` if they are missing.

    Raises:
        EngineUnavailable: not root, not Debian, or the installation failed.
    """
    missing = [
        package
        for program, package in (("dockerd", "docker.io"), ("iptables", "iptables"))
        if find_program(program) is None
    ]
    if find_program("ip") is None:
        missing.append("iproute2")
    if not missing:
        return
    if not (system.root and system.debian):
        raise EngineUnavailable(
            f"{', '.join(missing)}: not installed, and cannot be installed from here",
            hint=advice(system),
        )
    with progress.task(f"installing {' '.join(missing)}") as task, _services_kept_still():
        task.describe("apt-get update")
        _apt("update")
        task.describe("apt-get install")
        _apt("install", "-y", "--no-install-recommends", *missing)
    if find_program("dockerd") is None:
        raise EngineUnavailable(
            "the package docker.io brought no dockerd", hint="Install Docker Engine by hand."
        )


def _apt(*arguments: str) -> None:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=600", *arguments]
    environment = os.environ | {
        "DEBIAN_FRONTEND": "noninteractive",
        "PATH": f"{os.environ.get('PATH', os.defpath)}:{SBIN}",
    }
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-_LINES_SHOWN:])
        raise EngineUnavailable(
            f"{' '.join(command)} failed with status {done.returncode}:\n{last}",
            hint="Repair the package system (network, sources, disk), then repeat.",
        )


@contextlib.contextmanager
def _services_kept_still() -> Generator[None]:
    with contextlib.suppress(FileNotFoundError):
        # Left by an installation of ours that was killed.
        if _POLICY_MARK in _POLICY.read_text("utf-8", "replace"):
            _POLICY.unlink()
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text(f"#!/bin/sh\n{_POLICY_MARK}\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
