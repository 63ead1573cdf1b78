"""Where state, data, cache and sockets live; nobody else knows.

Rules that this module keeps:

- XDG base directories (specification 0.8), each overridable for tests and services by one
  variable, ``SEALRUN_HOME``, which moves all of them below one directory.
- Everything is private to its owner: directories are made 0700.
- State of one repository is keyed by a random id that ``.git/sealrun/id`` of the common git
  directory holds; that file is all that we ever put there.
- What can be rebuilt is cache; what a run needs to be reproduced is data; what happened is state.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from sealrun.errors import StorageFault

ID_FILE = "sealrun/id"
#: For locks of the whole host (Filesystem Hierarchy Standard 3.0, /run/lock); where a distribution
#: keeps that for root, memory that everybody shares.
_LEASES = (Path("/run/lock"), Path("/dev/shm"), Path("/tmp"))  # noqa: S108 - each file is checked


@dataclass(frozen=True)
class Places:
    """The four roots of one user's installation."""

    state: Path
    data: Path
    cache: Path
    runtime: Path

    @classmethod
    def of_user(cls) -> Places:
        """Return the places of the calling user, from ``SEALRUN_HOME`` or the XDG variables."""
        home = os.environ.get("SEALRUN_HOME")
        if home:
            root = Path(home).absolute()
            return cls(root / "state", root / "data", root / "cache", root / "runtime")
        dirs = platformdirs.PlatformDirs("sealrun", appauthor=False)
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        return cls(
            Path(dirs.user_state_dir),
            Path(dirs.user_data_dir),
            Path(dirs.user_cache_dir),
            # Not platformdirs': where the variable is missing it picks a directory that another
            # user may have made first.
            Path(runtime) / "sealrun" if runtime else Path(dirs.user_state_dir) / "sockets",
        )

    @property
    def layers(self) -> Path:
        """Content-addressed layers: files named by their sha256."""
        return private(self.data / "layers")

    @property
    def bases(self) -> Path:
        """Records of bases and environments: small JSON files that point into ``layers``."""
        return private(self.data / "records")

    @property
    def init(self) -> Path:
        """Copies of the container init, one directory a digest, for mounting into containers."""
        return private(self.data / "init")

    @property
    def engine(self) -> Path:
        """Data-root, exec-root, socket and pid file of the private engine."""
        return private(self.data / "engine")

    @property
    def keys(self) -> Path:
        """The key that signs the caller's runs, and those that others' runs are checked with."""
        return private(self.data / "keys")

    def imported(self, repository: str) -> Path:
        """Runs of other ledgers that came from bundles, a directory each."""
        return private(self.repository(repository) / "imported")

    def spool(self, repository: str) -> Path:
        """Re-hashed git objects of one repository."""
        return private(self.cache / "spool" / repository)

    def trees(self, repository: str) -> Path:
        """The last tree layers of one repository."""
        return private(self.cache / "trees" / repository)

    def repository(self, repository: str) -> Path:
        """Ledger, evidence and run directories of one repository."""
        return private(self.state / "repositories" / repository)

    def sessions(self, repository: str | None) -> Path:
        """Sessions of one repository, or those that began outside of any."""
        root = self.state if repository is None else self.repository(repository)
        return private(root / "sessions")

    def between(self, repository: str) -> Path:
        """What the guard's standing watch keeps of one repository: a directory for each watch."""
        return private(self.repository(repository) / "between")

    def ledger(self, repository: str) -> Path:
        """The SQLite file of one repository."""
        return self.repository(repository) / "ledger.sqlite"

    def run(self, repository: str, run_id: str) -> Path:
        """The directory of one run: lock, log, outputs."""
        return private(self.repository(repository) / "runs" / run_id)

    def guard(self, workspace: Path) -> Path:
        """The directory of one workspace's guard: socket, pid file, log.

        The name is a hash of the path: ``sun_path`` holds 108 bytes (unix(7)).
        """
        key = hashlib.sha256(os.fsencode(workspace)).hexdigest()[:16]
        return private(self.runtime / "guard" / key)


