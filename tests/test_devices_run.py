"""Runs with GPUs on a real engine: AMD's with harmless device files, NVIDIA's up to the toolkit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from _cli import Cli
from _devices import FakeAmd, fake_amd, fake_nvml
from _sandbox import Bench, bench
from sealrun.devices import visible
from sealrun.devices.access import Toolkit, access
from sealrun.devices.amd import Amd
from sealrun.gc.keeping import nobody_keeping
from sealrun.sandbox.docker import DockerSandbox, default_owner
from sealrun.sandbox.effective import compare_devices, compare_inspection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _git import Repo

pytestmark = pytest.mark.engine

#: Lists the devices of the container and opens those that are a GPU's.
SEES = """\
import os, pathlib, stat, sys, time
print("begun", time.monotonic(), flush=True)
nodes = [p for p in pathlib.Path("/dev").rglob("*") if stat.S_ISCHR(os.lstat(p).st_mode)]
plain = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
print("devices", sorted(str(p) for p in nodes if p.name not in plain), flush=True)
for path in nodes:
    if path.name == "kfd" or path.parent.name == "dri":
        os.close(os.open(path, os.O_RDWR))
print("counts", {k: v for k, v in os.environ.items() if "VISIBLE_DEV" in k}, flush=True)
if len(sys.argv) > 1:
    time.sleep(float(sys.argv[1]))
print("val_bpb: 1.0")
print("ended", time.monotonic(), flush=True)
"""
#: Makes the program ask the stand-in's files, as this machine's own cannot be changed.
_SITE = """\
import sealrun.devices.assign as assign
from pathlib import Path
from sealrun.devices.amd import Amd
from sealrun.gc.keeping import nobody_keeping
assign.providers = lambda: (Amd(Path({sys!r}), Path({dev!r}), Path({proc!r})),)
"""


@pytest.fixture
def fake(tmp_path: Path) -> FakeAmd:
    """A machine with three AMD GPUs."""
    return fake_amd(tmp_path / "machine", gpus=3)


@pytest.fixture
def cli(repo: Repo, fake: FakeAmd) -> Iterator[Cli]:
    """A warm command line that finds the stand-in's GPUs, in a repository that looks for them."""
    root = repo.path.parent
    repo.commit({"train.py": SEES, ".gitignore": "run.log\n"}, "baseline")
    site = root / "site"
    site.mkdir()
    places = {name: str(getattr(fake, name)) for name in ("sys", "dev", "proc")}
    (site / "sitecustomize.py").write_text(_SITE.format(**places))
    cli = Cli(
        repo.path,
        root / "home",
        {"PYTHONPATH": str(site), "SEALRUN_LEASES": str(root / "leases")},
    ).with_base()
    yield cli
    cli.stop_guard()


def seeing(cli: Cli, **variables: str) -> Cli:
    """Return the same command line with more variables."""
    return replace(cli, extra=cli.extra | variables)


def until(process: subprocess.Popen[bytes], stream: str, pattern: str) -> str:
    """Read a stream of a process until a line fits; return the line."""
    source = getattr(process, stream)
    for line in source:
        text = str(line, "utf-8", "replace").rstrip("\n")
        if re.search(pattern, text):
            return text
    raise AssertionError(f"ended without {pattern!r}")


def told(output: str, word: str) -> str:
    """Return what the experiment said after a word."""
    return next(line for line in output.splitlines() if line.startswith(f"{word} "))[
        len(word) + 1 :
    ]


def codes(result: dict[str, Any]) -> set[str]:
    """Return the reason codes of a result."""
    return {reason["code"] for reason in result["reasons"]}


# -- the container --------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Bench]:
    """What it takes to ask for a container; what was made is removed."""
    made = bench(tmp_path)
    yield made
    DockerSandbox(made.api, owner=default_owner(made.places.state)).clear(lambda _: False)
    made.api.close()


def test_a_container_gets_these_devices_and_no_others(asked: Bench, fake: FakeAmd) -> None:
    """It is as asked for; with one device more or fewer than was asked for it is not."""
    devices = Amd(fake.sys, fake.dev, fake.proc).devices()
    two = access(visible.amd(devices, {"HIP_VISIBLE_DEVICES": "2,1"}), Toolkit(), {}, {})
    one = access(visible.amd(devices, {"HIP_VISIBLE_DEVICES": "2"}), Toolkit(), {}, {})
    assert two is not None
    request = asked.request("true", devices=two)
    container = DockerSandbox(asked.api, owner=default_owner(asked.places.state)).create(request)
    try:
        assert container.effective().problems == ()
        assert container.root is not None
        inspection = asked.api.inspect_container(container.id)
        for other in (one, None):
            changed = replace(request, devices=other)
            names = " ".join(compare_devices(container.root, changed))
            assert "/dev/dri/renderD129" in names
            assert ("/dev/kfd" in names) is (other is None)
            assert "devices" in " ".join(compare_inspection(inspection, changed))
    finally:
        container.remove()


