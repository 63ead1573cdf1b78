"""Another Python than the base's: obtained through uv, kept as one layer on top of the base.

Rules that this module keeps:

- ``find`` looks into records alone; ``make`` does everything slow.
- A base whose Python satisfies the commit is used as it is. Where it does not, the commit gets the
  Python that it asks for or none: never silently another.
- uv obtains it, the way its user set uv up (mirrors, proxies, certificates), and checks the archive
  against the hash that its list gives; the archive's hash goes on record.
- The result is a ``Base`` as any other: the base's layers and one more, so that everything that
  follows from a base (environment, image id, record, rebuild without network) follows here too.
- The layer depends on the archive's bytes alone: no host path, no time, no owner; the standard
  library's bytecode is made by the interpreter itself, in a container of the base.
- What was resolved once stays resolved. A pin in the commit's ``sealrun.lock`` decides; without one
  the record does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import asked, normal, tool
from sealrun.image.base import alone
from sealrun.image.environment import base_key, demands, key_of, records_of
from sealrun.image.model import Base, Package
from sealrun.nested import walk
from sealrun.policy import PINS_FILE
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sealrun.image.asked import Demand
    from sealrun.image.model import Layer
    from sealrun.image.store import Records
    from sealrun.policy import ImagePolicy
    from sealrun.progress import Progress, Task
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: Where an obtained interpreter stands in a container.
HOME = "/opt/python"
#: Counts up when one archive is made into other bytes.
LAYOUT = 1
#: Where its names are put, so that PATH finds them before the base's own.
_NAMES = "usr/local/bin"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Bytes of the largest file in which the place that uv installed to is looked for.
_LARGEST_TEXT = 16 << 20
#: uv's own variables that say where interpreters come from (uv's reference, "Environment variables").
_UV = ("UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS_JSON_URL", "UV_PYTHON_DOWNLOADS")
_OTHER_BASE = (
    'Name a base that has this Python in sealrun.toml, [image] base = "NAME@sha256:...", or let the '
    "commit ask for another."
)
_HINT = (
    "Check that uv's source of interpreters can be reached, or name a mirror of it (uv's own "
    "UV_PYTHON_INSTALL_MIRROR or UV_PYTHON_DOWNLOADS_JSON_URL), then run sealrun warm again. "
    + _OTHER_BASE
)


@dataclass(frozen=True)
class Wanted:
    """What a commit needs on a base that does not have it.

    Attributes:
        demands: all that the commit says about its Python.
        pins: hash of the archive by uv's name of the interpreter, from ``sealrun.lock``.
        key: what the result is kept under.
    """

    demands: tuple[Demand, ...]
    base: Base
    pins: Mapping[str, str]
    key: str

    @property
    def reason(self) -> str:
        """Why the base alone is not enough, as a clause."""
        said = asked.told(asked.unmet(self.demands, self.base.python))
        return f"{said}, but the base has {self.base.python or 'none'}"

    @property
    def suffix(self) -> str:
        """How uv's names of interpreters that run on the base end: ``-linux-x86_64-gnu``.

        Raises:
            SealRefused: the base's C library is unknown.
        """
        from sealrun.image.lock import Target

        family = (self.base.libc or "").partition("-")[0]
        if family not in ("glibc", "musl"):
            raise SealRefused(
                f"{self.reason}; none can be put on top of {self.base.origin}, whose C library is "
                "unknown",
                hint=_OTHER_BASE,
            )
        machine = Target("", self.base.libc, self.base.platform).machine
        return f"-linux-{machine}-{'gnu' if family == 'glibc' else family}"


@dataclass(frozen=True)
class Obtained:
    """An interpreter as uv installed it.

    Attributes:
        name: uv's, e.g. ``cpython-3.10.13-linux-x86_64-gnu``.
        sha256: of the archive it came in, hexadecimal.
        directory: on this host; not yet cleared of traces of it.
    """

    name: str
    version: str
    sha256: str
    directory: Path

    @property
    def minor(self) -> str:
        """``3.10``."""
        return self.version.rpartition(".")[0]


def wanted(tree: CommittedTree, policy: ImagePolicy, base: Base) -> Wanted | None:
    """Return what a commit needs beside its base; None: the base has it, or nothing is asked.

    Raises:
        SealRefused: the commit's files cannot be read.
    """
    said = demands(tree, policy)
    if not asked.unmet(said, base.python):
        return None
    pinned = pins(tree)
    inputs = [LAYOUT, base_key(base), sorted(demand.words for demand in said), pinned]
    return Wanted(said, base, pinned, f"python:{key_of(inputs)}")


def pins(tree: CommittedTree) -> dict[str, str]:
    """Return the interpreters that the commit's ``sealrun.lock`` pins: its table ``[python]``.

    Returns:
        The archive's ``sha256:…`` by uv's name of the interpreter.

    Raises:
        SealRefused: it is malformed.
    """
    entry = tree.get(PINS_FILE)
    if entry is None:
        return {}
    where = PINS_FILE.decode()
    try:
        table: Mapping[str, object] = tomllib.loads(tree.read(entry).decode()).get("python", {})
        found = {str(name): str(pin) for name, pin in table.items()}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise SealRefused(f"{where} is not readable: {error}") from error
    for name, pin in found.items():
        if not _DIGEST.fullmatch(pin) or not _version(name):
            raise SealRefused(
                f"{where} pins the interpreter {name} to {pin}, which is no pin",
                hint='A pin looks like "cpython-3.10.13-linux-x86_64-gnu" = "sha256:..." with 64 '
                "hexadecimal digits.",
            )
    return found


def _version(name: str) -> str | None:
    found = re.fullmatch(r"cpython-(\d+\.\d+\.\d+)-linux-[a-z0-9_]+-(?:gnu|musl)", name)
    return found[1] if found else None


def find(wish: Wanted, places: Places) -> Base | None:
    """Return the base with what a commit needs, or None: then it is to be made."""
    return records_of(places).base(wish.key)


def make(
    wish: Wanted,
    places: Places,
    engine: Any,  # noqa: ANN401 - docker-py ships no types
    progress: Progress,
) -> Base:
    """Obtain what a commit needs, or return what was made of it before.

    Args:
        engine: docker-py's low-level client.
        progress: is told what is fetched.

    Raises:
        SealRefused: there is no such interpreter, or it is not the one that is pinned.
        EnvironmentFault: it cannot be fetched, or does not run on the base.
    """
    records = records_of(places)
    with alone(places, wish.key):
        if found := find(wish, places):
            return found
        with (
            progress.task("obtaining the Python that the commit asks for") as task,
            tempfile.TemporaryDirectory(
                dir=private(places.cache / "scratch"), prefix="python-"
            ) as directory,
        ):
            shop = _Workshop(wish, records, engine, progress, task, Path(directory))
            try:
                base = shop.make()
            except OSError as error:
                raise EnvironmentFault(
                    f"{wish.reason}; obtaining it: {error.strerror or error} "
                    f"({error.filename or directory})",
                    hint="Free disk space or set SEALRUN_HOME to another disk, then try again.",
                ) from error
        records.put_base(wish.key, base)
        return base


@dataclass
class _Workshop:
    """One interpreter while it is made part of a base."""

    wish: Wanted
    records: Records
    engine: Any
    progress: Progress
    task: Task
    scratch: Path

    def make(self) -> Base:
        if self.engine is None:
            raise EnvironmentFault(
                f"{self.wish.reason}; obtaining it needs a container engine, and none answers",
                hint="sealrun engine up starts one.",
            )
        obtained = self._obtain(*self._choose())
        base = self.wish.base
        twin = f"python-of:{key_of([LAYOUT, base_key(base), obtained.name, obtained.sha256])}"
        if found := self.records.base(twin):
            return found
        members = {m.path: m for m in clean(obtained, self._names())}
        made = Base(
            origin=f"{base.origin} with {obtained.name}@sha256:{obtained.sha256}",
            platform=base.platform,
            layers=(*base.layers, self._layer(members, obtained)),
            python=obtained.version,
            python_path=f"{HOME}/bin/python3",
            libc=base.libc,
            packages=(*base.packages, Package("cpython", obtained.version, obtained.sha256)),
        )
        self.records.put_base(twin, made)
        return made

    def _choose(self) -> tuple[str, str]:
        """Return name and version of what to obtain."""
        wish = self.wish
        pinned = {n: _version(n) or "" for n in wish.pins if n.endswith(wish.suffix)}
        if pinned:
            chosen = asked.choose(pinned, wish.demands, wish.base.python)
            if chosen is None:
                raise SealRefused(
                    f"{asked.told(wish.demands)}, but {PINS_FILE.decode()} pins "
                    f"{', '.join(sorted(pinned))}",
                    hint="Let the pin and the project ask for the same Python, and commit both.",
                )
            return chosen
        offered = self._offered()
        chosen = asked.choose(offered, wish.demands, wish.base.python)
        if chosen is None:
            raise SealRefused(
                f"{wish.reason}; uv offers none for {wish.suffix[1:]} that would do, only "
                f"{asked.span(offered.values())}",
                hint=_OTHER_BASE,
            )
        return chosen

    def _offered(self) -> dict[str, str]:
        """Return the versions of the interpreters that uv knows for the base, by its names."""
        self.task.describe("asking uv which interpreters there are")
        done = subprocess.run(
            [
                *(*_uv(), "list", "--only-downloads", "--all-versions", "--all-platforms"),
                *("--output-format", "json"),
            ],
            env=_environment(self.scratch),
            cwd=self.scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        try:
            listed: list[Mapping[str, object]] = (
                json.loads(done.stdout) if not done.returncode else []
            )
            found = {str(one["key"]): str(one["version"]) for one in listed}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EnvironmentFault(f"uv's list of interpreters cannot be read: {error}") from error
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").splitlines()[-tool.LAST_LINES :]
            words = "\n".join(f"  {tool.visible(line)}" for line in lines)
            raise EnvironmentFault(
                f"{self.wish.reason}, and uv cannot tell which interpreters there are; it printed "
                f"last:\n{words}",
                hint=_HINT,
            )
        suffix = self.wish.suffix
        return {key: text for key, text in found.items() if key == f"cpython-{text}{suffix}"}

    def _obtain(self, name: str, version: str) -> Obtained:
        installed, archives = self.scratch / "installed", self.scratch / "archives"
        tool.run_tool(
            [*_uv(), "install", "--no-bin", "--install-dir", str(installed), name],
            task=self.task,
            what=f"{self.wish.reason}; obtaining {name} through uv",
            env=_environment(self.scratch) | {"UV_PYTHON_CACHE_DIR": str(archives)},
            cwd=self.scratch,
            hint=_HINT,
        )
        kept = [path for path in archives.iterdir() if path.is_file()]
        if len(kept) != 1 or not (installed / name / "bin").is_dir():
            raise EnvironmentFault(
                f"uv said that it installed {name}, but left {len(kept)} archives and no such "
                "interpreter",
                hint="Report this, with the version of uv.",
            )
        with kept[0].open("rb") as archive:
            digest = hashlib.file_digest(archive, "sha256").hexdigest()
        if (pin := self.wish.pins.get(name)) and pin != f"sha256:{digest}":
            raise SealRefused(
                f"{PINS_FILE.decode()} pins {name} to {pin}, but what uv fetched is sha256:{digest}",
                hint="The source serves another archive than the one that was pinned. Find out why "
                "before you change the pin.",
            )
        return Obtained(name, version, digest, installed / name)

    def _names(self) -> str:
        """Return where the base keeps ``/usr/local/bin``, links followed."""
        from sealrun.image import contents

        with contents.reading(self.wish.base.layers, self.wish.base.origin) as found:
            return found.resolve(_NAMES) or _NAMES

    def _layer(self, members: dict[bytes, normal.Member], obtained: Obtained) -> Layer:
        """Write the layer: the interpreter's files and the bytecode of its standard library."""
        from sealrun.image import build, bytecode
        from sealrun.image.store import LayerStore

        self.task.describe("compiling its standard library")
        layers = self.records.layers
        bare = build.bare(self.wish.base, layers, self.engine, self.progress)
        draft = normal.write_layer(members, LayerStore(private(self.scratch / "layers")))
        says, compiled = bytecode.compiled(
            bare,
            self.engine,
            draft,
            f"{HOME}/bin/python3",
            f"{HOME}/lib/python{obtained.minor}",
            {path for path in members if path.endswith(b".py")},
            label=self.wish.key,
            scratch=self.scratch,
        )
        if says != f"CPython {obtained.version}":
            raise EnvironmentFault(
                f"{obtained.name} says of itself in a container that it is {says}",
                hint="What uv fetched is mislabelled: look at the mirror that it comes from.",
            )
        members |= {member.path: member for member in compiled}
        self.task.describe("writing the layer")
        return normal.write_layer(members, layers)


