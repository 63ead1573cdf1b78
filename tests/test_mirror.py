"""The record outlives the machine: mirrored after each run, restored elsewhere, never silently changed."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import pytest

from _cli import Cli
from _disk import fill, free, small_disk
from _git import Repo
from _http import served
from _ledger import alert, ended, ledger_at, opened
from sealrun.cli.alerts import parse_anchor
from sealrun.errors import SealrunError
from sealrun.git import Repository
from sealrun.ledger import Ledger, OutputFile, Pin, new_ulid
from sealrun.ledger.chain import link_hash
from sealrun.ledger.events import ForeignState
from sealrun.mirror.format import EVENTS, Row, blob_of
from sealrun.mirror.line import contents
from sealrun.mirror.restore import find, open_line, read, restore
from sealrun.progress import Silent
from sealrun.state import repository_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sealrun.ledger import Anchor


@dataclass
class Machine:
    """A machine with a clone, a home of its own, and a record without an engine."""

    repo: Repo
    cli: Cli
    runs: list[str] = field(default_factory=list[str])

    @property
    def identity(self) -> str:
        """The repository's id."""
        found = repository_id(self.repo.find().common_dir)
        assert found is not None
        return found

    def ledger(self) -> Ledger:
        """Open the ledger for writing."""
        return ledger_at(self.cli.places.ledger(self.identity), self.identity)

    def run(self, *, kept: bool = True, size: int = 100) -> str:
        """Put a run on record, with log, output and evidence; a discarded one leaves no branch."""
        run, places = new_ulid(), self.cli.places
        commit = self.repo.commit({"train.py": f"# {run}\n"}, f"idea {len(self.runs)}")
        directory = places.run(self.identity, run)
        (directory / "log").write_text(f"val_bpb: {len(self.runs)}\n")
        (directory / "lock").touch()
        out = directory / "outputs" / "out"
        out.mkdir(parents=True)
        model = os.urandom(size)
        (out / "model.bin").write_bytes(model)
        foreign = b"SCALAR_LR = 0.3  # " + run.encode()
        digest = hashlib.sha256(foreign).hexdigest()
        evidence = directory / "evidence" / digest[:2] / digest
        evidence.parent.mkdir(parents=True)
        evidence.write_bytes(foreign)
        state = ForeignState(
            path="train.py", change="modified", sha256=digest, evidence=str(evidence)
        )
        listed = OutputFile(
            path="out/model.bin", size=size, sha256=hashlib.sha256(model).hexdigest()
        )
        with self.ledger() as ledger, ledger.transaction() as tx:
            tx.append(opened(run, commit=commit))
            tx.append(Pin(run=run, ref=f"refs/sealrun/runs/{run}", commit=commit))
            tx.append(alert(run, states=(state,)))
            tx.append(ended(run, outputs=(listed,)))
        self.repo.find().pin(run, commit)
        if not kept:
            self.repo.git("reset", "-q", "--hard", "HEAD~1")
        self.runs.append(run)
        return run

    def configure(self, text: str) -> None:
        """Write ``mirror.toml``."""
        file = self.cli.home / "config" / "mirror.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o600)

    def now(self, status: int = 0) -> list[dict[str, Any]]:
        """Mirror now."""
        rows: list[dict[str, Any]] = self.cli.json("mirror", "now", status=status)["destinations"]
        return rows

    def status(self, status: int = 0) -> list[dict[str, Any]]:
        """Return how the mirrors stand."""
        document = self.cli.json("mirror", "status", status=status)
        rows: list[dict[str, Any]] = document["destinations"]
        return rows

    def head(self) -> str:
        """Return the head of the local chain, as an anchor."""
        return self.cli("alerts", "--head").stdout.strip()


@pytest.fixture
def machine(repo: Repo, tmp_path: Path) -> Machine:
    """A machine with three runs on record, of which the second was discarded."""
    repo.commit({"train.py": "pass\n"}, "baseline")
    machine = Machine(repo, Cli(repo.path, tmp_path / "home"))
    machine.run()
    machine.run(kept=False)
    machine.run()
    return machine


@dataclass
class Destination:
    """A place to mirror to.

    Attributes:
        source: what ``restore`` is given.
        text: of ``mirror.toml``.
    """

    source: str
    text: str
    path: Path


def directory_at(path: Path, extra: str = "") -> Destination:
    """Return a directory as destination."""
    path.mkdir(parents=True, exist_ok=True)
    text = f'[destination.disk]\ntype = "directory"\npath = "{path}"\n{extra}'
    return Destination(str(path), text, path)


def bare_at(path: Path, extra: str = "") -> Destination:
    """Return a bare git repository as destination."""
    subprocess.run(["git", "init", "-q", "--bare", str(path)], check=True)
    text = f'[destination.hub]\ntype = "git"\nurl = "{path}"\n{extra}'
    return Destination(str(path), text, path)


KINDS: dict[str, Callable[[Path], Destination]] = {"directory": directory_at, "git": bare_at}


