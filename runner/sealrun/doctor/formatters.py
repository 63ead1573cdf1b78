"""Runs the formatters that this repository configures, on a private copy of the committed tree.

Rules that this module keeps:

- The copy is made from the commit's checked bytes; only regular files enter it, no links. What a
  formatter changed is found by comparing bytes afterwards, the same way for each of them.
- No repository code runs: only formatters whose configuration is pure data, only programs that lie
  outside the workspace (or beside sealrun itself), with a scrubbed environment and a time limit.
- A formatter that is configured and was not tried is said, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sealrun.tree import CommittedTree, Entry

#: Seconds for one formatter.
_PATIENCE = 30.0
#: More than this is not copied: a look should take seconds.
_MOST_FILES = 20_000
_MOST_BYTES = 200 * 10**6
_REGULAR = (0o100644, 0o100755)
_PYTHON = (".py", ".pyi", ".ipynb")
_WEB = (
    *(".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".css", ".scss", ".less", ".html", ".vue"),
    *(".json", ".md", ".mdx", ".yaml", ".yml"),
)
_CONFIGURATION = (
    *("pyproject.toml", "ruff.toml", ".ruff.toml", "setup.cfg", "tox.ini", ".isort.cfg"),
    *(".editorconfig", ".pep8", ".flake8", ".prettierrc", ".prettierignore", "package.json"),
)
#: Forms of prettier's configuration that are data; the others are programs.
_PRETTIER_DATA = re.compile(r"\.prettierrc(\.(json|json5|ya?ml|toml))?")
_PRETTIER_ANY = re.compile(r"\.prettierrc(\..+)?|prettier\.config\..+")


@dataclass(frozen=True)
class Formatter:
    """A formatter and how it is run.

    Attributes:
        name: for people, and what configuration and hooks call it.
        program: what is looked for on PATH.
        arguments: to rewrite everything below the current directory.
        suffixes: of the files that it may rewrite.
        exclude: how a file is kept from it.
    """

    name: str
    program: str
    arguments: tuple[str, ...]
    suffixes: tuple[str, ...]
    exclude: str


FORMATTERS = (
    Formatter(
        "ruff format",
        "ruff",
        ("format", "--no-cache", "--quiet", "."),
        _PYTHON,
        '[tool.ruff.format] exclude = ["PATH"]',
    ),
    Formatter(
        "ruff check --fix",
        "ruff",
        ("check", "--fix-only", "--exit-zero", "--no-cache", "--quiet", "."),
        _PYTHON,
        '[tool.ruff.lint] exclude = ["PATH"]',
    ),
    Formatter("black", "black", ("--quiet", "."), _PYTHON, "[tool.black] force-exclude = 'PATH'"),
    Formatter("isort", "isort", ("--quiet", "."), _PYTHON, '[tool.isort] skip = ["PATH"]'),
    Formatter(
        "autopep8",
        "autopep8",
        ("--in-place", "--recursive", "."),
        _PYTHON,
        "[tool.autopep8] exclude = 'PATH'",
    ),
    Formatter(
        "prettier", "prettier", ("--write", "--log-level=error", "."), _WEB, ".prettierignore: PATH"
    ),
)


@dataclass(frozen=True)
class Trial:
    """What one formatter did to the copy.

    Attributes:
        rewritten: paths of tracked files that it would rewrite.
        program: the path of what was run, or None.
        problem: why it was not tried to the end, or None.
    """

    formatter: Formatter
    rewritten: tuple[str, ...]
    program: str | None
    problem: str | None


def configured(files: Mapping[str, str], mentions: str) -> list[Formatter]:
    """Return the formatters that this repository sets up.

    Args:
        files: content of the committed configuration files, by path.
        mentions: the words of editor settings and hooks, in which formatters may be named.
    """
    tools: set[str] = set()
    fixes = re.search(r"\bruff(-check)?\b[^\n]*--fix|fixAll|source\.fixAll", mentions) is not None
    for path, text in files.items():
        name = PurePosixPath(path).name
        tables = _tool_tables(text) if name == "pyproject.toml" else {}
        tools |= {tool for tool in ("ruff", "black", "isort", "autopep8") if tool in tables}
        if name in {"ruff.toml", ".ruff.toml"}:
            tools.add("ruff")
            tables = {"ruff": _toml(text)}
        fixes = fixes or _mapping(tables.get("ruff")).get("fix") is True
        if name == ".isort.cfg" or "[isort]" in text or "[tool:isort]" in text:
            tools.add("isort")
        if "[autopep8]" in text:
            tools.add("autopep8")
        if _PRETTIER_ANY.fullmatch(name) or (name == "package.json" and '"prettier"' in text):
            tools.add("prettier")
    for tool in ("ruff", "black", "isort", "autopep8", "prettier"):
        if re.search(rf"(?<![\w-]){tool}(?![\w])", mentions):
            tools.add(tool)
    chosen = [f for f in FORMATTERS if f.program in tools]
    return chosen if fixes else [f for f in chosen if f.name != "ruff check --fix"]


def is_configuration(name: str) -> bool:
    """Return whether a file of this name may configure a formatter."""
    return name in _CONFIGURATION or _PRETTIER_ANY.fullmatch(name) is not None


def try_all(
    tree: CommittedTree, chosen: Sequence[Formatter], workspace: Path, scratch: Path
) -> Iterator[Trial]:
    """Run formatters on copies of the committed tree.

    Args:
        tree: whose files.
        chosen: which formatters.
        workspace: programs below it are not run.
        scratch: a private directory for the copies.
    """
    for formatter in chosen:
        program = find_program(formatter.program, workspace)
        if program is None:
            problem = "not installed outside the workspace; not tried"
            yield Trial(formatter, (), None, problem)
            continue
        entries = [e for e in tree.entries if _is_wanted(e, formatter)]
        if formatter.name == "prettier" and (code := _prettier_code(tree, entries)):
            yield Trial(formatter, (), program, f"{code} is code or loads some; not tried")
            continue
        if len(entries) > _MOST_FILES or sum(e.size for e in entries) > _MOST_BYTES:
            yield Trial(formatter, (), program, "the tree is too large to be tried")
            continue
        yield _try(tree, formatter, entries, program, scratch)


def find_program(name: str, workspace: Path) -> str | None:
    """Return an executable that is no file of the workspace, or None.

    What lies beside sealrun's own interpreter is trusted as sealrun itself is.
    """
    beside = Path(sys.executable).parent
    if found := shutil.which(name, path=str(beside)):
        return found
    top = workspace.resolve()
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        found = shutil.which(name, path=directory) if directory.startswith("/") else None
        if found and not any(
            p.is_relative_to(top) for p in (Path(found).absolute(), Path(found).resolve())
        ):
            return found
    return None


def _is_wanted(entry: Entry, formatter: Formatter) -> bool:
    name = PurePosixPath(os.fsdecode(entry.path)).name
    wanted = name.endswith(formatter.suffixes) or is_configuration(name)
    return entry.mode in _REGULAR and wanted


def _prettier_code(tree: CommittedTree, entries: Sequence[Entry]) -> str | None:
    """Return a configuration of prettier's that would run code, if there is one."""
    for entry in entries:
        path = os.fsdecode(entry.path)
        name = PurePosixPath(path).name
        if _PRETTIER_ANY.fullmatch(name) and not _PRETTIER_DATA.fullmatch(name):
            return path
        if _PRETTIER_DATA.fullmatch(name) and b"plugins" in tree.read(entry):
            return path
        if name == "package.json":
            # A string names a shared configuration: a package, which is code.
            settings: object = None
            with contextlib.suppress(ValueError):
                settings = _mapping(json.loads(tree.read(entry))).get("prettier")
            if isinstance(settings, str) or "plugins" in _mapping(settings):
                return path
    return None


