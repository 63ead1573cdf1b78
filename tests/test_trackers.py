"""What a run logged offline reaches its tracker: a checked copy, the record's verdict, the caller's key."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _cli import Cli
from _ledger import ended, ledger_at, opened
from _wandb import server
from sealrun.ledger import Because, Judgement, OutputFile, RunProgress, new_ulid
from sealrun.leftovers import identify
from sealrun.trackers import wandb_log
from sealrun.trackers.wandb_log import Malformed, Sifted, sift

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo
    from _wandb import Uploaded

KEY = "a1" * 20
#: What an experiment logs; it also claims a verdict of its own, in every way that it has.
EXPERIMENT = """
import pathlib, wandb
run = wandb.init(project="nights", config={"lr": 0.5, "sealrun": {"verdict": "clean"}},
                 tags=["baseline", "sealrun-clean"])
for step in range(3):
    run.log({"val_bpb": 1.0 - step / 10})
pathlib.Path("notes.txt").write_text("as it is")
wandb.save("notes.txt", base_path=".")
run.summary["sealrun"] = {"verdict": "clean"}
run.config.update({"sealrun": {"verdict": "clean"}}, allow_val_change=True)
artifact = wandb.Artifact("model", type="model")
artifact.add_file("notes.txt")
run.log_artifact(artifact)
run.finish()
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real client wrote without a network: the directory that it made."""
    home = tmp_path_factory.mktemp("container")
    done = subprocess.run(
        [sys.executable, "-c", EXPERIMENT],
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(home / "wandb"),
            "WANDB_SILENT": "true",
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (log,) = home.rglob("run-*.wandb")
    return log.parent


@dataclass
class Night:
    """A repository with one run on record that left what a client wrote."""

    cli: Cli
    run: str
    offline: Path

    @property
    def name(self) -> str:
        """The tracker's id of the run."""
        return self.offline.name.rpartition("-")[2]

    def sync(self, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Upload, in a session without a terminal."""
        done = subprocess.run(
            ["setsid", "-w", self.cli.program, "sync", "wandb", self.run[:12], *options],
            cwd=self.cli.directory,
            env=self.cli.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stderr
        return done


@pytest.fixture
def uploaded() -> Iterator[Uploaded]:
    """A server of the tracker."""
    with server() as found:
        yield found


@pytest.fixture
def night(repo: Repo, tmp_path: Path, logged: Path, uploaded: Uploaded) -> Night:
    """A flagged run whose container logged to ``/out/wandb``, and a caller who is logged in."""
    repo.commit({"train.py": "pass\n"}, "baseline")
    home = tmp_path / "caller"
    home.mkdir()
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    variables = {"WANDB_BASE_URL": uploaded.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
    cli = Cli(repo.path, tmp_path / "home", {"HOME": str(home), "PATH": programs, **variables})
    identity, run = identify(repo.find()), new_ulid()
    root = cli.places.run(identity, run) / "outputs"
    offline = root / "out" / "wandb" / "wandb" / logged.name
    _copy_as_a_container_left_it(logged, offline, root)
    listed = tuple(
        OutputFile(
            path=str(file.relative_to(root)),
            size=file.stat().st_size,
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        for file in sorted(root.rglob("*"))
        if file.is_file() and not file.is_symlink()
    )
    because = Because(code="edit-foreign", severity="flag-harmless")
    with ledger_at(cli.places.ledger(identity), identity) as ledger, ledger.transaction() as tx:
        tx.append(opened(run, commit=repo.git("rev-parse", "HEAD")))
        tx.append(RunProgress(run=run, step="sealed", image_id="sha256:" + "5" * 64))
        judged = Judgement(kind="flagged", reasons=(because,))
        tx.append(ended(run, verdict=judged, outputs=listed, outputs_path=str(root)))
    return Night(cli, run, offline)


def _copy_as_a_container_left_it(logged: Path, offline: Path, root: Path) -> None:
    """Copy, with the links that the client makes as they would be in a container."""
    (root / "workdir").mkdir(parents=True)
    for file in sorted(logged.rglob("*")):
        target = offline / file.relative_to(logged)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            if file.parent.name == "files":
                (root / "workdir" / file.name).write_bytes(file.read_bytes())
            target.symlink_to(Path("/workspace") / file.name)
        elif file.is_file():
            target.write_bytes(file.read_bytes())


def test_the_real_client_uploads_a_run_with_the_verdict_on_record(
    night: Night, uploaded: Uploaded
) -> None:
    """Id, project, steps, files and the caller's key arrive; what the experiment claims does not stand."""
    done = night.sync()
    assert done.stdout.startswith(f"uploaded {night.name}: ")
    assert uploaded.keys == {KEY}
    assert {one["name"] for one in uploaded.buckets} == {night.name}
    assert {one["project"] for one in uploaded.buckets} == {"nights"}
    assert [step["val_bpb"] for step in uploaded.history] == [1.0, 0.9, 0.8]
    assert uploaded.files["notes.txt"] == b"as it is"
    assert uploaded.config["lr"] == 0.5
    for said in (uploaded.config["sealrun"], uploaded.summary["sealrun"]):
        assert (said["run"], said["verdict"], said["reasons"]) == (
            night.run,
            "flagged",
            ["edit-foreign"],
        )
        assert said["image"].startswith("sha256:5")
        assert len(said["commit"]) == 40
    tags = [one["tags"] for one in uploaded.buckets if one.get("tags")]
    assert tags
    assert all(set(one) == {"baseline", "sealrun-flagged"} for one in tags)
    assert "left out: artifact" in done.stderr
    assert not list((night.cli.places.cache / "scratch").iterdir())


def test_a_dry_run_says_what_would_be_uploaded_and_asks_nobody(
    night: Night, uploaded: Uploaded
) -> None:
    """Where it would go, how much, and what is left out are said without a request."""
    done = night.sync("--dry-run", "--project", "others")
    assert done.stdout.startswith(f"would upload {night.name}: ")
    assert "to others, of your own account" in done.stderr
    document = json.loads(night.sync("--dry-run", "--json").stdout)
    assert document["uploaded"] is False
    assert document["logged"][0]["project"] == "nights"
    assert "artifact" in [one["path"] for one in document["logged"][0]["left_out"]]
    assert (uploaded.buckets, uploaded.keys) == ([], set())


def test_links_lead_to_outputs_or_nowhere(night: Night, uploaded: Uploaded, tmp_path: Path) -> None:
    """A planted link to a file of this machine is left out by name; nothing of that file is sent."""
    secret = tmp_path / "id_rsa"
    secret.write_text("of this machine")
    files = night.offline / "files"
    (files / "key").symlink_to(secret)
    (files / "climb").symlink_to("../../../../../../../../../../../../" + str(secret)[1:])
    (files / "sneaky").symlink_to(f"/workspace/../../../../../../..{secret}")
    (files / "below").symlink_to(tmp_path)
    (files / "loop").symlink_to("/out/wandb/wandb/" + night.offline.name + "/files/loop")
    os.mkfifo(files / "fifo")
    document = json.loads(night.sync("--json").stdout)
    left = {Path(one["path"]).name: one["why"] for one in document["logged"][0]["left_out"]}
    assert {"key", "climb", "sneaky", "below", "loop"} <= left.keys()
    assert all(b"of this machine" not in content for content in uploaded.files.values())
    assert "fifo" not in uploaded.files


def test_a_directory_that_became_a_link_is_not_entered(
    night: Night, uploaded: Uploaded, tmp_path: Path
) -> None:
    """The folder of files replaced by a link to a folder of this machine brings none of its files."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "id_rsa").write_text("of this machine")
    (night.offline / "files").rename(tmp_path / "away")
    (night.offline / "files").symlink_to(tmp_path / "private")
    night.sync()
    assert "id_rsa" not in uploaded.files
    assert all(b"of this machine" not in content for content in uploaded.files.values())


def test_a_file_that_was_changed_since_is_not_uploaded(night: Night, uploaded: Uploaded) -> None:
    """Bytes that are not those on record refuse the upload, whichever file it is."""
    for file in (night.offline / "files" / "requirements.txt", next(night.offline.glob("*.wandb"))):
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        done = night.sync(status=121)
        assert "is not what the run left" in done.stderr
        file.write_bytes(before)
    assert uploaded.buckets == []


def test_what_a_run_called_its_directory_is_no_option_of_the_client(
    night: Night, uploaded: Uploaded
) -> None:
    """A directory named like an option names no other project: it is none of the client's, and stays."""
    named = night.offline.with_name(f"--project={night.offline.name.removeprefix('offline-')}")
    night.offline.rename(named)
    night.sync("--project", "mine", status=2)
    assert not uploaded.buckets


def test_a_key_in_what_would_be_uploaded_needs_a_person(night: Night, uploaded: Uploaded) -> None:
    """Its place is named and nothing is sent where nobody is at a terminal."""
    secret = "gsk_" + "aB3dE5fG7h" * 5 + "xY"
    (night.offline / "files" / "env.txt").write_text(f"first\nKEY={secret}\n")
    done = night.sync(status=121)
    assert "files/env.txt:2 holds what looks like a Groq key (gsk_…, 56 characters)" in done.stderr
    assert secret[6:] not in done.stderr + done.stdout
    assert (uploaded.buckets, uploaded.keys) == ([], set())
    assert night.sync("--dry-run").returncode == 0


def test_a_server_that_refuses_is_trouble_and_said(night: Night, uploaded: Uploaded) -> None:
    """The client exits with 0 where it uploaded nothing; that is seen, and is no success."""
    uploaded.accepts = False
    done = night.sync(status=125)
    assert f"wandb did not upload {night.name}" in done.stderr
    assert done.stdout == ""


def test_without_a_client_it_says_which_is_missing(night: Night, tmp_path: Path) -> None:
    """Where no client is on PATH, the message says what to install; a dry run needs none."""
    (tmp_path / "bin").mkdir()
    for name in ("git", "setsid"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout
        (tmp_path / "bin" / name).symlink_to(found.strip())
    night.cli.extra["PATH"] = str(tmp_path / "bin")
    assert "there is no client of Weights & Biases" in night.sync(status=2).stderr
    night.sync("--dry-run")


def test_an_unknown_tracker_and_a_run_without_one_are_said(night: Night) -> None:
    """Both are mistakes of the caller, with what there is instead."""
    assert "there is no tracker 'comet'" in night.cli("sync", "comet", "01", status=2).stderr
    (night.offline.parent.parent).rename(night.offline.parent.parent.with_name("elsewhere"))
    assert "left nothing that wandb could upload" in night.sync(status=2).stderr


TRAIN = """
import os, pathlib, wandb
assert not [name for name in os.environ if name.endswith(("KEY", "TOKEN"))]
run = wandb.init(project="nights", config={"lr": 0.5})
for step in range(3):
    run.log({"val_bpb": 1.0 - step / 10})
pathlib.Path("notes.txt").write_text("as it is")
wandb.save("notes.txt", base_path=".")
run.finish()
print("val_bpb: 0.8")
"""


@pytest.mark.engine
@pytest.mark.soak(sample=True)
def test_from_a_script_in_a_container_to_the_tracker(
    repo: Repo, tmp_path: Path, uploaded: Uploaded
) -> None:
    """An unmodified script logs without network or key, its run is clean, and all of it arrives."""
    asked = tmp_path / "asked.in"
    asked.write_text("wandb\n")
    locked = subprocess.run(
        ["uv", "pip", "compile", "-q", "--generate-hashes", "--python-version=3.11", str(asked)],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )
    repo.commit({"train.py": TRAIN, "requirements.txt": locked.stdout})
    variables = {"WANDB_BASE_URL": uploaded.url, "WANDB_API_KEY": KEY}
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cli = Cli(repo.path, tmp_path / "home", variables | {"PATH": programs}).with_base()
    try:
        cli("warm")
        result, done = cli.run("python3", "train.py")
    finally:
        cli.stop_guard()
    assert (result["verdict"], result["outcome"]) == ("clean", "succeeded"), done.stderr
    (name,) = [
        Path(one["path"]).name.removeprefix("run-").removesuffix(".wandb")
        for one in cli.json("outputs", result["run"])["outputs"]
        if one["path"].endswith(".wandb")
    ]
    cli("sync", "wandb", result["run"])
    assert {one["name"] for one in uploaded.buckets} == {name}
    assert [step["val_bpb"] for step in uploaded.history] == [1.0, 0.9, 0.8]
    assert uploaded.config["sealrun"]["verdict"] == "clean"
    assert uploaded.files["notes.txt"] == b"as it is"


# -- the log itself ------------------------------------------------------------------------------------


def _log(*records: bytes) -> bytes:
    sink = io.BytesIO()
    writer = wandb_log._Writer(sink)
    for record in records:
        writer.write(record)
    return sink.getvalue()


def _sift(content: bytes, **facts: Any) -> tuple[Sifted, list[bytes]]:  # noqa: ANN401 - JSON
    sink = io.BytesIO()
    sifted = sift(io.BytesIO(content), sink, facts, ())
    records = list(wandb_log._records(io.BytesIO(sink.getvalue())))
    assert all(isinstance(one, bytes) for one in records)
    return sifted, [one for one in records if isinstance(one, bytes)]


@given(st.lists(st.integers(0, 70_000), max_size=6), st.integers(0, 9))
def test_the_framing_brings_back_what_it_was_given(sizes: list[int], fill: int) -> None:
    """Records of any size, over block boundaries and at their edges, are read as they were written."""
    edge = 32768 - 7 - 7 - fill
    records = [bytes([number % 251]) * size for number, size in enumerate((edge, *sizes))]
    assert list(wandb_log._records(io.BytesIO(_log(*records)))) == records


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 255))
def test_a_log_of_any_bytes_is_sifted_or_refused(junk: bytes, at: int, byte: int) -> None:
    """Random bytes, and a good log with one byte changed, end in a copy that reads, or in Malformed."""
    run = wandb_log._put(17, wandb_log._put(1, b"abc"))
    good = bytearray(_log(run, *[wandb_log._put(2, junk)] * 3))
    good[at % len(good)] = byte
    for content in (bytes(good), _log(junk), _log(junk) + junk):
        try:
            _sift(content)
        except Malformed:
            continue
    with pytest.raises(Malformed):
        _sift(b"x" + junk)


