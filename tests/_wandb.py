"""A small server that stands for the one of Weights & Biases, as far as its client needs one to upload."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar

from _http import served

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Uploaded:
    """What a client sent.

    Attributes:
        accepts: whether it lets anybody in.
        buckets: variables of each request that makes or changes a run.
        streams: bodies of each piece of history, output and summary, with their path.
        files: bytes of each uploaded file by name.
        keys: that it was called with.
    """

    accepts: bool = True
    url: str = ""
    buckets: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    streams: list[tuple[str, dict[str, Any]]] = field(
        default_factory=list[tuple[str, dict[str, Any]]]
    )
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    keys: set[str] = field(default_factory=set[str])

    @property
    def config(self) -> dict[str, Any]:
        """The run's config as it was sent last."""
        sent = [json.loads(one["config"]) for one in self.buckets if one.get("config")]
        return {name: one["value"] for name, one in sent[-1].items()}

    @property
    def summary(self) -> dict[str, Any]:
        """The run's summary as it was sent last."""
        found: dict[str, Any] = {}
        for _, body in self.streams:
            for line in body.get("files", {}).get("wandb-summary.json", {}).get("content", ()):
                found = json.loads(line)
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every step that was sent."""
        return [
            json.loads(line)
            for _, body in self.streams
            for line in body.get("files", {}).get("wandb-history.jsonl", {}).get("content", ())
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    uploaded: ClassVar[Uploaded]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        zipped = self.headers.get("Content-Encoding") == "gzip"
        return gzip.decompress(content) if zipped else content

    def _answer(self, document: object, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self.uploaded.files[self.path.removeprefix("/put/")] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        content = self._body()
        given = (self.headers.get("Authorization") or "").removeprefix("Basic ")
        if given:
            self.uploaded.keys.add(base64.b64decode(given).decode().partition(":")[2])
        if not self.uploaded.accepts:
            self._answer({"errors": [{"message": "permission denied"}]}, 403)
        elif self.path == "/graphql":
            self._answer({"data": _graphql(self.uploaded, json.loads(content))})
        elif self.path.endswith("/file_stream"):
            self.uploaded.streams.append((self.path, json.loads(content)))
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({})


@contextlib.contextmanager
def server() -> Iterator[Uploaded]:
    """Serve on a port of this machine."""
    uploaded = Uploaded()
    with served(type("Handler", (_Handler,), {"uploaded": uploaded})) as uploaded.url:
        yield uploaded


def _graphql(uploaded: Uploaded, asked: dict[str, Any]) -> dict[str, Any]:
    query, given = asked["query"], asked.get("variables") or {}
    if "upsertBucket" in query:
        uploaded.buckets.append(given)
        project = {"id": "p", "name": given.get("project") or "uncategorized"}
        project |= {"entity": {"id": "e", "name": given.get("entity") or "me"}}
        bucket = {"id": "b", "name": given.get("name"), "displayName": "x", "config": "{}"}
        bucket |= {"description": "", "sweepName": None, "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "createRunFiles" in query:
        files = [
            {"name": name, "uploadUrl": f"{uploaded.url}/put/{name}"} for name in given["files"]
        ]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
    return {"serverInfo": {"features": []}} if "serverInfo" in query else {}
