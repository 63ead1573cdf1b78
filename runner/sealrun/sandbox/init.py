"""Finds the container init, checks it, and places it where an engine can mount it.

Rules that this module keeps:

- The digest of the init goes on record; a placed copy is hashed every time it is about to be used,
  and replaced when it differs: between two runs anybody of our uid could have changed it.
- A placed file is readable and executable by every uid, since the container's is another one; the
  directories above keep others on this host away.
- Files are placed by the digest of their content, so that placing is idempotent and never disturbs
  a container that runs already.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import EnvironmentFault, StorageFault
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "sealrun-init"
#: What ``uname -m`` and engines call an architecture, and OCI's name of it.
ARCHITECTURES = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
}


@dataclass(frozen=True)
class Init:
    """A container init that is ready to be mounted.

    Attributes:
        path: the binary, in a directory of its own.
        digest: hexadecimal sha256 of the binary, as it was shipped.
    """

    path: Path
    digest: str


def place_init(
    directory: Path, architecture: str, beside: Mapping[str, bytes] | None = None
) -> Init:
    """Copy the shipped init of an architecture to where engines can mount it, and check it.

    Args:
        directory: ``Places.init``; a directory named by the digest is made in it.
        architecture: ``amd64`` or ``arm64``, or what ``uname -m`` says.
        beside: content by name of other files that a container shall find next to it.

    Raises:
        EnvironmentFault: there is no init for this architecture, or it was not compiled.
        StorageFault: it cannot be read, or its copy cannot be written.
    """
    known = ARCHITECTURES.get(architecture)
    if known is None:
        raise EnvironmentFault(
            f"there is no container init for the architecture {architecture!r}",
            hint="sealrun runs containers on x86-64 and arm64.",
        )
    source = shipped("images", "init", "build", known, NAME)
    try:
        content = source.read_bytes()
    except FileNotFoundError as error:
        raise EnvironmentFault(
            f"the container init {source} is missing",
            hint="Install sealrun again; in a checkout, run: python images/init/build.py",
        ) from error
    except OSError as error:
        raise StorageFault(f"cannot read {source}: {error.strerror}") from error
    _, path = place(directory, {NAME: content, **(beside or {})}, mode=0o555)
    return Init(path / NAME, hashlib.sha256(content).hexdigest())


def place(directory: Path, contents: Mapping[str, bytes], *, mode: int = 0o444) -> tuple[str, Path]:
    """Write files into a directory named by their content, unless they stand there unchanged.

    Args:
        directory: where the new directory is made.
        contents: content by file name. With one file the digest is that file's sha256.
        mode: permission bits of each file.

    Returns:
        The digest, and the directory that holds the files.

    Raises:
        StorageFault: they cannot be written, or somebody put another file beside them.
    """
    digests = [hashlib.sha256(content).hexdigest() for _, content in sorted(contents.items())]
    digest = (
        digests[0]
        if len(digests) == 1
        else hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()
    )
    home = directory / digest
    try:
        home.mkdir(mode=0o755, exist_ok=True)
        home.chmod(0o755)
        for name, content in contents.items():
            _ensure(home / name, content, mode)
        strangers = sorted(set(os.listdir(home)) - set(contents))  # noqa: PTH208 - names alone
    except OSError as error:
        raise StorageFault(
            f"cannot place files for a container in {home}: {error.strerror}",
            hint="Free space or fix its permissions, or set SEALRUN_HOME to another place.",
        ) from error
    if strangers := [name for name in strangers if not name.startswith(".")]:
        # A container would see them, and a Python in it might import them.
        raise StorageFault(
            f"{home} is mounted into containers, and somebody put {strangers[0]!r} there",
            hint="Find out who did; remove it, then repeat the command.",
        )
    return digest, home


def _ensure(file: Path, content: bytes, mode: int) -> None:
    if _stands(file, content, mode):
        return
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), mode)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _stands(file: Path, content: bytes, mode: int) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if status.st_mode & 0o7777 != mode or status.st_size != len(content):
            return False
        return stream.read(len(content) + 1) == content
