"""What making an environment will take: bytes to fetch, bytes on the disk, and time.

Rules that this module keeps:

- Sizes come from the lock, from the files themselves, or from the server that has them (HEAD); what
  nobody tells is left out and said.
- Work is refused only where even the least that it needs does not fit: a wheel unpacks to no less
  than its own size. The estimate that is told is higher.
- How far it is shows in what appears on the disk, because the tool that fetches does not tell.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from sealrun.errors import EnvironmentFault
from sealrun.nested import walk
from sealrun.state import free_room

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from sealrun.image.lock import Wheel
    from sealrun.progress import Progress

#: Bytes that a byte of a wheel unpacks to (PyTorch 2.13 for CPUs: 3.7, CUDA's libraries: about 2).
_UNPACKED = 3.7
#: Bytes of our compressed layer, and of what an engine stages, for each unpacked one.
_PACKED = 0.4
#: Bytes a second that are assumed where nothing is known: of a line, and of a disk with a packer.
_LINE, _DISK = 10e6, 60e6
_HEAD_TIMEOUT = 10.0
_EVERY = 2.0


@runtime_checkable
class Teller(Protocol):
    """Somebody who takes lines for the user beside progress."""

    def say(self, text: str) -> None:
        """Take a line."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What an environment will take.

    Attributes:
        packages: how many files are installed.
        fetched: bytes of them.
        least: bytes that they unpack to at least.
        unpacked: bytes that they will probably unpack to.
        unknown: files whose size nobody tells; not counted.
    """

    packages: int
    fetched: int
    least: int
    unpacked: int
    unknown: int

    @property
    def peak(self) -> int:
        """Bytes on sealrun's disk at the worst moment: unpacked files and the layer made of them."""
        return int(self.unpacked * (1 + _PACKED))

    @property
    def kept(self) -> int:
        """Bytes of the stored layer."""
        return int(self.unpacked * _PACKED)

    @property
    def seconds(self) -> float:
        """Of fetching at 10 MB/s, unpacking and packing."""
        return self.fetched / _LINE + self.unpacked / _DISK

    def words(self) -> str:
        """Return it as a sentence."""
        unknown = f", and {self.unknown} of unknown size" if self.unknown else ""
        return (
            f"{self.packages} packages: {self.fetched / 1e6:.0f} MB to fetch{unknown}, about "
            f"{self.peak / 1e6:.0f} MB of disk meanwhile and {self.kept / 1e6:.0f} MB afterwards, "
            f"as much again as the {self.unpacked / 1e6:.0f} MB unpacked in the engine; "
            f"about {max(1, round(self.seconds / 60))} min at 10 MB/s"
        )


def estimate(wheels: Sequence[Wheel], committed: Path, env: Mapping[str, str]) -> Estimate:
    """Add up what wheels take; asks servers where the lock does not say.

    Args:
        committed: where files of the commit stand that ``Wheel.path`` names.
        env: of uv: where folders of wheels are.
    """

    def sizes_of(wheel: Wheel) -> tuple[int, int | None] | None:
        return _sizes(wheel, committed, env)

    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(sizes_of, wheels))
    known = [one for one in sizes if one is not None]
    return Estimate(
        packages=len(wheels),
        fetched=sum(size for size, _ in known),
        least=sum(max(size, unpacked or 0) for size, unpacked in known),
        unpacked=sum(int(size * _UNPACKED) if exact is None else exact for size, exact in known),
        unknown=len(wheels) - len(known),
    )


def require_room(needed: Estimate, scratch: Path, what: str) -> None:
    """Refuse to begin what cannot end.

    Args:
        scratch: where it is unpacked.
        what: is made, for the message.

    Raises:
        EnvironmentFault: the disk has not even room for the least that it takes.
    """
    room = free_room(scratch)
    free = None if room is None else room + _there(scratch)
    if free is not None and needed.least > free:
        raise EnvironmentFault(
            f"{what} needs at least {needed.least} bytes at {scratch} and probably {needed.peak}, "
            f"{free} are free",
            hint="sealrun gc removes what no run needs; or set SEALRUN_HOME to another disk.",
        )


@contextlib.contextmanager
def shown(needed: Estimate, scratch: Path, progress: Progress) -> Generator[None]:
    """Say what it takes, and then show by what appears on the disk how far it is."""
    if isinstance(progress, Teller):
        progress.say(needed.words())
    over = threading.Event()
    with progress.task(f"fetching {needed.packages} packages", needed.unpacked or None) as task:

        def watch() -> None:
            done = 0
            while not over.wait(_EVERY):
                now = min(_there(scratch), needed.unpacked)
                task.advance(max(0, now - done))
                done = max(done, now)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _there(scratch: Path) -> int:
    """Return the bytes that stand below a directory, each inode once."""
    seen: dict[int, int] = {}
    for directory, _, files in walk(scratch):
        for name in files:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(directory, name))  # noqa: PTH118 - as it is walked
                seen[found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def _sizes(wheel: Wheel, committed: Path, env: Mapping[str, str]) -> tuple[int, int | None] | None:
    """Return a file's bytes, and those that it unpacks to where that can be read; None: unknown."""
    from sealrun.image.install import requirement

    if wheel.path is not None:
        return _of_file(committed / wheel.path)
    place = requirement(wheel, committed, env).partition(" @ ")[2].partition(" --hash")[0]
    address = urlsplit(place)
    if address.scheme == "file":
        return _of_file(Path(unquote(address.path)))
    if wheel.size is not None:
        return wheel.size, None
    if address.scheme not in ("http", "https"):
        return None
    request = urllib.request.Request(place, method="HEAD")  # noqa: S310 - scheme checked
    try:
        with urllib.request.urlopen(request, timeout=_HEAD_TIMEOUT) as answer:  # noqa: S310 - likewise
            size = int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return (size, None) if size > 0 else None


def _of_file(file: Path) -> tuple[int, int | None] | None:
    try:
        size = file.stat().st_size
        with zipfile.ZipFile(file) as archive:
            return size, sum(max(0, one.file_size) for one in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
