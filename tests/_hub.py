"""A model hub for tests: the part of its HTTP protocol that clients use to find and load files.

Rules: written from the protocol (paths, answers and headers that the public clients ask for); every
request is noted; a test makes it misbehave by replacing an answer of one path.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit

from _http import served

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping


def git_blob(content: bytes) -> str:
    """Return git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    """One repository: branches to commits, commits to files."""

    kind: str
    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    branches: dict[str, str] = field(default_factory=dict[str, str])
    lfs: frozenset[str] = frozenset()

    def push(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Commit files to a branch; return the commit's id."""
        seed = json.dumps([branch, sorted((p, c.hex()) for p, c in files.items())])
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def tree(self, commit: str) -> list[dict[str, Any]]:
        """Return the listing of a commit, as the hub gives it."""
        rows: list[dict[str, Any]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": "d"}
        ]
        for path, content in self.commits[commit].items():
            row: dict[str, Any] = {"type": "file", "oid": git_blob(content), "size": len(content)}
            row["path"] = path
            if path in self.lfs:
                sha256 = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            rows.append(row)
        return rows


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Hub:
    """What the server holds and what it was asked.

    Attributes:
        asked: method, path with query, headers of each request.
        instead: path to what answers in place of the hub; None lets the hub answer, unless ``answered``.
        token: where set, every request must bear it.
        page: rows of one page of a listing.
    """

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict[tuple[str, str], Repo])
    asked: list[tuple[str, str, dict[str, str]]] = field(
        default_factory=list[tuple[str, str, dict[str, str]]]
    )
    instead: dict[str, Callable[[Handler], Answer | None]] = field(
        default_factory=dict[str, "Callable[[Handler], Answer | None]"]
    )
    token: str | None = None
    page: int = 1000
    url: str = ""

    def repo(self, name: str, kind: str = "model", lfs: frozenset[str] = frozenset()) -> Repo:
        """Make an empty repository."""
        repo = Repo(kind, name, lfs=lfs)
        self.repos[kind, name] = repo
        return repo

    def paths(self) -> list[str]:
        """Return the paths asked for, in order."""
        return [urlsplit(path).path for _, path, _ in self.asked]

    def answer(self, handler: Handler) -> Answer:
        """Return status, headers and body for a request."""
        parts = urlsplit(handler.path)
        path = unquote(parts.path)
        if (
            self.token is not None
            and handler.headers.get("Authorization") != f"Bearer {self.token}"
        ):
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        for (kind, name), repo in self.repos.items():
            api = f"/api/{kind}s/{name}"
            files = f"/{name}" if kind == "model" else f"/{kind}s/{name}"
            if path.startswith(f"{api}/revision/"):
                return self._revision(repo, path.removeprefix(f"{api}/revision/"))
            if path == api:
                return self._revision(repo, "main")
            if path.startswith(f"{api}/tree/"):
                return self._tree(repo, path.removeprefix(f"{api}/tree/"), parts.path, parts.query)
            if path.startswith(f"{files}/resolve/"):
                revision, _, file = path.removeprefix(f"{files}/resolve/").partition("/")
                return _file(repo, revision, file, handler.headers.get("Range"))
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _revision(self, repo: Repo, revision: str) -> Answer:
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        document = {"id": repo.name, "modelId": repo.name, "sha": commit, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()

    def _tree(self, repo: Repo, commit: str, path: str, query: str) -> Answer:
        if commit not in repo.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        rows = repo.tree(commit)
        start = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        headers = {"Content-Type": "application/json"}
        if start + self.page < len(rows):
            headers["Link"] = f'<{self.url}{path}?cursor={start + self.page}>; rel="next"'
        return 200, headers, json.dumps(rows[start : start + self.page]).encode()


def _file(repo: Repo, revision: str, path: str, wanted: str | None) -> Answer:
    commit = repo.branches.get(revision, revision)
    content = repo.commits.get(commit, {}).get(path)
    if content is None:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    etag = hashlib.sha256(content).hexdigest() if path in repo.lfs else git_blob(content)
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    if wanted is None:
        return 200, headers, content
    start = int(wanted.removeprefix("bytes=").rstrip("-"))
    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return 206, headers, content[start:]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    #: The one that is served.
    hub: ClassVar[Hub]
    #: Set by what answered in place of the hub, byte by byte.
    answered = False

    def do_GET(self) -> None:
        self.answered = False
        hub = self.hub
        hub.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        own = hub.instead.get(unquote(urlsplit(self.path).path))
        answer = own(self) if own else None
        if self.answered:
            self.close_connection = True
            return
        status, headers, body = answer or hub.answer(self)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(hub: Hub | None = None) -> Generator[Hub]:
    """Serve a hub on this machine; its address is ``hub.url``."""
    hub = hub or Hub()
    with served(type("Bound", (Handler,), {"hub": hub})) as hub.url:
        yield hub
