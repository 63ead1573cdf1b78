"""Makes the environment of a plan: resolves, installs, and writes one deterministic layer.

Rules that this module keeps:

- What is resolved once stays resolved: the answer is kept under the plan's key.
- Nothing of the tree runs on the host; source distributions build in a container, where the policy
  allows them at all.
- What was fetched stays until the environment is made, so that a second try need not fetch it again.
- Two makers of one environment take turns; the second finds what the first made.
"""

from __future__ import annotations

import re
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun import nested
from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import build, estimate, index, install, local, lock, normal, tool
from sealrun.image.base import alone
from sealrun.image.environment import (
    LAYOUT,
    PROJECT,
    Kind,
    base_key,
    find_environment,
    key_of,
    records_of,
    text_of,
    tree_path,
)
from sealrun.image.model import ENVIRONMENT, Environment, Package
from sealrun.image.store import write_atomically
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sealrun.image.environment import Plan
    from sealrun.image.model import Base, Layer
    from sealrun.image.store import Records
    from sealrun.progress import Progress, Task
    from sealrun.state import Places
    from sealrun.tree import CommittedTree


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
    records = records_of(places)
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
        with suppress(OSError):
            nested.remove(scratch)
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
        key = key_of(
            [
                *(LAYOUT, base_key(chosen.base), program.program if program else None),
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
        nested.remove(top)
        for path, content in self.chosen.files.items():
            target = top / path
            nested.make(target.parent)
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
        env = install.uv_environment(self.scratch / "uv")
        apart = self.scratch / "resolving"
        if env.get("UV_FIND_LINKS"):
            # A local wheel is unpacked whole to be asked what it needs, and once more to be
            # installed: not both at once.
            env["UV_CACHE_DIR"] = str(apart)
        try:
            tool.run_tool(
                [install.uv_command(), "--quiet", *asked, "--no-header", *index.options()],
                task=self.task,
                what=f"resolving {source}",
                env=env,
                cwd=committed,
                hint="Check that the package index can be reached (pip's and uv's own settings are "
                "used), then try again.",
            )
        except tool.ToolFailed as failure:
            if chosen.build and _needs_build(failure):
                return self._bench().resolve(chosen.files, chosen.directory, name, self.task)
            raise _unresolvable(source, failure) or failure from failure
        finally:
            with suppress(OSError):
                nested.remove(apart)
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
        placed = [(name, tree_path(self.chosen.directory, path)) for name, path in resolution.local]
        return [local.read(tree, path, name) for name, path in placed if _is_package(tree, path)]

    def _layer(
        self,
        resolution: lock.Resolution,
        projects: Iterable[local.LocalProject],
        program: install.UvProgram | None,
        committed: Path,
    ) -> Layer:
        target, scratch = self.chosen.target, self.scratch
        nested.remove(scratch / "prefix")
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
            needed = estimate.estimate(wheels, committed, install.uv_environment(scratch / "uv"))
            what = f"the environment of {self.chosen.source}"
            estimate.require_room(needed, scratch, what)
            with estimate.shown(needed, scratch, self.progress):
                prefix = install.install(wheels, target, committed, scratch, self.task)
            found += install.members(prefix, target)
        self.task.describe("writing the layer")
        return normal.write_layer({m.path: m for m in found}, self.records.layers)


def _is_package(tree: CommittedTree, path: str) -> bool:
    where = f"{path}/{PROJECT}" if path else PROJECT
    if tree.get(where.encode()) is None:
        return True
    document = tomllib.loads(text_of(tree, where))
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
