"""Pure: the files that a hub says a commit holds, checked before any is asked for.

Rules that this module keeps:

- A path that leaves its directory, that another path stands in the way of, or that a file system
  could take for another one, is an error that names it; nothing is renamed or left out silently.
- Each file has a size and a hash from the listing, so that its body is bounded and checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

from sealrun.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Files of one repository; the largest on the public hub are far below.
MOST_FILES = 200_000
#: Bytes of one file: what the hub takes at most is 500 GB (its documentation on limits).
LARGEST_FILE = 1 << 40
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST = 255


@dataclass(frozen=True)
class HubFile:
    """One file of a hub's repository.

    Attributes:
        path: relative, of plain parts.
        size: bytes.
        blob: how the client's cache names its content: the sha256 of a file kept by Git LFS, else
            git's id of the blob.
    """

    path: str
    size: int
    blob: str


def read_page(document: Any) -> list[HubFile]:  # noqa: ANN401 - JSON of a stranger
    """Return the files of one page of a listing; directories are left out.

    Source: the hub's API, ``/api/models/ID/tree/REVISION``: objects with ``type``, ``path``,
    ``size``, ``oid`` and, for LFS, ``lfs`` with ``oid`` and ``size``.

    Raises:
        EnvironmentFault: it is something else.
    """
    if not isinstance(document, list):
        raise _strange("it is no list")
    found: list[HubFile] = []
    for row in cast("list[object]", document):
        if not isinstance(row, dict):
            raise _strange("an entry is no object")
        entry = cast("dict[str, object]", row)
        if entry.get("type") == "directory":
            continue
        found.append(_file(entry))
    return found


def _file(entry: dict[str, object]) -> HubFile:
    path, size, blob = entry.get("path"), entry.get("size"), entry.get("oid")
    lfs = entry.get("lfs")
    if isinstance(lfs, dict):
        kept = cast("dict[str, object]", lfs)
        size, blob = kept.get("size"), kept.get("oid")
    pattern = _SHA1 if lfs is None else _SHA256
    if entry.get("type") != "file" or not isinstance(path, str):
        raise _strange("an entry is neither a file nor a directory")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= LARGEST_FILE:
        raise _strange(f"{path!r} has the size {size!r}")
    if not isinstance(blob, str) or not pattern.fullmatch(blob):
        raise _strange(f"{path!r} has the hash {blob!r}")
    check_path(path)
    return HubFile(path, size, blob)


def check_path(path: str) -> None:
    """Refuse a path that is not relative and plain.

    Raises:
        EnvironmentFault: it is not.
    """
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode()) <= _LONGEST for part in parts)
    if not plain or not path.isprintable() or "\\" in path or len(path.encode()) > 16 * _LONGEST:
        raise _strange(f"the path {path[:200]!r} could leave its directory")


def chosen(files: Iterable[HubFile], allow: Sequence[str]) -> tuple[HubFile, ...]:
    """Return the files that the patterns want, sorted by path; without patterns all.

    Source: huggingface_hub, ``allow_patterns``: shell patterns over the whole path, in which ``*``
    also covers ``/``; one that ends in ``/`` means all below.

    Raises:
        EnvironmentFault: two files claim one path, or one is a directory of the other.
    """
    patterns = [pattern + "*" if pattern.endswith("/") else pattern for pattern in allow]
    found = {
        file.path: file
        for file in files
        if not patterns or any(fnmatchcase(file.path, pattern) for pattern in patterns)
    }
    for path in found:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in found:
                raise _strange(f"{parent!r} is a file and a directory")
            parent = parent.rpartition("/")[0]
    return tuple(found[path] for path in sorted(found))


def _strange(what: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the hub's listing cannot be used: {what}",
        hint="Nothing was kept. Check HF_ENDPOINT, and whether this server is the hub you mean.",
    )
