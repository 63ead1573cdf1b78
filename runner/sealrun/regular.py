"""Regular files that strangers may have put there: opened, or nothing.

Rules that this module keeps:

- No link is followed, nobody waits on a pipe or wakes a device, and a directory is no trouble: what is
  no regular file is not opened, whatever it is called.
"""

from __future__ import annotations

import io
import os
import stat


def opened(
    file: str | bytes | os.PathLike[str], *, within: int | None = None
) -> io.BufferedReader | None:
    """Open a regular file for reading; None for anything else, and for what cannot be opened.

    Args:
        file: its path. Links on the way to it are followed, itself is not.
        within: an open directory that the path begins at; None for the current one.
    """
    descriptor = _descriptor(file, within)
    # A directory's cannot even be wrapped: the look at its kind came first.
    return None if descriptor is None else io.BufferedReader(io.FileIO(descriptor))


def beginning(
    file: str | bytes | os.PathLike[str], limit: int, *, within: int | None = None
) -> bytes | None:
    """Return the first ``limit`` bytes of a regular file; None where none can be read."""
    stream = opened(file, within=within)
    if stream is None:
        return None
    with stream:
        try:
            return stream.read(limit)
        except OSError:
            return None


def end(file: str | bytes | os.PathLike[str], limit: int) -> bytes | None:
    """Return the last ``limit`` bytes of a regular file; None where none can be read."""
    stream = opened(file)
    if stream is None:
        return None
    with stream:
        try:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
            return stream.read(limit)
        except OSError:
            return None


def _descriptor(file: str | bytes | os.PathLike[str], within: int | None) -> int | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file, flags, dir_fd=within)
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
