"""A small image made of this machine's own Python, and requests for containers of it.

No registry is asked: the interpreter that runs the tests, the libraries that it is linked with, and
a few programs are put into one layer. Committed files stand in the workdir as the sealing leaves
them: root's, files read-only, directories sticky and open.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sealrun.sandbox.init import place_init
from sealrun.sandbox.protocol import Limits, Mount, Request
from sealrun.shipped import shipped
from sealrun.state import Places

PYTHON = "/usr/local/bin/python3"
PATH = "/usr/local/bin:/usr/bin:/bin"
USER = (10001, 10001)
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nrun:x:10001:10001::/home/run:/bin/sh\n"
GROUP = b"root:x:0:\nrun:x:10001:\n"
#: What the image's workdir holds, as if it had been committed.
COMMITTED: dict[str, bytes] = {
    "train.py": b"print('val_bpb: 0.9979')\n",
    "pkg/model.py": b"SCALAR_LR = 0.5\n",
    "notes.txt": b"not a program\n",
}
_PROGRAMS = ("sh", "true", "sleep", "cat", "unshare")
_DIRECTORIES = ("/tmp", "/var/tmp", "/run", "/etc", "/home/run", "/root", "/proc", "/sys", "/dev")  # noqa: S108 - inside the image
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "site-packages", "__pycache__"}


def client() -> Any:  # noqa: ANN401 - docker-py ships no types
    """Return docker-py's client of the engine that answers here."""
    import docker

    return docker.APIClient(version="auto", timeout=120)


def image(api: Any) -> str:  # noqa: ANN401 - docker-py ships no types
    """Return the tag of the test image; made once per engine and state of this file."""
    import docker.errors

    key = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()[:12]
    tag = f"sealrun-test-sandbox:{key}"
    try:
        api.inspect_image(tag)
    except docker.errors.ImageNotFound:
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                _fill(tar)
            archive.flush()
            name, _, version = tag.partition(":")
            api.import_image_from_file(archive.name, repository=name, tag=version)
            api.inspect_image(tag)
    return tag


class _Layer:
    """One layer under construction; directories are made as they are needed."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._made: set[Path] = {Path("/")}

    def directory(self, path: Path, mode: int = 0o755) -> None:
        if path not in self._made:
            self._add(path, tarfile.DIRTYPE, mode, b"")

    def file(self, path: Path, content: bytes, mode: int) -> None:
        if path not in self._made:
            self._add(path, tarfile.REGTYPE, mode, content)

    def program(self, source: Path, target: Path) -> None:
        self.file(target, source.read_bytes(), 0o755)
        for library in _libraries(source):
            self.file(library, library.read_bytes(), 0o755)

    def _add(self, path: Path, kind: bytes, mode: int, content: bytes) -> None:
        self.directory(path.parent)
        self._made.add(path)
        entry = tarfile.TarInfo(str(path).lstrip("/"))
        entry.type, entry.mode, entry.size = kind, mode, len(content)
        self._tar.addfile(entry, io.BytesIO(content))


def _fill(tar: tarfile.TarFile) -> None:
    layer = _Layer(tar)
    for path in _DIRECTORIES:
        layer.directory(Path(path))
    layer.program(Path(os.path.realpath(sys.executable)), Path(PYTHON))
    for name in _PROGRAMS:
        found = shutil.which(name, path="/bin:/usr/bin")
        if found:
            layer.program(Path(os.path.realpath(found)), Path("/bin") / name)
    _add_library(layer)
    for directory in ("/workspace", "/workspace/pkg"):
        layer.directory(Path(directory), 0o1777)
    for name, content in COMMITTED.items():
        layer.file(Path("/workspace") / name, content, 0o444)


def _add_library(layer: _Layer) -> None:
    standard = Path(sysconfig.get_path("stdlib"))
    for source in sorted(standard.rglob("*")):
        inside = source.relative_to(standard)
        if _LEFT_OUT & set(inside.parts) or inside.parts[0].startswith("config-"):
            continue
        target = Path("/usr/local/lib") / standard.name / inside
        if source.suffix == ".so":
            layer.program(source, target)
        elif source.is_file():
            layer.file(target, source.read_bytes(), 0o644)


def _libraries(program: Path) -> list[Path]:
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return [Path(found) for found in re.findall(r"(/\S+)(?= \(0x)", done.stdout)]


@dataclass(frozen=True)
class Bench:
    """What a test needs to ask for containers."""

    api: Any
    image: str
    places: Places
    out: Path

    def request(
        self,
        *argv: str,
        limits: Limits | None = None,
        **changes: Any,  # noqa: ANN401 - fields of Request
    ) -> Request:
        """Return a request for a hardened container that runs a command."""
        init = place_init(self.places.init, os.uname().machine)
        run = f"test-{secrets.token_hex(6)}"
        base = Request(
            name=f"sealrun-{run}",
            image=self.image,
            argv=argv,
            workdir="/workspace",
            environment={"PATH": PATH, "PYTHONDONTWRITEBYTECODE": "1"},
            user=USER,
            mounts=(Mount(self.out, "/out", read_only=False),),
            limits=limits or Limits(memory=512 << 20, cpus=2.0, pids=128, tmp=64 << 20),
            labels={"sealrun.run": run},
            passwd=PASSWD,
            group=GROUP,
            seccomp=shipped("images", "seccomp", "sealrun.json").read_text("utf-8"),
            init=init.path,
            init_digest=init.digest,
        )
        return replace(base, **changes)

    def python(
        self,
        source: str,
        *arguments: str,
        **changes: Any,  # noqa: ANN401 - fields of Request
    ) -> Request:
        """Return a request for a container that runs Python source."""
        return self.request("python3", "-c", source, *arguments, **changes)


def bench(tmp_path: Path) -> Bench:
    """Return a bench with state of its own below a directory."""
    api = client()
    home = tmp_path / "home"
    places = Places(home / "state", home / "data", home / "cache", home / "runtime")
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, *USER)
    return Bench(api, image(api), places, out)