@pytest.fixture(params=list(KINDS))
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    """Each kind of destination."""
    return KINDS[request.param](tmp_path / "destination")


@dataclass
class Mirrored:
    """A machine with a whole mirror, shared by tests that change copies of the mirror alone."""

    machine: Machine
    original: Destination
    anchor: str
    other: Cli
    copies: int = 0

    def copy(self) -> Destination:
        """Return a copy of the mirror."""
        self.copies += 1
        path = self.original.path.with_name(f"copy{self.copies}") / "destination"
        shutil.copytree(self.original.path, path)
        return Destination(str(path), "", path)

    def refusal(self, destination: Destination, anchor: Anchor | None = None) -> str:
        """Restore on another machine, which must refuse and leave nothing; return what it says."""
        cli = self.other
        repository = Repository.find(cli.directory)
        mirror = find(destination.source, (), {}, "sha1")
        with pytest.raises(SealrunError) as caught:
            restore(mirror, mirror.names[0], repository, cli.places, anchor, Silent())
        assert left_by(cli) == []
        return caught.value.message


@pytest.fixture(scope="module", params=list(KINDS))
def mirrored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mirrored:
    """A whole mirror of each kind."""
    root = tmp_path_factory.mktemp("mirrored")
    destination = KINDS[request.param](root / "destination")
    repo = Repo.create(root)
    repo.commit({"train.py": "pass\n"}, "baseline")
    machine = Machine(repo, Cli(repo.path, root / "home"))
    for kept in (True, False, True):
        machine.run(kept=kept)
    machine.configure(destination.text)
    machine.now()
    return Mirrored(machine, destination, machine.head(), elsewhere(machine, root))


def elsewhere(machine: Machine, tmp_path: Path, name: str = "elsewhere") -> Cli:
    """Return another machine: a fresh clone and another home."""
    clone = tmp_path / name / "clone"
    subprocess.run(
        ["git", "clone", "-q", "--no-local", str(machine.repo.path), str(clone)], check=True
    )
    return Cli(clone, tmp_path / name / "home")


def left_by(cli: Cli) -> list[str]:
    """Return what a restore that was refused left behind; there must be nothing."""
    refs = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", "refs/sealrun"],
        cwd=cli.directory,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    files = [
        str(file)
        for file in (cli.home / "state").rglob("*")
        if file.is_file() and file.suffix != ".lock"
    ]
    identity = cli.directory / ".git" / "sealrun"
    return refs + files + ([str(identity)] if identity.exists() else [])


def test_every_row_is_there_again_on_another_machine(
    machine: Machine, destination: Destination, tmp_path: Path
) -> None:
    """Log, show, alerts, evidence, outputs, pins and the chain with its anchor come back."""
    machine.configure(destination.text)
    machine.now()
    (row,) = machine.status()
    assert (row["state"], row["events"], row["head"]) == ("whole", 12, machine.head())
    other = elsewhere(machine, tmp_path)
    found = other.json("restore", destination.source, "--anchor", machine.head())
    assert (found["runs"], found["events"], found["anchored"]) == (3, 12, True)
    assert found["head"] == machine.head()
    assert other.json("log") == machine.cli.json("log")
    for run in machine.runs:
        assert other.json("show", run) == machine.cli.json("show", run)
        assert other("logs", run).stdout == machine.cli("logs", run).stdout
    assert other.json("alerts") == machine.cli.json("alerts")
    said = other("alerts", "--verify-chain", "--anchor", machine.head()).stderr
    assert "continues the anchor's" in said
    for file in (machine.cli.home / "state/repositories").rglob("*"):
        twin = (
            other.home
            / "state/repositories"
            / file.relative_to(machine.cli.home / "state/repositories")
        )
        if file.is_file() and not file.name.startswith(("ledger.sqlite", "lock")):
            assert twin.read_bytes() == file.read_bytes()
    shown = subprocess.run(
        ["git", "show", f"refs/sealrun/runs/{machine.runs[1]}:train.py"],
        cwd=other.directory,
        capture_output=True,
        check=True,
    )
    assert machine.runs[1].encode() in shown.stdout


