"""This repository: git's version, configuration that gets in the way, data mounts.

Rules that this module keeps:

- The user's own configuration is read here, and only read: sealrun's git calls ignore most of it,
  but the loop's do not.
- Each hazard says what it does to the loop or to the record.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.doctor.model import Check, Grade
from sealrun.policy import committed_policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sealrun.git import Repository
    from sealrun.tree import CommittedTree

#: ``rev-parse --show-object-format`` came with 2.28; no older one is tested.
_OLDEST_GIT = (2, 30)
_PATIENCE = 20.0


def git_version() -> Iterable[Check]:
    """Yield git's version."""
    try:
        said = subprocess.run(
            ["git", "--version"], capture_output=True, text=True, check=True, timeout=_PATIENCE
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield Check("git", Grade.FAIL, f"cannot be run: {error}", "apt-get install git")
        return
    numbers = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    if numbers < _OLDEST_GIT:
        yield Check("git", Grade.FAIL, said.strip(), "Install git 2.30 or later.")
    else:
        yield Check("git", Grade.OK, said.strip().removeprefix("git version "))


def configuration(repository: Repository) -> Iterable[Check]:
    """Yield every hazard in git's configuration and in the shape of this repository."""
    hazards = [*hazards_of(_settings(repository.workspace)), *_shape(repository)]
    for name, detail, fix in hazards:
        yield Check(f"git configuration: {name}", Grade.WARN, detail, fix)
    if not hazards:
        yield Check("git configuration", Grade.OK, "nothing that gets in the way")


def _settings(workspace: Path) -> list[tuple[str, str]]:
    # With the caller's environment on purpose: what the loop's git sees. Listing runs nothing.
    done = subprocess.run(
        ["git", "config", "--list", "--null"],
        cwd=workspace,
        capture_output=True,
        check=False,
        timeout=_PATIENCE,
    )
    pairs = (os.fsdecode(entry).partition("\n") for entry in done.stdout.split(b"\0") if entry)
    return [(key, value) for key, _, value in pairs]


def hazards_of(settings: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Return name, what it does, and what to do, for each hazardous setting.

    Args:
        settings: keys, as git spells them (section and variable in lower case), with values; of
            a key that occurs twice the last counts.
    """
    last = dict(settings)
    found: list[tuple[str, str, str]] = []
    if last.get("core.fsmonitor", "false") not in {"false", ""}:
        detail = "git asks another program what changed; what that misses, git status misses"
        found.append(("core.fsmonitor", detail, "git config core.fsmonitor false"))
    if last.get("core.autocrlf", "false") in {"true", "input"}:
        detail = f"{last['core.autocrlf']}: git rewrites line ends between commit and file"
        found.append(("core.autocrlf", detail, "git config core.autocrlf false"))
    if last.get("core.hookspath"):
        detail = f"hooks come from {last['core.hookspath']} and may rewrite what is committed"
        found.append(
            ("core.hooksPath", detail, "Look at them, or: git config --unset core.hooksPath")
        )
    if last.get("core.sparsecheckout") == "true":
        detail = "files of the commit are left out of the workspace; the image has them all"
        found.append(("core.sparseCheckout", detail, "git sparse-checkout disable"))
    drivers = sorted(
        {
            key.split(".", 1)[1].rpartition(".")[0]
            for key, value in settings
            if re.fullmatch(r"filter\..+\.(clean|smudge|process)", key) and value
        }
        - {"lfs"}
    )
    if drivers:
        detail = f"filters rewrite files between commit and workspace: {', '.join(drivers)}"
        found.append(("filter", detail, "The image holds the committed bytes, unfiltered."))
    if any(key == "extensions.partialclone" or key.endswith(".promisor") for key, _ in settings):
        detail = "a partial clone: objects are missing, and sealrun never fetches in silence"
        found.append(("partial clone", detail, "git fetch --refetch --no-filter"))
    return found


def _shape(repository: Repository) -> Iterable[tuple[str, str, str]]:
    if (repository.common_dir / "shallow").exists():
        detail = "a shallow clone: runs can be sealed, their history cannot be followed"
        yield "shallow", detail, "git fetch --unshallow"
    replaced = repository.git.run("for-each-ref", "--format=%(refname)", "refs/replace/").split()
    if replaced or (repository.common_dir / "info" / "grafts").exists():
        detail = "git shows other objects than the commits hold; sealrun reads the real ones"
        yield "replace refs", detail, "git replace -l, then git replace -d each that is not wanted"
    hidden = [
        os.fsdecode(line[2:])
        for line in repository.git.run("ls-files", "-v", "-z").split(b"\0")
        if line[:1].islower() or line[:1] == b"S"
    ]
    if hidden:
        detail = f"index flags hide changes of {', '.join(hidden[:5])} from git"
        yield (
            "index flags",
            detail,
            "git update-index --no-assume-unchanged --no-skip-worktree PATH",
        )


def data(tree: CommittedTree) -> Iterable[Check]:
    """Yield each data mount of the committed policy: whether it is there and can be read."""
    mounts = committed_policy(tree).policy.data
    if not mounts:
        yield Check("data", Grade.OK, "the policy names no data mounts")
    for mount in mounts:
        source = Path(mount.source).expanduser()
        name = f"data: {mount.source}"
        if not source.exists():
            fix = "Make it, or correct [[data]] in sealrun.toml."
            yield Check(name, Grade.FAIL, "does not exist", fix)
        elif not os.access(source, os.R_OK | (os.X_OK if source.is_dir() else 0)):
            yield Check(name, Grade.FAIL, "cannot be read", "Give yourself read permission on it.")
        else:
            yield Check(name, Grade.OK, "there and readable")