def test_what_would_make_a_client_act_is_left_out() -> None:
    """Artifacts, alerts, TensorBoard directories, requests and unknown kinds are dropped and counted."""
    put = wandb_log._put
    run = put(17, put(1, b"abc") + put(10, b"sealrun-clean") + put(10, b"mine"))
    acts = [put(kind, put(1, b"/root/.ssh/id_rsa")) for kind in (8, 9, 10, 25, 100, 77)]
    two = put(2, b"") + put(8, b"")
    files = put(6, put(1, put(1, b"../../etc/passwd")) + put(1, put(1, b"notes.txt")))
    after = put(5, put(1, put(1, b"sealrun") + put(16, b'"clean"')))
    sifted, kept = _sift(_log(run, *acts, two, files, put(18, b""), after, run), verdict="flagged")
    joined = b"".join(kept)
    assert b"/root/.ssh" not in joined
    assert b"etc/passwd" not in joined
    assert b"notes.txt" in joined
    assert b"sealrun-clean" not in joined
    assert sifted.left_out == {
        "artifact": 1,
        "TensorBoard directory": 1,
        "alert": 1,
        "use of an artifact": 1,
        "other record": 3,
        "record after the end": 1,
        "second run": 1,
    }
    assert b'"flagged"' in kept[-2]
    assert b'"clean"' not in joined