def test_a_mirror_is_caught_up_and_what_is_gone_here_stays_there(
    machine: Machine, destination: Destination, tmp_path: Path
) -> None:
    """Later runs go over segment bounds; files that were removed here meanwhile come back."""
    machine.configure(destination.text)
    machine.now()
    shutil.rmtree(machine.cli.places.run(machine.identity, machine.runs[0]))
    for _ in range(EVENTS // 4 + 2):
        machine.run()
    assert machine.now()[0]["events"] == 4 * len(machine.runs)
    assert machine.status()[0]["state"] == "whole"
    machine.run()
    assert machine.status()[0]["state"] == "behind"
    machine.now()
    other = elsewhere(machine, tmp_path)
    found = other.json("restore", destination.source, "--anchor", machine.head())
    assert found["runs"] == len(machine.runs)
    assert other("logs", machine.runs[0]).stdout == "val_bpb: 0\n"


# -- tampering ---------------------------------------------------------------------------------------


class Forger:
    """Changes what a mirror holds, and makes its digests fit again, as far as one can.

    Args:
        line: directory that holds the line's files.
    """

    def __init__(self, line: Path) -> None:
        self.line = line
        self.folder = line / "parts" / "000001"
        self.head = json.loads((line / "head.json").read_bytes())
        (self.name,) = self.head["segments"][0]["pieces"]
        self.segment = json.loads((self.folder / self.name).read_bytes())

    def file(self, part: str) -> dict[str, Any]:
        """Return the entry of the first file whose path holds a text."""
        return next(one for one in self.segment["files"] if part in one["path"])

    def piece(self, part: str) -> Path:
        """Return the piece of the first file whose path holds a text."""
        return self.folder / str(self.file(part)["blob"]["pieces"][0])

    def replace(self, part: str, content: bytes) -> None:
        """Give a file other bytes, under their own digest."""
        blob = blob_of(content)
        (self.folder / blob.sha256).write_bytes(content)
        self.file(part)["blob"] = blob.model_dump(mode="json")

    def relink(self) -> None:
        """Write the chain's hashes anew."""
        previous = bytes.fromhex(self.segment["events"][0]["previous"])
        for row in self.segment["events"]:
            row["previous"] = previous.hex()
            link = Row.model_validate(row).link()
            previous = link_hash(link)
            row["hash"] = previous.hex()
        self.head["hash"] = previous.hex()
        self.head["seq"] = self.segment["events"][-1]["seq"]

    def save(self) -> None:
        """Write segment and head, each by its digest."""
        content = json.dumps(self.segment).encode()
        blob = blob_of(content)
        (self.folder / self.name).unlink(missing_ok=True)
        (self.folder / blob.sha256).write_bytes(content)
        self.head["segments"] = [blob.model_dump(mode="json")]
        (self.line / "head.json").write_text(json.dumps(self.head))


def forged(destination: Destination, machine: Machine, change: Callable[[Forger], None]) -> None:
    """Change a mirror as somebody would who can write there."""
    name = f"{machine.identity}/{(machine.cli.home / 'state/mirror/machine').read_text().strip()}"
    if (destination.path / "sealrun-mirror-1").exists():
        change(Forger(destination.path / "sealrun-mirror-1" / name))
        return
    ref = f"refs/sealrun/mirror/{name}"
    tree = destination.path.parent / "forged"
    tree.mkdir()

    def git(*arguments: str) -> str:
        extra = {"GIT_DIR": str(destination.path), "GIT_WORK_TREE": str(tree)}
        who = {f"GIT_{r}_{k}": "x" for r in ("AUTHOR", "COMMITTER") for k in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", *arguments],
            cwd=tree,
            env=os.environ | extra | who | {"GIT_INDEX_FILE": str(tree.parent / "index")},
            capture_output=True,
            check=True,
            text=True,
        )
        return done.stdout.strip()

    git("checkout", ref, "--", ".")
    change(Forger(tree))
    git("add", "-A", ".")
    parents = [] if (tree / "orphan").exists() else ["-p", ref]
    commit = git("commit-tree", git("write-tree"), *parents, "-m", "forged")
    git("update-ref", ref, commit)


def edit_event(forger: Forger) -> None:
    """Make a discarded idea another one."""
    row = forger.segment["events"][0]
    row["payload"] = row["payload"].replace('"true"', '"false"')
    assert "false" in row["payload"]
    forger.save()


def remove_event(forger: Forger) -> None:
    """Take an alert away."""
    del forger.segment["events"][2]
    forger.head["seq"] -= 1
    forger.save()


def reorder_events(forger: Forger) -> None:
    """Let two events change places, numbers included."""
    events = forger.segment["events"]
    events[4], events[5] = events[5], events[4]
    events[4]["seq"], events[5]["seq"] = events[5]["seq"], events[4]["seq"]
    forger.save()


def flip_byte(forger: Forger) -> None:
    """Change one byte of the evidence, in place."""
    piece = forger.piece("evidence")
    content = bytearray(piece.read_bytes())
    content[0] ^= 1
    piece.chmod(0o600)
    piece.write_bytes(content)


def cut_file(forger: Forger) -> None:
    """Take the last byte of the evidence away."""
    piece = forger.piece("evidence")
    content = piece.read_bytes()
    piece.write_bytes(content[:-1])


def swap_evidence(forger: Forger) -> None:
    """Give the evidence other bytes, all digests made to fit."""
    forger.replace("evidence", b"SCALAR_LR = 0.5")
    forger.save()


def swap_output(forger: Forger) -> None:
    """Give an output other bytes, all digests made to fit."""
    forger.replace("model.bin", b"x" * 100)
    forger.save()


def lose_piece(forger: Forger) -> None:
    """Remove a log."""
    forger.piece("/log").unlink()


def leave_state(forger: Forger) -> None:
    """Let a path climb out."""
    forger.file("/log")["path"] = "runs/../../../../.bashrc"
    forger.save()


def absolute_path(forger: Forger) -> None:
    """Let a path lead anywhere."""
    forger.file("/log")["path"] = "/root/.ssh/authorized_keys"
    forger.save()


def other_run(forger: Forger) -> None:
    """Bring a file of a run that is on no record."""
    forger.file("/log")["path"] = f"runs/{new_ulid()}/log"
    forger.save()


def file_below_file(forger: Forger) -> None:
    """Let a file be a directory too."""
    log = forger.file("/log")
    forger.segment["files"].append({**log, "path": f"{log['path']}/x"})
    forger.save()


def huge_size(forger: Forger) -> None:
    """Promise more bytes than there are pieces for."""
    forger.file("/log")["blob"]["size"] = 1 << 50
    forger.save()


def cut_head(forger: Forger) -> None:
    """Cut the head in the middle."""
    head = forger.line / "head.json"
    head.write_bytes(head.read_bytes()[:100])


def newer_version(forger: Forger) -> None:
    """Be of a version that nobody knows yet."""
    forger.head["format"] = 2
    forger.save()


def other_repository(forger: Forger) -> None:
    """Be the head of another repository."""
    forger.head["repository"] = "0" * 32
    forger.save()


def unknown_event(forger: Forger) -> None:
    """Hold an event of a kind that nobody knows."""
    forger.segment["events"][2]["kind"] = "invented"
    forger.relink()
    forger.save()


def unreadable_event(forger: Forger) -> None:
    """Hold an event whose payload is none."""
    forger.segment["events"][2]["payload"] = "[]"
    forger.relink()
    forger.save()


def lost_commits(forger: Forger) -> None:
    """Bring no commit along."""
    forger.segment["pack"] = None
    forger.save()
    (forger.line / "orphan").touch()


def cut_segment(forger: Forger) -> None:
    """Name more events than there are."""
    del forger.segment["events"][8:]
    forger.save()


TAMPERINGS: dict[Callable[[Forger], None], str] = {
    edit_event: "edited: the content of event 1",
    remove_event: "removed: event 3 is gone",
    reorder_events: "edited: the content of event 5",
    flip_byte: "was changed: its bytes do not hash",
    cut_file: "was cut",
    swap_evidence: "was changed: it is not what the chain says",
    swap_output: "was changed: it is not what the chain says",
    lose_piece: "is missing",
    leave_state: "a path leads elsewhere",
    absolute_path: "a path leads elsewhere",
    other_run: "of a run that is not in its chain",
    file_below_file: "below a file",
    huge_size: "cannot be believed",
    cut_head: "is no JSON",
    newer_version: "is of version 2",
    other_repository: "is the one of 00000000",
    unknown_event: "of a kind that this sealrun does not know",
    unreadable_event: "cannot be read",
    lost_commits: "is missing",
    cut_segment: "does not hold the events 1 to 12",
}


@pytest.mark.parametrize("change", TAMPERINGS, ids=lambda change: change.__name__)
def test_a_mirror_that_was_tampered_with_is_refused_with_the_reason(
    mirrored: Mirrored, change: Callable[[Forger], None]
) -> None:
    """Nothing of it is put in place, neither file nor ref nor ledger."""
    destination = mirrored.copy()
    forged(destination, mirrored.machine, change)
    assert TAMPERINGS[change] in mirrored.refusal(destination)


def cut_chain(forger: Forger) -> None:
    """Take the last run away, as if it had never been."""
    del forger.segment["events"][8:]
    last = forger.segment["events"][-1]
    forger.head["seq"], forger.head["hash"] = last["seq"], last["hash"]
    kept = {row["run"] for row in forger.segment["events"]}
    files = forger.segment["files"]
    forger.segment["files"] = [one for one in files if one["path"].split("/")[1] in kept]
    forger.save()


def rewrite_chain(forger: Forger) -> None:
    """Write the whole chain anew."""
    row = forger.segment["events"][0]
    row["payload"] = row["payload"].replace('"true"', '"false"')
    forger.relink()
    forger.save()


@pytest.mark.parametrize(
    ("change", "said"), [(cut_chain, "truncated"), (rewrite_chain, "rewritten")]
)
def test_only_an_anchor_tells_a_whole_mirror_that_was_made_anew(
    mirrored: Mirrored, change: Callable[[Forger], None], said: str
) -> None:
    """With a head that was kept it is refused."""
    destination = mirrored.copy()
    forged(destination, mirrored.machine, change)
    assert said in mirrored.refusal(destination, parse_anchor(mirrored.anchor))


def test_a_mirror_that_lost_events_is_not_written_over(
    machine: Machine, destination: Destination
) -> None:
    """The machine remembers what it mirrored: a shorter mirror is said, and stays as it is."""
    machine.configure(destination.text)
    machine.now()
    forged(destination, machine, cut_chain)
    assert machine.status(status=125)[0]["state"] == "damaged"
    machine.run()
    before = fingerprint(destination)
    (row,) = machine.now(status=125)
    assert "the mirror was cut: it held 12 events, now 8" in row["why"]
    assert fingerprint(destination) == before


def fingerprint(destination: Destination) -> dict[str, bytes]:
    """Return what a destination's lines are: files by path, or refs."""
    if (destination.path / "sealrun-mirror-1").exists():
        found = (destination.path / "sealrun-mirror-1").rglob("*")
        return {str(file): file.read_bytes() for file in found if file.is_file()}
    listed = subprocess.run(
        ["git", "for-each-ref"], cwd=destination.path, capture_output=True, check=True
    )
    return {"refs": listed.stdout}


# -- the mirror as witness ------------------------------------------------------------------------------


@pytest.mark.parametrize("longer", [False, True], ids=["truncated", "rewritten"])
def test_a_ledger_that_was_cut_or_rewritten_here_never_replaces_the_mirror(
    machine: Machine, destination: Destination, tmp_path: Path, *, longer: bool
) -> None:
    """It is said from which event on; the mirror stays as it is and still has every row."""
    ledger = machine.cli.places.ledger(machine.identity)
    earlier = tmp_path / "earlier"
    machine.ledger().close()
    shutil.copy(ledger, earlier)
    machine.run()
    machine.configure(destination.text)
    machine.now()
    before, head = fingerprint(destination), machine.head()
    for file in ledger.parent.glob("ledger.sqlite*"):
        file.unlink()
    shutil.copy(earlier, ledger)
    if longer:
        machine.run()
        machine.run()
    (row,) = machine.now(status=125)
    assert ("rewritten: event 16" if longer else "truncated: the mirror holds 16") in row["why"]
    (row,) = machine.status(status=125)
    assert row["state"] == "differs"
    assert ("rewritten: event 16 is not" if longer else "the ledger ends with") in row["why"]
    assert fingerprint(destination) == before
    other = elsewhere(machine, tmp_path)
    assert other.json("restore", destination.source, "--anchor", head)["runs"] == 4


def test_a_mirror_that_is_gone_is_not_begun_anew(
    machine: Machine, destination: Destination
) -> None:
    """An unmounted disk or another remote is said; only another name begins a new mirror."""
    machine.configure(destination.text)
    machine.now()
    shutil.rmtree(destination.path)
    destination.path.mkdir()
    subprocess.run(["git", "init", "-q", "--bare", str(destination.path)], check=True)
    (row,) = machine.now(status=125)
    assert "the mirror is gone" in row["why"]
    assert machine.status(status=125)[0]["state"] == "damaged"
    machine.configure(destination.text.replace("[destination.", "[destination.new"))
    assert machine.now()[0]["whole"]


def test_restore_leaves_another_record_alone(
    machine: Machine, destination: Destination, tmp_path: Path
) -> None:
    """A clone with a ledger of its own, or with a shorter or other history, is not touched."""
    machine.configure(destination.text)
    machine.now()
    other = elsewhere(machine, tmp_path)
    stranger = Machine(Repo(other.directory, tmp_path / "spool2"), other)
    stranger.repo.git("checkout", "-q", "-B", "main")
    repository_id(stranger.repo.find().common_dir)
    stranger.run()
    head = stranger.head()
    said = other("restore", destination.source, status=125).stderr
    assert "has a ledger of its own" in said
    assert stranger.head() == head
    # Once more is no harm; a longer record here stays.
    again = elsewhere(machine, tmp_path, "again")
    again("restore", destination.source)
    later = Machine(Repo(again.directory, tmp_path / "spool3"), again)
    later.run()
    head = later.head()
    again("restore", destination.source)
    assert later.head() == head
    machine.run()
    machine.now()
    said = again("restore", destination.source, status=125).stderr
    assert "tells another history" in said
    assert later.head() == head


def test_each_machine_has_a_line_of_its_own(
    machine: Machine, destination: Destination, tmp_path: Path
) -> None:
    """Two machines that go on from one record overwrite nothing; restore asks which is meant."""
    machine.configure(destination.text)
    machine.now()
    other = elsewhere(machine, tmp_path)
    other("restore", destination.source)
    second = Machine(Repo(other.directory, tmp_path / "spool2"), other)
    second.configure(destination.text)
    second.run()
    machine.run()
    assert second.now()[0]["whole"]
    assert machine.now()[0]["whole"]
    third = elsewhere(machine, tmp_path, "third")
    said = third("restore", destination.source, status=2).stderr
    assert said.count("16 events until") == 2
    line = (other.home / "state/mirror/machine").read_text().strip()
    found = third.json("restore", destination.source, "--line", line)
    assert found["head"] == second.head()


# -- the process in the background ----------------------------------------------------------------------

_AFTER = """\
import sys
from pathlib import Path
from sealrun.git import Repository
from sealrun.mirror import after_run
from sealrun.state import Places
before = set(sys.modules)
print(after_run(Places.of_user(), Repository.find(Path.cwd()), sys.argv[1]))
heavy = {"pydantic", "docker", "typer", "rich"} & (set(sys.modules) - before)
assert not heavy, heavy
"""


def after(machine: Machine) -> str:
    """Do for the mirror what a run does at its end; return what it would say."""
    done = subprocess.run(
        [sys.executable, "-c", _AFTER, machine.identity],
        cwd=machine.repo.path,
        env=machine.cli.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def background(machine: Machine) -> list[psutil.Process]:
    """Return the processes that mirror for this machine."""
    mine = str(machine.cli.home / "config" / "mirror.toml")
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mine in process.cmdline():
                found.append(process)
    return found


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def waiting(machine: Machine) -> list[Path]:
    """Return the requests that nobody has carried out."""
    return list((machine.cli.home / "state" / "mirror" / "due").glob("*.json"))


def test_nothing_happens_where_no_mirror_is_configured(machine: Machine) -> None:
    """Neither a file nor a process nor a word."""
    assert after(machine) == "None"
    assert not (machine.cli.home / "state" / "mirror").exists()
    machine.configure("[mirror]\nlargest_file = '1MiB'\n")
    assert after(machine) == "None"
    assert not background(machine)


def test_a_run_is_mirrored_in_the_background(machine: Machine, destination: Destination) -> None:
    """Somebody does it later, says so in a log and ends; several requests are one, none waits."""
    machine.configure(f"[mirror]\nsettle = 0\n{destination.text}")
    assert after(machine) == "None"
    machine.run()
    assert after(machine) == "None"
    wait_for(lambda: not waiting(machine) and not background(machine))
    assert machine.status()[0]["state"] == "whole"
    log = (machine.cli.home / "state/mirror/background.log").read_text()
    last = json.loads(log.splitlines()[-1])
    assert (last["event"], last["why"]) == ("mirrored", None)
    assert last["workspace"] == str(machine.repo.path)


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_a_killed_process_leaves_a_whole_mirror_and_the_next_one_catches_up(
    machine: Machine, destination: Destination, tmp_path: Path, rounds: int
) -> None:
    """SIGKILL at any moment: what stands there can be restored, and nothing is lost in the end."""
    machine.configure(f"[mirror]\nsettle = 0\n{destination.text}")
    machine.now()
    chance = random.Random(rounds)  # noqa: S311 - moments, no secrets
    repository, places = machine.repo.find(), machine.cli.places
    for _ in range(rounds):
        machine.run(size=4 << 20)
        with (machine.cli.home / "state/mirror/due" / f"{machine.identity}.json").open("w") as due:
            json.dump(
                {
                    "repository": machine.identity,
                    "workspace": str(machine.repo.path),
                    "at": time.time(),
                },
                due,
            )
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "sealrun.mirror", machine.cli.home / "config/mirror.toml"],
            env=machine.cli.environment,
        )
        time.sleep(chance.uniform(0.2, 1.5))
        process.kill()
        process.wait()
        mirror = find(destination.source, (), {}, "sha1")
        line = open_line(mirror, mirror.names[0], tmp_path / f"read{len(machine.runs)}", "sha1")
        with contextlib.closing(line):
            record = read(line, mirror.names[0], None)
            for path, (folder, file) in record.files.items():
                for _chunk in contents(line, folder, file.blob, path):
                    pass
    assert after(machine) == "None"
    wait_for(lambda: not waiting(machine) and not background(machine))
    assert machine.status()[0]["state"] == "whole"
    assert not [name for name in fingerprint(destination) if ".draft" in name]
    other = elsewhere(machine, tmp_path)
    assert other.json("restore", destination.source)["runs"] == 3 + rounds
    assert repository.pinned()
    assert places.ledger(machine.identity).exists()


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_a_restore_that_is_killed_is_finished_by_the_next(
    machine: Machine, destination: Destination, tmp_path: Path, rounds: int
) -> None:
    """At no moment does half a record look whole: a run is refused, and restoring goes on."""
    machine.configure(destination.text)
    machine.now()
    other = elsewhere(machine, tmp_path)
    chance = random.Random(rounds)  # noqa: S311 - moments, no secrets
    for _ in range(rounds):
        process = other.start("restore", destination.source)
        time.sleep(chance.uniform(0.2, 0.9))
        process.kill()
        process.communicate()
        if (other.directory / ".git" / "sealrun" / "id").exists():
            assert len(other.json("log")["runs"]) == 3
    assert other.json("restore", destination.source, "--anchor", machine.head())["runs"] == 3
    assert other.json("log") == machine.cli.json("log")
    assert not (other.home / "state/repositories" / machine.identity / ".restore").exists()


