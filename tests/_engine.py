"""Stand-ins for engines that this machine lacks: real sockets that speak as those would.

They answer ``GET /info`` and nothing else; whatever needs containers uses the real engine.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

INFO: dict[str, Any] = {
    "ID": "TEST:ENGINE",
    "Name": "test",
    "ServerVersion": "27.1.0",
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "CgroupVersion": "2",
    "DockerRootDir": "/nowhere",
    "Architecture": "x86_64",
}


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def speaking(socket: Path, body: bytes | None = None, api: str = "1.46") -> Generator[str]:
    """Serve one body for every request on a socket; yield its endpoint."""
    content = json.dumps(INFO).encode() if body is None else body

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Api-Version", api)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def address_string(self) -> str:
            return "socket"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with _Server(str(socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"unix://{socket}"
        finally:
            server.shutdown()
            thread.join()
