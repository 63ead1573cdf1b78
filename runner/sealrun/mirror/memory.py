"""What this machine remembers of its mirrors, and which repositories wait for one.

Rules that this module keeps:

- A repository that waits is a small file of its own, made by whoever ended a run and removed by
  whoever mirrored it everywhere; both survive being killed at any moment.
- What was mirrored last is remembered here too: a mirror that is gone, or holds less than it did, is
  told from one that never began.
- One process mirrors a repository at a time, and one waits in the background; the kernel gives
  their locks back however they die.
- There is no secret in any of these files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from sealrun import detached, smallfile
from sealrun.errors import StorageFault
from sealrun.ledger.codec import Misfit, from_document
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from sealrun.state import Places

_BACKGROUND = "background.lock"
_REPOSITORY = re.compile(r"[0-9a-f]{32}")
_MACHINE = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Standing:
    """What is remembered of one destination of one repository.

    Attributes:
        name: as the user calls it.
        succeeded: when the mirror was last whole, in seconds since 1970.
        seq: number of the last event that it held then; ``hash`` its hash.
        failed: when it last failed; ``failures``: how often since it was whole.
        why: what was wrong then; ``hint``: what can be done.
        differs: the local chain was found not to continue what the mirror holds.
        left_out: files that were not taken.
    """

    name: str
    succeeded: float | None = None
    seq: int = 0
    hash: str = ""
    failed: float | None = None
    failures: int = 0
    why: str | None = None
    hint: str | None = None
    differs: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class Due:
    """A repository that waits to be mirrored.

    Attributes:
        repository: its id.
        workspace: its working directory.
        at: when it was last asked for, in seconds since 1970.
        mark: which of several requests it is.
    """

    repository: str
    workspace: str
    at: float
    mark: tuple[int, int] = field(default=(0, 0), compare=False)


class Memory:
    """The mirror's directory below the state.

    Raises:
        StorageFault: it cannot be made.
    """

    def __init__(self, places: Places) -> None:
        self.directory = private(places.state / "mirror")
        self._due = private(self.directory / "due")
        self._standing = private(self.directory / "standing")

    def machine(self) -> str:
        """Return what this machine's lines are called: random, made once.

        Raises:
            StorageFault: it cannot be read or written.
        """
        file = self.directory / "machine"
        try:
            with contextlib.suppress(FileNotFoundError):
                text = file.read_text("ascii").strip()
                if _MACHINE.fullmatch(text):
                    return text
                raise StorageFault(f"{file} does not name a machine", hint="Restore or remove it.")
            draft = file.with_name(f".machine.{secrets.token_hex(4)}")
            draft.write_text(secrets.token_hex(8) + "\n", "ascii")
            try:
                with contextlib.suppress(FileExistsError):
                    os.link(draft, file)
            finally:
                draft.unlink()
            return file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StorageFault(f"cannot read or write {file}: {error}") from error

    # -- repositories that wait --------------------------------------------------------------------

    def ask(self, due: Due) -> None:
        """Ask for a repository to be mirrored.

        Raises:
            OSError: it cannot be written.
        """
        content = {"repository": due.repository, "workspace": due.workspace, "at": due.at}
        smallfile.write(self._due / f"{due.repository}.json", content)

    def waiting(self) -> list[Due]:
        """Return the repositories that wait, the longest first."""
        found: list[Due] = []
        for file in self._due.glob("*.json"):
            content = smallfile.read(file)
            try:
                facts = file.stat()
                one = Due(
                    str(content["repository"]),
                    str(content["workspace"]),
                    float(content["at"]),
                    (facts.st_ino, facts.st_mtime_ns),
                )
            except (OSError, KeyError, TypeError, ValueError):
                continue
            if one.repository == file.stem and _REPOSITORY.fullmatch(one.repository):
                found.append(one)
        return sorted(found, key=lambda one: one.at)

    def done(self, due: Due) -> None:
        """Forget a repository that waited, unless it was asked for again meanwhile."""
        file = self._due / f"{due.repository}.json"
        with contextlib.suppress(OSError):
            facts = file.stat()
            if (facts.st_ino, facts.st_mtime_ns) == due.mark:
                file.unlink()

    # -- destinations ------------------------------------------------------------------------------

    def standing(self, repository: str, key: str, name: str) -> Standing:
        """Return what is remembered of a destination of a repository.

        Args:
            repository: its id.
            key: of the destination.
            name: as the user calls it, where nothing is remembered.
        """
        found = smallfile.read(self._standing / repository / f"{key}.json")
        try:
            return from_document(Standing, found)
        except Misfit:
            return Standing(name)

    def remember(self, repository: str, key: str, standing: Standing) -> None:
        """Keep what is known of a destination of a repository.

        Raises:
            OSError: it cannot be written.
        """
        smallfile.write(private(self._standing / repository) / f"{key}.json", asdict(standing))

    def trouble(self, repository: str, names: set[str]) -> str | None:
        """Return what is wrong with a repository's mirrors, in a sentence; None: nothing known.

        Args:
            repository: its id.
            names: of the destinations that are configured.
        """
        words: list[str] = []
        for file in sorted((self._standing / repository).glob("*.json")):
            one = self.standing(repository, file.stem, "")
            if one.why is not None and one.name in names:
                tries = f" ({one.failures} times in a row)" if one.failures > 1 else ""
                words.append(f"the record is not mirrored to {one.name}{tries}: {one.why}")
        return "; ".join(words) or None

    def note(self, problem: str | None) -> None:
        """Keep what is wrong with the configuration; None: nothing is.

        Raises:
            OSError: it cannot be written.
        """
        file = self.directory / "problem.json"
        if problem is not None:
            smallfile.write(file, {"problem": problem})
        else:
            file.unlink(missing_ok=True)

    def problem(self) -> str | None:
        """Return what was wrong with the configuration when it was last read."""
        found = smallfile.read(self.directory / "problem.json")
        return str(found["problem"]) if isinstance(found, dict) and "problem" in found else None

    # -- locks -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def mirroring(self, repository: str) -> Generator[None]:
        """Hold the lock of a repository's mirrors; wait for it.

        Raises:
            OSError: it cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.directory / f"{repository}.lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def become_background(self) -> int | None:
        """Return the descriptor that makes this process the background one; None: there is one."""
        return detached.become(self.directory / _BACKGROUND)

    def has_background(self) -> bool:
        """Tell whether a process mirrors in the background."""
        return detached.lives(self.directory / _BACKGROUND)


@contextlib.contextmanager
def scratch(places: Places, name: str) -> Generator[Path]:
    """Give an empty directory in the cache; what a killed process left there is removed first.

    Args:
        places: of the calling user.
        name: of the directory; its lock is held by the caller.

    Raises:
        StorageFault: it cannot be made.
    """
    directory = places.cache / "mirror" / name
    shutil.rmtree(directory, ignore_errors=True)
    try:
        yield private(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
