"""One run, from commit to verdict, on a real engine."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import Cli

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

pytestmark = pytest.mark.engine

TRAIN = """\
import hashlib, pathlib, sys, time
SCALAR_LR = 0.5
print("sha256", hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(), flush=True)
end = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 0)
while time.monotonic() < end and not pathlib.Path("/out/stop").exists():
    time.sleep(0.02)
print(f"val_bpb: {SCALAR_LR * 2}")
"""
#: A foreign rewriter that can be looked at before it writes, and after.
REWRITER = """\
import time
time.sleep(0.1)
with open("train.py", "r+") as file:
    text = file.read()
    file.seek(0)
    file.write(text.replace("0.5", "0.3"))
time.sleep(0.1)
"""


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    repo.commit({"train.py": TRAIN, ".gitignore": "run.log\n"}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


def _codes(result: dict[str, object]) -> set[str]:
    reasons = result["reasons"]
    assert isinstance(reasons, list)
    return {reason["code"] for reason in reasons}


def _printed_sha(stdout: str) -> str:
    return stdout.split("sha256 ", 1)[1].split("\n", 1)[0]


def _blob_sha(repo: Repo, revision: str = "HEAD") -> str:
    content = subprocess.run(
        ["git", "show", f"{revision}:train.py"], cwd=repo.path, capture_output=True, check=True
    ).stdout
    return hashlib.sha256(content).hexdigest()


def _wait_for(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    assert process.stdout is not None
    seen = b""
    while text not in seen:
        chunk = os.read(process.stdout.fileno(), 65536)
        assert chunk, seen
        seen += chunk
    return seen


def _stop(cli: Cli) -> None:
    """Let the experiment of the run that is under way end."""
    for out in (cli.home / "state").rglob("outputs/out"):
        (out / "stop").touch()


def test_a_clean_run(cli: Cli, repo: Repo) -> None:
    """Output passes untouched, the metric is read, everything is on record, HEAD's bytes ran."""
    result, done = cli.run("python3", "train.py", options=("-m", "first idea"))
    assert (result["verdict"], result["outcome"], result["exit_status"]) == (
        "clean",
        "succeeded",
        0,
    ), done.stderr
    assert done.stdout == f"sha256 {_blob_sha(repo)}\nval_bpb: 1.0\n"
    assert result["metric"]["value"] == 1.0
    assert all(line.startswith("[sealrun] ") for line in done.stderr.splitlines())
    assert _codes(result) == {"first-approval"}
    record = cli.json("show", result["run"])["run"]
    assert record["idea"] == "first idea"
    assert record["image_id"].startswith("sha256:")
    assert record["coverage"]["complete"] is True
    assert record["peak_memory"] > 1 << 20
    assert {"seal", "verify 1", "verify 2", "verify 3", "experiment"} <= record["timings"].keys()
    pinned = repo.git("for-each-ref", "--format=%(objectname)", "refs/sealrun/runs/")
    assert pinned == repo.git("rev-parse", "HEAD")
    again, _ = cli.run("python3", "train.py")
    assert (again["verdict"], again["reasons"]) == ("clean", [])
    assert len(cli.json("log")["runs"]) == 2


def test_a_strike_after_the_commit_is_refused_with_its_diff(cli: Cli, repo: Repo) -> None:
    """The founding story: 0.3 on disk, 0.5 in the commit; nothing runs, the loop sees a crash."""
    subprocess.run(
        ["sed", "-i", "s/SCALAR_LR = 0.5/SCALAR_LR = 0.3/", "train.py"], cwd=repo.path, check=True
    )
    result, done = cli.run("python3", "train.py", status=121)
    assert (result["verdict"], result["outcome"]) == ("refused", "not-started")
    assert _codes(result) >= {"workspace-differs"}
    assert done.stdout == ""
    assert "val_bpb:" not in done.stderr
    assert "-SCALAR_LR = 0.5" in done.stderr
    assert "+SCALAR_LR = 0.3" in done.stderr
    assert "restore" in done.stderr
    assert len(done.stderr.splitlines()) <= 50
    repo.git("checkout", "--", "train.py")
    result, _ = cli.run("python3", "train.py")
    assert result["verdict"] == "clean"


