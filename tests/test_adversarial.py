"""Attacks on a run and ordinary work beside it, each with second processes and a real engine.

Rules: what was not observed or was changed is never ``clean``; what a loop does every day is never
an alarm.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _cli import Cli
from _git import Repo

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytestmark = pytest.mark.engine

#: Says that it runs, waits for the name of a file that shall exist beside /out, reports.
TRAIN = """\
import pathlib, sys, time
SCALAR_LR = 0.5
print("started", flush=True)
end = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 0)
while time.monotonic() < end and not pathlib.Path("/out/stop").exists():
    time.sleep(0.02)
print(f"val_bpb: {SCALAR_LR * 2}")
"""


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    repo.commit({"train.py": TRAIN, "lib/model.py": "X = 1\n", ".gitignore": "run.log\n"}, "base")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


@dataclass
class Running:
    """A run whose experiment has started.

    Attributes:
        result: set when it has ended.
    """

    cli: Cli
    process: subprocess.Popen[bytes]
    file: Path
    result: dict[str, Any]
    errors: str = ""
    output: str = ""

    @property
    def id(self) -> str:
        """Its id."""
        (run,) = [p.parent.name for p in (self.cli.home / "state").rglob("manifest")][-1:]
        return run

    @property
    def container(self) -> str:
        """Its container's id."""
        return _docker("ps", "-q", "--no-trunc", "--filter", f"label=sealrun.run={self.id}")

    @property
    def root(self) -> Path:
        """The container's root as this host sees it."""
        return Path(f"/proc/{_docker('inspect', '-f', '{{.State.Pid}}', self.container)}/root")

    def finish(self) -> dict[str, Any]:
        """Let the experiment end; return the result."""
        for out in (self.cli.home / "state").rglob("outputs/out"):
            (out / "stop").touch()
        rest, errors = self.process.communicate(timeout=60)
        self.output, self.errors = rest.decode(), errors.decode("utf-8", "replace")
        assert "Traceback" not in self.errors, self.errors
        assert self.file.exists(), self.errors
        self.result.update(json.loads(self.file.read_text()))
        return self.result


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def running(cli: Cli, *options: str, seconds: float = 30) -> Generator[Running]:
    """Start a run and wait until its experiment runs; end it if the test did not."""
    file = cli.home / f"result-{time.monotonic_ns()}.json"
    process = cli.start(
        "run", "--result-file", str(file), *options, "--", "python3", "train.py", str(seconds)
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    run = Running(cli, process, file, {})
    try:
        assert first == b"started\n", process.communicate(timeout=30)
        yield run
        if not run.result:
            run.finish()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _codes(result: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in result["reasons"]} - {"first-approval"}


def _guard(cli: Cli) -> int:
    """Return the process id of this home's guard."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"sealrun.guard" in line and os.fsencode(cli.home) in line:
                return int(entry.name)
    raise AssertionError(f"no guard of {cli.home}")


def _inside_mounts(run: Running, script: str) -> None:
    """Run Python with the mounts of a run's container and root's rights on this host."""
    enter = (
        "import ctypes, os; libc = ctypes.CDLL(None);"
        f"assert libc.setns(os.open('{run.root.parent}/ns/mnt', 0), 0) == 0;"
    )
    subprocess.run([sys.executable, "-c", enter + script], check=True)


# -- others' runs, and what is not ours ---------------------------------------------------------


def test_a_start_elsewhere_leaves_a_living_run_alone(cli: Cli, tmp_path: Path) -> None:
    """A run of another repository of the same user is nobody's leftover."""
    other = Repo.create(tmp_path / "second")
    other.commit({"train.py": TRAIN})
    second = Cli(other.path, cli.home)
    with running(cli) as run:
        try:
            result, _ = second.run("python3", "train.py")
        finally:
            second.stop_guard()
        assert result["verdict"] == "clean"
    assert run.result["verdict"] == "clean", run.errors


def test_two_runs_in_one_workspace_do_not_disturb_each_other(cli: Cli) -> None:
    """Pins, ledger, guard and containers of one run are no mutation of the other."""
    cli.run("true")
    with running(cli) as run:
        result, done = cli.run("python3", "train.py")
        assert (result["verdict"], _codes(result)) == ("clean", set()), done.stderr
    assert (run.result["verdict"], _codes(run.result)) == ("clean", set()), run.errors


# -- changed and put back -----------------------------------------------------------------------


def test_a_committed_file_changed_and_put_back_in_the_container_aborts(cli: Cli) -> None:
    """Equal bytes at the end do not say what was read in between; inode and ctime do."""
    with running(cli) as run:
        file = run.root / "workspace" / "train.py"
        before = file.read_text()
        file.write_text(before.replace("0.5", "0.3"))
        file.write_text(before)
    assert run.result["verdict"] == "aborted"
    assert _codes(run.result) == {"in-container"}


def test_a_library_changed_and_put_back_in_the_container_aborts(cli: Cli) -> None:
    """The same holds for what base and environment brought."""
    with running(cli) as run:
        file = run.root / "usr" / "lib" / "os-release"
        before = file.read_bytes()
        file.write_bytes(b"other")
        file.write_bytes(before)
    assert run.result["verdict"] == "aborted"


def test_a_mount_that_came_and_went_in_the_container_aborts(cli: Cli) -> None:
    """A file system over the committed files is seen although it is gone at the end."""
    with running(cli) as run:
        _inside_mounts(
            run,
            "assert libc.mount(b'none', b'/workspace/lib', b'tmpfs', 0, None) == 0;"
            "assert libc.umount(b'/workspace/lib') == 0",
        )
    assert run.result["verdict"] == "aborted"
    assert _codes(run.result) == {"in-container"}


def test_data_changed_and_put_back_is_flagged(cli: Cli, repo: Repo, tmp_path: Path) -> None:
    """A data file whose bytes are back was read in between, for all we know; so is a link's turn."""
    data = tmp_path / "data"
    for name in ("v1", "v2"):
        (data / name).mkdir(parents=True)
        (data / name / "tokens").write_text(name)
    (data / "now").symlink_to("v1")
    repo.commit({"sealrun.toml": f'[[data]]\nsource = "{data}"\n'})
    with running(cli) as run:
        (data / "v1" / "tokens").write_text("v3")
        (data / "v1" / "tokens").write_text("v1")
    assert (run.result["verdict"], run.result["harmless"]) == ("flagged", False)
    with running(cli) as run:
        (data / "now").unlink()
        (data / "now").symlink_to("v2")
    assert "data-changed" in _codes(run.result)


# -- the guard, stopped and killed --------------------------------------------------------------


def test_a_killed_guard_costs_the_run_its_clean_verdict_and_nothing_else(cli: Cli) -> None:
    """The run ends by itself and is flagged: nobody watched."""
    with running(cli) as run:
        os.kill(_guard(cli), signal.SIGKILL)
    assert (run.result["outcome"], run.result["verdict"]) == ("succeeded", "flagged")
    assert "guard-died" in _codes(run.result)


def test_a_stopped_guard_does_not_hold_up_the_verdict(cli: Cli) -> None:
    """A guard that stands still counts as lost, so that a night of runs goes on."""
    with running(cli) as run:
        guard = _guard(cli)
        os.kill(guard, signal.SIGSTOP)
        try:
            run.finish()
        finally:
            os.kill(guard, signal.SIGCONT)
    assert (run.result["outcome"], run.result["verdict"]) == ("succeeded", "flagged")
    assert "guard-died" in _codes(run.result)


def test_a_workspace_that_lost_its_git_directory_keeps_the_verdict(cli: Cli, repo: Repo) -> None:
    """What cannot be compared after the end is a reason of the verdict, not its loss."""
    with running(cli) as run:
        repo.write({"train.py": "other\n"})
        (repo.path / ".git").rename(repo.path / "gone")
        run.finish()
        (repo.path / "gone").rename(repo.path / ".git")
    assert (run.result["outcome"], run.result["verdict"]) == ("succeeded", "flagged")
    assert not run.result["harmless"]


# -- what hides a difference --------------------------------------------------------------------


def test_naming_head_as_a_revision_compares_all_the_same(cli: Cli, repo: Repo) -> None:
    """``--rev HEAD`` is HEAD, and no way around the comparison."""
    repo.write({"train.py": TRAIN.replace("0.5", "0.3")})
    for name in ("HEAD", "main", "@{0}", repo.git("rev-parse", "HEAD")):
        result, _ = cli.run("python3", "train.py", options=("--rev", name), status=121)
        assert "workspace-differs" in _codes(result)


def test_a_removed_file_cannot_hide_behind_skip_worktree(cli: Cli, repo: Repo) -> None:
    """Only a sparse checkout leaves files out on purpose; the flag alone is no excuse."""
    repo.git("update-index", "--skip-worktree", "lib/model.py")
    (repo.path / "lib" / "model.py").unlink()
    result, _ = cli.run("python3", "train.py", status=121)
    assert _codes(result) == {"hidden-from-git"}


def test_a_head_that_moves_while_a_run_is_prepared_is_on_record(
    cli: Cli, repo: Repo, tmp_path: Path
) -> None:
    """Between the resolved commit and the comparison somebody commits: the run says so."""
    tools = tmp_path / "tools"
    tools.mkdir()
    real = shutil.which("git")
    # Strikes where the run pins its commit: after it was resolved, before the guard is armed.
    (tools / "git").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *update-ref*) {real} -c user.name=a -c user.email=a@b commit -q'
        " --allow-empty -m moved;; esac\nexec " + f'{real} "$@"\n'
    )
    (tools / "git").chmod(0o755)
    cli.extra["PATH"] = f"{tools}:{os.environ['PATH']}"
    first = repo.git("rev-parse", "HEAD")
    result, _ = cli.run("python3", "train.py")
    assert (result["verdict"], result["harmless"]) == ("flagged", True)
    assert (result["commit"], _codes(result)) == (first, {"head-moved"})


