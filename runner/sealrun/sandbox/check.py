"""Verify 2 and the container's part of verify 3, for one container.

Rules that this module keeps:

- Before the gate: the workdir by content, base and environment by content or by a listing that
  equals a verified one.
- After the end: the committed files again by content, and the listing again; new files in the
  workdir are the experiment's, changed or missing ones are mutations.
- A file that was changed and put back was read in between, for all we know: so inodes and change
  times count after the end, and each mount that came and went.
- What this host cannot see is said, and never assumed to be well.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from sealrun.image.model import WORKDIR
from sealrun.sandbox.contents import (
    Discrepancy,
    MountWatch,
    Witnesses,
    compare_rest,
    compare_workdir,
    identities,
    listing_digest,
    user_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sealrun.image.model import Layer, SealedImage
    from sealrun.progress import Progress
    from sealrun.sandbox.protocol import Container, FileState


class ContainerCheck:
    """Compares one container with what was sealed, before the gate and after the end."""

    def __init__(
        self,
        container: Container,
        image: SealedImage,
        manifest: Sequence[FileState],
        mounts: Sequence[str],
        witnesses: Witnesses,
    ) -> None:
        self.container = container
        self.manifest = manifest
        #: What is no layer's: the mounts asked for, and what the engine's toolkit brought for a GPU.
        self.mounts = [*mounts, *container.brought]
        self.witnesses = witnesses
        self.lower: tuple[Layer, ...] = image.layers[:-1]
        self.verified: list[str] = []
        self.missing: list[str] = []
        #: Whether base and environment were compared at all.
        self.complete = True
        self._listing: str | None = None
        self._identities: dict[bytes, tuple[int, int, int]] | None = None
        self._mounts: MountWatch | None = None
        if container.root is not None:
            with contextlib.suppress(OSError):
                self._mounts = MountWatch(container.root)

    def before(self, progress: Progress) -> list[Discrepancy]:
        """Compare everything before the gate opens; return what differs."""
        if self.container.root is not None:
            self._identities = identities(self.container.root, self.manifest)
        found = compare_workdir(self.container, self.manifest)
        files = sum(1 for state in self.manifest if state.kind == "file")
        self.verified.append(f"in the container: {files} committed files, by content, set equality")
        return found + self._rest(progress)

    def _rest(self, progress: Progress) -> list[Discrepancy]:
        known = self.witnesses.known(self.lower, self.mounts)
        root = self.container.root
        self._listing = self._list(root)
        if known is not None and known == self._listing:
            self.verified.append(
                "in the container: base and environment, by inode, size and ctime since their "
                "last comparison by content"
            )
            return []
        if known is not None and root is None:
            self.complete = False
            self.missing.append(
                "base and environment were compared by content at their first use on this engine, "
                "not now: the container's root cannot be seen from here"
            )
            return []
        found = compare_rest(self.container, self.lower, self.mounts, progress)
        if not found:
            self.witnesses.remember(self.lower, self.mounts, self._listing or "content")
            self.verified.append("in the container: base and environment, by content, set equality")
        return found

    def _list(self, root: Path | None) -> str | None:
        if root is None:
            return None
        try:
            return listing_digest(root, self.mounts)
        except OSError:
            return None

    def after(self) -> list[Discrepancy]:
        """Compare again after the end; return what was changed or removed, and where it matters."""
        compared = compare_workdir(self.container, self.manifest)
        found = [discrepancy for discrepancy in compared if discrepancy.what != "extra"]
        found += self._planted([d.path for d in compared if d.what == "extra"])
        self.verified.append(f"after the end: the committed files in {WORKDIR}, by content")
        found += self._undone({discrepancy.path for discrepancy in found})
        if self._listing is None:
            self.complete = False
            self.missing.append("base and environment were not compared after the end")
        elif self._list(self.container.root) != self._listing:
            found.append(Discrepancy("/", "changed outside the workdir"))
        return found

    def _planted(self, extra: list[str]) -> Iterator[Discrepancy]:
        """Yield new files in the workdir that the experiment cannot have made: not its user's."""
        root = self.container.root
        if root is None:
            return
        try:
            owner = user_of(root)
        except (OSError, ValueError):
            self.missing.append("whose the new files in the workdir are could not be seen")
            return
        for path in extra:
            with contextlib.suppress(OSError):
                if os.lstat(f"{root}{path}").st_uid != owner:
                    yield Discrepancy(path, "new, and not the experiment's")

    def _undone(self, known: set[str]) -> Iterator[Discrepancy]:
        """Yield what was changed and put back."""
        root = self.container.root
        if root is None or self._identities is None or self._mounts is None:
            self.missing.append(
                "what was changed in the container and put back could not be seen from here"
            )
            return
        after = identities(root, self.manifest)
        for path, mark in self._identities.items():
            name = f"{WORKDIR}/{path.decode('utf-8', 'surrogateescape')}"
            if after.get(path) != mark and name not in known:
                yield Discrepancy(name, "rewritten; its committed bytes are back")
        if mounts := self._mounts.changed():
            yield Discrepancy("/", f"mounted or unmounted upon during the run: {mounts}")

    def close(self) -> None:
        """Let go of what was watched. Safe to repeat."""
        mounts, self._mounts = self._mounts, None
        if mounts is not None:
            mounts.close()