# -- destinations in trouble ----------------------------------------------------------------------------


def test_a_full_disk_is_said_and_caught_up_with(machine: Machine, tmp_path: Path) -> None:
    """The mirror stays as it was, the run's end says one line, and room lets it go on."""
    disk = tmp_path / "disk"
    with small_disk(disk, 4 << 20):
        machine.configure(directory_at(disk).text)
        machine.now()
        fill(disk, leave=64 << 10)
        machine.run(size=1 << 20)
        (row,) = machine.now(status=125)
        assert "no space left" in row["why"]
        machine.configure(f"[mirror]\nsettle = 3600\n{directory_at(disk).text}")
        said = after(machine)
        for process in background(machine):
            process.kill()
        assert said.startswith("the record is not mirrored to disk: no space left")
        doctor = {
            row["name"]: row
            for row in json.loads(machine.cli("doctor", "--json", status=None).stdout)["checks"]
        }
        assert "no space left" in doctor["mirror"]["detail"]
        assert machine.status()[0]["events"] == 12
        free(disk)
        assert machine.now()[0]["events"] == 16
        other = elsewhere(machine, tmp_path)
        assert other.json("restore", str(disk), "--anchor", machine.head())["runs"] == 4


def test_a_read_only_disk_is_said(machine: Machine, tmp_path: Path) -> None:
    """What stands there can still be read and restored."""
    disk = tmp_path / "disk"
    with small_disk(disk, 4 << 20):
        machine.configure(directory_at(disk).text)
        machine.now()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        machine.run()
        (row,) = machine.now(status=125)
        assert "Read-only file system" in row["why"]
        assert machine.status()[0]["state"] == "behind"
        assert elsewhere(machine, tmp_path).json("restore", str(disk))["runs"] == 3


