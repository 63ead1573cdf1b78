"""Installs exact wheels for a base's Python, outside any container, as one deterministic layer.

Rules that this module keeps:

- uv installs into a scratch directory for the base's version and platform; the host's Python only
  lends uv its file scheme and never runs anything of the packages.
- uv's cache is private to one environment and gone afterwards: files of the user's cache are hard
  links into virtual environments, where people edit them in place.
- What an installer adds (its name, the request, times, host paths) is not in the layer. Modes are
  0644 or 0755, the owner is root, the time is constant; bytecode is left out, because it is only
  the same where the same interpreter made it.
- Where two packages bring different bytes for one path, the one that is later in the alphabet
  wins, on every machine.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import index, normal, tool
from sealrun.image.model import ENVIRONMENT
from sealrun.nested import walk
from sealrun.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sealrun.image.lock import Target, Wheel
    from sealrun.progress import Task

_ROOT = ENVIRONMENT.strip("/")
_INSTALLERS = frozenset({"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"})
_LIBRARY = re.compile(r"lib(?:64)?/python3\.\d+/site-packages")
_HEADERS = re.compile(r"include/site/python3\.\d+")
#: A script's first line, and the form for interpreters whose path is too long for one.
_SHEBANG = re.compile(
    rb"\A#!(?:/bin/sh\n'''exec' [^\n]*\n' '''|[^\n]*/(?:python|pythonw|pypy)[^\n/]*)\n"
)
_PYPI = "files.pythonhosted.org"
_FIX = (
    "Check that the package index can be reached (pip's and uv's own settings are used) and that "
    "the disk has room, then run sealrun warm again: what was fetched is kept."
)


@dataclass(frozen=True)
class UvProgram:
    """The uv that goes into environments.

    Attributes:
        wheel: sha256 of its wheel.
        program: sha256 of the executable.
    """

    version: str
    wheel: str
    program: str


def pinned_uv(target: Target) -> UvProgram:
    """Return the uv for a base."""
    pins = tomllib.loads(shipped("images", "uv", "pins.toml").read_text("utf-8"))
    family = "musl" if (target.libc or "").startswith("musl") else "glibc"
    chosen = pins[family][target.platform.architecture]
    return UvProgram(pins["version"], chosen["wheel"], chosen["program"])


def uv_command() -> str:
    """Return the path of our own uv.

    Raises:
        EnvironmentFault: sealrun was installed without it.
    """
    from uv import find_uv_bin

    try:
        return find_uv_bin()
    except FileNotFoundError as error:
        raise EnvironmentFault(
            "uv is missing from sealrun's own installation",
            hint="Install sealrun again; uv is one of its dependencies.",
        ) from error


def uv_environment(cache: Path) -> dict[str, str]:
    """Return the environment of every uv call of ours."""
    return tool.environment(
        {
            **index.uv_environment(),
            "UV_CACHE_DIR": str(cache),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_PROGRESS": "1",
            "NO_COLOR": "1",
        }
    )


def install(
    wheels: Sequence[Wheel], target: Target, committed: Path, scratch: Path, task: Task
) -> Path:
    """Install wheels into a new prefix.

    Args:
        wheels: exact files; sorted by name.
        committed: where files of the commit stand that ``Wheel.path`` names.
        scratch: a private directory; what was fetched stays in it for another try.

    Returns:
        The prefix, as uv left it.

    Raises:
        SealRefused: a file is not the one that was locked.
        EnvironmentFault: uv fails, there is no network or no room.
    """
    prefix = scratch / "prefix"
    listed = scratch / "exact.txt"
    env = uv_environment(scratch / "uv")
    listed.write_text("".join(requirement(wheel, committed, env) + "\n" for wheel in wheels))
    base = [
        *(uv_command(), "pip", "install", "--no-config", "--python", sys.executable),
        *("--prefix", str(prefix), "--python-version", target.python),
        *("--python-platform", target.uv_platform, "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--no-compile-bytecode", "--link-mode", "hardlink"),
        *("-r", str(listed)),
        *index.options(),
    ]
    try:
        tool.run_tool(base, task=task, what="installing packages", env=env, hint=_FIX)
        for name in contested(prefix):
            # The order of a parallel installation is chance; one after the other it is not.
            again = [*base, "--reinstall-package", name]
            tool.run_tool(again, task=task, what=f"installing {name}", env=env, hint=_FIX)
    except tool.ToolFailed as failure:
        if "hash mismatch" in failure.words.lower():
            raise SealRefused(
                f"a package is not the file that the lock names; uv said:\n{failure.words}",
                hint="The index serves other bytes than those that were locked. Find out why before "
                "you lock again.",
            ) from failure
        raise
    return prefix


def requirement(wheel: Wheel, committed: Path, env: Mapping[str, str]) -> str:
    """Return one wheel as a line of a requirements file with its hash.

    A file of PyPI's is taken from the configured index, if there is another default, and from a
    configured folder of wheels that has it: the hash says that it is the same file.
    """
    pinned = f"--hash=sha256:{wheel.sha256}"
    if wheel.path is not None:
        # An absolute path is one of ours: a wheel that was built from a source distribution.
        return f"{wheel.name} @ {(committed / wheel.path).as_uri()} {pinned}"
    for link in re.split(r"[,\s]+", env.get("UV_FIND_LINKS", "")):
        folder = Path(unquote(urlsplit(link).path) if link.startswith("file:") else link)
        if link and folder.is_absolute() and (folder / wheel.filename).is_file():
            return f"{wheel.name} @ {(folder / wheel.filename).as_uri()} {pinned}"
    mirrored = any(env.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"))
    if mirrored and urlsplit(wheel.url or "").hostname == _PYPI:
        return f"{wheel.name}=={wheel.version} {pinned}"
    return f"{wheel.name} @ {wheel.url} {pinned}"


def contested(prefix: Path) -> list[str]:
    """Return the packages that bring different bytes for one path, in alphabetical order."""
    owners: dict[str, dict[str, str]] = {}
    for record in sorted(prefix.glob("lib*/python3*/site-packages/*.dist-info/RECORD")):
        name = record.parent.name.removesuffix(".dist-info").partition("-")[0]
        for row in csv.reader(io.StringIO(record.read_text("utf-8", "replace"))):
            if len(row) >= 2:  # noqa: PLR2004 - path and hash, see "The .dist-info directory"
                owners.setdefault(os.path.normpath(row[0]), {})[name] = row[1]
    fought = [by for by in owners.values() if len(set(by.values())) > 1]
    return sorted({name for by in fought for name in by})


def uv_binary(program: UvProgram, target: Target, scratch: Path, task: Task) -> Path:
    """Return an executable file with exactly the pinned bytes of uv.

    Raises:
        EnvironmentFault: it cannot be fetched.
    """
    own = Path(uv_command())
    if _digest(own) == program.program:
        return own
    prefix = scratch / "uv-prefix"
    listed = scratch / "uv.txt"
    listed.write_text(f"uv=={program.version} --hash=sha256:{program.wheel}\n")
    command = [
        *(uv_command(), "pip", "install", "--no-config", "--python", sys.executable),
        *("--prefix", str(prefix), "--python-version", target.python),
        *("--python-platform", target.uv_platform, "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--no-compile-bytecode", "-r", str(listed)),
        *index.options(),
    ]
    env = uv_environment(scratch / "uv")
    tool.run_tool(command, task=task, what=f"fetching uv {program.version}", env=env, hint=_FIX)
    fetched = prefix / "bin" / "uv"
    if _digest(fetched) != program.program:
        raise EnvironmentFault(
            f"the wheel of uv {program.version} holds another program than the pinned one",
            hint="Report this: a wheel with the right hash cannot hold another file.",
        )
    return fetched


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def members(prefix: Path, target: Target) -> Iterator[normal.Member]:
    """List what a prefix holds as members of the environment layer.

    Raises:
        SealRefused: a package brings something that is neither file nor directory.
    """
    for directory, names, files in walk(prefix):
        names[:] = sorted(name for name in names if name != "__pycache__")
        inside = Path(directory).relative_to(prefix).as_posix()
        for name in sorted(files):
            if inside == "." and name == ".lock":
                continue
            path = Path(directory, name)
            member = _member(path, _place(f"{inside}/{name}", target), inside)
            if member is not None:
                yield member


def site_packages(target: Target) -> str:
    """Return the environment's ``site-packages``, as a path in a layer."""
    return f"{_ROOT}/lib/python{target.minor[0]}.{target.minor[1]}/site-packages"


