"""Data mounts are recorded by manifest and compared by identity and content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from sealrun.data import HashCache, changes, sha256_of, target_of
from sealrun.errors import Refused
from sealrun.policy import DataPolicy
from sealrun.progress import Silent


def _policy(source: Path, target: str | None = None) -> DataPolicy:
    return DataPolicy(source=str(source), target=target)


def test_hashes_are_reused_while_nothing_changed(tmp_path: Path) -> None:
    """The second manifest hashes nothing; a rewrite with its mtime put back is hashed again."""
    data = tmp_path / "data"
    (data / "d").mkdir(parents=True)
    (data / "a").write_text("1")
    (data / "d" / "b").write_text("2")
    cache = HashCache(tmp_path / "hashes")
    (first,) = cache.manifest([_policy(data)], tmp_path, Silent())
    (second,) = cache.manifest([_policy(data)], tmp_path, Silent())
    assert (first.hashed, second.hashed, first.digest) == (2, 0, second.digest)
    before = (data / "a").stat()
    (data / "a").write_text("3")
    os.utime(data / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    (third,) = cache.manifest([_policy(data)], tmp_path, Silent())
    assert (third.hashed, third.digest != first.digest) == (1, True)


def test_only_a_regular_file_has_a_digest(tmp_path: Path) -> None:
    """A directory, a link, a pipe and what is not there have none, and nothing waits or leaks."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in (".", "link", "pipe", "gone"):
        assert sha256_of(tmp_path / name) is None
    assert sha256_of(tmp_path / "file") is not None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_changes_are_told_by_content(tmp_path: Path) -> None:
    """Gone, new and changed files are told; a touched one with equal bytes is not."""
    data = tmp_path / "data"
    data.mkdir()
    for name in "abc":
        (data / name).write_text(name)
    (dataset,) = HashCache(tmp_path / "h").manifest([_policy(data)], tmp_path, Silent())
    assert changes(dataset) == ()
    os.utime(data / "a")
    assert changes(dataset) == ()
    (data / "b").write_text("x")
    (data / "c").unlink()
    (data / "d").write_text("new")
    assert [sentence.rpartition("/")[2] for sentence in changes(dataset)] == [
        "b changed",
        "c is gone",
        "d appeared",
    ]


def test_where_a_link_leads_is_part_of_the_data(tmp_path: Path) -> None:
    """A link turned from one version to another is other data, and a change."""
    data = tmp_path / "data"
    for name in ("v1", "v2"):
        (data / name).mkdir(parents=True)
        (data / name / "tokens").write_text("same")
    (data / "now").symlink_to("v1")
    cache = HashCache(tmp_path / "h")
    (first,) = cache.manifest([_policy(data)], tmp_path, Silent())
    (data / "now").unlink()
    (data / "now").symlink_to("v2")
    assert [sentence.rpartition("/")[2] for sentence in changes(first)] == ["now changed"]
    (second,) = cache.manifest([_policy(data)], tmp_path, Silent())
    assert second.digest != first.digest


def test_a_source_means_the_same_wherever_a_run_is_started() -> None:
    """A relative path would be other data in another directory."""
    with pytest.raises(ValidationError, match="absolute"):
        DataPolicy(source="corpus")


def test_targets(tmp_path: Path) -> None:
    """Below the caller's home it appears below the container's; elsewhere at /data."""
    home = tmp_path / "home"
    assert target_of(_policy(home / ".cache/x"), home) == "/home/run/.cache/x"
    assert target_of(_policy(Path("/srv/corpus")), home) == "/data/corpus"
    assert target_of(_policy(Path("/srv/corpus"), "~/d"), home) == "/home/run/d"


@pytest.mark.parametrize(
    "target",
    [
        *("/workspace", "/workspace/data", "/", "/etc/ssl", "/opt", "relative", "/out/x", "/usr"),
        *("/lib/python3.11", "/bin", "/lib64", "/var", "/home", "/home/run"),
        "~/.local/lib/python3.11/site-packages",
    ],
)
def test_targets_that_would_cover_code_are_refused(tmp_path: Path, target: str) -> None:
    """Nothing is mounted at, above or below committed files, imports, outputs or the system."""
    with pytest.raises(Refused, match="target"):
        target_of(_policy(tmp_path, target), tmp_path)


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    """The message names the source as the policy does."""
    with pytest.raises(Refused, match="nowhere"):
        HashCache(tmp_path / "h").manifest([_policy(tmp_path / "nowhere")], tmp_path, Silent())
