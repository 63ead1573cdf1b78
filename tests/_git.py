"""A real git repository for a test, with the few operations that tests need."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.git import Repository
from sealrun.tree import CommittedTree, Spool, read_commit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WHO = {
    "GIT_AUTHOR_NAME": "A Loop",
    "GIT_AUTHOR_EMAIL": "loop@example.invalid",
    "GIT_COMMITTER_NAME": "A Loop",
    "GIT_COMMITTER_EMAIL": "loop@example.invalid",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


@dataclass
class Repo:
    """A repository below a test's temporary directory."""

    path: Path
    spools: Path

    @classmethod
    def create(cls, directory: Path, *options: str) -> Repo:
        """Make an empty repository; options go to ``git init``."""
        path = directory / "repo"
        path.mkdir(parents=True)
        repo = cls(path, directory / "spool")
        repo.spools.mkdir()
        repo.git("init", "-q", "-b", "main", *options)
        return repo

    def git(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run git as the loop would; return its output without the last newline."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=os.environ | WHO,
            input=stdin,
            capture_output=True,
            check=True,
        )
        return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Write files of the working directory."""
        for name, content in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, files: Mapping[str, str | bytes], message: str = "an idea") -> str:
        """Write files, commit everything, return the commit's id."""
        self.write(files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def find(self) -> Repository:
        """Return it as sealrun sees it."""
        return Repository.find(self.path)

    def tree(self, revision: str = "HEAD", spool: Spool | None = None) -> CommittedTree:
        """Return a commit's checked tree."""
        repository = self.find()
        spool = spool or Spool(self.spools, repository.algorithm)
        return read_commit(repository, repository.resolve(revision), spool)