def _uv() -> list[str]:
    """Return uv's command for interpreters, with its user's settings and no project's."""
    from sealrun.image.install import uv_command

    environ = os.environ
    own = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "uv" / "uv.toml"
    named = environ.get("UV_CONFIG_FILE")
    for path in (Path(named) if named else own, Path("/etc/uv/uv.toml")):
        if path.is_file():
            # Named: otherwise uv would look for a project's in the directories above, too.
            return [uv_command(), "--config-file", str(path.absolute()), "python"]
    return [uv_command(), "--no-config", "python"]


def _environment(scratch: Path) -> dict[str, str]:
    from sealrun.image.install import uv_environment

    env = uv_environment(scratch / "uv")
    # Ours keeps uv from fetching interpreters on the side; here it is asked to.
    del env["UV_PYTHON_DOWNLOADS"]
    return env | {name: os.environ[name] for name in _UV if os.environ.get(name)}


def clean(obtained: Obtained, names: str) -> Iterable[normal.Member]:
    """Yield an installed interpreter as members of a layer, without a trace of this host.

    Args:
        names: the directory whose ``python3`` PATH finds, as a path in a layer.

    Raises:
        EnvironmentFault: it holds what cannot stand in a layer.
    """
    top = obtained.directory
    if top.is_symlink():
        raise EnvironmentFault(
            f"what uv fetched as {obtained.name} is a link, which leads out of it"
        )
    home = HOME.strip("/")
    for directory, below, files in walk(top):
        below[:] = sorted(name for name in below if name != "__pycache__")
        inside = os.path.relpath(directory, top)
        above = home if inside == "." else f"{home}/{inside}"
        yield normal.directory(os.fsencode(above))
        for name in sorted(files):
            yield _member(Path(directory, name), f"{above}/{name}", top)
    python = f"python{obtained.minor}"
    if not os.path.lexists(top / "bin" / "python3"):
        yield normal.symlink(f"{home}/bin/python3".encode(), python.encode())
    yield normal.symlink(f"{names}/{python}".encode(), f"{HOME}/bin/{python}".encode())
    yield normal.symlink(f"{names}/python3".encode(), f"{HOME}/bin/python3".encode())
    yield normal.symlink(f"{names}/python".encode(), b"python3")