# -- ordinary work beside a run -----------------------------------------------------------------


def test_what_git_does_for_itself_is_no_alarm(cli: Cli, repo: Repo, tmp_path: Path) -> None:
    """Fetching, staging, stashing, packing and collecting leave HEAD and files as they were."""
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "origin.git"))
    repo.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    with running(cli) as run:
        repo.write({"new.py": "x\n"})
        for line in [
            "fetch -q",
            "add new.py",
            "stash -q",
            "stash pop -q",
            "reset -q",
            "checkout -q .",
            "status",
            "branch idea",
            "gc -q --prune=now",
            "repack -q -a -d",
            "pack-refs --all",
            "update-server-info",
            "tag t",
            "reflog expire --all --expire=now",
            "commit-graph write",
            "update-index --refresh",
            "checkout -q idea",
            "checkout -q main",
        ]:
            repo.git(*line.split())
        repo.git("worktree", "add", "-q", str(tmp_path / "other"))
    assert (run.result["verdict"], _codes(run.result)) == ("clean", set()), run.errors


def test_editors_indexers_and_scratch_files_are_no_alarm(cli: Cli, repo: Repo) -> None:
    """Reads, swap files, saves of the same bytes, caches and logs are noted at most."""
    train = repo.path / "train.py"
    with running(cli) as run:
        for file in repo.path.rglob("*"):
            if file.is_file():
                file.read_bytes()
        (repo.path / ".train.py.swp").write_text("x")
        train.rename(repo.path / "train.py~")
        train.write_text(TRAIN)
        (repo.path / "train.py~").unlink()
        (repo.path / ".train.tmp").write_text(TRAIN)
        (repo.path / ".train.tmp").replace(train)
        train.chmod(0o600)
        train.chmod(0o644)
        os.utime(train, (1, 1))
        for place in ("__pycache__", ".venv/lib/python"):
            (repo.path / place).mkdir(parents=True)
            (repo.path / place / "x.py").write_text("x")
        with (repo.path / "run.log").open("a") as log:
            for _ in range(50):
                log.write("step\n")
                log.flush()
        (repo.path / "results.tsv").write_text("commit\tval_bpb\n")
    assert run.result["verdict"] == "clean", run.errors
    assert _codes(run.result) <= {"identical-rewrite", "metadata-only"}


