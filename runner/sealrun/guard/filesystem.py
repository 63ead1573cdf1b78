"""What the kernel says about mounts, file systems and clocks.

Rules that this module keeps:

- Parsing is pure and apart from reading, so that it can be tested with the text of any machine.
- A file system type that may be written from another machine counts as remote; inotify sees only
  writes that pass through this kernel (inotify(7), "Limitations and caveats").
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sealrun.guard.coverage import Moment

#: File system types whose content another machine, or a process outside the kernel, may change.
REMOTE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre"),
        *("glusterfs", "beegfs", "gpfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "9p", "virtiofs"),
        *("vboxsf", "vmhgfs", "prl_fs", "acfs", "panfs", "davfs", "wekafs", "snfs"),
    }
)
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo`` (proc(5))."""

    number: int
    point: bytes
    type: str
    source: bytes

    @property
    def remote(self) -> bool:
        """Whether writes may happen that this kernel never sees."""
        return self.type in REMOTE or self.type == "fuse" or self.type.startswith("fuse.")


def parse_mounts(text: bytes) -> tuple[Mount, ...]:
    """Parse mountinfo; lines that are not understood are left out."""
    mounts: list[Mount] = []
    # Any other end of a line may stand in a name.
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            mounts.append(
                Mount(
                    int(fields[0]),
                    _unescape(fields[4]),
                    fields[dash + 1].decode("ascii", "replace"),
                    _unescape(fields[dash + 2]),
                )
            )
        except (ValueError, IndexError):
            continue
    return tuple(mounts)


def mounts_below(mounts: tuple[Mount, ...], root: bytes) -> tuple[Mount, ...]:
    """Return the mounts strictly below a directory; on it or above it they change its identity."""
    return tuple(mount for mount in mounts if mount.point.startswith(root.rstrip(b"/") + b"/"))


def read_mounts() -> tuple[Mount, ...]:
    """Return the mounts of our mount namespace."""
    return parse_mounts(Path("/proc/self/mountinfo").read_bytes())


def mount_of(path: bytes, mounts: tuple[Mount, ...]) -> Mount | None:
    """Return the mount that a path is on, or None where the kernel does not tell."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
    except OSError:
        return None
    finally:
        os.close(fd)
    found = re.search(rb"^mnt_id:\s*(\d+)", text, re.MULTILINE)
    if found is None:
        return None
    number = int(found[1])
    return next((mount for mount in mounts if mount.number == number), None)


@cache
def boot_id() -> str:
    """Return the kernel's boot id, or an empty string where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def now() -> Moment:
    """Return the present moment."""
    return Moment(time.monotonic(), time.time(), boot_id())


def _unescape(field: bytes) -> bytes:
    # mountinfo writes space, tab, newline and backslash as three octal digits.
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