def test_a_strike_during_the_run_cannot_reach_it(cli: Cli, repo: Repo) -> None:
    """The committed bytes run; the edit is on record with evidence, and harmless to the number."""
    file = cli.home / "result.json"
    process = cli.start("run", "--result-file", str(file), "--", "python3", "train.py", "60")
    output = _wait_for(process, b"sha256 ")
    rewriter = [sys.executable, "-Ic", REWRITER]
    subprocess.run(rewriter, cwd=repo.path, check=True)
    _stop(cli)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    stdout = (output + rest).decode()
    assert _printed_sha(stdout) == _blob_sha(repo)
    assert "val_bpb: 1.0" in stdout
    result = json.loads(file.read_text())
    assert (result["verdict"], result["harmless"]) == ("flagged", True)
    assert "edit-unattributed" in _codes(result)
    (alert,) = cli.json("show", result["run"])["run"]["alerts"]
    assert alert["phase"] == "during-run"
    assert "+SCALAR_LR = 0.3" in alert["diff"]
    assert b"SCALAR_LR = 0.3" in Path(alert["evidence"]).read_bytes()
    writer = alert["writer"]
    assert writer["how"] in {"live", "cached"}
    assert writer["process"]["cmdline"] == rewriter
    assert writer["parents"][0]["pid"] == os.getpid()
    assert "written by pid" in errors.decode()


def test_the_exit_status_and_both_streams_pass(cli: Cli) -> None:
    """Stdout and stderr stay apart, bytes stay bytes, the status is the command's."""
    script = "import sys,os; os.write(1,bytes(range(256))); os.write(2,b'err\\n'); sys.exit(7)"
    process = cli.start("run", "--", "python3", "-c", script)
    out, errors = process.communicate(timeout=60)
    assert out == bytes(range(256))
    assert errors.startswith(b"err\n") or b"\nerr\n" in errors
    assert process.returncode == 7


def test_order_is_kept_where_both_streams_are_one_file(cli: Cli, repo: Repo) -> None:
    """``> run.log 2>&1`` gives the lines in the order in which they were written."""
    script = "import os\nfor i in range(1000): os.write(1 + i % 2, b'%d\\n' % i)\n"
    with (repo.path / "run.log").open("wb") as log:
        process = cli.start("run", "--", "python3", "-c", script, stdout=log, stderr=log)
        assert process.wait(timeout=60) == 0
    lines = (repo.path / "run.log").read_bytes().splitlines()
    ours = [line for line in lines if not line.startswith(b"[sealrun] ")]
    assert ours == [b"%d" % i for i in range(1000)]


def test_committed_files_cannot_be_changed_and_new_ones_are_collected(cli: Cli) -> None:
    """The experiment can add files beside the committed ones, which stay what they are."""
    script = """
import os, pathlib
for act in (lambda: open("train.py", "w"), lambda: os.remove("train.py"),
            lambda: os.rename("train.py", "x"), lambda: os.chmod("train.py", 0o777)):
    try: act(); print("WRITTEN")
    except OSError as error: print(type(error).__name__)
pathlib.Path("ckpt.pt").write_bytes(b"weights")
pathlib.Path("/out/result.json").write_text("{}")
pathlib.Path("deep/er").mkdir(parents=True); pathlib.Path("deep/er/log").write_text("x")
"""
    result, done = cli.run("python3", "-c", script)
    assert done.stdout == "PermissionError\n" * 4
    assert result["verdict"] == "clean"
    outputs = {o["path"]: o for o in cli.json("show", result["run"])["run"]["outputs"]}
    assert {"workdir/ckpt.pt", "workdir/deep/er/log", "out/result.json"} <= outputs.keys()


def test_a_deadline_ends_the_process_and_says_so(cli: Cli) -> None:
    """124, outcome timed-out, and the verdict stands on its own."""
    result, _ = cli.run("python3", "train.py", "60", status=124, options=("--deadline", "1s"))
    assert (result["verdict"], result["outcome"]) == ("clean", "timed-out")


def test_a_command_that_is_not_there(cli: Cli) -> None:
    """127 for a missing command, 126 for one that cannot be executed, each with what to do."""
    result, done = cli.run("no-such-command", status=127)
    assert "is not in the image" in done.stderr
    assert "hint:" in done.stderr
    assert result["outcome"] == "not-started"
    _, done = cli.run("./train.py", status=126)
    assert "cannot be executed" in done.stderr