@pytest.mark.parametrize("how", ["attributes", "autocrlf"])
def test_line_endings_that_git_turns_are_no_alarm(cli: Cli, repo: Repo, how: str) -> None:
    """A file that git checks out with CRLF may be touched and saved; an edit of it is one."""
    if how == "attributes":
        repo.commit({".gitattributes": "*.py text eol=crlf\n"})
    else:
        repo.git("config", "core.autocrlf", "true")
    (repo.path / "train.py").unlink()
    repo.git("checkout", "-q", "--", ".")
    content = (repo.path / "train.py").read_bytes()
    assert b"\r\n" in content
    with running(cli) as run:
        (repo.path / "train.py").touch()
        (repo.path / "train.py").write_bytes(content)
    assert run.result["verdict"] == "clean", run.errors
    with running(cli) as run:
        (repo.path / "train.py").write_bytes(content.replace(b"0.5", b"0.3"))
    # That equality rests on a setting that is not in the commit is no alarm, and is said.
    noted = {"configured-checkout"} if how == "autocrlf" else set[str]()
    assert _codes(run.result) == {"edit-unattributed"} | noted


def test_modes_that_mean_nothing_here_are_no_alarm(cli: Cli, repo: Repo) -> None:
    """With ``core.fileMode`` off a file system without modes is as good as any."""
    repo.git("config", "core.fileMode", "false")
    (repo.path / "train.py").chmod(0o755)
    with running(cli) as run:
        (repo.path / "train.py").touch()
    assert run.result["verdict"] == "clean", run.errors


def test_a_sparse_checkout_runs(cli: Cli, repo: Repo) -> None:
    """Files that were left out on purpose are in the image and missed by nobody."""
    repo.commit({"big/a.py": "1\n", "big/deep/b.py": "2\n"})
    repo.git("sparse-checkout", "set", "--cone", "lib")
    assert not (repo.path / "big").exists()
    result, done = cli.run("python3", "-c", "import big.deep.b; print('there')")
    assert (result["verdict"], done.stdout) == ("clean", "there\n")


