"""The middle of an image: what the commit's lock asks for, installed for the base's Python.

Rules that this module keeps:

- ``plan`` decides from the commit's bytes and the base alone; ``find_environment`` looks into
  records alone; ``make_environment`` does everything slow.
- Resolve first, then key: the same exact files on the same base are the same environment, whatever
  lock named them. What had to be resolved is resolved once and stays on record.
- Files that uv reads come from the commit, in a private copy; never from the working directory.
- An environment is kept as content-addressed data: it rebuilds without network.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import build, index, install, local, lock, normal, tool
from sealrun.image.base import alone
from sealrun.image.model import ENVIRONMENT, Environment, Package
from sealrun.image.store import LayerStore, Records, write_atomically
from sealrun.state import private
from sealrun.tree import SYMLINK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from sealrun.image.model import Base, Layer
    from sealrun.policy import ImagePolicy
    from sealrun.progress import Progress, Task
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: Counts up when the same inputs are installed into other bytes.
LAYOUT = 1
_PYLOCK = re.compile(r"pylock(?:\.[^.]+)?\.toml")
_UV_LOCK = "uv.lock"
_PROJECT = "pyproject.toml"
_READ_BY_UV = (b"pyproject.toml", b"uv.toml")
_REQUIRES = re.compile(r'^requires-python = "([^"]*)"', re.MULTILINE)


class Kind(Enum):
    """What kind of lock the commit holds."""

    NONE = "none"
    PYLOCK = "pylock"
    UV = "uv"
    REQUIREMENTS = "requirements"


@dataclass(frozen=True)
class Plan:
    """What has to stand in the environment, as far as the commit's bytes say it.

    Attributes:
        source: the lock's path in the tree, or None.
        key: what the environment is found under: sha256 over the lock, the files that it takes in,
            the base and the platform.
        files: what uv reads, by path in the tree.
        with_uv: the tree is a uv project, so ``uv run`` must work in the container.
        build: source distributions may be built, in a container.
    """

    kind: Kind
    source: str | None
    key: str
    base: Base = field(repr=False)
    with_uv: bool = False
    build: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    tree: CommittedTree | None = field(default=None, repr=False, compare=False)

    @property
    def target(self) -> lock.Target:
        """The Python that is installed for."""
        return lock.Target(self.base.python or "", self.base.libc, self.base.platform)

    @property
    def directory(self) -> str:
        """The lock's directory in the tree; empty for the root."""
        return (self.source or "").rpartition("/")[0]

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that make the layer the active environment, for uv too."""
        if self.kind is Kind.NONE and not self.with_uv:
            return {}
        active = {"VIRTUAL_ENV": ENVIRONMENT}
        if not self.with_uv:
            return active
        offline = {
            "UV_NO_SYNC": "1",
            "UV_OFFLINE": "1",
            "UV_NO_CACHE": "1",
            "UV_PROJECT_ENVIRONMENT": ENVIRONMENT,
            "UV_PYTHON_DOWNLOADS": "never",
        }
        frozen = {"UV_FROZEN": "1"} if self.kind is Kind.UV else {}
        return active | offline | frozen


def plan(tree: CommittedTree, policy: ImagePolicy, base: Base) -> Plan:
    """Decide what environment a commit needs on a base.

    Raises:
        SealRefused: the policy names a lock that is not there or of no known kind, or the base's
            Python is not the one that the commit asks for.
    """
    kind, source = _find_lock(tree, policy.environment)
    project = _project(tree)
    with_uv = policy.environment != "none" and project is not None and base.python is not None
    if policy.environment == "none":
        return Plan(Kind.NONE, None, _key(["none"]), base)
    if base.python is None and kind is not Kind.NONE:
        raise SealRefused(
            f"{source} asks for Python packages, but the base {base.origin} has no Python",
            hint='Name a base with Python, e.g. [image] base = "debian-python".',
        )
    if kind is Kind.NONE and not with_uv:
        return Plan(kind, None, _key(["none"]), base)
    files = _files(tree, kind, source)
    chosen = Plan(kind, source, "", base, with_uv, policy.build_sdists, files, tree)
    _check_python(tree, chosen, project or {})
    inputs = [
        *(LAYOUT, kind.value, source, with_uv, policy.build_sdists, _base_key(base)),
        *(install.pinned_uv(chosen.target).program if with_uv else None,),
        sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items()),
    ]
    return replace(chosen, key=_key(inputs))


def find_environment(chosen: Plan, places: Places) -> Environment | None:
    """Return the environment that was made for a plan, or None: then it is to be made."""
    if chosen.kind is Kind.NONE and not chosen.with_uv:
        return Environment(chosen.key, None, None)
    return _records(places).environment(chosen.key)


def make_environment(
    chosen: Plan,
    base: Base,
    places: Places,
    progress: Progress,
    engine: Any = None,  # noqa: ANN401 - docker-py ships no types
) -> Environment:
    """Make the environment for a plan, or return the one that is there.

    Args:
        base: the one that the plan was made for.
        progress: is told what is fetched and installed.
        engine: docker-py's low-level client; needed only where source distributions are built.

    Raises:
        SealRefused: the lock cannot be installed faithfully.
        EnvironmentFault: there is no network, no room, or a tool fails.
    """
    if chosen.base != base:
        raise ValueError("the plan was made for another base")
    if found := find_environment(chosen, places):
        return found
    records = _records(places)
    with alone(places, chosen.key):
        if found := records.environment(chosen.key):
            return found
        scratch = private(private(places.cache / "environments") / chosen.key)
        title = f"installing {chosen.source}" if chosen.source else "making the environment"
        try:
            with progress.task(title) as task:
                made = _Making(chosen, places, records, scratch, task, engine, progress).make()
        except OSError as error:
            raise EnvironmentFault(
                f"{title}: {error.strerror or error} ({error.filename or scratch})",
                hint="Free disk space or set SEALRUN_HOME to another disk, then try again.",
            ) from error
        records.put_environment(chosen.key, made)
        # On failure it stays: what was fetched need not be fetched again.
        shutil.rmtree(scratch, ignore_errors=True)
        return made


@dataclass
class _Making:
    """One environment while it is made."""

    chosen: Plan
    places: Places
    records: Records
    scratch: Path
    task: Task
    engine: Any
    progress: Progress

    def make(self) -> Environment:
        chosen, target = self.chosen, self.chosen.target
        committed = self._copy()
        resolution = self._resolve(committed)
        projects = self._projects(resolution)
        program = install.pinned_uv(target) if chosen.with_uv else None
        key = _key(
            [
                *(LAYOUT, _base_key(chosen.base), program.program if program else None),
                [(w.name, w.version, w.sha256) for w in resolution.wheels],
                [project.key for project in projects],
            ]
        )
        twin = self.records.environment(f"resolved:{key}")
        layer = twin.layer if twin else None
        if layer is None:
            layer = self._layer(resolution, projects, program, committed)
        packages = [Package(w.name, w.version, w.sha256) for w in resolution.wheels]
        packages += [Package(p.name, p.version) for p in projects]
        packages += [Package("uv", program.version, program.wheel)] if program else []
        made = Environment(
            key=key,
            source=chosen.source,
            layer=layer,
            variables=chosen.variables,
            packages=tuple(sorted(packages, key=lambda p: p.name)),
        )
        self.records.put_environment(f"resolved:{key}", made)
        return made

    def _copy(self) -> Path:
        """Write what uv reads into a private directory; return the lock's directory in it."""
        top = self.scratch / "committed"
        shutil.rmtree(top, ignore_errors=True)
        for path, content in self.chosen.files.items():
            target = top / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        directory = top / self.chosen.directory
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _resolve(self, committed: Path) -> lock.Resolution:
        chosen = self.chosen
        if chosen.source is None:
            return lock.Resolution((), ())
        kept = self.places.bases / f"resolution-{chosen.key}.toml"
        hashes: dict[str, frozenset[str]] = {}
        if chosen.kind is Kind.PYLOCK:
            text = chosen.files[chosen.source].decode("utf-8", "replace")
        else:
            text = kept.read_text("utf-8") if kept.exists() else self._ask_uv(committed)
        if chosen.kind is Kind.REQUIREMENTS:
            texts = (
                content.decode("utf-8", "replace")
                for path, content in chosen.files.items()
                if not path.endswith((".whl", ".toml"))
            )
            hashes = lock.required_hashes(texts)
        read = lock.read_pylock(text, chosen.source, chosen.target, hashes, build=chosen.build)
        if chosen.kind is not Kind.PYLOCK:
            write_atomically(kept, text.encode())
        return read

    def _ask_uv(self, committed: Path) -> str:
        """Bring a ``uv.lock`` or requirements into the form of a ``pylock.toml``."""
        self.task.describe("resolving")
        chosen, source = self.chosen, self.chosen.source or ""
        name = source.rpartition("/")[2]
        # Beside the lock: paths in the answer are relative to it.
        out = committed / "pylock.sealrun.toml"
        if chosen.kind is Kind.UV:
            asked = ["export", "--frozen", "--format", "pylock.toml", "-o", str(out)]
        else:
            asked = [
                *("pip", "compile", "--format", "pylock.toml", "--output-file", str(out), name),
                *("--python", sys.executable, "--python-version", chosen.target.python),
                *("--python-platform", chosen.target.uv_platform, "--only-binary", ":all:"),
            ]
        try:
            tool.run_tool(
                [install.uv_command(), "--quiet", *asked, "--no-header", *index.options()],
                task=self.task,
                what=f"resolving {source}",
                env=install.uv_environment(self.scratch / "uv"),
                cwd=committed,
                hint="Check that the package index can be reached (pip's and uv's own settings are "
                "used), then try again.",
            )
        except tool.ToolFailed as failure:
            if chosen.build and _needs_build(failure):
                return self._bench().resolve(chosen.files, chosen.directory, name, self.task)
            raise _unresolvable(source, failure) or failure from failure
        return out.read_text("utf-8")

    def _bench(self) -> build.Workbench:
        chosen = self.chosen
        target = chosen.target
        return build.Workbench(
            self.engine,
            chosen.base,
            target,
            self.records.layers,
            chosen.key,
            install.uv_binary(install.pinned_uv(target), target, self.scratch, self.task),
            self.progress,
        )

    def _projects(self, resolution: lock.Resolution) -> list[local.LocalProject]:
        tree = self.chosen.tree
        if tree is None:  # pragma: no cover - only plans without a lock have none
            raise AssertionError
        placed = [(name, _join(self.chosen.directory, path)) for name, path in resolution.local]
        return [local.read(tree, path, name) for name, path in placed if _is_package(tree, path)]

    def _layer(
        self,
        resolution: lock.Resolution,
        projects: Iterable[local.LocalProject],
        program: install.UvProgram | None,
        committed: Path,
    ) -> Layer:
        target, scratch = self.chosen.target, self.scratch
        shutil.rmtree(scratch / "prefix", ignore_errors=True)
        found = install.skeleton(target, self.chosen.base.python_path or "")
        if program:
            binary = install.uv_binary(program, target, scratch, self.task)
            uv_path = f"{ENVIRONMENT}/bin/uv".strip("/").encode()
            found.append(normal.file_at(uv_path, binary, 0o755))
        for project in projects:
            found += local.members(project, install.site_packages(target))
        wheels = [wheel for wheel in resolution.wheels if not wheel.source]
        if sources := [wheel for wheel in resolution.wheels if wheel.source]:
            built = self._bench().build(sources, committed, scratch / "built", self.task)
            wheels = sorted([*wheels, *built], key=lambda wheel: wheel.name)
        if wheels:
            prefix = install.install(wheels, target, committed, scratch, self.task)
            found += install.members(prefix, target)
        self.task.describe("writing the layer")
        return normal.write_layer({m.path: m for m in found}, self.records.layers)


