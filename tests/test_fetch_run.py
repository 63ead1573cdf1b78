"""A run mounts what was fetched for it, verifies it like data, and runs again from it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from _hub import Hub, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _git import Repo

pytestmark = pytest.mark.engine

TRAIN = """\
import pathlib, sys, time
hub = pathlib.Path("~/.cache/huggingface/hub/models--org--model").expanduser()
commit = (hub / "refs/main").read_text()
print("config", (hub / "snapshots" / commit / "config.json").read_text(), flush=True)
time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
print("val_bpb: 1.5")
"""
POLICY = '[[fetch]]\nkind = "hub"\nrepository = "org/model"\n'


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that holds one model."""
    with serving() as hub:
        hub.repo("org/model").push({"config.json": b"{}"})
        yield hub


@pytest.fixture
def cli(repo: Repo, hub: Hub) -> Iterator[Cli]:
    """A command line whose base is there and whose fetches are not."""
    repo.commit({"train.py": TRAIN, "sealrun.toml": POLICY})
    cli = Cli(repo.path, repo.path.parent / "home", {"HF_ENDPOINT": hub.url}).with_base()
    yield cli
    cli.stop_guard()


def _item(cli: Cli) -> Path:
    (found,) = (cli.places.data / "fetched" / "hub").glob("*/*/*")
    return found


def test_a_run_reads_what_warm_fetched(cli: Cli, hub: Hub) -> None:
    """Cold it answers 125 and asks nobody; warm it is clean, on record, and runs again alone."""
    done = cli("run", "--", "python3", "train.py", status=125)
    assert "hub model org/model@main is not here yet" in done.stderr
    assert "sealrun warm" in done.stderr
    assert hub.asked == []
    (warmed,) = cli.json("warm")["fetched"]
    asked = len(hub.asked)
    result, done = cli.run("python3", "train.py")
    assert (result["verdict"], done.stdout) == ("clean", "config {}\nval_bpb: 1.5\n"), done.stderr
    assert len(hub.asked) == asked
    (data,) = cli.json("show", result["run"])["run"]["data"]
    assert (data["digest"], data["target"]) == (warmed["digest"], warmed["target"])
    assert warmed["revision"] in data["source"]
    # The hub is gone, and nothing of the policy's revision can be asked any more.
    cli.extra["HF_ENDPOINT"] = "http://127.0.0.1:9"
    again = cli("reproduce", result["run"])
    assert "identical" in again.stderr + again.stdout


def test_what_changed_on_disk_is_not_run(cli: Cli) -> None:
    """Changed between runs: nothing is run until warm has fetched it again."""
    cli("warm")
    cli.run("python3", "train.py")
    (blob,) = (_item(cli) / "blobs").iterdir()
    blob.chmod(0o644)
    blob.write_bytes(b"[]")
    done = cli("run", "--", "python3", "train.py", status=125)
    assert "was changed on disk since it was fetched" in done.stderr
    cli("warm")
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"


def test_what_changes_during_a_run_flags_it(cli: Cli) -> None:
    """As with data: the number may come from either state, so it does not count."""
    cli("warm")
    process = cli.start("run", "--", "python3", "train.py", "2")
    assert process.stdout is not None
    seen = b""
    while b"config {}" not in seen:
        piece = os.read(process.stdout.fileno(), 100)
        assert piece, seen
        seen += piece
    (blob,) = (_item(cli) / "blobs").iterdir()
    blob.chmod(0o644)
    blob.write_bytes(b"[]")
    _, errors = process.communicate(timeout=60)
    assert b"data-changed" in errors, errors
    run = cli.json("log")["runs"][0]
    assert run["verdict"]["kind"] == "flagged"
