"""What can go from our own directories: looks, and removes nothing.

Rules that this module keeps:

- A name that we would not have given is not ours: it stays and is not looked into.
- What is young stays, whatever it is: somebody may be between making it and recording it.
- A base or an environment that no run used yet stays for a while too: it was made to be used.
- Findings come in the order in which they are to be removed: records before what they name, so that
  a death in between leaves nothing that is named and not there.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.gc.model import Finding, Kind
from sealrun.image.tree_layer import USED_RECENTLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sealrun.gc.needed import Needed
    from sealrun.state import Places

#: Seconds that drafts, orphans and caches stay after they were last changed.
YOUNG = 3600.0
#: Seconds likewise, where whoever is at work holds no lock of ours.
ABANDONED = 86400.0
#: Where directories are moved to before they are emptied.
GONE = "gone"
_LAYER = re.compile(r"[0-9a-f]{64}(?:\.gz)?")
#: Scratch of whoever sends something away: an upload, a layer for a mirror.
_SENT = re.compile(r"sync-.+|[0-9a-f]{16}\.tar")
_DRAFT = re.compile(r"[0-9a-f]{16}\.draft|\..+\.[0-9a-f]{16}")
_RECORD = re.compile(r"(base|environment)-[0-9a-f]{64}\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
#: Bytes of a record that are read.
_RECORD_LIMIT = 64 << 20


class Search:
    """Looks at one user's directories at one moment.

    Args:
        places: of the user.
        needed: what has to stay.
        unused: seconds that something prepared and never used by a run stays.
        now: seconds since the epoch; for tests.
    """

    def __init__(
        self, places: Places, needed: Needed, unused: float, now: float | None = None
    ) -> None:
        self._places = places
        self._needed = needed
        self._unused = unused
        self._now = time.time() if now is None else now

    def everything(self) -> list[Finding]:
        """Return all that can go, in order."""
        looks: tuple[Callable[[], Iterator[Finding]], ...] = (
            self._scratch,
            self._environments,
            self._tree_layers,
            self._spools,
            self._between,
            self._fetched,
            self._caches,
            self._layers,
        )
        return [finding for look in looks for finding in look()]

    # -- what died before it was done --------------------------------------------------------------

    def _scratch(self) -> Iterator[Finding]:
        cache, data = self._places.cache, self._places.data
        for root in (cache, data, self._places.state):
            for path in _entries(root / GONE):
                why = "an earlier gc was removing it when it died"
                yield Finding(Kind.SCRATCH, f"gone/{path.name}", disk_usage(path), why, (path,))
        for path in _entries(cache / "scratch"):
            patience = ABANDONED if _SENT.fullmatch(path.name) else YOUNG
            yield from self._abandoned(path, f"scratch/{path.name}", patience)
        for path in _entries(data / "unpacked"):
            yield from self._abandoned(path, f"unpacked/{path.name}", ABANDONED)
        records = (data / "records", data / "fetched" / "records", data / "caches" / "records")
        for directory in (data / "layers", *records):
            for path in _entries(directory):
                if _DRAFT.fullmatch(path.name):
                    yield from self._abandoned(path, f"{directory.name}/{path.name}")
        for store in ("fetched", "caches"):
            for path in _entries(data / store / "partial"):
                yield from self._abandoned(path, f"{store}/partial/{path.name}", ABANDONED)

    def _abandoned(self, path: Path, name: str, seconds: float = YOUNG) -> Iterator[Finding]:
        if self._is_young(path, seconds):
            return
        why = "whoever made it is gone: nothing in it changed for long"
        yield Finding(Kind.SCRATCH, name, disk_usage(path), why, (path,))

    def _environments(self) -> Iterator[Finding]:
        for path in _entries(self._places.cache / "environments"):
            if _DIGEST.fullmatch(path.name) and not self._is_young(path, YOUNG):
                yield Finding(
                    Kind.ENVIRONMENT,
                    path.name[:12],
                    disk_usage(path),
                    "it was not completed; what was fetched for it would be fetched again",
                    (path,),
                )

    # -- what is made again from git ---------------------------------------------------------------

    def _tree_layers(self) -> Iterator[Finding]:
        for directory in self._of_repositories("trees"):
            records = [p for p in _entries(directory) if p.suffix == ".json"]
            used = [p for p in records if self._is_young(p, USED_RECENTLY)]
            named = {name for path in used for name in _named(path)}
            for record in records:
                if record not in used:
                    files = [directory / n for n in sorted(_named(record) - named)]
                    there = tuple(file for file in files if file.is_file())
                    named |= {file.name for file in there}
                    size = sum(disk_usage(path) for path in (record, *there))
                    name = f"{directory.name[:12]}/{record.stem[:20]}"
                    why = "git and the commit make it again"
                    yield Finding(Kind.TREE_LAYER, name, size, why, (record, *there))
            for path in _entries(directory):
                stray = _LAYER.fullmatch(path.name) or _DRAFT.fullmatch(path.name)
                if stray and path.name not in named and not self._is_young(path, YOUNG):
                    yield Finding(
                        Kind.TREE_LAYER,
                        f"{directory.name[:12]}/{path.name[:12]}",
                        disk_usage(path),
                        "nothing names it",
                        (path,),
                    )

    def _spools(self) -> Iterator[Finding]:
        for directory in self._of_repositories("spool"):
            files = [p for p in _entries(directory) if p.is_file()]
            if not files or any(self._is_young(path, YOUNG) for path in files):
                continue
            known = directory.name in self._needed.repositories
            why = (
                "pinned commits are read from git again, and hashed again"
                if known
                else "its repository is not known here any more"
            )
            yield Finding(Kind.SPOOL, directory.name[:12], disk_usage(directory), why, (directory,))

    def _of_repositories(self, name: str) -> Iterator[Path]:
        """Yield the caches of repositories in which nothing runs."""
        for path in _entries(self._places.cache / name):
            if _ID.fullmatch(path.name) and path.name not in self._needed.alive:
                yield path

    # -- what no record points to ------------------------------------------------------------------

    def _between(self) -> Iterator[Finding]:
        standing = self._standing()
        for repository in sorted(self._needed.repositories):
            if repository in self._needed.alive:
                continue
            root = self._places.state / "repositories" / repository / "between"
            pointed_to = self._needed.between.get(repository, set())
            runs = [path for path in _entries(root) if _ULID.fullmatch(path.name)]
            # Of the newest, a guard that is about to start may take over.
            for path in runs[:-1]:
                if path.name in pointed_to or path in standing or self._is_young(path, YOUNG):
                    continue
                yield Finding(
                    Kind.EVIDENCE,
                    f"{repository[:12]}/{path.name}",
                    disk_usage(path),
                    "no alert on record points to it, and its watch is over",
                    (path,),
                )

    def _standing(self) -> set[Path]:
        """Return where guards keep evidence now, or would again when they start."""
        found: set[Path] = set()
        for file in (self._places.runtime / "guard").glob("*/standing.json"):
            try:
                found.add(Path(str(json.loads(file.read_bytes())["evidence"])))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def _named_by(self, records: Path, kind: Kind, kept: set[str]) -> Iterator[Finding]:
        """Yield the records of a store that can go; add what the others name to what is kept."""
        for record in _entries(records):
            digest = _field(record, "digest")
            if digest is None or digest in kept:
                continue
            if self._is_young(record, self._unused):
                kept.add(digest)
                continue
            yield Finding(
                kind,
                f"records/{record.name[:12]}",
                disk_usage(record),
                "no run on record used what it names, for long",
                (record,),
            )

    def _caches(self) -> Iterator[Finding]:
        root = self._places.data / "caches"
        kept = set(self._needed.caches)
        yield from self._named_by(root / "records", Kind.CACHES, kept)
        for path in _entries(root / "seeds"):
            named = _DIGEST.fullmatch(path.name) and path.name not in kept
            if named and not self._is_young(path, YOUNG):
                why = "no run on record began with it, and a later one is there or none was wanted"
                yield Finding(Kind.CACHES, path.name[:12], disk_usage(path), why, (path,))

    def _fetched(self) -> Iterator[Finding]:
        root = self._places.data / "fetched"
        kept = set(self._needed.data)
        yield from self._named_by(root / "records", Kind.FETCHED, kept)
        for path in (*root.glob("*/*/*"), *root.glob("*/*/*/*")):
            inside = path.relative_to(root)
            if inside.parts[0] in ("partial", "records") or not _DIGEST.fullmatch(path.name):
                continue
            # A hub names its files by digest too: what stands inside an item is no item.
            if any(_DIGEST.fullmatch(part) for part in inside.parts[:-1]):
                continue
            if path.name not in kept and not self._is_young(path, YOUNG):
                why = "no run on record mounted it, and no policy that was warmed lately names it"
                yield Finding(Kind.FETCHED, str(inside), disk_usage(path), why, (path,))

    def _layers(self) -> Iterator[Finding]:
        kept = set(self._needed.layers)
        for record in _entries(self._places.data / "records"):
            if _RECORD.fullmatch(record.name) is None:
                continue
            named = _layers_of(record)
            if named is None or named <= kept:
                continue
            if self._is_young(record, self._unused):
                kept |= named
                continue
            yield Finding(
                Kind.LAYER,
                f"records/{record.name[:20]}",
                disk_usage(record),
                "it describes what no run on record was made of, for long",
                (record,),
            )
        for path in _entries(self._places.data / "layers"):
            if not _LAYER.fullmatch(path.name) or self._is_young(path, YOUNG):
                continue
            if path.name.removesuffix(".gz") not in kept:
                why = "no run on record was made of it, and nothing prepared lately needs it"
                yield Finding(Kind.LAYER, path.name[:12], disk_usage(path), why, (path,))

    def _is_young(self, path: Path, seconds: float) -> bool:
        """Tell whether anything at or directly below a path changed lately, or cannot be seen."""
        oldest = self._now - seconds
        try:
            found = path.lstat()
            newest = max(found.st_mtime, found.st_ctime if stat.S_ISREG(found.st_mode) else 0)
            if stat.S_ISDIR(found.st_mode):
                with os.scandir(path) as inside:
                    times = [one.stat(follow_symlinks=False).st_mtime for one in inside]
                newest = max([newest, *times])
        except OSError:
            return True
        return newest > oldest


def _entries(directory: Path) -> list[Path]:
    """Return what stands in a directory, in order; nothing where there is none."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def disk_usage(path: Path) -> int:
    """Return the bytes that a file or a tree of files takes on its disk, each inode once."""
    seen: set[tuple[int, int]] = set()

    def taken(found: os.stat_result) -> int:
        if (found.st_dev, found.st_ino) in seen:
            return 0
        seen.add((found.st_dev, found.st_ino))
        return found.st_blocks * 512

    total, pending = 0, [os.fspath(path)]
    while pending:
        place = pending.pop()
        try:
            status = os.lstat(place)
            total += taken(status)
            if stat.S_ISDIR(status.st_mode):
                with os.scandir(place) as inside:
                    pending += [one.path for one in inside]
        except OSError:
            # Gone meanwhile, closed, or deeper than a path can say.
            continue
    return total


def _document(record: Path) -> Any:  # noqa: ANN401 - JSON of any shape
    try:
        with record.open("rb") as stream:
            return json.loads(stream.read(_RECORD_LIMIT))
    except (OSError, ValueError):
        return None


def _field(record: Path, name: str) -> str | None:
    document = _document(record)
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) else None


def _named(record: Path) -> set[str]:
    """Return the files that a tree layer's record names, of those that may stand beside it."""
    found = (_field(record, "layer"), _field(record, "manifest"))
    names = {name.removeprefix("sha256:") for name in found if name}
    return {name for name in names if _DIGEST.fullmatch(name)}


def _layers_of(record: Path) -> set[str] | None:
    """Return the digests of the layers that a base's or environment's record names; None: unread."""
    document = _document(record)
    try:
        kind = document["kind"]
        described = document[kind]
        layers = described["layers"] if kind == "base" else [described["layer"]]
        return {str(one["diff_id"]).removeprefix("sha256:") for one in layers if one is not None}
    except (KeyError, TypeError):
        return None