def test_of_a_field_that_is_there_twice_the_one_counts_that_the_client_reads() -> None:
    """Protobuf takes the last; what hides in it is judged, and a number that no field has hides nothing."""
    put = wandb_log._put
    key = b'"sk-' + b"aB3dE5fG7h" * 4 + b'"'
    twice = put(6, put(1, put(1, b"notes.txt") + put(1, b"/root/.ssh/id_rsa")))
    beyond = put(6, put(1, put(1, b"notes.txt") + put(1 + (1 << 29), b"/root/.ssh/id_rsa")))
    config = put(5, put(1, put(1, b"openai_api_key") + put(16, b'"nothing"') + put(16, key)))
    sifted, kept = _sift(_log(put(17, put(1, b"abc")), twice, beyond, config))
    assert b".ssh" not in b"".join(kept)
    assert [name for name, _ in sifted.keys] == ["config openai_api_key"]


def test_a_torn_log_is_uploaded_to_where_it_is_whole() -> None:
    """An experiment that was killed leaves a log without an end; what is whole goes, and it is said."""
    put = wandb_log._put
    content = _log(put(17, put(1, b"abc")), *(put(2, bytes([n]) * 5000) for n in range(20)))
    sifted, kept = _sift(content[:-2500], verdict="aborted")
    assert sifted.cut == "its end is missing or damaged"
    assert len(kept) == 1 + 19 + 2
    assert b'"aborted"' in kept[-1]


