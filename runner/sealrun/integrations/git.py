"""What git's hooks record: what was staged before fixers ran, after them, and what was committed.

Facts from githooks(5): hooks run in the top of the working directory; ``GIT_INDEX_FILE`` names the
index of the coming commit; pre-commit may change it. Both hooks of one commit are children of the
same git process, which is told apart from a later one of its pid by its start time (proc(5)).

Rules that this module keeps:

- Git is asked about the index alone: no filter, hook or monitor of the repository runs.
- Bounded in files and bytes; what is beyond is left out, and so is unknown.
- No file is followed through a link.
"""
# pathlib costs every hook 4 ms:
# ruff: noqa: PTH109, PTH123

from __future__ import annotations

import os
import subprocess

from sealrun.integrations import place
from sealrun.integrations.recording import observe
from sealrun.ownership.intentlog import ABSENT, CONTENT_LIMIT, Journal, directory_of, last_records

TYPE_CHECKING = False  # typing's own costs every hook 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Staged files of one commit that are recorded, and bytes of all of them.
_MOST_FILES = 256
_MOST_BYTES = 16 << 20
_RECENT = 1 << 20
_DEEPEST = 32
_GITLINK, _SYMLINK = b"160000", b"120000"

_GIT = ("git", "-c", "core.fsmonitor=false", "--no-replace-objects", "--no-optional-locks")


def record(state: str, arguments: list[str]) -> None:
    """Record one moment of a commit.

    Args:
        state: the state root.
        arguments: ``before`` or ``after`` the fixers, or ``committed``; the hook's parent's pid.
    """
    moment, parent = arguments
    found = place.workspace_around(os.path.realpath(os.getcwd()))
    if found is None:
        return
    workspace, repository = found
    directory = directory_of(state, repository)
    journal = Journal(directory)
    git = _git_above(int(parent))
    about = {"workspace": workspace, "git": git}
    if moment == "committed":
        commit = _git("rev-parse", "--verify", "HEAD^{commit}").strip().decode("ascii")
        journal.append({"kind": "commit", **about, "commit": commit})
        return
    staged = _staged()
    paths = dict.fromkeys(staged)
    if moment == "after":
        paths |= dict.fromkeys(_recorded_before(directory, git))
    index = dict.fromkeys(paths, ABSENT) | _contents(journal, staged)
    for path, oid in staged.items():
        if oid is not None and index[path] == ABSENT:
            # Too large, or a link: not known.
            del index[path]
    files = observe(journal, directory, workspace, paths)
    journal.append({"kind": "index", **about, "moment": moment, "index": index, "files": files})


def _git(*arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(
        [*_GIT, *arguments],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return done.stdout


def _staged() -> dict[str, str | None]:
    """Return the files that differ between HEAD and the index, with their blob's id.

    None stands for one that is removed; links and submodules are left out.
    """
    try:
        _git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except subprocess.CalledProcessError:
        base = _git("hash-object", "-t", "tree", "--stdin").strip().decode("ascii")
    else:
        base = "HEAD"
    raw = _git("diff-index", "--cached", "--raw", "--no-renames", "--no-abbrev", "-z", base)
    fields = raw.split(b"\0")
    staged: dict[str, str | None] = {}
    for about, path in zip(fields[::2], fields[1::2], strict=False):
        _, mode, _, oid, kind = about.split(b" ")
        if mode in {_GITLINK, _SYMLINK}:
            continue
        staged[os.fsdecode(path)] = None if kind == b"D" else oid.decode("ascii")
        if len(staged) >= _MOST_FILES:
            break
    return staged


def _contents(journal: Journal, staged: dict[str, str | None]) -> dict[str, str]:
    """Keep the staged contents; return the hash of each that is small enough."""
    wanted = {path: oid for path, oid in staged.items() if oid is not None}
    if not wanted:
        return {}
    asked = "".join(f"{oid}\n" for oid in wanted.values()).encode()
    sizes = _git("cat-file", "--batch-check=%(objectsize)", given=asked).split(b"\n")
    left = _MOST_BYTES
    taken: list[tuple[str, str]] = []
    for (path, oid), size in zip(wanted.items(), sizes, strict=False):
        if size.isdigit() and int(size) <= min(left, CONTENT_LIMIT):
            left -= int(size)
            taken.append((path, oid))
    found = _git("cat-file", "--batch", given="".join(f"{oid}\n" for _, oid in taken).encode())
    kept: dict[str, str] = {}
    at = 0
    for path, _ in taken:
        end = found.index(b"\n", at)
        length = int(found[at:end].rsplit(b" ", 1)[1])
        kept[path] = journal.keep(found[end + 1 : end + 1 + length])
        at = end + length + 2
    return kept


def _recorded_before(directory: str, git: list[int]) -> Iterable[str]:
    for entry in reversed(last_records(directory, _RECENT)):
        if entry.get("kind") == "index" and entry.get("git") == git:
            index = entry.get("index")
            return list(index) if isinstance(index, dict) else ()
    return ()


def _git_above(pid: int) -> list[int]:
    """Return pid and start of the nearest git process at or above a pid; [0, 0] where none is."""
    for _ in range(_DEEPEST):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                text = file.read(4096)
        except OSError:
            break
        # The name stands in parentheses and may hold anything.
        name = text[text.find(b"(") + 1 : text.rfind(b")")]
        fields = text[text.rfind(b")") + 2 :].split()
        if name == b"git":
            return [pid, int(fields[19])]
        pid = int(fields[1])
    return [0, 0]