def _find_lock(tree: CommittedTree, named: str) -> tuple[Kind, str | None]:
    if named not in ("auto", "none"):
        if tree.get(named.encode()) is None:
            raise SealRefused(
                f"{named}: [image] environment names this lock, but the commit does not hold it",
                hint="Commit it, or set environment to auto or none.",
            )
        return _kind(named), named
    for name in ("pylock.toml", _UV_LOCK, "requirements.txt"):
        if tree.get(name.encode()) is not None:
            return _kind(name), name
    project = _project(tree)
    if project and project.get("project", {}).get("dependencies"):
        return Kind.REQUIREMENTS, _PROJECT
    return Kind.NONE, None


def _kind(path: str) -> Kind:
    name = path.rpartition("/")[2]
    if _PYLOCK.fullmatch(name):
        return Kind.PYLOCK
    if name == _UV_LOCK:
        return Kind.UV
    if name.endswith((".txt", ".in")) or name == _PROJECT:
        return Kind.REQUIREMENTS
    raise SealRefused(
        f"{path}: [image] environment must name a pylock.toml, uv.lock or requirements file",
        hint="Other tools export one: poetry, pdm and pixi all write requirements files.",
    )


def _project(tree: CommittedTree) -> dict[str, Any] | None:
    if tree.get(_PROJECT.encode()) is None:
        return None
    try:
        return tomllib.loads(_text(tree, _PROJECT))
    except tomllib.TOMLDecodeError as error:
        raise SealRefused(f"{_PROJECT} is not readable TOML: {error}") from error


