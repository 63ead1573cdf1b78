"""What a run left, listed and copied: its names, links and sizes are the experiment's, not ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from sealrun import nested

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

TRAIN = """\
import os
os.makedirs("ckpt/deep")
open("ckpt/deep/model.pt", "wb").write(b"weights")
open("/out/curve.csv", "w").write("1,2\\n")
os.symlink("/etc/passwd", "ckpt/link")
os.mkfifo("ckpt/pipe")
open(b"ckpt/caf\\xe9\\x1b[31m", "w").write("x")
os.chmod("ckpt/deep/model.pt", 0o4777)
print("val_bpb: 1.0")
"""

pytestmark = pytest.mark.engine


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A command line in whose repository one run has left files."""
    repo.commit({"train.py": TRAIN}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    cli.run("python3", "train.py")
    yield cli
    cli.stop_guard()


def _run(cli: Cli) -> str:
    (record,) = cli.json("log")["runs"]
    return str(record["run"])


def test_outputs_are_listed_and_copied_safely(cli: Cli, tmp_path: Path) -> None:
    """Regular files arrive with their bytes; links, pipes and set-user-id bits do not."""
    run, into = _run(cli), tmp_path / "best"
    listed = cli("outputs", run).stdout
    assert "workdir/ckpt/deep/model.pt" in listed
    assert "\x1b" not in listed
    cli("outputs", run, str(into))
    model = into / "workdir" / "ckpt" / "deep" / "model.pt"
    assert model.read_bytes() == b"weights"
    assert model.stat().st_mode & 0o7022 == 0
    assert (into / "out" / "curve.csv").read_text() == "1,2\n"
    assert not (into / "workdir" / "ckpt" / "link").is_symlink()
    assert not (into / "workdir" / "ckpt" / "pipe").exists()


def test_nothing_is_overwritten_and_forged_files_are_said(cli: Cli, tmp_path: Path) -> None:
    """A directory that holds something is refused; a file that changed since the run is told."""
    run = _run(cli)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    assert "is not empty" in cli("outputs", run, str(full), status=2).stderr
    record = cli.json("show", run)["run"]
    kept = Path(record["outputs_path"]) / "out" / "curve.csv"
    kept.chmod(0o600)
    kept.write_text("9,9\n")
    (kept.parent / "planted").symlink_to("/etc/passwd")
    done = cli("outputs", run, str(tmp_path / "copy"), status=121)
    assert "not what the run left" in done.stdout
    assert "planted  (a link, not copied)" in done.stdout
    assert not (tmp_path / "copy" / "out" / "planted").exists()


def test_outputs_of_any_depth_are_copied(cli: Cli, tmp_path: Path) -> None:
    """Directories beyond Python's recursion cost no copy, and what no path can say is told."""
    run = _run(cli)
    out = Path(cli.json("show", run)["run"]["outputs_path"]) / "out"
    deep = "/".join(["d"] * 1200)
    nested.make(out / deep)
    (out / deep / "file").write_text("1200 down")
    long = "n" * 250
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(out)
        for _ in range(20):
            os.mkdir(long)  # noqa: PTH102 - no path says where
            os.chdir(long)
    finally:
        os.fchdir(here)
        os.close(here)
    try:
        done = cli("outputs", run, str(tmp_path / "copy"))
        assert (tmp_path / "copy" / "out" / deep / "file").read_text() == "1200 down"
        assert "deeper than a path can say, not copied" in done.stdout
    finally:
        for name in ("d", long):
            nested.remove(out / name)
            nested.remove(tmp_path / "copy" / "out" / name)
