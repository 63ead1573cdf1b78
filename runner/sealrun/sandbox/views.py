"""The mounts of a container in which another owner's files are shown as the experiment's own.

Rules that this module keeps:

- A view stands on the host only while the container is made; the container's own mount of it stays.
- What a dead controller left is removed by the next container of any kind: a mount that stays would
  keep somebody's disk from being unmounted.
- What the container got is looked at before the gate opens: an engine that does not see this
  host's mounts would show an empty directory in its place, and an experiment without data might
  still print a number.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from sealrun.readable import closed
from sealrun.sandbox import idmapped

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from sealrun.errors import Refused
    from sealrun.sandbox.protocol import Mount, Request


@contextlib.contextmanager
def of(request: Request) -> Generator[Request]:
    """Make the views that a request asks for; yield it with their places as sources.

    Raises:
        Refused: this machine does not show files with another owner.
    """
    # Beside what else is placed for containers: an engine that sees the init sees this too.
    directory = request.init.parent.parent / "views"
    idmapped.clear(directory)
    with contextlib.ExitStack() as standing:
        mounts: list[Mount] = []
        for number, mount in enumerate(request.mounts):
            if mount.shown_from is None:
                mounts.append(mount)
                continue
            view = idmapped.shown(
                mount.source,
                directory,
                f"{request.name}-{number}",
                mount.shown_from,
                request.user,
            )
            try:
                mounts.append(replace(mount, source=standing.enter_context(view)))
            except idmapped.Unmappable as error:
                raise _refused(mount, request, f"; {error.message}") from error
        yield replace(request, mounts=tuple(mounts))


def check(request: Request, root: Path | None) -> None:
    """Compare what a container got with what was to be shown.

    Args:
        request: as asked for, before ``of``.
        root: the container's root as this host sees it, or None.

    Raises:
        Refused: the container shows something else, or it cannot be seen.
    """
    for mount in request.mounts:
        if mount.shown_from is None:
            continue
        same = False
        with contextlib.suppress(OSError):
            same = root is not None and os.path.samestat(
                os.lstat(f"{root}{mount.target}"), mount.source.stat()
            )
        if not same:
            why = "; the engine does not see this host's mounts, so that it cannot be shown"
            raise _refused(mount, request, why)


def _refused(mount: Mount, request: Request, why: str) -> Refused:
    return closed(mount.source, str(mount.source), request.user, why)