def _text(tree: CommittedTree, path: str) -> str:
    try:
        return _bytes(tree, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SealRefused(f"{path} is not UTF-8: {error}") from error


def _bytes(tree: CommittedTree, path: str) -> bytes:
    entry = tree.get(path.encode())
    if entry is None:
        raise SealRefused(f"{path} is not in the commit", hint="Commit it.")
    if entry.mode == SYMLINK:
        raise SealRefused(f"{path} is a symlink", hint="Commit the file itself.")
    return tree.read(entry)


def _files(tree: CommittedTree, kind: Kind, source: str | None) -> dict[str, bytes]:
    """Return the files that decide what is installed: the lock and what it takes in."""
    found: dict[str, bytes] = {}
    if source is None:
        return found
    found[source] = _bytes(tree, source)
    if kind is Kind.REQUIREMENTS and source.rpartition("/")[2] != _PROJECT:
        _include(tree, source, found)
    # Members of a workspace, path dependencies and committed wheels, wherever they stand.
    above = str(PurePosixPath(source).parent)
    for entry in tree.entries:
        name = entry.path.rpartition(b"/")[2]
        if entry.mode == SYMLINK or not (name in _READ_BY_UV or name.endswith(b".whl")):
            continue
        path = entry.path.decode("utf-8", "surrogateescape")
        if above == "." or path.startswith(f"{above}/") or path == _PROJECT:
            found[path] = tree.read(entry)
    return found


def _include(tree: CommittedTree, source: str, found: dict[str, bytes]) -> None:
    """Add what a requirements file includes, and what that includes."""
    waiting = [source]
    while waiting:
        path = waiting.pop()
        for name in lock.includes(_text(tree, path)):
            if "://" in name:
                raise SealRefused(
                    f"{path} includes {name}, which is not in the commit",
                    hint="Commit a copy and include that.",
                )
            included = _join(str(PurePosixPath(path).parent), name)
            if included not in found:
                found[included] = _bytes(tree, included)
                waiting.append(included)


def _join(above: str, path: str) -> str:
    """Return a path of the tree that is written relative to one of its directories."""
    parts: list[str] = []
    for part in f"{above}/{path}".split("/"):
        if part == ".." and not parts:
            raise SealRefused(f"{path} leads out of the commit")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _check_python(tree: CommittedTree, chosen: Plan, project: Mapping[str, Any]) -> None:
    requires = project.get("project", {}).get("requires-python")
    lock.check_python(requires, _PROJECT, chosen.target)
    if tree.get(b".python-version") is not None:
        text = _text(tree, ".python-version")
        lock.check_python_version(text, ".python-version", chosen.target)
    if chosen.source and chosen.kind in (Kind.UV, Kind.PYLOCK):
        head = chosen.files[chosen.source].decode("utf-8", "replace").split("\n[[", 1)[0]
        if match := _REQUIRES.search(head):
            lock.check_python(match[1], chosen.source, chosen.target)


def _is_package(tree: CommittedTree, path: str) -> bool:
    where = f"{path}/{_PROJECT}" if path else _PROJECT
    if tree.get(where.encode()) is None:
        return True
    document = tomllib.loads(_text(tree, where))
    return document.get("tool", {}).get("uv", {}).get("package") is not False


def _needs_build(failure: tool.ToolFailed) -> bool:
    return "no usable wheels" in failure.words or "Wheels are required" in failure.words


def _unresolvable(source: str, failure: tool.ToolFailed) -> SealRefused | None:
    """Tell what is wrong with the inputs from what is wrong with the machine."""
    words = failure.words
    missing = re.findall(r"Wheels are required for `([^`]+)`", words)
    missing = missing or re.findall(r"all versions of (\S+) have no usable wheels", words)
    if missing:
        return SealRefused(
            f"{source}: {', '.join(sorted(set(missing)))} is available only as a source distribution",
            hint="Use a version that has a wheel for this base; building source distributions needs "
            "build_sdists = true under [image] in sealrun.toml.",
        )
    network = any(word in words for word in ("error sending request", "dns error", "timed out"))
    if network or not any(w in words for w in ("No solution found", "Failed to parse", "TOML")):
        return None
    return SealRefused(
        f"{source} cannot be resolved; uv said:\n{words}",
        hint="Change the requirements so that they can be met, and commit them.",
    )


def _base_key(base: Base) -> list[Any]:
    layers = [layer.diff_id for layer in base.layers]
    return [layers, base.python, base.python_path, base.libc, str(base.platform)]


def _key(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _records(places: Places) -> Records:
    return Records(places.bases, LayerStore(places.layers))