def test_interference_through_the_engine_aborts(cli: Cli, repo: Repo) -> None:
    """Somebody's docker exec on our container is an in-container mutation: 122."""
    file = cli.home / "result.json"
    process = cli.start("run", "--result-file", str(file), "--", "python3", "train.py", "30")
    _wait_for(process, b"sha256 ")
    identity = (repo.path / ".git/sealrun/id").read_text().strip()
    name = subprocess.run(
        ["docker", "ps", "-q", "--filter", f"label=sealrun.repository={identity}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    subprocess.run(["docker", "exec", name, "true"], check=False, capture_output=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 122, errors
    assert b"engine-interference" in errors


def test_an_interrupt_stops_judges_and_records(cli: Cli) -> None:
    """Ctrl-C and cancel end the experiment first; the record says stopped."""
    process = cli.start("run", "--", "python3", "train.py", "60")
    _wait_for(process, b"sha256 ")
    (open_run,) = cli.json("ps")["runs"]
    cli("cancel", open_run["run"][:14])
    process.communicate(timeout=60)
    assert process.returncode == 130
    record = cli.json("show", open_run["run"])["run"]
    assert (record["outcome"], record["verdict"]["kind"]) == ("stopped", "clean")


def test_a_killed_controller_leaves_no_container_and_a_true_record(cli: Cli) -> None:
    """SIGKILL: the container is gone within a second or so; the next start records interrupted."""
    process = cli.start("run", "--", "python3", "train.py", "60")
    _wait_for(process, b"sha256 ")
    (open_run,) = cli.json("ps")["runs"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    query = ["docker", "ps", "-q", "--filter", f"label=sealrun.run={open_run['run']}"]
    while subprocess.run(query, capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    result, _ = cli.run("python3", "train.py")
    assert result["verdict"] == "clean"
    assert cli.json("show", open_run["run"])["run"]["outcome"] == "interrupted"
    left = subprocess.run([*query, "-a"], capture_output=True, check=True).stdout
    assert left == b""


def test_another_revision_runs_without_comparison(cli: Cli, repo: Repo) -> None:
    """--rev runs any commit, also a prefix or another branch's; coverage says what was not done."""
    old = repo.git("rev-parse", "HEAD")
    repo.git("checkout", "-q", "-b", "other")
    repo.commit({"train.py": TRAIN.replace("0.5", "0.7")})
    repo.write({"train.py": "dirty"})
    result, done = cli.run("python3", "train.py", options=("--rev", old[:9]))
    assert (result["verdict"], result["commit"]) == ("clean", old)
    assert "workspace-not-compared" in _codes(result)
    assert _printed_sha(done.stdout) == _blob_sha(repo, old)


def test_a_snapshot_runs_what_is_on_disk(cli: Cli, repo: Repo) -> None:
    """--snapshot seals the working directory without touching HEAD, index or files."""
    repo.write({"train.py": TRAIN.replace("0.5", "0.25")})
    head, status = repo.git("rev-parse", "HEAD"), repo.git("status", "--porcelain")
    result, done = cli.run("python3", "train.py", options=("--snapshot",))
    assert (result["verdict"], result["metric"]["value"]) == ("clean", 0.5), done.stderr
    assert (repo.git("rev-parse", "HEAD"), repo.git("status", "--porcelain")) == (head, status)


def test_a_commit_that_changes_what_judges_it_is_refused(cli: Cli, repo: Repo) -> None:
    """Policy and protected files are a human's; the message tells an agent nothing about approval."""
    repo.commit({"sealrun.toml": '[guard]\nprotected = ["prepare.py"]\n', "prepare.py": "1\n"})
    cli.run("python3", "train.py", options=())
    repo.commit({"prepare.py": "2\n", "train.py": TRAIN + "# idea\n"})
    result, done = cli.run("python3", "train.py", status=121)
    assert _codes(result) >= {"protected-changed"}
    assert "approve" not in done.stderr
    repo.commit({"prepare.py": "1\n", "sealrun.toml": 'extends = "audit"\n'})
    result, done = cli.run("python3", "train.py", status=121)
    assert {"policy-changed"} <= _codes(result)
    assert "approve" not in done.stderr
    refused = cli("policy", "approve", status=121)
    assert "terminal" in refused.stderr


@pytest.mark.parametrize("level", ["audit", "standard", "strict"])
def test_what_cannot_be_sealed_is_refused_with_a_verdict(cli: Cli, repo: Repo, level: str) -> None:
    """At every level: nothing could run. The result and the record say so, and what to do."""
    repo.commit(
        {"sealrun.toml": f'extends = "{level}"\n[[data]]\nsource = "/nonexistent/shards"\n'}
    )
    result, done = cli.run("python3", "train.py", status=121)
    assert (result["verdict"], result["outcome"]) == ("refused", "not-started")
    assert "not-sealable" in _codes(result)
    assert "/nonexistent/shards" in done.stderr
    assert "what to do: Prepare the data first" in done.stderr
    (run,) = cli.json("log")["runs"]
    assert (run["outcome"], run["verdict"]["kind"]) == ("not-started", "refused")
    repo.commit({"sealrun.toml": "", "escape": "x\n"})
    (repo.path / "escape").unlink()
    (repo.path / "escape").symlink_to("../../etc")
    repo.git("add", "-A")
    repo.git("commit", "-qm", "A link that leaves the tree")
    result, _ = cli.run("python3", "train.py", status=121)
    assert result["verdict"] == "refused"


def test_cold_answers_at_once_without_a_terminal(repo: Repo) -> None:
    """Nothing slow hides in run: 125, the hint, and a record that says it was our trouble."""
    repo.commit({"train.py": TRAIN})
    cli = Cli(repo.path, repo.path.parent / "home")
    try:
        done = cli("run", "--", "python3", "train.py", status=125)
        assert "sealrun warm" in done.stderr
        (run,) = cli.json("log")["runs"]
        assert (run["outcome"], run["verdict"]) == ("not-started", None)
    finally:
        cli.stop_guard()


def test_an_engine_that_goes_away_is_our_trouble(cli: Cli) -> None:
    """An endpoint that does not answer is 125 and never an outcome of the experiment."""
    cli.extra["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    done = cli("run", "--", "python3", "train.py", status=125)
    assert "/nonexistent/docker.sock" in done.stderr
    (run,) = cli.json("log")["runs"]
    assert run["outcome"] == "not-started"


def test_a_lost_ledger_beside_pinned_runs_is_refused(cli: Cli) -> None:
    """Pinned refs without a ledger never mean a fresh start."""
    cli.run("python3", "train.py")
    for file in (cli.home / "state").rglob("ledger.sqlite*"):
        file.unlink()
    done = cli("run", "--", "python3", "train.py", status=121)
    assert "ledger" in done.stderr
    assert not list((cli.home / "state").rglob("ledger.sqlite"))


def test_bad_calls_say_what_to_do(cli: Cli, tmp_path: Path) -> None:
    """Usage errors are 2, name the thing, and never show a traceback."""
    assert "not known" in cli("run", "--rev", "nope", "--", "true", status=2).stderr
    assert "duration" in cli("run", "--deadline", "soon", "--", "true", status=2).stderr
    assert "no level" in cli("run", "--policy", "lax", "--", "true", status=2).stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    elsewhere = Cli(empty, cli.home)
    assert "not in a git repository" in elsewhere("run", "--", "true", status=2).stderr
    cli("run", status=2)


def test_strict_stops_the_run_when_the_workspace_is_struck(cli: Cli, repo: Repo) -> None:
    """Under strict a mutation during the run ends it at once: 122, long before it would end."""
    process = cli.start("run", "--policy", "strict", "--", "python3", "train.py", "100")
    _wait_for(process, b"sha256 ")
    subprocess.run(["sed", "-i", "s/0.5/0.3/", "train.py"], cwd=repo.path, check=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 122, errors
    assert b"edit-" in errors


def test_data_is_mounted_read_only_recorded_and_watched(
    cli: Cli, repo: Repo, tmp_path: Path
) -> None:
    """A data mount appears where the policy says, its manifest is on record, a change is flagged."""
    data = tmp_path / "corpus"
    data.mkdir()
    (data / "a.txt").write_text("tokens")
    policy = f'[[data]]\nsource = "{data}"\ntarget = "~/corpus"\n'
    script = """
import pathlib, sys, time
p = pathlib.Path.home() / "corpus"
print((p / "a.txt").read_text(), flush=True)
try: (p / "b").write_text("x"); print("WRITTEN")
except OSError: print("read-only", flush=True)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and not pathlib.Path("/out/stop").exists(): time.sleep(0.02)
"""
    repo.commit({"sealrun.toml": policy, "read.py": script})
    result, done = cli.run("python3", "read.py", "0")
    assert done.stdout == "tokens\nread-only\n"
    assert result["verdict"] == "clean"
    (recorded,) = cli.json("show", result["run"])["run"]["data"]
    assert (recorded["source"], recorded["target"]) == (str(data), "/home/run/corpus")
    assert (recorded["files"], recorded["hashed"]) == (1, 1)
    file = cli.home / "flagged.json"
    process = cli.start("run", "--result-file", str(file), "--", "python3", "read.py", "60")
    _wait_for(process, b"read-only")
    (data / "a.txt").write_text("poison")
    _stop(cli)
    process.communicate(timeout=60)
    changed = json.loads(file.read_text())
    assert (changed["verdict"], changed["harmless"]) == ("flagged", False)
    assert "data-changed" in _codes(changed)


def test_a_snapshot_approves_nothing(cli: Cli, repo: Repo) -> None:
    """An uncommitted policy of a first run never judges later commits."""
    repo.write({"sealrun.toml": 'extends = "audit"\n'})
    result, _ = cli.run("python3", "train.py", options=("--snapshot",))
    assert "first-approval" not in _codes(result)
    (repo.path / "sealrun.toml").unlink()
    result, _ = cli.run("python3", "train.py")
    assert _codes(result) == {"first-approval"}
    repo.commit({"sealrun.toml": 'extends = "audit"\n'})
    cli.run("python3", "train.py", status=121)


def test_code_of_the_workspace_never_runs_in_the_judge(cli: Cli, repo: Repo) -> None:
    """PYTHONPATH and the current directory lead no import of ours into the repository."""
    trap = "import os, pathlib; pathlib.Path(os.environ['TRAP']).touch(); raise SystemExit(3)\n"
    names = ("docker", "typer", "pydantic", "watchdog", "tomllib", "sqlite3", "requests", "rich")
    repo.commit({f"{name}/__init__.py": trap for name in names} | {"json.py": trap})
    sprung = cli.home / "sprung"
    cli.extra |= {"PYTHONPATH": f".:{repo.path}:", "TRAP": str(sprung)}
    result, _ = cli.run("true")
    assert result["verdict"] == "clean"
    cli("log")
    assert not sprung.exists()


def test_an_image_changed_in_the_engine_is_loaded_anew(cli: Cli, repo: Repo) -> None:
    """A file rewritten in the layer store is noticed, repaired and flagged; the true bytes run."""
    cli.run("python3", "train.py")
    repo.commit({"train.py": TRAIN + f"# {repo.path}\n"})
    result, _ = cli.run("python3", "train.py")
    image = cli.json("show", result["run"])["run"]["loading"]["engine_image"]
    layer = subprocess.run(
        ["docker", "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", image],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    stored = Path(layer) / "workspace" / "train.py"
    stored.write_text(stored.read_text().replace("0.5", "0.3"))
    result, done = cli.run("python3", "train.py")
    assert (result["verdict"], result["harmless"]) == ("flagged", True)
    assert _codes(result) == {"image-repaired"}
    assert _printed_sha(done.stdout) == _blob_sha(repo)
    result, _ = cli.run("python3", "train.py")
    assert result["verdict"] == "clean"


def test_a_run_is_signed_at_its_end_where_there_is_a_key(cli: Cli) -> None:
    """Without a key nothing is signed; with one each run has a statement that verifies."""
    first, _ = cli.run("python3", "train.py")
    assert cli.json("show", first["run"])["run"]["signed"] is None
    cli("key", "create")
    second, done = cli.run("python3", "train.py")
    assert cli.json("show", second["run"])["run"]["signed"] is not None, done.stderr
    cli("verify-run", second["run"])
    assert "was not signed" in cli("verify-run", first["run"], status=2).stderr