def test_one_dead_destination_holds_up_no_other(machine: Machine, tmp_path: Path) -> None:
    """A directory that is not there and a remote that is none are each said, with what to do."""
    text = directory_at(tmp_path / "good").text.replace(".disk", ".good")
    text += f'[destination.unmounted]\ntype = "directory"\npath = "{tmp_path}/none"\n'
    text += f'[destination.lost]\ntype = "git"\nurl = "{tmp_path}/none.git"\n'
    machine.configure(text)
    rows = {row["name"]: row for row in machine.now(status=125)}
    assert rows["good"]["whole"]
    assert "is not there" in rows["unmounted"]["why"]
    assert "none.git" in rows["lost"]["why"]
    assert not (tmp_path / "none").exists()


def test_what_is_too_large_stays_and_is_named(machine: Machine, tmp_path: Path) -> None:
    """Restore says which outputs the mirror never got, and why."""
    machine.configure(f"[mirror]\nlargest_file = '64KiB'\n{directory_at(tmp_path / 'disk').text}")
    run = machine.run(size=100_000)
    file = machine.cli.places.run(machine.identity, machine.runs[0]) / "outputs/out/model.bin"
    file.write_bytes(b"changed after the run")
    machine.now()
    found = elsewhere(machine, tmp_path).json("restore", str(tmp_path / "disk"))
    left = {one["path"]: one["why"] for one in found["left_out"]}
    assert left[f"runs/{run}/outputs/out/model.bin"] == "it is too large: 100000 bytes"
    assert "not what the record says" in left[f"runs/{machine.runs[0]}/outputs/out/model.bin"]


