"""A small file system for a test, so that disk space runs out where the test wants it."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_FILLER = ".filler"


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Generator[None]:
    """Mount a tmpfs of ``size`` bytes at a directory (needs root, as an engine on Linux does)."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(directory)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextlib.contextmanager
def unsized_disk(directory: Path) -> Generator[None]:
    """Mount a file system at a directory that does not tell how much is free (ramfs; needs root)."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "ramfs", "-o", "mode=0700", "ramfs", str(directory)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path, leave: int = 0) -> None:
    """Take all space of a file system but ``leave`` bytes."""
    import os

    status = os.statvfs(directory)
    with (directory / _FILLER).open("ab") as file, contextlib.suppress(OSError):
        for _ in range((status.f_bavail * status.f_bsize - leave) // 4096):
            file.write(bytes(4096))
            file.flush()


def free(directory: Path) -> None:
    """Give back what ``fill`` took."""
    (directory / _FILLER).unlink()