# -- a run ----------------------------------------------------------------------------------------


def test_a_run_gets_what_its_caller_sees(cli: Cli, fake: FakeAmd) -> None:
    """Only the caller's GPU is there and can be opened; it and its other users are on record."""
    user = fake.sys / "class/kfd/kfd/proc/4711"
    user.mkdir(parents=True)
    (user / "vram_1001").write_text("2147483648\n")
    result, done = seeing(cli, HIP_VISIBLE_DEVICES="1").run("python3", "train.py")
    assert told(done.stdout, "devices") == "['/dev/dri/renderD129', '/dev/kfd']"
    assert told(done.stdout, "counts") == "{'HIP_VISIBLE_DEVICES': '0'}"
    assert result["verdict"] == "clean"
    assert codes(result) >= {"gpu-shared"}
    shown = cli("show", result["run"]).stdout
    assert "GPU 1 was in use at the start: pid 4711 (name not known, 2.0 GiB)" in shown
    record = cli.json("show", result["run"])
    facts = json.dumps(record)
    assert fake.uuid(1) in facts
    assert '"amd 6.8.5"' in facts
    assert fake.uuid(0) not in facts


def test_a_policy_without_gpus_gives_none(cli: Cli, repo: Repo) -> None:
    """``gpus = "none"``: no device, and no turn is waited for."""
    repo.commit({"sealrun.toml": '[sandbox]\ngpus = "none"\n'}, "policy")
    result, done = cli.run("python3", "train.py")
    assert told(done.stdout, "devices") == "[]"
    assert result["verdict"] == "clean"
    assert not (repo.path.parent / "leases").exists()


def test_two_runs_take_turns(cli: Cli) -> None:
    """The second says behind whom it waits, starts when the first is over, and is clean."""
    first = cli.start("run", "--", "python3", "train.py", "6")
    until(first, "stdout", "^begun")
    second = cli.start("run", "--", "python3", "train.py")
    said = until(second, "stderr", "waiting for GPU 0")
    assert re.fullmatch(
        rf"\[sealrun\] waiting for GPU 0 \(pid {first.pid}, run [0-9A-Z]{{26}}\): 1st in the queue",
        said,
    )
    # Who waits keeps nothing from being cleared up; what it needs is made sure of afterwards.
    with nobody_keeping(cli.places, 60) as alone:
        assert alone
    one, two = first.communicate(), second.communicate()
    assert (first.returncode, second.returncode) == (0, 0), (one, two)
    ended, begun = told(one[0].decode(), "ended"), told(two[0].decode(), "begun")
    assert float(ended) < float(begun)
    assert {run["verdict"]["kind"] for run in cli.json("log")["runs"]} == {"clean"}


def test_runs_on_different_gpus_run_beside_each_other(cli: Cli) -> None:
    """What is not shared is not waited for."""
    first = seeing(cli, HIP_VISIBLE_DEVICES="0").start("run", "--", "python3", "train.py", "100")
    until(first, "stdout", "^begun")
    assert seeing(cli, HIP_VISIBLE_DEVICES="2,1").run("python3", "train.py")[0]["status"] == 0
    first.send_signal(signal.SIGINT)
    first.communicate()


def test_a_repetition_waits_too_and_counts_the_gpus_that_it_gets(cli: Cli) -> None:
    """Which GPUs are whose is a matter of now: the record's numbers would name none of them."""
    original, _ = seeing(cli, HIP_VISIBLE_DEVICES="2,1").run("python3", "train.py")
    recorded = cli.json("show", original["run"])["run"]["variables"]
    assert recorded["HIP_VISIBLE_DEVICES"] == "1,0"
    first = cli.start("run", "--", "python3", "train.py", "100")
    until(first, "stdout", "^begun")
    again = seeing(cli, HIP_VISIBLE_DEVICES="0").start("reproduce", original["run"], "--json")
    until(again, "stderr", "waiting for GPU 0")
    first.send_signal(signal.SIGINT)
    first.communicate()
    output, errors = again.communicate()
    assert b"Traceback" not in errors, errors
    assert again.returncode in {0, 123}, (output, errors)
    repeated = cli.json("log")["runs"][0]["run"]
    variables = cli.json("show", repeated)["run"]["variables"]
    assert variables["HIP_VISIBLE_DEVICES"] == "0"


