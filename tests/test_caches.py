"""What compilers cache is each run's own: executable, empty at first, and no output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from _base import shared_base
from _cli import Cli
from sealrun.caches import CACHES, VARIABLES
from sealrun.sandbox.spec import SCRATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

pytestmark = pytest.mark.engine

TRAIN = """\
import ctypes, json, os, pathlib, subprocess, sys, sysconfig
found = {}
for name in json.loads(sys.argv[1]):
    cache = pathlib.Path(os.environ[name])
    found[name] = cache.exists()
    cache.mkdir(parents=True)
    (cache / "answer.c").write_text("#include <Python.h>\\nint answer(void) { return PY_MAJOR_VERSION; }")
    headers = "-I" + sysconfig.get_paths()["include"]
    built = cache / "answer.so"
    subprocess.run(["gcc", "-shared", "-fPIC", headers, cache / "answer.c", "-o", built], check=True)
    assert ctypes.CDLL(str(built)).answer() == sys.version_info.major
subprocess.run(["g++", "--version"], check=True, stdout=subprocess.DEVNULL)
print(json.dumps(found))
print("val_bpb: 1.0")
"""
POLICY = '[image]\nbase = "debian-python-build"\n'


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A command line with the base that has a compiler."""
    repo.commit({"train.py": TRAIN, "sealrun.toml": POLICY})
    cli = Cli(repo.path, repo.path.parent / "home")
    shared_base(cli.places, "debian-python-build")
    yield cli
    cli.stop_guard()


def _run(cli: Cli) -> dict[str, Any]:
    result, done = cli.run("python3", "train.py", json.dumps(sorted(VARIABLES)))
    assert (result["verdict"], result["outcome"]) == ("clean", "succeeded"), done.stderr
    assert not any("answer" in one["path"] for one in _record(cli, result["run"])["outputs"])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
    return found


def _record(cli: Cli, run: str) -> dict[str, Any]:
    record: dict[str, Any] = cli.json("show", run)["run"]
    return record


def test_what_one_run_compiles_the_next_does_not_find(cli: Cli) -> None:
    """Each cache can be compiled into and loaded from, and is empty again in the next run."""
    nothing = dict.fromkeys(sorted(VARIABLES), False)
    assert _run(cli) == nothing
    assert _run(cli) == nothing


def test_beside_a_closed_workdir_and_where_the_policy_says(cli: Cli, repo: Repo) -> None:
    """A closed workdir leaves compilers their place; the policy's variable moves one, on record."""
    more = '[sandbox]\nworkdir = "read-only"\nvariables.TRITON_CACHE_DIR = "/tmp/triton"\n'
    repo.commit({"sealrun.toml": POLICY + more})
    assert _run(cli) == dict.fromkeys(sorted(VARIABLES), False)
    (run,) = cli.json("log")["runs"]
    variables = _record(cli, run["run"])["variables"]
    assert variables["TRITON_CACHE_DIR"] == "/tmp/triton"  # noqa: S108 - in the container
    assert variables["CUDA_CACHE_PATH"] == VARIABLES["CUDA_CACHE_PATH"]


def test_caches_lie_on_scratch() -> None:
    """Their place is below a file system that is made anew for each container."""
    assert any(CACHES.startswith(f"{place}/") for place in SCRATCH)
    assert all(path.startswith(f"{CACHES}/") for path in VARIABLES.values())
    assert len(set(VARIABLES.values())) == len(VARIABLES)