def _member(path: Path, place: str, top: Path) -> normal.Member:
    where = os.fsencode(place)
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        target = str(path.readlink())
        led = os.path.normpath(path.parent / target)
        if target.startswith("/") or not f"{led}/".startswith(f"{top}/"):
            raise EnvironmentFault(
                f"the interpreter that uv fetched holds the link {place}, which leads out of it"
            )
        return normal.symlink(where, os.fsencode(target))
    if not stat.S_ISREG(status.st_mode):
        raise EnvironmentFault(
            f"the interpreter that uv fetched holds {place}, which is neither a file nor a link"
        )
    mode = 0o755 if status.st_mode & 0o111 else 0o644
    if status.st_size <= _LARGEST_TEXT:
        content = path.read_bytes()
        # uv writes where it installed to into what describes the build (sysconfig, pkg-config).
        if os.fsencode(top) in content:
            return normal.file(where, content.replace(os.fsencode(top), HOME.encode()), mode)
    return normal.file_at(where, path, mode)


def pin_line(base: Base) -> str | None:
    """Return what ``[python]`` in ``sealrun.lock`` binds a base's interpreter by, if it was obtained."""
    found = re.search(r" with (cpython-\S+)@(sha256:[0-9a-f]{64})$", base.origin)
    return f'"{found[1]}" = "{found[2]}"' if found else None
