"""A recorded run runs again from its image: the same id, the same inputs, and a judged result."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _base import no_tree, shared_base
from _cli import SEALRUN, Cli
from _sandbox import client
from sealrun.image.archive import foundations
from sealrun.image.base import host_platform, source
from sealrun.image.store import LayerStore, Records
from sealrun.ledger import Ledger, open_ledger
from sealrun.reproduce.rebuild import Stored, rebuild, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo
    from sealrun.image.model import Base

pytestmark = pytest.mark.engine

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "nanogpt"
#: Where PyTorch's CPU build lies for those who have no other place configured.
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"
#: Leaves a file in each place, and a number that its idea decides.
TRAIN = """\
import os, pathlib
SCALAR_LR = 0.5
pathlib.Path('/out/model.bin').write_bytes(os.environ.get('TAG', 'x').encode() * 1000)
pathlib.Path('notes.txt').write_text('beside the code')
print(f'val_bpb: {SCALAR_LR * 2}')
"""
#: Another number in each run.
RANDOM = "import random\nprint(f'val_bpb: {1 + random.random() / 100}')\n"


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    repo.commit({"train.py": TRAIN}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


def reproduced(cli: Cli, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Reproduce and return the JSON document."""
    return cli.json("reproduce", *arguments, status=status)


def test_a_run_repeats_bit_for_bit_whatever_became_of_the_workspace(cli: Cli, repo: Repo) -> None:
    """The commit is gone from every branch and the files are others; the image's id is the same."""
    first, _ = cli.run("python3", "train.py")
    repo.commit({"train.py": "print('val_bpb: 7')"}, "another idea")
    repo.git("checkout", "-q", "--orphan", "elsewhere")
    repo.git("branch", "-D", "main")
    repo.write({"train.py": "neither"})
    found = reproduced(cli, first["run"])
    (again,) = found["repetitions"]
    assert (found["likeness"], again["outputs_compared"]) == ("outputs-identical", 2)
    assert again["image_id"] == found["image_id"]
    assert (again["metric"], again["verdict"], again["differences"]) == (1.0, "clean", [])
    record = cli.json("show", again["run"])["run"]
    assert record["reproduces"] == first["run"]
    assert record["reproduction"]["original"] == first["run"]
    assert record["reproduction"]["likeness"] == "outputs-identical"
    assert {reason["code"] for reason in record["verdict"]["reasons"]} == {
        "other-revision",
        "workspace-not-compared",
    }
    assert repo.git("rev-parse", f"refs/sealrun/runs/{again['run']}") == first["commit"]
    text = cli("reproduce", first["run"]).stdout
    assert "outputs identical bit for bit" in text
    assert "rebuilt to the same id" in text


def test_another_number_is_different_unless_a_tolerance_takes_it(cli: Cli, repo: Repo) -> None:
    """Status 123 for a difference alone; a tolerance that is given or measured takes it."""
    repo.commit({"train.py": RANDOM}, "noise")
    first, _ = cli.run("python3", "train.py")
    found = reproduced(cli, first["run"], status=123)
    assert found["likeness"] == "different"
    assert "the metric was" in found["repetitions"][0]["differences"][0]
    within = reproduced(cli, first["run"], "--tolerance", "0.02")
    assert within["likeness"] == "within-tolerance"
    measured = reproduced(cli, first["run"], "--times", "3")
    assert measured["likeness"] == "within-tolerance"
    assert len({one["run"] for one in measured["repetitions"]}) == 3
    assert measured["tolerance"]["source"] == "measured by 3 repetitions"


def test_seeds_and_hashes_of_the_policy_make_noise_repeat(cli: Cli, repo: Repo) -> None:
    """``seeded`` sets Python's generator and hashes, and what a library notes goes on record."""
    library = "__version__ = '9.9'\ndef get_num_threads():\n    return 3\n"
    program = RANDOM + "import torch\nprint('hash', hash('a word'))\n"
    policy = '[determinism]\nmode = "seeded"\nseed = 11\nthreads = 2\n'
    repo.commit({"train.py": program, "torch.py": library, "sealrun.toml": policy}, "seeded")
    first, done = cli.run("python3", "train.py")
    found = reproduced(cli, first["run"])
    assert found["likeness"] == "outputs-identical"
    assert "hash" in done.stdout
    record = cli.json("show", found["repetitions"][0]["run"])["run"]
    assert record["variables"]["PYTHONHASHSEED"] == "11"
    assert record["variables"]["OMP_NUM_THREADS"] == "2"
    assert record["outputs"] == []
    strayed = cli.json("show", first["run"])["run"]["device_facts"]
    assert (strayed["torch"]["version"], strayed["processes"]) == ("9.9", 1)


