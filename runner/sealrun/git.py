"""Our own git calls: scrubbed, so that nothing in a repository can make them run or fetch anything.

Rules that this module keeps:

- No hooks, filters, fsmonitor, external diffs, replace refs, lazy fetches, prompts, pagers or
  optional locks: the environment and the command line of every call switch them off (git(1),
  gitprotocol in git-config(1)).
- The user's and the system's configuration are not read (but for how files are checked out, see
  ``checkout.py``); the repository's own is, because it says where things are (worktrees, object
  format, alternates).
- Output is bytes: paths need not be UTF-8.
- Git's answers are *claims*; ``tree.py`` re-hashes what matters.
"""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import Fault, ObjectCorrupt, RepositoryError, UsageError
from sealrun.state import owner_for_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Where the commits of runs are pinned, and snapshots live.
RUN_REFS = "refs/sealrun/runs/"
SNAPSHOT_REFS = "refs/sealrun/snapshots/"

_OPTIONS = (
    "--no-pager",
    "--no-replace-objects",
    "--literal-pathspecs",
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.untrackedCache=false"),
    *("-c", "core.attributesFile=/dev/null"),
    *("-c", "core.quotePath=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
    *("-c", "protocol.allow=never"),
    *("-c", "safe.directory=*"),
    *("-c", "log.showSignature=false"),
)

#: What ``Repository.find`` asks git, in this order.
_SHAPE = (
    "--is-bare-repository",
    "--is-inside-work-tree",
    "--absolute-git-dir",
    "--git-common-dir",
    "--show-object-format",
    "--show-toplevel",
)


def environment() -> dict[str, str]:
    """Return the environment of every git call of ours; no ``GIT_*`` of the caller survives."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "LC_", "LANG"))}
    return kept | {
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_EDITOR": "false",
    }


class GitFailed(Fault):
    """A git call failed for a reason that its caller did not expect."""


class Git:
    """Scrubbed git in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def popen(
        self,
        *arguments: str,
        extra: Mapping[str, str | None] | None = None,
        user: tuple[int, int] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a git call with pipes on its standard input, output and error.

        Args:
            extra: what its environment has besides ours; None takes a variable out.
            user: uid and gid that it runs as; None for ours.
        """
        changed = environment() | dict(extra or {})
        try:
            return subprocess.Popen(
                ["git", *_OPTIONS, *arguments],
                cwd=self.directory,
                env={name: value for name, value in changed.items() if value is not None},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                user=None if user is None else user[0],
                group=None if user is None else user[1],
                extra_groups=None if user is None else (),
            )
        except FileNotFoundError as error:
            if not self.directory.is_dir():
                raise RepositoryError(f"no such directory: {self.directory}") from error
            raise Fault(
                "git is not installed", hint="Install git 2.30 or later, e.g. apt-get install git."
            ) from error

    def attempt(
        self,
        *arguments: str,
        stdin: bytes = b"",
        extra: Mapping[str, str | None] | None = None,
        user: tuple[int, int] | None = None,
    ) -> tuple[int, bytes, bytes]:
        """Run a git call; return its status, standard output and standard error."""
        with self.popen(*arguments, extra=extra, user=user) as process:
            output, errors = process.communicate(stdin)
        return process.returncode, output, errors

    def run(
        self, *arguments: str, stdin: bytes = b"", extra: Mapping[str, str | None] | None = None
    ) -> bytes:
        """Run a git call that must succeed; return its standard output.

        Raises:
            GitFailed: it did not; the message carries git's own words.
        """
        status, output, errors = self.attempt(*arguments, stdin=stdin, extra=extra)
        if status != 0:
            words = errors.decode("utf-8", "replace").strip() or f"exit status {status}"
            raise GitFailed(f"git {arguments[0]} failed in {self.directory}: {words}")
        return output

    def fed(self, *arguments: str, chunks: Iterable[bytes]) -> str | None:
        """Run a git call on more than memory should hold at once.

        Args:
            arguments: of git.
            chunks: its standard input. Whatever they raise ends git and is passed on.

        Returns:
            None where git took it all, else its words, never empty.
        """
        with self.popen(*arguments) as process:
            # Ours to close: beside us, ``communicate`` reads what git says, however much that is.
            feed, process.stdin = process.stdin, None
            assert feed is not None  # noqa: S101 - popen makes pipes
            heard: list[bytes] = []
            unread = False
            reader = threading.Thread(target=lambda: heard.extend(process.communicate()))
            reader.start()
            try:
                for chunk in chunks:
                    try:
                        feed.write(chunk)
                    except BrokenPipeError:
                        # Why git ended, its status and its words say.
                        unread = True
                        break
            except BaseException:
                process.kill()
                raise
            finally:
                try:
                    feed.close()
                except BrokenPipeError:
                    unread = True
                reader.join()
        if process.returncode == 0:
            return "it ended before it had read everything" if unread else None
        words = heard[1].decode("utf-8", "replace").strip()
        return words or f"exit status {process.returncode}"


def current_directory() -> Path:
    """Return the current directory.

    Raises:
        RepositoryError: somebody removed it.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise RepositoryError(
            "the current directory is gone", hint="Change to another one (cd)."
        ) from error


@dataclass(frozen=True)
class Repository:
    """A git repository with a working directory.

    Attributes:
        workspace: top of the working directory, resolved.
        git_dir: this worktree's git directory.
        common_dir: the git directory that all worktrees share.
        algorithm: object format, ``sha1`` or ``sha256``.
        branch: full name of the branch that HEAD is on; None when detached.
    """

    workspace: Path
    git_dir: Path
    common_dir: Path
    algorithm: str
    branch: str | None

    @classmethod
    def here(cls) -> Repository:
        """Find the repository around the current directory.

        Raises:
            RepositoryError: there is none, it is bare, or the directory is gone.
        """
        return cls.find(current_directory())

    @classmethod
    def find(cls, directory: Path) -> Repository:
        """Find the repository around a directory.

        Raises:
            RepositoryError: there is none, or it is bare.
        """
        git = Git(directory)
        status, output, errors = git.attempt("rev-parse", *_SHAPE)
        lines = output.split(b"\n")
        if status != 0 and lines[0] == b"true":
            raise RepositoryError(
                f"{directory} is a bare repository: it has no files to guard",
                hint="Run sealrun in a clone or a worktree of it (git worktree add).",
            )
        if status != 0 and lines[:2] == [b"false", b"false"]:
            raise RepositoryError(
                f"{directory} is inside a git directory, not in the working directory",
                hint="Change to the top of the working directory.",
            )
        if status != 0:
            words = errors.decode("utf-8", "replace").strip()
            if b"not a git repository" in errors:
                raise RepositoryError(
                    f"{directory} is not in a git repository",
                    hint="sealrun runs what is committed: git init, add and commit first.",
                )
            raise RepositoryError(f"git cannot read the repository at {directory}: {words}")
        if len(lines) != len(_SHAPE) + 1:
            # A path holds a line feed, which rev-parse does not escape: one question at a time.
            lines = [git.run("rev-parse", option).removesuffix(b"\n") for option in _SHAPE]
        _, inside, git_dir, common, algorithm, top = lines[: len(_SHAPE)]
        if inside != b"true":
            raise RepositoryError(
                f"{directory} is not in the working directory of its repository, which is "
                f"{os.fsdecode(top)} (core.worktree): what is edited here is not what git sees",
                hint="git config --unset core.worktree makes the files beside the git directory "
                "the working directory again.",
            )
        head = git.attempt("symbolic-ref", "-q", "HEAD")[1].strip()
        return cls(
            workspace=Path(os.fsdecode(top)),
            git_dir=Path(os.fsdecode(git_dir)),
            common_dir=(directory / os.fsdecode(common)).resolve(),
            algorithm=algorithm.decode("ascii"),
            branch=os.fsdecode(head) if head else None,
        )

    @property
    def git(self) -> Git:
        """Scrubbed git in this repository's working directory."""
        return Git(self.workspace)

    def resolve(self, revision: str = "HEAD") -> str:
        """Return the full id of the commit that a revision names.

        Raises:
            RepositoryError: the repository has no commit yet.
            UsageError: the revision is unknown, ambiguous or no commit.
            ObjectCorrupt: HEAD names an object that git cannot read.
        """
        status, output, _ = self.git.attempt(
            "rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}"
        )
        if status == 0 and revision:
            return output.strip().decode("ascii")
        named = self.git.attempt("rev-parse", "--verify", "--quiet", "--end-of-options", revision)
        if named[0] == 0 and revision == "HEAD":
            oid = named[1].strip().decode("ascii", "replace")
            raise ObjectCorrupt(
                f"HEAD names commit {oid}, which git cannot read as a commit",
                hint="The object was overwritten, damaged or lost. git fsck shows more; restore it "
                "from a clone or a backup.",
            )
        if revision == "HEAD":
            raise RepositoryError(
                f"{self.workspace} has no commit yet",
                hint="Commit first (git add, git commit), or use sealrun run --snapshot.",
            )
        # With --quiet git does not say why.
        _, _, errors = self.git.attempt("rev-parse", "--verify", "--end-of-options", revision)
        detail = " is ambiguous" if b"is ambiguous" in errors else " is not known here"
        raise UsageError(
            f"revision {revision!r}{detail}",
            hint="git log --oneline --all lists the commits of this repository.",
        )

    def pinned(self) -> tuple[str, ...]:
        """Return the ids of runs that are pinned in this repository."""
        output = self.git.run("for-each-ref", "--format=%(refname)", RUN_REFS)
        prefix = len(RUN_REFS)
        return tuple(line[prefix:].decode() for line in output.split(b"\n") if line)

    def pin(self, run_id: str, commit: str) -> None:
        """Keep a run's commit from garbage collection, whatever happens to its branch.

        Where root pins in somebody's repository, the ref is its owner's: they could not pack it else.
        """
        command = ("update-ref", "--no-deref", RUN_REFS + run_id, commit)
        owner = owner_for_root(self.common_dir)
        # An owner who does not get to the repository has no use for it either.
        if owner is None or self.git.attempt(*command, user=owner)[0] != 0:
            self.git.run(*command)