# -- secrets and configuration --------------------------------------------------------------------------

TOKEN = "a-token-that-nobody-may-see"  # noqa: S105 - made up


class _Git(BaseHTTPRequestHandler):
    """git's own HTTP back end, behind a password; looks for it in the list of processes."""

    protocol_version = "HTTP/1.0"
    seen: ClassVar[list[str]] = []
    root: ClassVar[str] = ""

    def do_GET(self) -> None:
        """Answer discovery."""
        self._serve()

    def do_POST(self) -> None:
        """Answer fetches and pushes."""
        self._serve()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        wanted = "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
            return
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                self.seen.append(" ".join(process.cmdline()))
        path, _, query = self.path.partition("?")
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_USER": "me",
        }
        done = subprocess.run(
            ["git", "http-backend"], env=environment, input=body, capture_output=True, check=True
        )
        front, _, content = done.stdout.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in front.decode().split("\r\n"):
            name, _, value = line.partition(": ")
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _chunks(self) -> bytes:
        body = b""
        while "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                break
        return body


@pytest.fixture
def https(tmp_path: Path) -> Iterator[str]:
    """A git server on this machine that wants a password; its URL."""
    bare = bare_at(tmp_path / "served" / "night.git").path
    subprocess.run(["git", "config", "http.receivepack", "true"], cwd=bare, check=True)
    _Git.root, _Git.seen[:] = str(bare.parent), []
    with served(_Git) as url:
        yield f"{url}/night.git"


