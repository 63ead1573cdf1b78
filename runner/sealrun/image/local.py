"""Projects that stand in the commit itself: workspace members, ``-e .``, path dependencies.

Rules that this module keeps:

- They are not built: their code stands in the tree layer, and the environment points there with a
  ``.pth`` line, as an editable installation does. So an edit of their code needs no new
  environment, and what runs is what was committed.
- Their metadata is written from ``[project]``: name, version, entry points, so that
  ``importlib.metadata`` and console scripts work.
- Projects that have to be compiled, or whose layout cannot be told from their ``pyproject.toml``,
  are refused with their path.
- No IO: the tree is asked for names and small files only.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sealrun.errors import SealRefused
from sealrun.image import normal
from sealrun.image.model import ENVIRONMENT, WORKDIR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.tree import CommittedTree

#: Build back ends that compile code (each project's documentation).
_COMPILING = ("maturin", "scikit_build_core", "mesonpy", "py_build_cmake", "setuptools_rust")
_EXTENSIONS = re.compile(
    r"ext_modules|Extension\(|cythonize|CppExtension|CUDAExtension|cffi_modules"
)
_SCRIPT = """#!{python}
import sys

from {module} import {attribute}

if __name__ == "__main__":
    sys.argv[0] = sys.argv[0].removesuffix(".exe")
    sys.exit({call}())