def test_what_the_caller_passed_comes_from_the_record(cli: Cli, repo: Repo) -> None:
    """A variable that the policy passes has the value of then, whatever the caller has now."""
    policy = '[sandbox]\npass_variables = ["TAG"]\n'
    repo.commit({"sealrun.toml": policy}, "pass a variable")
    cli.extra["TAG"] = "then"
    first, _ = cli.run("python3", "train.py")
    cli.extra["TAG"] = "now"
    assert reproduced(cli, first["run"])["likeness"] == "outputs-identical"
    del cli.extra["TAG"]
    assert reproduced(cli, first["run"])["likeness"] == "outputs-identical"


def test_a_repetition_of_a_repetition_takes_the_callers_key_again(cli: Cli, repo: Repo) -> None:
    """What stands on record in the key's place is given to no program, however often it is repeated."""
    policy = '[sandbox]\npass_variables = ["TEAM_TOKEN"]\n'
    program = "import os\nprint('val_bpb: 1')\nprint(os.environ.get('TEAM_TOKEN', 'none'))\n"
    repo.commit({"train.py": program, "sealrun.toml": policy}, "a key")
    cli.extra["TEAM_TOKEN"] = "of-the-caller"  # noqa: S105 - it opens nothing
    run, _ = cli.run("python3", "train.py")
    again = reproduced(cli, run["run"])["repetitions"][0]["run"]
    found = reproduced(cli, again)
    assert found["likeness"] == "outputs-identical"
    (third,) = found["repetitions"]
    assert "of-the-caller" in cli("logs", third["run"]).stdout
    assert "of-the-caller" not in cli("show", third["run"], "--json").stdout


def test_a_crash_and_a_deadline_repeat_too(cli: Cli, repo: Repo) -> None:
    """A crash that prints the same is the same; what a deadline cut off cannot be compared."""
    program = (
        "import sys, time\n"
        "if len(sys.argv) > 1:\n    print(time.time(), flush=True)\n    time.sleep(60)\n"
        "print('no GPU')\nraise SystemExit(3)\n"
    )
    repo.commit({"train.py": program}, "crash")
    crash, _ = cli.run("python3", "train.py", status=3)
    found = reproduced(cli, crash["run"])
    assert found["likeness"] == "outputs-identical"
    late, _ = cli.run("python3", "train.py", "slow", status=124, options=("--deadline", "5s"))
    found = reproduced(cli, late["run"])
    assert found["likeness"] == "incomparable"
    assert "deadline" in found["repetitions"][0]["conditions"][0]


