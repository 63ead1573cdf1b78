"""Which extra files could be imported or read as configuration, and why. Pure: names go in.

An extra file is one that stands in a workspace and that no commit holds. In a container it cannot be
imported, because it is not in the image; without one it can.

Rules that this module keeps:

- A name decides, never content: it is asked for each event of each path, so it is cheap.
- What an interpreter can find counts, whether or not git ignores it: modules, compiled modules,
  sourceless bytecode (importlib's order: package, extension, source, bytecode), path files and start-up
  hooks (site.py), test hooks, and what tools read from the directory that they start in.
- What a loop leaves behind does not: logs, tables, checkpoints, editors' drafts, runs' folders. A
  name that no ``import`` can spell is no module.
- An installed environment is one unit; it is told by its name here, and by what marks it elsewhere.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Role(StrEnum):
    """What an extra file could be used as."""

    MODULE = "module"
    EXTENSION = "extension-module"
    BYTECODE = "sourceless-bytecode"
    CACHED = "cached-bytecode"
    PATHS = "path-file"
    STARTUP = "startup-hook"
    TESTS = "test-hook"
    CONFIGURATION = "configuration"
    SOURCE = "source"


@dataclass(frozen=True)
class Extra:
    """Why an extra file matters.

    Attributes:
        shadows: the module or tracked file that it stands in front of; None if it does not.
    """

    role: Role
    shadows: str | None = None

    @property
    def alarming(self) -> bool:
        """Whether it matters even if it stood there from the start."""
        return self.shadows is not None or self.role is Role.STARTUP


#: Directories that are one unit each: what an installer fills and nobody edits.
ENVIRONMENTS = frozenset(
    {b".venv", b"venv", b"node_modules", b"__pypackages__", b".tox", b".nox", b".eggs", b".pixi"}
)
#: Files that mark a directory of any other name as such a unit.
ENVIRONMENT_MARKS = (b"pyvenv.cfg", b"conda-meta")
#: Directories that tools fill while they work; only what makes one a package matters there.
OUTPUTS = frozenset(
    {
        *(b"wandb", b"mlruns", b"lightning_logs", b".ipynb_checkpoints", b".mypy_cache"),
        *(b".ruff_cache", b".pytest_cache", b".hypothesis", b".cache", b".idea", b".vscode"),
        *(b".git", b".hg", b".svn", b".jj"),
    }
)
#: Read by Python, its installers and test runners, by git, and by others, from a directory that
#: somebody works in.
_CONFIGURATIONS = (
    *("pyproject.toml", "setup.py", "setup.cfg", "tox.ini", "pytest.ini", ".pytest.ini"),
    *("noxfile.py", ".coveragerc", "uv.toml", "uv.lock", "poetry.lock", "pdm.lock", "Pipfile*"),
    *("pylock*.toml", "requirements*.txt", "constraints*.txt", "environment.y*ml", ".condarc"),
    *("pip.conf", ".python-version", ".tool-versions", ".env", ".env.*", ".envrc", ".pypirc"),
    *("package.json", "package-lock.json", "tsconfig*.json", ".npmrc", "yarn.lock", "deno.json"),
    *("Makefile", "makefile", "GNUmakefile", "justfile", "Dockerfile", ".dockerignore"),
    *(".gitattributes", ".gitignore", ".gitmodules", ".pre-commit-config.yaml", "sealrun.toml"),
    *("matplotlibrc", "ipython_config.py", "accelerate_config.yaml", ".pdbrc", ".inputrc"),
)
#: Suffixes of settings and of other languages' code: they matter beside a tracked file of the same.
_BESIDE = frozenset(
    {
        *(".toml", ".ini", ".cfg", ".conf", ".yaml", ".yml"),
        *(".js", ".mjs", ".cjs", ".ts", ".node", ".sh", ".jl", ".lua", ".R", ".pl", ".rb"),
        *(".h", ".hpp", ".cuh", ".cu", ".c", ".cc", ".cpp", ".pyx", ".pxd", ".pyi"),
    }
)
_LOCKS = frozenset({"uv.lock", "poetry.lock", "pdm.lock", "yarn.lock"})
_SETTINGS = frozenset({".toml", ".ini", ".cfg", ".conf", ".yaml", ".yml"})
_DRAFT = re.compile(r"^(\.#.*|#.*#|.*~|.*\.sw[a-z]|4913|.*\.(tmp|bak|orig|rej|lock|part))$")
_EXTENSION = re.compile(r"^([^.]+)(\.[\w-]+)?\.(so|pyd)$")
_HOOKS = ("sitecustomize", "usercustomize")
#: Names that the import system answers before it looks at any path.
_FIXED = frozenset(sys.builtin_module_names)
#: What wins where several stand side by side (importlib.machinery.FileFinder).
_RANK = {Role.EXTENSION: 1, Role.MODULE: 2, Role.BYTECODE: 3}
_PACKAGE = 0


class Surroundings:
    """What the names of extra files are judged against.

    Args:
        tracked: paths of the tracked files, relative to the workspace.
        installed: importable names that environments of the workspace hold.
    """

    def __init__(self, tracked: Iterable[bytes], installed: Iterable[str] = ()) -> None:
        self.tracked = frozenset(tracked)
        self.installed = frozenset(installed)
        self._directories: set[bytes] = {b""}
        self._suffixes: set[tuple[bytes, str]] = set()
        self._modules: dict[tuple[bytes, str], tuple[int, bytes]] = {}
        self._packages: set[bytes] = set()
        for path in self.tracked:
            self._learn(path)
        #: The cache hangs on this object's life, not on the class's.
        self.judge = lru_cache(maxsize=1 << 16)(self._judge)

    def _learn(self, path: bytes) -> None:
        directory, name = _split(path)
        above = directory
        while above and above not in self._directories:
            self._directories.add(above)
            above = above.rpartition(b"/")[0]
        self._suffixes.add((directory, _suffix(name)))
        found = _module(name)
        if found is None:
            return
        role, stem = found
        self._modules[directory, stem] = (_RANK[role], path)
        if stem == "__init__":
            self._packages.add(directory)
            parent, package = _split(directory)
            self._modules[parent, package] = (_PACKAGE, path)

    def _judge(self, path: bytes) -> Extra | None:  # noqa: PLR0911 - one line a rule
        """Say what an extra file could be used as.

        Args:
            path: relative to the workspace.

        Returns:
            None where it could not be imported and nothing reads it as configuration.
        """
        directory, name = _split(path)
        parts = directory.split(b"/") if directory else []
        if any(part in OUTPUTS for part in parts):
            makes_package = len(parts) == 1 and _module(name) in _INITS
            return self._as_module(directory, name) if makes_package else None
        if is_draft(name) and name not in _LOCKS:
            return None
        if name.endswith(".pyc") and parts[-1:] == [b"__pycache__"]:
            return Extra(Role.CACHED)
        if name.endswith((".pth", "._pth", ".egg-link")) or name == "pyvenv.cfg":
            return Extra(Role.PATHS)
        if name == "conftest.py":
            return Extra(Role.TESTS)
        if directory in self._directories and any(fnmatchcase(name, p) for p in _CONFIGURATIONS):
            return Extra(Role.CONFIGURATION)
        module = self._as_module(directory, name)
        if module is not None:
            return module
        suffix = _suffix(name)
        if suffix in _BESIDE and (directory, suffix) in self._suffixes:
            return Extra(Role.CONFIGURATION if suffix in _SETTINGS else Role.SOURCE)
        return None

    def _as_module(self, directory: bytes, name: str) -> Extra | None:
        found = _module(name)
        if found is None or not self._reachable(directory):
            return None
        role, stem = found
        rank, place, module = _RANK[role], directory, stem
        if stem == "__init__":
            place, module = _split(directory)
            rank = _PACKAGE
        shadows = self._shadowed(directory, stem, _RANK[role]) or self._shadowed(
            place, module, rank
        )
        if module in _HOOKS:
            return Extra(Role.STARTUP, shadows)
        if shadows is None and place in self._directories and place not in self._packages:
            shadows = self._elsewhere(module)
        return Extra(role, shadows)

    def _shadowed(self, place: bytes, module: str, rank: int) -> str | None:
        known = self._modules.get((place, module))
        if known is None or rank >= known[0]:
            return None
        return known[1].decode("utf-8", "backslashreplace")

    def _elsewhere(self, module: str) -> str | None:
        # A script's own directory comes before everything else on sys.path.
        if module in sys.stdlib_module_names and module not in _FIXED:
            return f"the standard library's {module}"
        return f"the installed {module}" if module in self.installed else None

    def _reachable(self, directory: bytes) -> bool:
        """Whether a name in a directory can be spelt from a place where code is looked for."""
        rest = directory
        while rest not in self._directories:
            rest, name = _split(rest)
            if not name.isidentifier():
                return False
        return True


def is_environment(name: bytes) -> bool:
    """Whether a directory of this name is one unit by policy."""
    return name in ENVIRONMENTS


def is_draft(name: str) -> bool:
    """Whether a file is what an editor or an installer leaves while it works."""
    return _DRAFT.match(name) is not None


def source_of(path: bytes) -> tuple[bytes, str, int] | None:
    """Return what a file of ``__pycache__`` was compiled from (PEP 3147, PEP 488).

    Returns:
        The source's path, the interpreter's tag and the level of optimisation; None where the name
        says none of it.
    """
    directory, _, name = path.rpartition(b"/")
    parent, _, cache = directory.rpartition(b"/")
    match = re.fullmatch(rb"(.+?)\.([a-z]+-\d+t?)(?:\.opt-([12]))?\.pyc", name)
    if cache != b"__pycache__" or match is None:
        return None
    source = match[1] + b".py"
    return (
        parent + b"/" + source if parent else source,
        match[2].decode("ascii"),
        int(match[3] or 0),
    )


def module_name(entry: bytes) -> str | None:
    """Return the name under which an entry of a directory on the import path is imported."""
    found = _module(entry.decode("utf-8", "replace"))
    if found is not None:
        return found[1]
    text = entry.decode("utf-8", "replace")
    return text if text.isidentifier() and text != "__pycache__" else None


def _module(name: str) -> tuple[Role, str] | None:
    stem, _, suffix = name.rpartition(".")
    if suffix in ("py", "pyw"):
        found: tuple[Role, str] | None = (Role.MODULE, stem)
    elif suffix == "pyc":
        found = (Role.BYTECODE, stem)
    else:
        match = _EXTENSION.match(name)
        found = None if match is None else (Role.EXTENSION, match[1])
    return found if found is not None and found[1].isidentifier() else None


_INITS = tuple((role, "__init__") for role in _RANK)


def _split(path: bytes) -> tuple[bytes, str]:
    directory, _, name = path.rpartition(b"/")
    return directory, name.decode("utf-8", "surrogateescape")


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix if stem else ""