"""
_ENTRY = re.compile(r"\s*([\w.]+)\s*:\s*([\w.]+)\s*(?:\[.*\])?\s*")


@dataclass(frozen=True)
class LocalProject:
    """A project in the commit.

    Attributes:
        name: normalised.
        path: its directory in the tree; empty for the root.
        roots: directories in the tree that its packages are imported from.
        entry_points: group, name and object reference of each.
    """

    name: str
    version: str
    path: str
    roots: tuple[str, ...]
    entry_points: tuple[tuple[str, str, str], ...]

    @property
    def key(self) -> list[Any]:
        """Everything that decides what stands in the environment for it."""
        return [self.name, self.version, self.roots, self.entry_points]


def read(tree: CommittedTree, path: str, name: str) -> LocalProject:
    """Read a project of the commit.

    Args:
        path: its directory in the tree; empty for the root.
        name: what the lock calls it.

    Raises:
        SealRefused: it is not there, malformed, or would have to be built.
    """
    where = f"{path}/" if path else ""
    document = _toml(tree, f"{where}pyproject.toml")
    project: dict[str, Any] = document.get("project", {})
    _refuse_compiled(tree, where, document)
    entry_points = [
        (group, str(key), str(value))
        for group, table in _entry_tables(project, f"{where}pyproject.toml")
        for key, value in table.items()
    ]
    try:
        # A version that the build would compute is not known without a build.
        version = str(Version(str(project.get("version", "0"))))
    except InvalidVersion as error:
        raise SealRefused(f"{where}pyproject.toml: {error}") from error
    return LocalProject(
        name=canonicalize_name(name),
        version=version,
        path=path,
        roots=tuple(f"{where}{root}".rstrip("/") for root in _roots(tree, where, document)),
        entry_points=tuple(sorted(entry_points)),
    )


def _toml(tree: CommittedTree, path: str) -> dict[str, Any]:
    entry = tree.get(path.encode())
    if entry is None:
        raise SealRefused(
            f"{path} is not in the commit, but the lock installs the project that it describes",
            hint="Commit it; a project without pyproject.toml needs one with a [project] table.",
        )
    try:
        return tomllib.loads(tree.read(entry).decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SealRefused(f"{path} is not readable TOML: {error}") from error


def _refuse_compiled(tree: CommittedTree, where: str, document: Mapping[str, Any]) -> None:
    system: dict[str, Any] = document.get("build-system", {})
    backend = str(system.get("build-backend", ""))
    compiled = backend.split(".", maxsplit=1)[0] in _COMPILING
    for name in ("setup.py", "build.py", "hatch_build.py"):
        entry = tree.get(f"{where}{name}".encode())
        if entry and _EXTENSIONS.search(tree.read(entry).decode("utf-8", "replace")):
            compiled = True
    if compiled or document.get("tool", {}).get("setuptools", {}).get("ext-modules"):
        raise SealRefused(
            f"{where or './'} has to be compiled before it can be imported; sealrun installs "
            "projects of the commit from source only where they are pure Python",
            hint="Publish it as a wheel and lock that, or commit the wheel and depend on its path.",
        )


def _roots(tree: CommittedTree, where: str, document: Mapping[str, Any]) -> list[str]:
    tool: dict[str, Any] = document.get("tool", {})
    named: list[str] = []
    setuptools: dict[str, Any] = tool.get("setuptools", {})
    packages = setuptools.get("packages")
    find: dict[str, Any] = packages.get("find", {}) if isinstance(packages, dict) else {}
    named += [str(root) for root in find.get("where", [])]
    named += [str(v) for k, v in setuptools.get("package-dir", {}).items() if k == ""]
    wheel = tool.get("hatch", {}).get("build", {}).get("targets", {}).get("wheel", {})
    named += [str(p).rstrip("/").rpartition("/")[0] for p in wheel.get("packages", [])]
    named += [str(p.get("from", "")) for p in tool.get("poetry", {}).get("packages", [])]
    if "module-root" in tool.get("uv", {}).get("build-backend", {}):
        named.append(str(tool["uv"]["build-backend"]["module-root"]))
    if not named:
        below = f"{where}src/".encode()
        named = ["src" if any(entry.path.startswith(below) for entry in tree.entries) else ""]
    roots = list(dict.fromkeys(root.removeprefix("./").strip("/") for root in named))
    if any(".." in root.split("/") for root in roots):
        raise SealRefused(f"{where}pyproject.toml takes packages from outside its directory")
    return ["" if root == "." else root for root in roots]


def _entry_tables(project: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    tables: list[tuple[str, Any]] = [
        ("console_scripts", project.get("scripts", {})),
        ("gui_scripts", project.get("gui-scripts", {})),
        *dict(project.get("entry-points", {})).items(),
    ]
    for group, table in tables:
        values = [group, *table, *table.values()] if isinstance(table, dict) else [None]
        if not all(isinstance(v, str) and v.isprintable() and "/" not in v for v in values):
            raise SealRefused(f"{where}: the entry points of {group} are malformed")
    return tables


def members(project: LocalProject, site: str) -> list[normal.Member]:
    """Return what stands in the environment for a project.

    Args:
        site: ``site-packages`` of the environment, as a path in a layer.
    """
    stem = canonicalize_name(project.name).replace("-", "_")
    info = f"{site}/{stem}-{project.version}.dist-info"
    pth = "".join(f"{WORKDIR}/{root}".rstrip("/") + "\n" for root in project.roots)
    metadata = f"Metadata-Version: 2.1\nName: {project.name}\nVersion: {project.version}\n"
    found = [
        normal.file(f"{site}/_{stem}.pth".encode(), pth.encode()),
        normal.file(f"{info}/METADATA".encode(), metadata.encode()),
    ]
    if project.entry_points:
        groups = dict.fromkeys(group for group, _, _ in project.entry_points)
        text = "".join(
            f"[{group}]\n"
            + "".join(f"{n} = {v}\n" for g, n, v in project.entry_points if g == group)
            + "\n"
            for group in groups
        )
        found.append(normal.file(f"{info}/entry_points.txt".encode(), text.encode()))
    for group, name, value in project.entry_points:
        match = _ENTRY.fullmatch(value)
        if group in ("console_scripts", "gui_scripts") and match:
            script = _SCRIPT.format(
                python=f"{ENVIRONMENT}/bin/python3",
                module=match[1],
                attribute=match[2].split(".")[0],
                call=match[2],
            )
            path = f"{ENVIRONMENT}/bin/{name}".strip("/").encode()
            found.append(normal.file(path, script.encode(), 0o755))
    return found