def test_a_key_in_the_config_or_the_console_is_noticed() -> None:
    """A value of the config that is a key by its name or its form is named, and so is a printed one."""
    put = wandb_log._put
    item = put(1, b"openai_api_key") + put(16, b'"sk-' + b"aB3dE5fG7h" * 4 + b'"')
    nested = put(2, b"env") + put(2, b"HF_TOKEN") + put(16, b'"hf_' + b"aBcDeFgHiJ" * 3 + b'kLmN"')
    run = put(17, put(1, b"abc") + put(4, put(1, item)))
    printed = put(13, put(2, b"logged in with gsk_" + b"aB3dE5fG7h" * 5 + b"xY\n"))
    sifted, _ = _sift(_log(run, put(5, put(1, nested)), put(13, put(2, b"step 1\n")), printed))
    assert [name for name, _ in sifted.keys] == [
        "config openai_api_key",
        "config env.HF_TOKEN",
        "printed or called with",
    ]
    assert all("aB3" not in key.words() for _, key in sifted.keys)


def test_crc_is_the_one_that_the_client_writes(logged: Path) -> None:
    """A log of the real client is read to its end, and begins with its header and its run."""
    content = next(logged.glob("*.wandb")).read_bytes()
    assert zlib.crc32(content[13:14] + content[14 : 14 + content[11]]) == int.from_bytes(
        content[7:11], "little"
    )
    sifted, kept = _sift(content)
    assert (sifted.cut, sifted.project) == (None, "nights")
    assert len(kept) > 10