@pytest.mark.parametrize("where", ["token", "token_file", "token_env", "url"])
def test_a_token_opens_a_remote_and_is_seen_nowhere(
    machine: Machine, https: str, tmp_path: Path, where: str
) -> None:
    """Neither in a command line nor in a message, a record or a log; a wrong one neither."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    machine.cli.extra["MIRROR_TOKEN"] = TOKEN
    given = {
        "token": f'token = "{TOKEN}"',
        "token_file": f'token_file = "{file}"',
        "token_env": 'token_env = "MIRROR_TOKEN"',
        "url": "",
    }[where]
    url = https.replace("//", f"//me:{TOKEN}@") if where == "url" else https
    text = f'[destination.hub]\ntype = "git"\nurl = "{url}"\nuser = "me"\n{given}\n'
    machine.configure(text)
    said = machine.cli("mirror", "now")
    assert machine.status()[0]["state"] == "whole"
    shown = machine.cli("mirror", "status")
    file.write_text(TOKEN + "x")
    machine.cli.extra["MIRROR_TOKEN"] = TOKEN + "x"
    machine.configure(text.replace(TOKEN, TOKEN + "x"))
    machine.run()
    failed = machine.cli("mirror", "now", status=125)
    assert "night.git" in failed.stdout
    seen = [*_Git.seen, *(one.stdout + one.stderr for one in (said, shown, failed))]
    assert len(_Git.seen) > 10
    code = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    files = [file for file in (machine.cli.home / "state").rglob("*") if file.is_file()]
    seen += [file.read_bytes().decode("utf-8", "replace") for file in files]
    assert not [one for one in seen if TOKEN in one or code in one]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[destination.a]\ntype = "directory"\npath = "x"\n', "mirror.toml:3: destination.a.path"),
        ('[destination.a]\ntype = "git"\n', "give exactly one of url"),
        ("[mirror]\nsettel = 3\n", "mirror.toml:2: unknown key mirror.settel"),
        ("[destination", "mirror.toml: "),
        ('[destination.a]\ntype = "s3"\n', "mirror.toml:1"),
    ],
)
def test_a_configuration_that_is_wrong_names_the_line(
    machine: Machine, text: str, said: str
) -> None:
    """As a usage error, for whoever looks; a run's end says that nothing is mirrored."""
    machine.configure(text)
    assert said in machine.cli("mirror", "status", status=2).stderr


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/owned",
        "http://example.invalid/x.git",
        "-oProxyCommand=x:y",
        "file:///etc",
        "relative/path",
        "",
    ],
)
def test_a_url_that_leads_elsewhere_is_refused(machine: Machine, url: str) -> None:
    """No helper is started, nothing is sent in the open, and no option is smuggled in."""
    machine.configure(f'[destination.hub]\ntype = "git"\nurl = "{url}"\n')
    (row,) = machine.now(status=125)
    assert "URL" in row["why"]


