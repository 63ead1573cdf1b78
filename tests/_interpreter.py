"""A source of interpreters for uv: a real one in python-build-standalone's layout, served over HTTP.

Rules: the interpreter is Debian 11's, which starts on the shipped bases; it is fetched and packed once
on a machine, under the tests' shared cache. Everything that uv asks is answered by a server of ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _base import shared_cache
from _http import served
from sealrun.image import recipe, tool
from sealrun.image.base import host_platform

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

#: What Debian 11 has, and will have: its archive is closed.
VERSION = "3.9.2"
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}[host_platform().architecture]
NAME = f"cpython-{VERSION}-linux-{MACHINE}-gnu"
_PACKAGES = (
    "python3.9-minimal,libpython3.9-minimal,libpython3.9-stdlib,libpython3.9-dev,python3-distutils"
)
#: What no test imports, so that making and compiling take seconds.
_DROPPED = (
    *("/test/", "/tests/", "/lib2to3/", "/config-3.9", "/__pycache__/", "/ensurepip/", "/idlelib/"),
    *("/tkinter/", "/turtle", "/pydoc", "/asyncio/", "/multiprocessing/", "/xmlrpc/", "/sqlite3/"),
    *("/dbm/", "/curses/", "/wsgiref/", "/msilib/", "/encodings/cp", "/encodings/mac"),
)


def archive() -> Path:
    """Return the interpreter's archive, made at most once a machine."""
    path = shared_cache() / f"{NAME}-3.tar.gz"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.write_bytes(gzip.compress(_packed(), compresslevel=1, mtime=0))
            draft.rename(path)
    return path


def _packed() -> bytes:
    out = io.BytesIO()
    with tempfile.TemporaryDirectory(dir=shared_cache()) as directory:
        root = Path(directory, "root.tar")
        options = [f"--aptopt={option}" for option in recipe.apt_options()]
        command = ["mmdebstrap", "--variant=extract", f"--mode={recipe.mode()}", "--format=tar"]
        command += [f"--include={_PACKAGES}", *options, "bullseye", str(root)]
        command += recipe.mirrors("bullseye")
        subprocess.run(command, env=tool.environment(), check=True, capture_output=True)
        with (
            tarfile.open(root) as opened,
            tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as packed,
        ):
            for info in opened:
                place = _place(info)
                if place is None:
                    continue
                content = opened.extractfile(info) if info.isreg() else None
                body = content.read() if content else b""
                if "/_sysconfigdata_" in place:
                    # Where python-build-standalone says that it was built for.
                    body = body.replace(b"'prefix': '/usr'", b"'prefix': '/install'")
                _add(packed, place, body, info.mode, info.linkname)
            for link in ("python3", "python"):
                _add(packed, f"python/bin/{link}", b"", 0o777, "python3.9")
    return out.getvalue()


def _place(info: tarfile.TarInfo) -> str | None:
    """Return where a file of Debian's stands in the archive; None: nowhere."""
    path = info.name.removeprefix("./")
    wanted = ("usr/bin/python3.9", "usr/lib/python3.9/", "usr/include/python3.9/")
    if not path.startswith(wanted) or any(name in f"/{path}" for name in _DROPPED):
        return None
    if info.isreg() or (info.issym() and not info.linkname.startswith(("/", ".."))):
        return f"python/{path.removeprefix('usr/')}"
    return None


def _add(archive: tarfile.TarFile, place: str, body: bytes, mode: int, link: str = "") -> None:
    info = tarfile.TarInfo(place)
    info.mode, info.size = mode, len(body)
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
    archive.addfile(info, io.BytesIO(body))


def tarball(files: Mapping[str, bytes | str]) -> bytes:
    """Return an archive of that layout with other content; a text is a link's target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT) as packed:
        for path, content in files.items():
            link = content if isinstance(content, str) else ""
            _add(packed, f"python/{path}", b"" if link else bytes(content), 0o755, link)  # type: ignore[arg-type]  # a text is a link
    return out.getvalue()


class Source:
    """What uv is told to fetch interpreters from.

    Args:
        folder: what is served.
        address: of the server.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.asked: list[str] = []
        self._listed: dict[str, Any] = {}
        self._write()

    @property
    def variables(self) -> dict[str, str]:
        """What a user sets so that uv asks here."""
        return {"UV_PYTHON_DOWNLOADS_JSON_URL": f"{self.address}/interpreters.json"}

    def offer(
        self, version: str, content: bytes | None, *, libc: str = "gnu", sha256: str | None = None
    ) -> str:
        """Offer an interpreter; return uv's name of it.

        Args:
            content: of the archive; None: the list names one that is not there.
            sha256: what the list says; by default the truth.
        """
        file = f"cpython-{version}-{libc}.tar.gz"
        if content is not None:
            (self.folder / file).write_bytes(content)
        name = f"cpython-{version}-linux-{MACHINE}-{libc}"
        major, minor, patch = (int(part) for part in version.split("."))
        self._listed[name] = {
            "name": "cpython",
            "arch": {"family": MACHINE, "variant": None},
            "os": "linux",
            "libc": libc,
            "major": major,
            "minor": minor,
            "patch": patch,
            "prerelease": "",
            "url": f"{self.address}/{file}",
            "sha256": sha256 or hashlib.sha256(content or b"").hexdigest(),
            "variant": None,
            "build": "20260101",
        }
        self._write()
        return name

    def _write(self) -> None:
        (self.folder / "interpreters.json").write_text(json.dumps(self._listed))


@contextlib.contextmanager
def source(folder: Path) -> Generator[Source]:
    """Serve a folder for uv, with Debian 11's interpreter in it."""
    folder.mkdir(parents=True, exist_ok=True)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with served(partial(Handler, directory=str(folder))) as url:
        made = Source(folder, url)
        made.asked = asked
        made.offer(VERSION, archive().read_bytes())
        yield made
