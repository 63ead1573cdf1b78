"""Directories of any depth: made, walked and removed, whoever nested them.

Rules that this module keeps:

- Nothing calls itself, as ``Path.mkdir``, ``Path.rglob``, ``shutil.rmtree`` and, before Python 3.12,
  ``os.walk`` do: whoever nests a thousand directories would end us with it.
- Links are files, whatever they lead to, and are never followed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, AnyStr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def make(directory: Path) -> None:
    """Make a directory with all above it, where they are not there.

    Raises:
        OSError: it cannot be made.
    """
    missing: list[Path] = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)


def walk(
    top: AnyStr | os.PathLike[AnyStr], enter: Callable[[AnyStr], object] | None = None
) -> Iterator[tuple[AnyStr, list[AnyStr], list[AnyStr]]]:
    """Yield each directory with the names of the directories and of the other files in it.

    What cannot be listed is passed over, as ``os.walk`` does, and so is what is deeper than a path can
    say.

    Args:
        top: where to begin.
        enter: called with each directory before it is listed; whoever begins to watch it there misses
            nothing that is made in it afterwards.

    Yields:
        Path, names of directories, names of everything else. Directories are entered in the order in
        which they then stand in the list; those that are taken out of it are not entered.
    """
    waiting: list[AnyStr] = [os.fspath(top)]
    while waiting:
        at = waiting.pop()
        names: list[AnyStr] = []
        files: list[AnyStr] = []
        paths: dict[AnyStr, AnyStr] = {}
        if enter is not None:
            enter(at)
        try:
            with os.scandir(at) as entries:
                for entry in entries:
                    if _is_directory(entry):
                        names.append(entry.name)
                        paths[entry.name] = entry.path
                    else:
                        files.append(entry.name)
        except OSError:
            continue
        yield at, names, files
        waiting += [paths[name] for name in reversed(names)]


def _is_directory(entry: os.DirEntry[AnyStr]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def remove(top: Path) -> None:
    """Remove a file or a directory, whose own directories may be closed; missing is fine.

    Raises:
        OSError: it cannot be removed; what is left stands at the same place.
    """
    if top.is_symlink() or not top.is_dir():
        top.unlink(missing_ok=True)
        return
    pending = [top]
    while pending:
        directory = pending.pop()
        _open_up(directory)
        with os.scandir(directory) as inside:
            found = [(Path(one.path), _is_directory(one)) for one in inside]
        for path, is_directory in found:
            if not is_directory:
                path.unlink()
                continue
            if directory != top:
                # Up to the top, so that no path is too long.
                _open_up(path)
                path = path.rename(top / secrets.token_hex(8))  # noqa: PLW2901 - where it is now
            pending.append(path)
        if directory != top:
            directory.rmdir()
    top.rmdir()


def _open_up(directory: Path) -> None:
    """Let its owner empty a directory: an experiment may have closed it."""
    # Another user's may be open to us as it is.
    with contextlib.suppress(PermissionError):
        directory.chmod(stat.S_IRWXU)