def _try(
    tree: CommittedTree,
    formatter: Formatter,
    entries: Sequence[Entry],
    program: str,
    scratch: Path,
) -> Trial:
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=scratch) as folder:
        copy = Path(folder) / "tree"
        copy.mkdir()
        for entry in entries:
            file = copy / os.fsdecode(entry.path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tree.read(entry))
        problem = _run([program, *formatter.arguments], copy, Path(folder))
        rewritten = [
            os.fsdecode(entry.path)
            for entry in entries
            if _content(copy / os.fsdecode(entry.path)) != tree.read(entry)
        ]
    return Trial(formatter, tuple(rewritten), program, problem)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _run(command: list[str], copy: Path, home: Path) -> str | None:
    """Run a formatter; return what went wrong, or None. Files that it cannot parse are its say."""
    environment = {
        # HOME is kept out: a user's own settings are not the repository's, and caches stay away.
        "HOME": str(home),
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }
    with subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"took longer than {_PATIENCE:.0f} s"
    if process.returncode == 0:
        return None
    words = errors.decode("utf-8", "replace").strip().splitlines()
    return f"ended with status {process.returncode}: {words[-1] if words else 'no message'}"


def _tool_tables(text: str) -> dict[str, Any]:
    return _mapping(_toml(text).get("tool"))


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