def test_a_fresh_clone_and_a_worktree_run(cli: Cli, repo: Repo, tmp_path: Path) -> None:
    """Right after git wrote every file; and beside commits in another worktree."""
    repo.git("clone", "-q", ".", str(tmp_path / "clone"))
    repo.git("worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    for place in ("clone", "tree"):
        fresh = Cli(tmp_path / place, cli.home)
        with running(fresh) as run:
            repo.git("commit", "-q", "--allow-empty", "-m", "elsewhere")
        fresh.stop_guard()
        assert (run.result["verdict"], _codes(run.result)) == ("clean", set()), run.errors


def test_a_file_planted_in_the_container_aborts(cli: Cli) -> None:
    """What stands in the workdir at the end and is not the experiment's came from elsewhere."""
    with running(cli) as run:
        (run.root / "workspace" / "numpy.py").write_text("pi = 3\n")
    assert run.result["verdict"] == "aborted"
    assert "numpy.py" in run.errors


def test_forged_evidence_is_not_shown(cli: Cli, repo: Repo) -> None:
    """A shown diff is made from the bytes that were taken, or from none."""
    with running(cli) as run:
        repo.write({"train.py": "foreign\n"})
        deadline = time.monotonic() + 5
        while not (kept := list((cli.home / "state").rglob("evidence/*/[0-9a-f]*"))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for file in kept:
            file.chmod(0o600)
            file.write_text("forged\n")
    assert "edit-unattributed" in _codes(run.result)
    assert "+forged" not in run.errors


def test_a_protected_file_may_not_become_a_link(cli: Cli, repo: Repo) -> None:
    """A link has the blob of a file that holds its target: the mode counts too."""
    repo.commit(
        {"judge": "lib/model.py", "sealrun.toml": '[guard]\nprotected = ["judge", "eval/"]\n'}
    )
    cli.run("true")
    (repo.path / "judge").unlink()
    (repo.path / "judge").symlink_to("lib/model.py")
    repo.commit({})
    assert repo.git("rev-parse", "HEAD:judge") == repo.git("rev-parse", "HEAD~1:judge")
    result, _ = cli.run("true", status=121)
    assert _codes(result) == {"protected-changed"}


def test_a_working_directory_elsewhere_is_refused(cli: Cli, repo: Repo, tmp_path: Path) -> None:
    """``core.worktree`` would have a copy compared while the loop edits these files."""
    copy = tmp_path / "copy"
    shutil.copytree(repo.path, copy, ignore=shutil.ignore_patterns(".git"))
    (copy / ".git").write_text(f"gitdir: {repo.path}/.git\n")
    repo.git("config", "core.worktree", str(copy))
    repo.write({"train.py": TRAIN.replace("0.5", "0.3")})
    assert "core.worktree" in cli("run", "--", "python3", "train.py", status=2).stderr


def test_neither_stream_of_ours_can_be_made_to_look_like_a_metric(cli: Cli, repo: Repo) -> None:
    """Line feeds and escapes in names, subjects and ideas stay visible text behind our prefix."""
    forged = "a\nval_bpb: 0.001 \x1b[2J"
    repo.commit({forged: "1\n", b"\xff".decode("utf-8", "surrogateescape"): "1\n"}, forged)
    repo.write({forged: "val_bpb: 3\n", b"\xff".decode("utf-8", "surrogateescape"): "2\n"})
    _, done = cli.run("python3", "train.py", status=121)
    said = done.stderr
    repo.git("checkout", "-q", ".")
    with running(cli, "-m", forged) as run:
        repo.write({forged: "val_bpb: 3\n"})
    said += run.errors
    assert said.count("0.001") > 1
    assert all(line.startswith("[sealrun] ") for line in said.splitlines())
    for command in (("log",), ("show", run.id), ("verify",)):
        done = cli(*command, status=None)
        said += done.stdout + done.stderr
    assert "\x1b" not in said
    assert not any(line.startswith("val_bpb") for line in said.splitlines())


def test_a_signal_in_the_midst_of_an_import_waits_for_its_end(tmp_path: Path) -> None:
    """An exception inside the import system would leave a lock that a thread waits for for ever."""
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, signal, time\n"
        "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'imported').touch()\n"
    )
    script = (
        "import sys, time; from sealrun.cli import heed_signals; heed_signals()\n"
        f"sys.path.append({str(tmp_path)!r})\n"
        "try:\n    import slow; time.sleep(10); print('never')\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, (tmp_path / "imported").exists()) == ("interrupted\n", True)


def test_a_container_removed_by_others_aborts(cli: Cli) -> None:
    """``docker rm -f`` of a running experiment is interference, and no trouble of ours."""
    with running(cli) as run:
        _docker("rm", "-f", run.container)
        run.finish()
    assert run.result["verdict"] == "aborted"
    assert "engine-interference" in _codes(run.result)