def test_an_interrupt_ends_the_wait(cli: Cli) -> None:
    """130 at once, a closed record, and the next in the line moves up."""
    first = cli.start("run", "--", "python3", "train.py", "100")
    until(first, "stdout", "^begun")
    second = cli.start("run", "--", "python3", "train.py")
    until(second, "stderr", "waiting for GPU 0.*: 1st")
    third = cli.start("run", "--", "python3", "train.py")
    until(third, "stderr", "waiting for GPU 0.*: 2nd")
    second.send_signal(signal.SIGTERM)
    second.communicate()
    assert second.returncode == 130
    first.send_signal(signal.SIGINT)
    first.communicate()
    third.communicate()
    assert third.returncode == 0
    outcomes = [run["outcome"] for run in cli.json("log")["runs"]]
    assert sorted(outcomes) == ["not-started", "stopped", "succeeded"]


def test_a_killed_run_hands_on_its_gpu_when_its_container_is_gone(cli: Cli) -> None:
    """The lock is free at once; the next run starts when nothing of the first is left."""
    first = cli.start("run", "--", "python3", "train.py", "100")
    until(first, "stdout", "^begun")
    second = cli.start("run", "--", "python3", "train.py", "1")
    run = until(second, "stderr", "waiting for GPU 0").partition(" run ")[2][:26]
    labelled = ["docker", "ps", "-q", "--filter", f"label=sealrun.run={run}"]
    assert subprocess.run(labelled, capture_output=True, check=True).stdout
    first.send_signal(signal.SIGKILL)
    until(second, "stdout", "^begun")
    assert not subprocess.run(labelled, capture_output=True, check=True).stdout
    output, errors = second.communicate()
    assert second.returncode == 0, (output, errors)


def test_what_happens_during_the_wait_counts_before_the_gate(cli: Cli, repo: Repo) -> None:
    """Under strict a mutation while the run waits refuses it: the experiment never starts."""
    first = cli.start("run", "--", "python3", "train.py", "100")
    until(first, "stdout", "^begun")
    second = cli.start("run", "--policy", "strict", "--", "python3", "train.py")
    until(second, "stderr", "waiting for GPU 0")
    # Not by this process's own tree of the loop: nobody is known to have done it.
    subprocess.run(["sh", "-c", "echo '# struck' >> train.py"], cwd=repo.path, check=True)
    first.send_signal(signal.SIGINT)
    first.communicate()
    output, errors = second.communicate()
    assert second.returncode == 121, (output, errors)
    assert b"begun" not in output


# -- NVIDIA, up to the toolkit --------------------------------------------------------------------


def test_a_missing_toolkit_is_told_before_anything_starts(repo: Repo) -> None:
    """An engine without the toolkit: 125, the GPU, the commands; no outcome of the experiment."""
    repo.commit({"train.py": SEES}, "baseline")
    root = repo.path.parent
    variables = fake_nvml(root / "nvml") | {"FAKE_GPUS": "2", "CUDA_VISIBLE_DEVICES": "1"}
    variables["SEALRUN_LEASES"] = str(root / "leases")
    cli = Cli(repo.path, root / "home", variables).with_base()
    try:
        done = cli("run", "--", "python3", "train.py", status=125)
        assert "GPU 1 (NVIDIA H100 80GB HBM3) cannot be given to containers" in done.stderr
        assert "nvidia-ctk runtime configure --runtime=docker" in done.stderr
        assert "begun" not in done.stdout
        (run,) = cli.json("log")["runs"]
        assert (run["outcome"], run["verdict"]) == ("not-started", None)
        assert not (root / "leases").exists()
        rows = {row["name"]: row for row in cli.json("doctor", status=125)["checks"]}
        assert "gpu" in rows
        assert "no NVIDIA Container Toolkit" in rows["gpu"]["detail"]
        hidden = replace(cli, extra=variables | {"CUDA_VISIBLE_DEVICES": ""})
        assert hidden.run("python3", "train.py")[0]["verdict"] == "clean"
    finally:
        cli.stop_guard()
