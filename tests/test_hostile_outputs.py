"""What an experiment leaves costs us neither the verdict nor the night, however it looks."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from sealrun.data import walk
from sealrun.record import outputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _git import Repo

#: Deeper than Python nests calls, and still within what one path can name.
DEEP = 1500
NEST = f"""\
import os
os.chdir("/out")
for _ in range({DEEP}):
    os.mkdir("d"); os.chdir("d")
open("deepest", "w").write("x")
"""
#: A key, made anew in pieces, in a file whose name is no text and talks to terminals.
NAMED = r"""
key = "gsk_" + "aB3dE5gH7j" * 5 + "kL"
open(b"/out/\xff\x1b[31m\n[sealrun] clean", "w").write(key)
"""
HOLES = """\
with open("/out/holes.bin", "wb") as file:
    file.truncate(8 << 40)
"""


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose experiment leaves all of that."""
    repo.commit({"train.py": f"{HOLES}{NAMED}{NEST}print('val_bpb: 1.5')\n"})
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()
    _remove(cli.home)


def _remove(directory: Path) -> None:
    # Python's own way nests calls as deep as the directories.
    subprocess.run(["rm", "-rf", directory], check=True)


@pytest.mark.engine
def test_depth_names_and_holes_cost_no_verdict(cli: Cli) -> None:
    """Directories beyond Python's recursion, a name of bytes, terabytes of nothing: a clean run."""
    file = cli.home / "result.json"
    done = cli("run", "--result-file", str(file), "--", "python3", "train.py", status=None)
    result = json.loads(file.read_text())
    assert result["verdict"] == "clean", done.stderr
    # What is too deep to be measured is too much to be left, where it is measured in time.
    assert result["outcome"] in {"succeeded", "stopped"}
    noted = [one["detail"] for one in result["reasons"] if one["code"] == "key-found"]
    assert len(noted) == 1
    assert "Groq key" in noted[0]
    assert "\x1b" not in done.stderr
    assert not any(line.startswith("[sealrun] clean") for line in done.stderr.splitlines())
    shown = cli("show", result["run"]).stdout
    assert "\x1b" not in shown
    listed = {one["path"]: one for one in cli.json("show", result["run"])["run"]["outputs"]}
    assert listed["out/holes.bin"]["size"] == 8 << 40
    assert listed["out/holes.bin"]["sha256"] is None


def test_files_of_any_depth_are_listed_in_order(tmp_path: Path) -> None:
    """A walk goes deeper than Python nests calls, a directory's files where its name stands."""
    (tmp_path / "b").mkdir()
    for name in ("a", "b/x", "c"):
        (tmp_path / name).touch()
    at = "z"
    (tmp_path / at).mkdir()
    for _ in range(DEEP):
        at += "/d"
        (tmp_path / at).mkdir()
    (tmp_path / at / "deepest").touch()
    paths = [path.decode() for path, _ in walk(tmp_path)]
    _remove(tmp_path / "z")
    assert paths == ["a", "b/x", "c", f"{at}/deepest"]


def test_no_more_is_hashed_than_may_be_left(tmp_path: Path) -> None:
    """The bytes to be hashed are one budget: many files of holes are no way around it."""
    for number in range(4):
        with (tmp_path / f"f{number}").open("wb") as file:
            file.truncate(1000)
    found = outputs((), tmp_path, 2500)
    assert [one.sha256 is not None for one in found] == [True, True, False, False]
