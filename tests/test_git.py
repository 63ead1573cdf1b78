"""Git calls of ours that are fed piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sealrun.git import Git

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

#: What a pipe holds is far less.
MUCH = 1 << 20


def _commit(*before: bytes) -> Iterator[bytes]:
    yield b"feature done\n"
    yield from before
    yield b"commit refs/heads/fed\ncommitter a <a@b> 0 +0000\ndata 1\nx\n"
    yield b"M 100644 inline big\ndata %d\n" % MUCH
    yield b"x" * MUCH
    yield b"\ndone\n"


def test_a_call_is_fed_however_much_it_says(repo: Repo) -> None:
    """Git that talks while it is fed keeps nobody waiting."""
    talk = b"progress %s\n" % (b"y" * 1000)
    git = Git(repo.path)
    assert git.fed("fast-import", "--quiet", chunks=_commit(talk * (MUCH // len(talk)))) is None
    assert git.run("cat-file", "-s", "fed:big") == b"%d\n" % MUCH


def test_a_call_that_ends_early_is_told_by_its_words(repo: Repo) -> None:
    """What git says is returned, and that it read no further is no trouble of its own."""
    words = Git(repo.path).fed(
        "index-pack", "--stdin", chunks=(b"rubbish" * 99 for _ in range(MUCH))
    )
    assert words is not None
    assert "pack signature mismatch" in words


def test_a_call_that_reads_no_further_and_is_content_is_told_too(repo: Repo) -> None:
    """Success alone does not say that git took everything."""
    words = Git(repo.path).fed("version", chunks=(b"unread" * 99 for _ in range(MUCH)))
    assert words == "it ended before it had read everything"


@pytest.mark.parametrize("trouble", [LookupError, BrokenPipeError])
def test_trouble_with_what_git_is_fed_ends_git(repo: Repo, trouble: type[Exception]) -> None:
    """An exception of the source goes on to the caller, and nothing is made of the beginning."""

    def broken() -> Iterator[bytes]:
        yield from _commit()
        raise trouble

    git = Git(repo.path)
    with pytest.raises(trouble):
        git.fed("fast-import", "--quiet", chunks=(c for c in broken() if c != b"\ndone\n"))
    assert git.attempt("rev-parse", "--verify", "--quiet", "refs/heads/fed")[0] != 0
