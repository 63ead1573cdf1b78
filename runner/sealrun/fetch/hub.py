"""A repository of a model hub, in the layout of its own client's cache.

Rules that this module keeps:

- The server is the one that the client itself would ask: ``HF_ENDPOINT``, else the public hub.
- A branch or tag is resolved to its commit first; everything after names the commit.
- Each body is bounded by the listing's size and checked against the listing's hash.
- What is made is what the client would have made: ``blobs/HASH``, ``snapshots/COMMIT/PATH`` as
  links to them, and ``refs/NAME`` with the commit. ``refs/main`` is always there: code that names
  no revision gets the one that the policy names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from sealrun import nested
from sealrun.errors import EnvironmentFault
from sealrun.fetch import listing
from sealrun.fetch.transfer import Answered, Expected, Server, shown
from sealrun.fetch.wanted import COMMIT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sealrun.fetch.listing import HubFile
    from sealrun.policy import HubFetch
    from sealrun.progress import Task

#: The public hub, which its client asks by default.
PUBLIC = "https://huggingface.co"
_SHA256 = 64
#: Pages of one listing.
_MOST_PAGES = 1000


def endpoint() -> str:
    """Return the hub that the client of the caller would ask."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")


class Hub:
    """One repository of a hub.

    Args:
        entry: which.
        at: the hub's address.
        token: what opens it, if anything.
    """

    def __init__(self, entry: HubFetch, at: str, token: str | None) -> None:
        self._entry = entry
        self._at = at
        self._server = Server(at, token)
        name = "/".join(quote(part, safe="") for part in entry.repository.split("/"))
        self._api = f"{at}/api/{entry.type}s/{name}"
        # Models stand at the top, the other kinds below their own name.
        self._files = f"{at}/{name}" if entry.type == "model" else f"{at}/{entry.type}s/{name}"

    def resolve(self, revision: str) -> str:
        """Return the full commit that a revision names now.

        Raises:
            EnvironmentFault: there is no such repository or revision, or the hub does not answer.
        """
        if COMMIT.fullmatch(revision):
            return revision
        url = f"{self._api}/revision/{quote(revision, safe='')}"
        document, _ = self._json(url)
        commit = document.get("sha") if isinstance(document, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise EnvironmentFault(
                f"{shown(url)} names no commit",
                hint="Check HF_ENDPOINT: what answers there is not a hub.",
            )
        return commit

    def files(self, commit: str) -> tuple[HubFile, ...]:
        """Return the wanted files of a commit.

        Raises:
            EnvironmentFault: the listing cannot be used, or holds nothing that is wanted.
        """
        found: list[HubFile] = []
        url: str | None = f"{self._api}/tree/{commit}?recursive=true&expand=false"
        for _ in range(_MOST_PAGES):
            document, url = self._json(url)
            found += listing.read_page(document)
            if len(found) > listing.MOST_FILES:
                raise EnvironmentFault(f"{self._entry.repository} lists too many files")
            if url is None:
                break
        else:
            raise EnvironmentFault(f"the listing of {self._entry.repository} does not end")
        chosen = listing.chosen(found, self._entry.allow)
        if not chosen:
            raise EnvironmentFault(
                f"{self._entry.repository} at {commit[:12]} holds no file that is wanted "
                f"(of {len(found)})",
                hint="Correct allow under [[fetch]]: a pattern covers the whole path.",
            )
        return chosen

    def download(self, commit: str, files: Sequence[HubFile], blobs: Path, task: Task) -> None:
        """Download what is not there yet, one file a blob.

        Raises:
            SealRefused: a body is not what the listing says.
            EnvironmentFault: a file is missing, or the hub does not answer.
        """
        blobs.mkdir(exist_ok=True)
        for file in files:
            task.describe(file.path)
            done, draft = blobs / file.blob, blobs / f"{file.blob}.part"
            if done.exists():
                # Of an earlier attempt, or of a file with the same content: hashed again.
                done.replace(draft)
            if draft.exists():
                task.advance(draft.stat().st_size)
            kept_by_lfs = len(file.blob) == _SHA256
            expected = Expected(
                largest=file.size,
                size=file.size,
                sha256=file.blob if kept_by_lfs else None,
                blob=None if kept_by_lfs else file.blob,
            )
            url = f"{self._files}/resolve/{commit}/{quote(file.path)}"
            try:
                self._server.file(url, draft, expected, task, file.path)
            except Answered as answered:
                raise self._explained(answered) from answered
            draft.replace(done)

    def _json(self, url: str | None) -> tuple[object, str | None]:
        try:
            return self._server.json(url or "")
        except Answered as answered:
            raise self._explained(answered) from answered

    def _explained(self, answered: Answered) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self._entry.type} {self._entry.repository} at {self._entry.revision} cannot be "
            f"fetched from {shown(self._at)}: {answered.message}",
            hint=answered.hint,
        )


def lay_out(entry: HubFetch, commit: str, files: Sequence[HubFile], directory: Path) -> None:
    """Make snapshots and refs beside ``blobs``, as the client's cache has them.

    Raises:
        OSError: the disk does not take it.
    """
    for earlier in ("snapshots", "refs"):
        # An attempt that ended here may have been for another commit.
        nested.remove(directory / earlier)
    wanted = {file.blob for file in files}
    for stray in (directory / "blobs").iterdir():
        if stray.name not in wanted:
            stray.unlink()
    for file in files:
        link = directory / "snapshots" / commit / file.path
        nested.make(link.parent)
        up = "../" * (file.path.count("/") + 2)
        link.symlink_to(f"{up}blobs/{file.blob}")
    names = {"main"} if COMMIT.fullmatch(entry.revision) else {"main", entry.revision}
    for name in names:
        ref = directory / "refs" / name
        nested.make(ref.parent)
        ref.write_text(commit, "ascii")
