"""What decides how git checks a commit out here: committed attributes and git's configuration.

Rules that this module keeps:

- Attributes come from the commit alone: from the spool's bytes, through a git directory of our own
  that holds nothing else. The workspace's ``.gitattributes``, ``info/attributes``, the user's and
  the system's attributes are not read, and an overwritten object cannot speak for the commit.
- Git itself applies the attributes (precedence, macros, patterns): nobody else knows its rules.
- Configuration is read by ``git config --list``, the user's and the system's included, because git
  checked out by them. Reading runs nothing of what it holds.
- A submodule has attributes and configuration of its own.
- Nothing is asked until a file needs it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.conversion import ATTRIBUTES, Rule, Setting, Settings, rule_for
from sealrun.git import Git
from sealrun.tree import SYMLINK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sealrun.git import Repository
    from sealrun.tree import CommittedTree, Entry

_FILE = b".gitattributes"
#: What an attributes file has to hold to change files where text has LF. Names of attributes are
#: written out wherever they are set, in macros too (gitattributes(5)).
_CHANGING = re.compile(rb"eol=crlf|ident|filter=|working-tree-encoding=")
#: Where git looks for the user's and the system's configuration (git(1)).
_CHOSEN_BY_CALLER = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
_TRACES = ("GIT_TRACE2", "GIT_TRACE2_EVENT", "GIT_TRACE2_PERF")
_FIELDS = 3


class Checkout:
    """How files of one commit are checked out in one working directory.

    Attributes:
        modules: paths of the submodules, with a slash, the innermost first; then an empty one for
            the repository itself.
    """

    def __init__(self, tree: CommittedTree, repository: Repository) -> None:
        self.tree = tree
        self.repository = repository
        # The innermost first.
        modules = sorted((path + b"/" for path, _ in tree.submodules), key=len, reverse=True)
        self.modules = (*modules, b"")
        self._settings: dict[bytes, Settings] = {}

    def module(self, path: bytes) -> bytes:
        """Return the submodule that holds a path, with a slash; empty for the repository's own."""
        return next(module for module in self.modules if path.startswith(module))

    def settings(self, module: bytes = b"") -> Settings:
        """Return git's settings in the repository or in a submodule.

        Raises:
            GitFailed: git cannot read its configuration.
        """
        if module not in self._settings:
            where = self.repository.workspace / os.fsdecode(module)
            # A submodule that somebody removed has no settings, and no files either.
            values = _configuration(Git(where)) if where.is_dir() or not module else ()
            self._settings[module] = Settings.of(values)
        return self._settings[module]

    def rules(self, entries: Iterable[Entry]) -> dict[bytes, Rule]:
        """Return the rules of those files, by path, that can differ from their blobs.

        Raises:
            GitFailed: git cannot read its configuration, or the attributes.
        """
        groups: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for entry in entries:
            if entry.mode != SYMLINK:
                groups[self.module(entry.path)].append(entry.path)
        found: dict[bytes, Rule] = {}
        for module, paths in groups.items():
            found |= self._rules(module, paths)
        return found

    def _rules(self, module: bytes, paths: list[bytes]) -> dict[bytes, Rule]:
        settings = self.settings(module)
        files = [
            entry
            for entry in self.tree.entries
            if entry.path.rpartition(b"/")[2] == _FILE and self.module(entry.path) == module
        ]
        contents = [self.tree.read(entry) for entry in files]
        if settings.crlf is None and not any(_CHANGING.search(content) for content in contents):
            return {}
        attributes: dict[bytes, dict[str, bytes]] = {}
        if files:
            attributes = self._attributes(module, files, contents, paths)
        # Thousands of files share a handful of combinations.
        known: dict[tuple[bytes | None, ...], Rule] = {}
        found: dict[bytes, Rule] = {}
        for path in paths:
            values = attributes.get(path, {})
            key = tuple(values.get(name) for name in ATTRIBUTES)
            if key not in known:
                known[key] = rule_for(values, settings)
            if known[key].changes:
                found[path] = known[key]
        return found

    def _attributes(
        self, module: bytes, files: Sequence[Entry], contents: Sequence[bytes], paths: list[bytes]
    ) -> dict[bytes, dict[str, bytes]]:
        """Return the attributes of paths, by git's own reading of the committed files."""
        git, skip = self.repository.git, len(module)
        with tempfile.TemporaryDirectory(prefix="sealrun-") as scratch:
            extra = {"GIT_DIR": scratch, "GIT_INDEX_FILE": str(Path(scratch) / "index")}
            algorithm = f"--object-format={self.tree.algorithm}"
            git.run("init", "-q", "--bare", "--template=", algorithm, scratch)
            copies = [Path(scratch) / f"attributes-{number}" for number in range(len(files))]
            for copy, content in zip(copies, contents, strict=True):
                copy.write_bytes(content)
            names = "".join(f"{copy}\n" for copy in copies).encode()
            git.run("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=names, extra=extra)
            lines = b"".join(
                b"%o %s\t%s\0" % (entry.mode, entry.oid.encode(), entry.path[skip:])
                for entry in files
            )
            git.run("update-index", "-z", "--index-info", stdin=lines, extra=extra)
            output = git.run(
                *("check-attr", "--cached", "-z", "--stdin", *ATTRIBUTES),
                stdin=b"".join(path[skip:] + b"\0" for path in paths),
                extra=extra,
            )
        found: defaultdict[bytes, dict[str, bytes]] = defaultdict(dict)
        fields = output.split(b"\0")
        for path, name, value in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
            found[module + path][name.decode()] = value
        return found


def _configuration(git: Git) -> list[Setting]:
    """Return all of git's configuration in one place, in git's order."""
    extra: dict[str, str | None] = {name: os.environ.get(name) for name in _CHOSEN_BY_CALLER}
    # Traces that the user's configuration asks for are files that git would write for us.
    extra |= dict.fromkeys(_TRACES, "0")
    output = git.run("config", "--list", "-z", "--show-scope", "--show-origin", extra=extra)
    fields = output.split(b"\0")
    found: list[Setting] = []
    for at in range(0, len(fields) - _FIELDS + 1, _FIELDS):
        scope, origin, line = fields[at : at + _FIELDS]
        if scope == b"command":
            continue
        name, given, value = line.partition(b"\n")
        found.append(
            Setting(
                name.decode("utf-8", "surrogateescape"),
                value if given else None,
                origin.partition(b":")[2].decode("utf-8", "backslashreplace"),
            )
        )
    return found