def test_other_data_is_refused_before_anything_runs(cli: Cli, repo: Repo, tmp_path: Path) -> None:
    """Data is compared with its manifest first; with the old bytes back the run repeats."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "shard").write_text("1.5")
    policy = f'[[data]]\nsource = "{data}"\ntarget = "/data"\n'
    program = "print('val_bpb:', open('/data/shard').read())\n"
    repo.commit({"train.py": program, "sealrun.toml": policy}, "data")
    first, _ = cli.run("python3", "train.py")
    (data / "shard").write_text("9.5")
    refused = cli("reproduce", first["run"], status=121)
    assert "read other data" in refused.stderr
    assert len(cli.json("log")["runs"]) == 1
    broken = cli.json("doctor", "--reproducible", status=125)["runs"]
    assert ["read other data" in words for words in broken[0]["missing"]] == [True]
    (data / "shard").write_text("1.5")
    assert reproduced(cli, first["run"])["likeness"] == "outputs-identical"


def test_a_commit_names_its_run_and_several_are_listed(cli: Cli, repo: Repo) -> None:
    """A short id as a table has it is enough; repetitions are no runs of their own here."""
    first, _ = cli.run("python3", "train.py")
    short = repo.git("rev-parse", "--short=7", "HEAD")
    assert reproduced(cli, short)["original"] == first["run"]
    assert reproduced(cli, short)["original"] == first["run"]
    second, _ = cli.run("python3", "train.py")
    told = cli("reproduce", short, status=2).stderr
    assert first["run"] in told
    assert second["run"] in told


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--all", "--kept"),
        ("00000000",),
        ("--all", "--tolerance", "nan"),
        ("--all", "--tolerance", "-1"),
        ("--kept",),
        ("--all", "--results", "results.tsv"),
    ],
)
def test_what_names_no_run_is_a_usage_error(cli: Cli, arguments: tuple[str, ...]) -> None:
    """Nothing is run, and the message says what to give."""
    assert "hint:" in cli("reproduce", *arguments, status=2).stderr


def test_a_run_that_was_refused_has_nothing_to_repeat(cli: Cli, repo: Repo) -> None:
    """It never had an image; that is said, and nothing runs."""
    repo.write({"train.py": "SCALAR_LR = 0.3\n"})
    refused, _ = cli.run("python3", "train.py", status=121)
    assert "has no image" in cli("reproduce", refused["run"], status=2).stderr


def test_a_batch_goes_through_what_a_table_keeps(cli: Cli, repo: Repo) -> None:
    """Kept rows are found by commit, in order; a difference wins over what could not be run."""
    kept, _ = cli.run("python3", "train.py")
    repo.commit({"train.py": RANDOM}, "noise")
    noise, _ = cli.run("python3", "train.py")
    rows = [
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription",
        f"{kept['commit'][:7]}\t1.000000\t0.1\tkeep\tbaseline",
        f"{noise['commit'][:7]}\t1.005000\t0.1\tdiscard\tnoise",
        "fffffff\t0.900000\t0.1\tkeep\tnever ran",
    ]
    repo.write({"results.tsv": "\n".join(rows) + "\n"})
    document = json.loads((done := cli("reproduce", "--kept", "--json")).stdout)
    assert [one["original"] for one in document["reproductions"]] == [kept["run"]]
    assert "line 4: no run of commit 'fffffff'" in done.stderr
    everything = cli("reproduce", "--all", status=123)
    assert "outputs identical bit for bit" in everything.stdout
    assert "different" in everything.stdout
    assert "1 of 2" in everything.stderr


def ledger_of(cli: Cli, repo: Repo) -> Ledger:
    """Open the ledger for reading."""
    identity = (repo.path / ".git/sealrun/id").read_text().strip()
    ledger = open_ledger(cli.places.ledger(identity), identity, pinned_refs_exist=True)
    assert ledger is not None
    return ledger


def own_base(cli: Cli) -> Base:
    """Give this home a base of its own, so that no other test shares its images."""
    base = shared_base(cli.places)
    store = LayerStore(cli.places.layers)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo("usr/share/own-base")
        words = secrets.token_hex(16).encode()
        entry.size, entry.mode = len(words), 0o644
        tar.addfile(entry, io.BytesIO(words))
    with store.writer() as writer:
        writer.write(content.getvalue())
        top = writer.commit()
    own = replace(base, layers=(*base.layers, top))
    key = source("debian-python", no_tree(), host_platform()).key
    Records(cli.places.bases, store).put_base(key, own)
    return own


def remove_images(cli: Cli, repo: Repo, runs: list[str]) -> None:
    """Remove the images of some runs, and their own base, from the engine; no others."""
    import docker.errors

    api = client()
    stored = Stored(repo.find(), (repo.path / ".git/sealrun/id").read_text().strip(), cli.places)
    with ledger_of(cli, repo) as ledger:
        for run in runs:
            record = ledger.run(run)
            image = rebuild(record, tree_of(record, stored), stored).image
            for name in (image.image_id, *(f.reference for f in foundations(image))):
                with contextlib.suppress(docker.errors.ImageNotFound):
                    api.remove_image(name, force=True)
            with pytest.raises(docker.errors.ImageNotFound):
                api.inspect_image(image.image_id)


def test_doctor_says_which_runs_could_be_rebuilt(cli: Cli, repo: Repo) -> None:
    """A lost layer, a damaged one and a lost ref are each named; what is whole is counted."""
    own = own_base(cli)
    first, _ = cli.run("python3", "train.py")
    assert "1 of 1 runs could be rebuilt today" in cli("doctor", "--reproducible").stdout
    file = own.layers[-1].path
    content = file.read_bytes()
    file.unlink()
    told = cli("doctor", "--reproducible", status=125).stdout
    digest = file.name.removesuffix(".gz")
    assert f"the base layer sha256:{digest} is not stored whole" in told
    remove_images(cli, repo, [first["run"]])
    assert "cannot be rebuilt" in cli("reproduce", first["run"], status=125).stderr
    half = len(content) // 2
    file.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :])
    assert "is damaged" in cli("doctor", "--reproducible", status=125).stdout
    file.write_bytes(content)
    reference = f"refs/sealrun/runs/{first['run']}"
    repo.git("update-ref", "-d", reference)
    assert "is not pinned" in cli("doctor", "--reproducible", status=125).stdout
    repo.git("update-ref", reference, first["commit"])
    assert reproduced(cli, first["run"])["likeness"] == "outputs-identical"


#: Waits until it was struck. When it is repeated nobody strikes, and nothing of it may be left.
STRUCK = """\
import pathlib, time
waits, end = pathlib.Path("/out/waits"), time.monotonic() + 5
while waits.exists() and time.monotonic() < end:
    time.sleep(0.02)
