"""Seeds as content-addressed data, and the records that find them.

Rules that this module keeps:

- A seed stands under the digest of its manifest, which names every file with its hash and says
  where the seed came from; it appears there only when it is complete, by one rename.
- What is handed out was hashed again just now. What was changed on disk is never handed out.
- A record names the newest seed of a key; it is written after the seed. One that cannot be read is
  none.
- Files are readable by everybody and writable by nobody, below a directory that is the owner's
  alone: the experiment's user reads them through the mount.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sealrun import nested
from sealrun.caches.gather import MOST_FILES, Entry, difference, gather
from sealrun.caches.key import digest as key_digest
from sealrun.errors import StorageFault
from sealrun.image.store import write_atomically
from sealrun.regular import beginning
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sealrun.state import Places

#: Counts up when the meaning of a manifest changes; older ones are not used any more.
_VERSION = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MANIFEST, _FILES = "manifest.json", "files"
#: Bytes that are read of a manifest (the most files, each with a long name) and of a record.
_LARGEST, _RECORD = MOST_FILES << 11, 1 << 10


class Unusable(Exception):
    """Why a seed cannot be used, as a clause; never leaves the package."""


@dataclass(frozen=True)
class Origin:
    """Where a seed came from.

    Attributes:
        commit: whose code filled the caches.
        command: that was run to fill them.
        ended: how the command ended, in a clause.
        made: when, ISO 8601.
    """

    commit: str
    command: tuple[str, ...]
    ended: str
    made: str


@dataclass(frozen=True)
class Seed:
    """A seed that was hashed just now.

    Attributes:
        digest: sha256 of its manifest.
        key: what it is good for, by name (``key.parts``).
        directory: its files.
        skipped: how many links, pipes, devices, locks and the like were not taken into it.
    """

    digest: str
    key: Mapping[str, object]
    origin: Origin
    entries: tuple[Entry, ...]
    directory: Path
    skipped: int = 0

    @property
    def files(self) -> int:
        """How many files it has."""
        return sum(1 for entry in self.entries if entry.sha256 is not None)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.entries)

    @property
    def room(self) -> int:
        """Bytes of memory that a copy takes: whole pages (tmpfs(5))."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(-(-entry.size // page) * page for entry in self.entries)

    @property
    def largest(self) -> int:
        """Bytes of its largest file."""
        return max((entry.size for entry in self.entries), default=0)


class SeedStore:
    """Where seeds stand."""

    def __init__(self, places: Places) -> None:
        self.directory = private(places.data / "caches")

    def keep(self, source: Path, key: Mapping[str, object], origin: Origin) -> Seed | None:
        """Take a seed out of a directory that a container wrote to, and make it a key's newest.

        Returns:
            The seed; None where there was not one file to keep.

        Raises:
            Unkept: it is more than a seed may be; nothing changed.
            StorageFault: the disk does not take it.
        """
        draft = private(self.directory / "partial" / secrets.token_hex(8))
        try:
            files = draft / _FILES
            files.mkdir(mode=0o755)
            files.chmod(0o755)
            found = gather(source, files)
            if not found.files:
                return None
            manifest = {
                "version": _VERSION,
                "key": dict(key),
                "origin": asdict(origin),
                "entries": [list(asdict(entry).values()) for entry in found.entries],
                "skipped": found.skipped,
            }
            text = json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode("ascii")
            (draft / _MANIFEST).write_bytes(text)
            seed = hashlib.sha256(text).hexdigest()
            place = self._place(seed)
            private(place.parent)
            if place.exists():
                # The same bytes at the same moment, or what is left of them.
                place.rename(self._aside())
            draft.rename(place)
            record = {"version": _VERSION, "digest": seed}
            write_atomically(self._record(key_digest(key)), json.dumps(record).encode())
        except OSError as error:
            raise StorageFault(
                f"cannot keep caches in {self.directory}: {error.strerror}",
                hint="Free space or fix its permissions, or set SEALRUN_HOME to another place.",
            ) from error
        finally:
            # What cannot go now sealrun gc removes.
            with contextlib.suppress(OSError):
                nested.remove(draft)
        return Seed(seed, key, origin, found.entries, place / _FILES, found.skipped)

    def newest(self, key: Mapping[str, object]) -> str | None:
        """Return the digest of a key's newest seed, or None where there is none."""
        try:
            document: Any = json.loads(beginning(self._record(key_digest(key)), _RECORD) or b"")
            seed = document["digest"] if document["version"] == _VERSION else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return seed if isinstance(seed, str) and _DIGEST.fullmatch(seed) else None

    def open(self, digest: str) -> Seed:
        """Return a seed whose every byte was compared with its digest.

        Raises:
            Unusable: it is not here, or is not what it was.
        """
        if not _DIGEST.fullmatch(digest):
            raise Unusable("the name of the warmed ones is no digest")
        place = self._place(digest)
        text = beginning(place / _MANIFEST, _LARGEST + 1)
        if text is None:
            raise Unusable("the manifest of the warmed ones is gone or cannot be read")
        if hashlib.sha256(text).hexdigest() != digest:
            raise Unusable("the manifest of the warmed ones was changed on disk")
        seed = _read(digest, text, place / _FILES)
        if found := _compared(seed.directory, seed.entries):
            raise Unusable(f"the warmed ones were changed on disk: {found}")
        return seed

    def files(self, digest: str) -> Path:
        """Return the directory of a seed's files, or where it would be."""
        return self._place(digest) / _FILES

    def _place(self, digest: str) -> Path:
        return self.directory / "seeds" / digest

    def _record(self, key: str) -> Path:
        return private(self.directory / "records") / f"{key}.json"

    def _aside(self) -> Path:
        return private(self.directory / "partial") / secrets.token_hex(8)


def _read(digest: str, manifest: bytes, directory: Path) -> Seed:
    try:
        document: Any = json.loads(manifest)
        if document["version"] != _VERSION:
            raise Unusable("another version of sealrun kept the warmed ones")
        origin = document["origin"]
        seed = Seed(
            digest,
            dict(document["key"]),
            Origin(
                commit=_text(origin["commit"]),
                command=tuple(map(_text, origin["command"])),
                ended=_text(origin["ended"]),
                made=_text(origin["made"]),
            ),
            tuple(Entry(_text(path), *values) for path, *values in document["entries"]),
            directory,
            document["skipped"],
        )
        # Whoever wrote it may have put anything where a number belongs.
        _ = seed.size + seed.largest + seed.skipped
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable("the manifest of the warmed ones is none of ours") from error
    return seed


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _compared(directory: Path, entries: Sequence[Entry]) -> str | None:
    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return f"they cannot be read: {error.strerror}"
    try:
        return difference(top, entries)
    finally:
        os.close(top)
