"""The files of one commit of another git repository, without its history.

Rules that this module keeps:

- Git is called scrubbed: no configuration, credential, ``netrc`` or hook of the caller's has a
  part in it, and only the address's own protocol is allowed, also after a redirect.
- What git fetched is a claim: commit, trees and blobs are hashed again before a file is written.
- What comes is bounded, like every download.
- A token is given in the environment of the one call that needs it, never on a command line.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sealrun import git, nested
from sealrun.errors import EnvironmentFault
from sealrun.fetch.transfer import shown
from sealrun.git import Repository
from sealrun.image import tool
from sealrun.tree import EXECUTABLE, SYMLINK, Spool, read_commit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sealrun.policy import GitFetch
    from sealrun.progress import Task

_HINT = (
    "Check the address and that the server still has this commit; a private repository needs "
    "token under [[fetch]]."
)
_SHA1 = 40
#: Git has no bound for what it fetches: its pack is one file, and the kernel bounds that.
_BOUNDED = 'ulimit -f "$0" && exec git "$@"'
#: Bytes of one unit of ``ulimit -f`` (POSIX, Shell and Utilities).
_BLOCK = 512


def fetch(entry: GitFetch, token: str | None, scratch: Path, into: Path, task: Task) -> None:
    """Write the files of a commit into a new directory.

    Args:
        scratch: a private directory; what git fetched is left there.

    Raises:
        ToolFailed: git cannot fetch it; ``words`` are git's.
        EnvironmentFault: the commit is in none of its branches and tags.
        ObjectCorrupt: what came is not what the commit's id stands for.
    """
    algorithm = "sha1" if len(entry.commit) == _SHA1 else "sha256"
    store = scratch / "repository"
    environment = _environment(entry, token, scratch)

    def call(*arguments: str) -> None:
        tool.run_tool(
            ["sh", "-c", _BOUNDED, str(-(-entry.limit // _BLOCK)), "--no-pager", *arguments],
            task=task,
            what=f"fetching {shown(entry.url)}",
            env=environment,
            hint=_HINT,
        )

    if not (store / "HEAD").exists():
        call("init", "--quiet", "--bare", f"--object-format={algorithm}", str(store))
    fetching = ("-C", str(store), "fetch", "--no-tags", "--no-write-fetch-head", "--quiet")
    try:
        call(*fetching, "--depth=1", "--", entry.url, entry.commit)
    except tool.ToolFailed:
        # Old servers and plain file servers know no shallow fetch, or give out branches alone.
        call(*fetching, "--", entry.url, "+refs/heads/*:refs/fetched/*", "+refs/tags/*:refs/tags/*")
    if git.Git(store).attempt("cat-file", "-e", f"{entry.commit}^{{commit}}")[0] != 0:
        raise EnvironmentFault(f"{shown(entry.url)} has no commit {entry.commit}", hint=_HINT)
    spooled = scratch / "spool"
    spooled.mkdir(exist_ok=True)
    bare = Repository(store, store, store, algorithm, None)
    tree = read_commit(bare, entry.commit, Spool(spooled, algorithm))
    for one in tree.entries:
        path = into / os.fsdecode(one.path)
        nested.make(path.parent)
        if one.mode == SYMLINK:
            path.symlink_to(os.fsdecode(tree.read(one)))
            continue
        path.write_bytes(tree.read(one))
        path.chmod(0o555 if one.mode == EXECUTABLE else 0o444)


def _environment(entry: GitFetch, token: str | None, scratch: Path) -> Mapping[str, str]:
    settings = {
        "protocol.allow": "never",
        f"protocol.{urlsplit(entry.url).scheme}.allow": "always",
        "core.hooksPath": os.devnull,
        "credential.helper": "",
        "gc.auto": "0",
        "fetch.fsckObjects": "true",
        "fetch.unpackLimit": "1",
    }
    if token is not None:
        parts = urlsplit(entry.url)
        word = base64.b64encode(f"x-access-token:{token}".encode()).decode("ascii")
        settings[f"http.{parts.scheme}://{parts.netloc}/.extraHeader"] = (
            f"Authorization: Basic {word}"
        )
    counted = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (name, value) in enumerate(settings.items()):
        counted |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    scrubbed = {name: value for name, value in git.environment().items() if name.startswith("GIT_")}
    return tool.environment({**scrubbed, **counted, "HOME": str(scratch)})
