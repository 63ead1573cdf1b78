"""Makes small wheels and source distributions, and lets pip's configuration point at them.

Rules: nothing is fetched; the same arguments give the same bytes, so a hash can be written down.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes] | None = None,
    *,
    tag: str = "py3-none-any",
    scripts: str = "",
    requires: str = "",
) -> Path:
    """Write a wheel into a folder.

    Args:
        files: content by path in the wheel; by default one module that prints its version.
        scripts: lines of ``[console_scripts]``.
        requires: one requirement.
    """
    stem = f"{name.replace('-', '_')}-{version}"
    module = f"{name.replace('-', '_')}.py"
    body = dict(files or {module: f"VERSION = {version!r}\ndef main(): print(VERSION)\n".encode()})
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    body[f"{stem}.dist-info/METADATA"] = metadata.encode()
    body[f"{stem}.dist-info/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    )
    if scripts:
        body[f"{stem}.dist-info/entry_points.txt"] = f"[console_scripts]\n{scripts}\n".encode()
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(c).digest()).rstrip(b'=').decode()},{len(c)}"
        for path, c in body.items()
    ]
    record = f"{stem}.dist-info/RECORD"
    body[record] = "\n".join([*rows, f"{record},,\n"]).encode()
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in body.items():
            info = zipfile.ZipInfo(inside)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, content)
    return path


def make_sdist(folder: Path, name: str, version: str) -> Path:
    """Write a source distribution whose build, if anybody ran it, would fail loudly."""
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, content in (
            ("PKG-INFO", f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n"),
            ("setup.py", "raise SystemExit('built on the host')\n"),
        ):
            info = tarfile.TarInfo(f"{name}-{version}/{inside}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
    return path


_BACKEND = """
import os, socket, zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "{stem}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        archive.writestr("{name}.py", f"BUILT_BY = {{os.getuid()}}\\n")
        archive.writestr("{stem}.dist-info/METADATA",
                         "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        archive.writestr("{stem}.dist-info/WHEEL",
                         "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("{stem}.dist-info/RECORD", "")
    return name
"""


def make_buildable(folder: Path, name: str, version: str) -> Path:
    """Write a source distribution that builds without any network and notes who built it."""
    stem = f"{name}-{version}"
    path = folder / f"{stem}.tar.gz"
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    project += f'[project]\nname = "{name}"\nversion = "{version}"\n'
    with tarfile.open(path, "w:gz") as archive:
        for inside, content in (
            ("PKG-INFO", f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n"),
            ("pyproject.toml", project),
            ("backend.py", _BACKEND.format(stem=stem, name=name, version=version)),
        ):
            info = tarfile.TarInfo(f"{stem}/{inside}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
    return path


def sha256(path: Path) -> str:
    """Return a file's hash, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pip's configuration say: packages come from this folder and nowhere else."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