def configuration() -> Path:
    """Return the directory of the user's own configuration; it may not exist.

    ``SEALRUN_HOME`` moves it too, so that a test or a service never finds anybody else's.
    """
    home = os.environ.get("SEALRUN_HOME")
    if home:
        return Path(home).absolute() / "config"
    return Path(platformdirs.user_config_dir("sealrun", appauthor=False))


def leases() -> Path:
    """Return the directory in which runs of every user of this host take turns for its GPUs.

    ``SEALRUN_HOME`` does not move it: two homes on one host must not share a GPU by accident.
    ``SEALRUN_LEASES`` does, and has to be the same for everybody.
    """
    named = os.environ.get("SEALRUN_LEASES")
    if named:
        return Path(named).absolute()
    for place in _LEASES[:-1]:
        try:
            status = place.stat()
        except OSError:
            continue
        # Everybody comes to the same answer: nothing here depends on who asks.
        if status.st_uid == 0 and status.st_mode & 0o1002 == 0o1002:  # noqa: PLR2004 - sticky and open to all
            return place
    return _LEASES[-1]


def free_room(directory: Path) -> int | None:
    """Return the bytes that we may still write on a disk; None where its file system does not tell.

    Some of the network, in memory or in user space have no size (``f_blocks`` is 0, statvfs(3)).

    Raises:
        OSError: the directory cannot be looked at.
    """
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def private(path: Path) -> Path:
    """Make a directory, its parents included, readable by its owner alone; return it.

    Raises:
        StorageFault: it cannot be made.
    """
    try:
        if path.is_dir():
            return path
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageFault(
            f"cannot make the directory {path}: {error.strerror}",
            hint="Free space or fix its permissions, or set SEALRUN_HOME to another place.",
        ) from error
    return path


def owner_for_root(directory: Path) -> tuple[int, int] | None:
    """Return uid and gid of a directory that is somebody else's while we are root; else None.

    What root leaves in a user's repository has to be that user's, as under sudo.
    """
    if os.geteuid() != 0:
        return None
    try:
        status = directory.stat()
    except OSError:
        return None
    return (status.st_uid, status.st_gid) if status.st_uid else None


def repository_id(common_dir: Path, *, create: bool = True) -> str | None:
    """Return the id of the repository whose common git directory is given.

    Args:
        common_dir: what ``git rev-parse --git-common-dir`` names; worktrees share one id.
        create: make an id when there is none yet.

    Returns:
        32 hexadecimal digits, or None when there is none and ``create`` is false.

    Raises:
        StorageFault: the id file is unreadable, malformed, or cannot be made.
    """
    file = common_dir / ID_FILE
    try:
        text = file.read_text("ascii").strip()
    except FileNotFoundError:
        if not create:
            return None
        return _new_id(file)
    except (OSError, UnicodeDecodeError) as error:
        raise StorageFault(
            f"cannot read {file}: {error}",
            hint="Restore the file from a backup; the ledger is found by it.",
        ) from error
    if len(text) != 32 or not set(text) <= set("0123456789abcdef"):  # noqa: PLR2004 - 128 bits
        raise StorageFault(
            f"{file} does not hold a repository id",
            hint="Restore the file from a backup; the ledger is found by it.",
        )
    return text


def _new_id(file: Path) -> str:
    text = secrets.token_hex(16)
    try:
        file.parent.mkdir(exist_ok=True)
        draft = file.with_name(f"id.{os.getpid()}")
        draft.write_text(text + "\n", "ascii")
        if (owner := owner_for_root(file.parent.parent)) is not None:
            for made in (file.parent, draft):
                os.chown(made, *owner, follow_symlinks=False)
        try:
            # link, not rename: of two first commands at once one wins and both read its id.
            os.link(draft, file)
        except FileExistsError:
            text = file.read_text("ascii").strip()
        finally:
            draft.unlink()
    except OSError as error:
        raise StorageFault(
            f"cannot write {file}: {error.strerror}",
            hint="sealrun keeps one small file in the repository's git directory.",
        ) from error
    return text