def test_a_secret_that_others_can_read_is_refused(machine: Machine) -> None:
    """The file must be its owner's alone; its message does not repeat the secret."""
    machine.configure(f'[destination.a]\ntype = "git"\nurl = "https://a.b/c"\ntoken = "{TOKEN}"\n')
    (machine.cli.home / "config" / "mirror.toml").chmod(0o644)
    said = machine.cli("mirror", "now", status=2).stderr
    assert "can be read by others" in said
    assert TOKEN not in said


# -- the story ------------------------------------------------------------------------------------------

TRAIN = """\
import pathlib
LR = {rate}
pathlib.Path('/out/model.bin').write_bytes(bytes([int(LR * 100)]) * 1000)
print(f'val_bpb: {{LR * 2}}')
"""


@pytest.mark.engine
@pytest.mark.parametrize("layers", [True, False], ids=["layers mirrored", "base made again"])
def test_a_discarded_row_is_reproduced_after_the_machine_is_gone(
    repo: Repo, tmp_path: Path, *, layers: bool
) -> None:
    """Wipe state, data and clone; restore; the discarded run has the same image id and metric."""
    cli = Cli(repo.path, tmp_path / "home").with_base()
    machine = Machine(repo, cli)
    repo.commit({"train.py": TRAIN.format(rate=0.5)}, "baseline")
    cli.run("python3", "train.py")
    repo.commit({"train.py": TRAIN.format(rate=0.3)}, "lower")
    discarded, _ = cli.run("python3", "train.py")
    image = cli.json("show", discarded["run"])["run"]["image_id"]
    repo.git("reset", "-q", "--hard", "HEAD~1")
    repo.git("reflog", "expire", "--expire=now", "--all")
    repo.git("gc", "--quiet", "--prune=now")
    repo.commit({"train.py": TRAIN.format(rate=0.4)}, "better")
    cli.run("python3", "train.py")
    option = "layers = true\n" if layers else ""
    destination = KINDS["directory" if layers else "git"](tmp_path / "destination")
    machine.configure(destination.text + option)
    machine.now()
    anchor = machine.head()
    other = elsewhere(machine, tmp_path)
    cli.stop_guard()
    shutil.rmtree(cli.home)
    shutil.rmtree(repo.path)
    if not layers:
        other.with_base()
    restored = other.json("restore", destination.source, "--anchor", anchor)
    assert (restored["runs"], bool(restored["layers"])) == (3, layers)
    assert "sound" in json.dumps(other.json("alerts", "--verify-chain", "--anchor", anchor))
    found = other.json("reproduce", discarded["run"])
    (again,) = found["repetitions"]
    assert found["likeness"] == "outputs-identical"
    assert (again["image_id"], again["metric"]) == (image, 0.6)