def _place(inside: str, target: Target) -> str:
    """Return where a file of the prefix stands in the layer: under the base's Python version."""
    version = f"python{target.minor[0]}.{target.minor[1]}"
    inside = _LIBRARY.sub(f"lib/{version}/site-packages", inside, count=1)
    inside = _HEADERS.sub(f"include/site/{version}", inside, count=1)
    return f"{_ROOT}/{inside.removeprefix('./')}"


def _member(path: Path, place: str, inside: str) -> normal.Member | None:
    name = path.name
    in_info = inside.endswith(".dist-info")
    if in_info and name in _INSTALLERS:
        return None
    if path.is_symlink() or not path.is_file():
        raise SealRefused(f"a package brings {place}, which is neither a file nor a directory")
    mode = 0o755 if path.stat().st_mode & 0o111 else 0o644
    where = os.fsencode(place)
    if in_info and name == "RECORD":
        return normal.file(where, record(path.read_text("utf-8", "surrogateescape")), mode)
    if inside == "bin":
        with path.open("rb") as file:
            if file.read(2) == b"#!":
                return normal.file(where, script(path.read_bytes()), 0o755)
        mode = 0o755
    return normal.file_at(where, path, mode)


def script(content: bytes) -> bytes:
    """Return a console script that starts the environment's Python, not the host's."""
    return _SHEBANG.sub(f"#!{ENVIRONMENT}/bin/python3\n".encode(), content, count=1)


def record(text: str) -> bytes:
    """Return a ``RECORD`` without what the installer added, in the order of its paths.

    Scripts keep their line but lose their hash, as the specification allows: they were rewritten.
    """
    rows: list[list[str]] = []
    for row in csv.reader(io.StringIO(text)):
        if not row:
            continue
        name = row[0].rpartition("/")[2]
        if name in _INSTALLERS and row[0].rpartition("/")[0].endswith(".dist-info"):
            continue
        if "__pycache__/" not in row[0]:
            rows.append([row[0], "", ""] if row[0].startswith("../../../bin/") else row)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(sorted(rows))
    return out.getvalue().encode("utf-8", "surrogateescape")


def skeleton(target: Target, python_path: str) -> list[normal.Member]:
    """Return what makes a directory a virtual environment of the base's Python (PEP 405)."""
    version = f"python{target.minor[0]}.{target.minor[1]}"
    home = python_path.rpartition("/")[0]
    config = f"home = {home}\ninclude-system-site-packages = false\nversion = {target.python}\n"
    return [
        normal.directory(_ROOT.encode()),
        normal.directory(f"{site_packages(target)}".encode()),
        normal.file(f"{_ROOT}/pyvenv.cfg".encode(), config.encode()),
        normal.symlink(f"{_ROOT}/bin/python3".encode(), python_path.encode()),
        normal.symlink(f"{_ROOT}/bin/python".encode(), b"python3"),
        normal.symlink(f"{_ROOT}/bin/{version}".encode(), b"python3"),
    ]
