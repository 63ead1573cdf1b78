"""What a lock asks for, on one base: pure decisions on bytes.

Rules that this module keeps:

- Every form of lock is brought into one, ``pylock.toml`` (PEP 751), and read here; the wheel that
  is installed is chosen here, by its tags (PEP 425) and its hash, before anything is fetched.
- A hash that the lock or the requirements file gives is binding. Where a requirements file gives
  any, every package must have one, as pip demands ("Hash-checking Mode").
- What cannot be carried faithfully is refused with the package's or the path's name.
- No IO.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.markers import InvalidMarker, Marker
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from sealrun.errors import SealRefused
from sealrun.image import asked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from packaging.tags import Tag

    from sealrun.image.model import Platform

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
#: Oldest glibc with wheels of its own tag, by machine (PEP 599, PEP 600).
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
#: glibc minors that uv's ``--python-platform`` knows (uv pip install --help), newest first.
_UV_GLIBC = (*range(40, 30, -1), 28, 17)
_HASHED = re.compile(r"--hash[= ]sha256:([0-9a-fA-F]{64})")
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
_SAFE = re.compile(r"[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INCLUDE = re.compile(r"^(?:-r|--requirement|-c|--constraint)[ =]?\s*(\S+)")
_BUILD_HINT = (
    "Lock a version that has a wheel for this base, or set build_sdists = true under [image] in "
    "sealrun.toml, which builds it in a container."
)


@dataclass(frozen=True)
class Target:
    """The Python that packages are installed for.

    Attributes:
        python: full version, e.g. ``3.11.2``.
        libc: as ``Base.libc`` has it.
    """

    python: str
    libc: str | None
    platform: Platform

    @property
    def machine(self) -> str:
        """The kernel's word for the architecture."""
        return _MACHINES.get(self.platform.architecture, self.platform.architecture)

    @property
    def minor(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = self.python.split(".")[:2]
        return int(major), int(minor)

    @property
    def uv_platform(self) -> str:
        """What uv's ``--python-platform`` calls it."""
        family, _, version = (self.libc or "").partition("-")
        if family == "musl":
            return f"{self.machine}-unknown-linux-musl"
        minor = _minor(version, 17)
        known = next((known for known in _UV_GLIBC if known <= minor), 17)
        return f"{self.machine}-manylinux_2_{known}"

    def tags(self) -> dict[Tag, int]:
        """Return the tags of wheels that run here, each with its rank; 0 is best."""
        platforms = list(self._platforms())
        abi = f"cp{self.minor[0]}{self.minor[1]}"
        ordered = [
            *cpython_tags(self.minor, abis=[abi], platforms=platforms),
            *compatible_tags(self.minor, abi, platforms),
        ]
        return {tag: rank for rank, tag in reversed(list(enumerate(ordered)))}

    def _platforms(self) -> Iterable[str]:
        family, _, version = (self.libc or "").partition("-")
        if family == "musl":
            for minor in range(_minor(version, 1), -1, -1):
                yield f"musllinux_1_{minor}_{self.machine}"
        else:
            newest = next((k for k in _UV_GLIBC if k <= _minor(version, 17)), 17)
            for minor in range(newest, _OLDEST_GLIBC.get(self.machine, 17) - 1, -1):
                yield f"manylinux_2_{minor}_{self.machine}"
                if minor in _LEGACY:
                    yield f"{_LEGACY[minor]}_{self.machine}"
        yield f"linux_{self.machine}"

    def markers(self) -> dict[str, str]:
        """Return the values that environment markers are evaluated with (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python,
            "python_version": ".".join(str(part) for part in self.minor),
            "sys_platform": "linux",
        }


def _minor(version: str, fallback: int) -> int:
    parts = version.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else fallback


@dataclass(frozen=True)
class Wheel:
    """One file that is installed.

    Attributes:
        name: the package's normalised name.
        filename: of the wheel; empty for a source distribution's.
        sha256: hexadecimal.
        url: where the lock says it is; None where ``path`` is given.
        path: in the commit, relative to the lock's directory.
        source: it is a source distribution, to be built first.
        size: bytes of the file, where the lock says so.
    """

    name: str
    version: str
    filename: str
    sha256: str
    url: str | None = None
    path: str | None = None
    source: bool = False
    size: int | None = None


@dataclass(frozen=True)
class Resolution:
    """A lock on one base: exact files, and projects that stand in the commit.

    Attributes:
        wheels: sorted by name.
        local: name and directory of each, relative to the lock's directory, sorted.
    """

    wheels: tuple[Wheel, ...]
    local: tuple[tuple[str, str], ...]


def read_pylock(
    text: str, where: str, target: Target, hashes: Mapping[str, frozenset[str]], *, build: bool
) -> Resolution:
    """Read a ``pylock.toml`` and choose one file for each package that this base needs.

    Args:
        text: the lock.
        where: what an error calls it.
        hashes: of a requirements file: the only ones allowed, by normalised name; empty: any.
        build: a source distribution may be chosen where no wheel fits.

    Raises:
        SealRefused: it is malformed, or a package cannot be had as it asks.
    """
    try:
        document = tomllib.loads(text)
        packages = document.get("packages", [])
        check_python(document.get("requires-python"), where, target)
        context = {
            **target.markers(),
            "extras": frozenset[str](),
            "dependency_groups": frozenset(document.get("default-groups", [])),
        }
        wanted = [p for p in packages if _applies(p.get("marker"), context)]
        tags = target.tags()
        wheels: list[Wheel] = []
        local: list[tuple[str, str]] = []
        for package in wanted:
            name = canonicalize_name(package["name"])
            if "directory" in package:
                local.append((name, _inside(package["directory"], where, name)))
                continue
            check_python(package.get("requires-python"), f"{where}: {name}", target)
            wheels.append(_choose(package, name, where, tags, hashes, build=build))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise SealRefused(
            f"{where} is not a readable lock: {error}",
            hint="Make it again with the tool that wrote it, and commit it.",
        ) from error
    names = [wheel.name for wheel in wheels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SealRefused(
            f"{where}: more than one version of {', '.join(twice)} applies to this base",
            hint="Lock for Python " + target.python + " on Linux.",
        )
    return Resolution(tuple(sorted(wheels, key=lambda w: w.name)), tuple(sorted(local)))


def _applies(marker: str | None, context: Mapping[str, Any]) -> bool:
    if not marker:
        return True
    try:
        return Marker(marker).evaluate(dict(context), context="lock_file")
    except InvalidMarker as error:
        raise ValueError(f"marker {marker!r}: {error}") from error


def _inside(directory: Mapping[str, Any], where: str, name: str) -> str:
    path = str(directory["path"])
    parts: list[str] = []
    for part in (path + "/" + str(directory.get("subdirectory", ""))).split("/"):
        if part == "..":
            if not parts:
                parts = ["", ""]
                break
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if path.startswith("/") or "" in parts:
        raise SealRefused(
            f"{where}: {name} is taken from {path}, which is outside the commit",
            hint="Commit it below the lock's directory, or depend on a published version.",
        )
    return "/".join(parts)


def _choose(
    package: Mapping[str, Any],
    name: str,
    where: str,
    tags: Mapping[Tag, int],
    hashes: Mapping[str, frozenset[str]],
    *,
    build: bool,
) -> Wheel:
    version = str(package.get("version", ""))
    label = f"{name} {version}".strip()
    if "vcs" in package:
        raise SealRefused(
            f"{where}: {label} comes from a version control system, which has no hash",
            hint="Publish it as a wheel, or commit its source below this repository and depend "
            "on its path.",
        )
    files = [_file(item, name, version) for item in package.get("wheels", [])]
    if "archive" in package:
        files.append(_file(package["archive"], name, version))
    sources = [_file(package["sdist"], name, version, source=True)] if "sdist" in package else []
    sources += [file for file in files if file.source]
    fitting = _ranked([file for file in files if not file.source], tags)
    if allowed := hashes.get(name):
        if not any(file.sha256 in allowed for file in (*fitting, *sources)):
            raise SealRefused(
                f"{where}: no file of {label} that fits this base has one of the hashes it gives",
                hint="The index serves another file than the one that was locked, or the lock was "
                "made for another platform. Make the lock again and commit it.",
            )
        fitting = [file for file in fitting if file.sha256 in allowed]
        sources = [file for file in sources if file.sha256 in allowed]
    elif hashes:
        raise SealRefused(
            f"{where} gives hashes, but none for {label}",
            hint="Give one for every package, as uv pip compile --generate-hashes does.",
        )
    chosen = fitting[0] if fitting else sources[0] if sources and build else None
    if chosen is None:
        kinds = "only as a source distribution" if sources else "by no wheel that fits this base"
        raise SealRefused(f"{where}: {label} is available {kinds}", hint=_BUILD_HINT)
    if not chosen.sha256:
        raise SealRefused(
            f"{where} has no sha256 for {chosen.filename or label}",
            hint="Make the lock again with hashes, and commit it.",
        )
    return chosen


def _file(item: Mapping[str, Any], name: str, version: str, *, source: bool = False) -> Wheel:
    url, path = item.get("url"), item.get("path")
    if path and (str(path).startswith("/") or ".." in str(path).split("/")):
        raise ValueError(f"{name}: {path!r} is not below the lock's directory in the commit")
    filename = str(item.get("name") or unquote(urlsplit(str(url or path)).path).rpartition("/")[2])
    sha256 = str(item.get("hashes", {}).get("sha256", "")).lower()
    if not _SAFE.fullmatch(f"{name}{version}{filename}{url or path}") or not _SHA256.fullmatch(
        sha256
    ):
        # These words are handed to uv, in a file where a space or a line break would end them.
        raise ValueError(f"{name}: {url or path!r} is no plain file location or has no sha256")
    return Wheel(
        name,
        version,
        filename,
        sha256,
        None if path else str(url),
        str(path) if path else None,
        source or not filename.endswith(".whl"),
        size if isinstance(size := item.get("size"), int) and size > 0 else None,
    )


def _ranked(files: Iterable[Wheel], tags: Mapping[Tag, int]) -> list[Wheel]:
    ranked: list[tuple[int, int, str, Wheel]] = []
    for file in files:
        try:
            _, _, build, offered = parse_wheel_filename(file.filename)
        except InvalidWheelFilename:
            continue
        if fitting := [tags[tag] for tag in offered if tag in tags]:
            # A higher build number goes first (PEP 427), then the name, so that ties are stable.
            ranked.append((min(fitting), -build[0] if build else 1, file.filename, file))
    return [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:3])]


def check_python(requires: object, where: str, target: Target) -> None:
    """Check a ``requires-python`` against the base.

    Raises:
        SealRefused: the base's Python does not satisfy it.
    """
    if requires:
        asked.check([asked.required(str(requires), where)], target.python)


def includes(text: str) -> list[str]:
    """Return the files that a requirements file includes, as it writes them."""
    return [match[1] for line in logical_lines(text) if (match := _INCLUDE.match(line))]


def required_hashes(texts: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return the hashes that requirements files give, by normalised name; empty: they give none."""
    found: dict[str, frozenset[str]] = {}
    for text in texts:
        for line in logical_lines(text):
            given = frozenset(h.lower() for h in _HASHED.findall(line))
            match = _NAME.match(line)
            if given and match:
                name = canonicalize_name(match[0])
                found[name] = found.get(name, frozenset()) | given
    return found


def logical_lines(text: str) -> list[str]:
    """Return a requirements file's lines, joined where they continue, without comments."""
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]
