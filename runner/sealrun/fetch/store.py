"""Fetched items as content-addressed data, and the records that find them.

Rules that this module keeps:

- An item stands at a path that names what it is and ends in the digest of its manifest; it appears
  there only when it is complete, by one rename.
- A record is written after its item and names it by that digest; one that cannot be read is none.
- Files are read-only and readable by everybody below a directory that is the owner's alone: the
  experiment's user reads them through the mount.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun import nested
from sealrun.errors import StorageFault
from sealrun.image.store import write_atomically
from sealrun.state import private

if TYPE_CHECKING:
    from sealrun.state import Places

#: Counts up when the meaning of a record changes; what older ones describe is fetched again.
_VERSION = 1


@dataclass(frozen=True)
class Record:
    """What was fetched for one entry.

    Attributes:
        key: what it is kept under.
        label: how messages name it.
        server: where it came from, without query.
        revision: the pinned commit of a hub or repository; the sha256 of a single file.
        path: of the item, below the store.
        digest: sha256 over its manifest, as that of data.
        files: how many.
        size: bytes in all.
    """

    key: str
    label: str
    server: str
    revision: str
    path: str
    digest: str
    files: int
    size: int


class FetchStore:
    """Where fetched items stand."""

    def __init__(self, places: Places) -> None:
        self.directory = private(places.data / "fetched")

    def item(self, record: Record) -> Path:
        """Return where a record's item stands, or would stand."""
        return self.directory / record.path

    def item_of(self, digest: str) -> Path | None:
        """Return the item whose manifest has a digest, whatever it was fetched for; None: not here."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):  # noqa: PLR2004 - 256 bits
            return None
        places = (*self.directory.glob(f"*/*/{digest}"), *self.directory.glob(f"*/*/*/{digest}"))
        return min(places, default=None)

    def find(self, key: str) -> Record | None:
        """Return the record under a key, or None where there is none that can be used."""
        try:
            document: Any = json.loads(self._file(key).read_bytes())
            if document.pop("version") != _VERSION:
                return None
            record = Record(**document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        kinds = {name: type(value) for name, value in asdict(record).items()}
        sound = all(
            kind is (int if name in {"files", "size"} else str) for name, kind in kinds.items()
        )
        plain = sound and ".." not in record.path.split("/") and not record.path.startswith("/")
        return record if plain and record.key == key else None

    def scratch(self, key: str) -> Path:
        """Return the directory in which an item grows; what came of it stays for another try."""
        return private(self.directory / "partial" / _hashed(key))

    def keep(self, record: Record, grown: Path) -> None:
        """Put a complete item, sealed, into its place and write its record.

        An item that stands there already is replaced: the caller found it damaged.

        Raises:
            StorageFault: the disk does not take it.
        """
        place = self.item(record)
        try:
            private(place.parent)
            if place.exists():
                aside = private(self.directory / "partial") / f"damaged-{record.digest}"
                nested.remove(aside)
                place.rename(aside)
                grown.rename(place)
                nested.remove(aside)
            else:
                grown.rename(place)
        except OSError as error:
            raise StorageFault(
                f"cannot keep what was fetched at {place}: {error.strerror}",
                hint="Free space or fix its permissions, or set SEALRUN_HOME to another place.",
            ) from error
        document = {"version": _VERSION, **asdict(record)}
        write_atomically(
            self._file(record.key), json.dumps(document, indent=1, sort_keys=True).encode()
        )
        nested.remove(self.directory / "partial" / _hashed(record.key))

    def _file(self, key: str) -> Path:
        return private(self.directory / "records") / f"{_hashed(key)}.json"


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def seal(grown: Path) -> None:
    """Make a complete item readable by all and writable by nobody, and put it on the disk.

    Raises:
        OSError: the disk does not take it.
    """
    files = [] if grown.is_dir() else [grown]
    for directory, _, names in nested.walk(grown):
        Path(directory).chmod(0o755)
        files += [Path(directory, name) for name in names]
    for file in files:
        if file.is_symlink():
            continue
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(handle, 0o444 | (os.fstat(handle).st_mode & 0o111))
            os.fsync(handle)
        finally:
            os.close(handle)