waits.unlink(missing_ok=True)
"""
KINDS = ("kept", "discarded", "crashed", "timed out", "flagged")


def one_run(cli: Cli, repo: Repo, number: int, kind: str) -> str:
    """Make one run of a kind as a loop would; return its id."""
    work = {
        "crashed": "raise SystemExit(1)",
        "timed out": "import time; time.sleep(60)",
        "flagged": STRUCK,
    }.get(kind, "pass")
    first = "open('/out/waits', 'w')\n" if kind == "flagged" else ""
    program = f"{first}print('idea {number}', flush=True)\n{work}\nprint('val_bpb: {number}.5')\n"
    repo.commit({"train.py": program}, f"idea {number}")
    if kind == "flagged":
        process = cli.start("run", "--", "python3", "train.py")
        assert process.stdout is not None
        process.stdout.readline()
        repo.write({"train.py": "SCALAR_LR = 0.3\n"})
        for waits in cli.places.state.glob("repositories/*/runs/*/outputs/out/waits"):
            waits.unlink()
        process.communicate(timeout=120)
        repo.git("checkout", "-q", "--", "train.py")
    else:
        status = {"crashed": 1, "timed out": 124}.get(kind, 0)
        options = ("--deadline", "5s") if kind == "timed out" else ()
        cli.run("python3", "train.py", status=status, options=options)
    if kind != "kept":
        repo.git("reset", "-q", "--hard", "HEAD~1")
    return str(cli.json("log", "-n", "1")["runs"][0]["run"])


def offline(cli: Cli, *arguments: str) -> str:
    """Run a command that has no network but its own loopback; return what it printed.

    The engine's socket is a file, which a network namespace leaves in place.
    """
    done = subprocess.run(
        ["unshare", "--net", SEALRUN, *arguments],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(5, marks=pytest.mark.soak(sample=True)),
        pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
def test_every_run_is_rebuilt_to_its_id_without_network(cli: Cli, repo: Repo, count: int) -> None:
    """Commits discarded and collected, caches and images removed, no network: the same id each time."""
    own_base(cli)
    runs = [one_run(cli, repo, number, KINDS[number % len(KINDS)]) for number in range(count)]
    kinds = {cli.json("show", run)["run"]["verdict"]["kind"] for run in runs}
    assert kinds == {"clean", "flagged"}
    cli.stop_guard()
    repo.git("reflog", "expire", "--expire=now", "--all")
    repo.git("gc", "-q", "--prune=now")
    remove_images(cli, repo, runs)
    shutil.rmtree(cli.places.cache)
    found = json.loads(offline(cli, "reproduce", "--all", "--json"))["reproductions"]
    assert [one["original"] for one in found] == runs
    same = [one["repetitions"][0]["image_id"] == one["image_id"] for one in found]
    assert same == [True] * count
    assert {one["likeness"] for one in found} == {"outputs-identical"}


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_example_repeats_bit_for_bit(repo: Repo) -> None:
    """The example's metric, printed with all its bits, is the same after a rebuild without network."""
    for file in sorted(EXAMPLE.iterdir()):
        if file.is_file():
            shutil.copy(file, repo.path / file.name)
    script = repo.path / "train.py"
    exact = script.read_text().replace("{val_bpb:.6f}", "{val_bpb!r}")
    repo.commit({"train.py": exact}, "print every bit")
    wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or TORCH_WHEELS
    cli = Cli(repo.path, repo.path.parent / "home", {"UV_FIND_LINKS": wheels}).with_base()
    try:
        cli("warm", timeout=600)
        first, done = cli.run("python3", "train.py", "--steps", "20")
        assert len(done.stdout.split("val_bpb:", 1)[1].split()[0]) > len("0.123456")
    finally:
        cli.stop_guard()
    remove_images(cli, repo, [first["run"]])
    found = json.loads(offline(cli, "reproduce", first["run"], "--json"))
    assert found["likeness"] == "metric-identical"
    assert found["repetitions"][0]["image_id"] == found["image_id"]
    noted = cli.json("show", first["run"])["run"]["device_facts"]
    assert noted["torch"]["version"].startswith("2.")
