"""``sealrun watch``: what it tells, of what, and when it calls a directory clean."""

from __future__ import annotations

import json
import os
import py_compile
import select
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _cli import Cli
from _guard import eventually
from sealrun.importable import Surroundings
from sealrun.ownership.sessions import Sessions
from sealrun.watch.bytecode import Bytecode, Judgement, parse
from sealrun.watch.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _git import Repo

FIELDS = {
    *("event", "t", "path", "kind", "phase", "pid", "exe", "cmdline", "uid", "how", "final"),
}


@dataclass
class Watching:
    """A watch that runs, and what it has said so far."""

    cli: Cli
    root: Path
    process: subprocess.Popen[bytes]
    said: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def sh(self, script: str, **options: Any) -> None:  # noqa: ANN401 - subprocess.run's
        """Run a shell script in the workspace, in a process of its own."""
        subprocess.run(
            ["bash", "-ec", script], cwd=self.root, check=True, stdout=subprocess.DEVNULL, **options
        )

    def python(self, script: str) -> None:
        """Run a Python script in the workspace, in a process of its own."""
        subprocess.run([sys.executable, "-Ic", script], cwd=self.root, check=True)

    def detections(self, *, final: bool = False) -> list[dict[str, Any]]:
        """Return what was detected so far, by events or by the last verification."""
        return [s for s in self.said if s["event"] == "detection" and s["final"] is final]

    def detected(self, path: str, *kinds: str) -> dict[str, Any]:
        """Wait until a mutation of a path is told of, and return it."""

        def found() -> list[dict[str, Any]]:
            whole = os.fspath(self.root / path)
            return [
                s
                for s in self.said
                if s["event"] == "detection" and s["path"] == whole and {*kinds} <= {*s["kind"]}
            ]

        with suppress(AssertionError):
            eventually(lambda: bool(found()) or self.process.poll() is not None)
        assert found(), (path, kinds, self.said)
        return found()[0]

    def end(self, status: int) -> dict[str, Any]:
        """End the standard input; return the verdict."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.ended(status)

    def ended(self, status: int) -> dict[str, Any]:
        """Wait for the end, and return the verdict."""
        assert self.process.stderr is not None
        errors = self.process.stderr.read().decode()
        self._reader.join(60)
        assert "Traceback" not in errors
        assert self.process.wait(60) == status, (self.said, errors)
        verdict = self.said[-1]
        assert verdict["event"] == "verdict"
        return verdict

    def clean(self) -> dict[str, Any]:
        """End it, and hold it to having found nothing."""
        verdict = self.end(0)
        assert [s["event"] for s in self.said] == ["ready", "verdict"], self.said
        assert (verdict["verdict"], verdict["reasons"]) == ("clean", [])
        assert verdict["coverage"]["complete"] is True
        return verdict


@pytest.fixture
def watch(repo: Repo, tmp_path: Path) -> Iterator[Callable[..., Watching]]:
    """Starts watches of a committed repository, and ends them."""
    repo.commit(
        {
            "train.py": "SCALAR_LR = 0.5\n",
            "pkg/__init__.py": "",
            "pkg/model.py": "WIDTH = 64\n",
            "conf/a.yaml": "lr: 1\n",
            ".gitignore": "*.pth\n*.pyc\n.venv\nresults.tsv\n",
        }
    )
    started: list[Watching] = []

    def start(directory: Path = repo.path, *options: str) -> Watching:
        cli = Cli(repo.path, tmp_path / "home")
        process = cli.start(
            "watch", "--jsonl", os.fspath(directory), *options, stdin=subprocess.PIPE
        )
        watching = Watching(cli, directory, process)
        started.append(watching)
        eventually(lambda: bool(watching.said) or process.poll() is not None, 60)
        return watching

    yield start
    for watching in started:
        if watching.process.poll() is None:
            watching.process.kill()
            watching.process.wait()


# -- the stream ------------------------------------------------------------------------------------


def test_an_untouched_workspace_is_clean(watch: Callable[..., Watching]) -> None:
    """Ready comes first and alone, the verdict last; it names commit and coverage, and status is 0."""
    watching = watch()
    assert watching.said == [{"event": "ready"}]
    verdict = watching.clean()
    assert verdict["compared_with"] == "commit"
    assert len(verdict["commit"]) == 40
    assert verdict["coverage"]["watches"] == verdict["coverage"]["directories"] > 0


def test_a_rewrite_is_told_with_its_writer_and_again_at_the_end(
    watch: Callable[..., Watching],
) -> None:
    """A detection has exactly the stream's fields; what stands at the end is told as final."""
    watching = watch()
    script = "sleep 0.1; echo 'SCALAR_LR = 0.3' 1<> train.py; sleep 0.1; :"
    watching.sh(script)
    found = watching.detected("train.py", "modified")
    assert set(found) == FIELDS
    assert (found["phase"], found["final"]) == ("during-run", False)
    if os.geteuid() == 0:
        assert found["exe"].endswith("/bash")
        assert found["cmdline"] == ["bash", "-ec", script]
        assert found["uid"] == 0
        assert isinstance(found["pid"], int)
    verdict = watching.end(120)
    (last,) = watching.detections(final=True)
    assert (last["path"], last["kind"]) == (found["path"], ["modified"])
    assert verdict["verdict"] == "flagged"
    assert verdict["mutations"] == 1
    assert [r["reason"] for r in verdict["reasons"]] == ["edit-unattributed"]


def test_what_differs_at_the_start_is_told_after_ready(
    watch: Callable[..., Watching], repo: Repo
) -> None:
    """The first verification compares content: what stood there before is of an earlier phase."""
    repo.write({"train.py": "SCALAR_LR = 0.3\n"})
    watching = watch()
    assert watching.said[0] == {"event": "ready"}
    assert watching.detected("train.py", "modified")["phase"] == "after-commit"
    reasons = [r["reason"] for r in watching.end(120)["reasons"]]
    assert "workspace-differs" in reasons


# -- every kind of mutation ------------------------------------------------------------------------

SAME = """
import os
s = os.stat("train.py")
with open("train.py", "r+b") as f:
    f.write(b"SCALAR_LR = 0.3")
os.utime("train.py", ns=(s.st_atime_ns, s.st_mtime_ns))
"""
MAPPED = """
import mmap
with open("train.py", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    m[12:15] = b"0.3"
"""
TRACKED = {
    "in place": "echo 'SCALAR_LR = 0.3' > train.py",
    "same size and time": f"python3 -Ic '{SAME}'",
    "mapped": f"python3 -Ic '{MAPPED}'",
    "renamed over": "echo 'SCALAR_LR = 0.3' > t && mv t train.py",
    "deleted": "rm train.py",
    "mode": "chmod +x train.py",
    "link": "cp train.py copy.txt && ln -sf copy.txt train.py",
    "directory": "rm train.py && mkdir train.py",
    "fifo": "rm train.py && mkfifo train.py",
    "linked from elsewhere": "echo 'SCALAR_LR = 0.3' > ../other && ln -f ../other train.py",
    "assume-unchanged": "git update-index --assume-unchanged train.py && sed -i s/5/3/ train.py",
    "skip-worktree": "git update-index --skip-worktree train.py && sed -i s/5/3/ train.py",
    "excluded": "echo train.py >> .git/info/exclude && sed -i s/5/3/ train.py",
    "committed": "sed -i s/5/3/ train.py && git -c user.name=a -c user.email=a@b.c commit -qam x",
}


@pytest.mark.parametrize("script", TRACKED.values(), ids=TRACKED)
def test_each_change_of_a_tracked_file_is_told(watch: Callable[..., Watching], script: str) -> None:
    """Whatever changes a tracked file, and however it hides it: the path is told, live and final."""
    watching = watch()
    watching.sh(script)
    watching.detected("train.py")
    watching.end(120)
    assert os.fspath(watching.root / "train.py") in {
        d["path"] for d in watching.detections(final=True)
    }


def test_a_hard_link_from_outside_is_found_by_content(
    watch: Callable[..., Watching], tmp_path: Path
) -> None:
    """A write through another name makes no event here; comparing finds it."""
    watching = watch()
    other = tmp_path / "elsewhere"
    other.mkdir()
    watching.sh(f"ln train.py {other}/name && printf 'SCALAR_LR = 0.3\\n' > {other}/name")
    watching.detected("train.py", "modified")
    watching.end(120)


def test_a_file_mounted_over_another_is_found(
    watch: Callable[..., Watching], tmp_path: Path
) -> None:
    """A bind mount over a tracked file is told, as a mount and as other content."""
    if os.geteuid() != 0:
        pytest.fail("mounting needs root; run the tests as root")
    watching = watch()
    (tmp_path / "over").write_text("SCALAR_LR = 0.3\n")
    target = watching.root / "train.py"
    watching.sh(f"mount --bind {tmp_path}/over {target}")
    try:
        watching.detected("train.py", "mounted", "mount")
        watching.detected("train.py", "modified")
        verdict = watching.end(120)
    finally:
        watching.sh(f"umount {target}")
    assert verdict["coverage"]["complete"] is False


def test_a_change_that_was_taken_back_is_told(watch: Callable[..., Watching]) -> None:
    """A-B-A: B is told when it is there, and the end finds A again."""
    watching = watch()
    watching.sh("sed -i s/0.5/0.3/ train.py")
    watching.detected("train.py", "modified")
    # By a rename: git removes the file first, which could be told as well.
    watching.sh("echo 'SCALAR_LR = 0.5' > ../before && mv ../before train.py")
    verdict = watching.end(120)
    assert watching.detections(final=True) == []
    assert verdict["mutations"] == 1


EXTRAS = {
    "evil.pth": ("path-file", "import os"),
    "sitecustomize.py": ("startup-hook", "raise SystemExit"),
    "pkg/usercustomize.py": ("startup-hook", "x = 1"),
    "conftest.py": ("test-hook", "x = 1"),
    "json.py": ("module", "x = 1"),
    "train.so": ("extension-module", "x"),
    "helper.py": ("module", "x = 1"),
    "new/deep/mod.py": ("module", "x = 1"),
    "mod.pyc": ("sourceless-bytecode", "x"),
    "pyproject.toml": ("configuration", "[tool]"),
    ".env": ("configuration", "A=1"),
    "pkg/setup.cfg": ("configuration", "[x]"),
    "conf/b.yaml": ("configuration", "lr: 2"),
    "wandb/__init__.py": ("module", "x = 1"),
}


def test_each_extra_file_that_could_run_is_told(watch: Callable[..., Watching]) -> None:
    """Whether or not git ignores it, an extra file that could be imported or read is told."""
    watching = watch()
    for path, (_, content) in EXTRAS.items():
        watching.sh(f"mkdir -p {Path(path).parent} && echo '{content}' > {path}")
    for path, (role, _) in EXTRAS.items():
        watching.detected(path, "created", "extra-file", role)
    reasons = [r["reason"] for r in watching.end(120)["reasons"]]
    assert reasons == ["extra-file"]
    assert len(watching.detections()) == len(EXTRAS)


def test_a_baseline_is_noted_unless_it_shadows(watch: Callable[..., Watching], repo: Repo) -> None:
    """An extra module that stood there is a note, and its change a detection; a shadow is one at once."""
    repo.write({"helper.py": "x = 1\n", "random.py": "x = 1\n", "scratch.txt": "x"})
    watching = watch()
    found = watching.detected("random.py", "shadowing")
    assert found["phase"] == "after-commit"
    assert len(watching.detections()) == 1
    watching.sh("echo 'x = 2' > helper.py")
    watching.detected("helper.py", "modified", "extra-file")
    notes = {note["path"] for note in watching.end(120)["notes"]}
    assert notes == {os.fspath(watching.root / name) for name in ("helper.py", "random.py")}


def test_a_link_to_a_package_elsewhere_is_told(
    watch: Callable[..., Watching], tmp_path: Path
) -> None:
    """A link makes a whole directory importable; one to a folder of data does not."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mod.py").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").touch()
    watching = watch()
    watching.sh(f"ln -s {tmp_path}/data data && ln -s {tmp_path}/lib torch2")
    watching.detected("torch2", "created", "extra-file")
    assert len(watching.detections()) == 1
    watching.end(120)


def test_what_a_tracked_link_leads_to_is_guarded(repo: Repo, tmp_path: Path) -> None:
    """The link's own bytes stay the same while what stands behind it changes."""
    behind = tmp_path / "settings"
    behind.write_text("a\n")
    (repo.path / "link").symlink_to(behind)
    repo.commit({"train.py": "x\n"})
    process = Cli(repo.path, tmp_path / "home").start("watch", "--jsonl", stdin=subprocess.PIPE)
    watching = Watching(Cli(repo.path, tmp_path / "home"), repo.path, process)
    eventually(lambda: bool(watching.said))
    behind.write_text("b\n")
    watching.detected("link", "link-target")
    watching.end(120)


# -- bytecode and environments ---------------------------------------------------------------------


def test_bytecode_of_its_source_is_none_of_our_business(watch: Callable[..., Watching]) -> None:
    """What Python leaves in ``__pycache__`` is judged and found to be the source's."""
    watching = watch()
    watching.python("import sys; sys.path.insert(0, '.'); import pkg.model, train")
    assert (watching.root / "pkg" / "__pycache__").is_dir()
    assert watching.clean()["notes"] == []


def forge(root: Path) -> None:
    """Put the bytecode of another source in the place of ``train.py``'s, header and all."""
    source = root / "train.py"
    cached = py_compile.compile(os.fspath(source), doraise=True)
    assert cached is not None
    with open(cached, "rb") as file:  # noqa: PTH123 - a str
        header = file.read(16)
    other = root.parent / "other.py"
    other.write_text("SCALAR_LR = 0.3\n")
    made = py_compile.compile(os.fspath(other), doraise=True)
    assert made is not None
    with open(made, "rb") as file:  # noqa: PTH123 - a str
        body = file.read()[16:]
    with open(cached, "wb") as file:  # noqa: PTH123 - a str
        file.write(header + body)


@pytest.mark.parametrize("before", [True, False], ids=["at the start", "meanwhile"])
def test_forged_bytecode_is_told(
    watch: Callable[..., Watching], repo: Repo, *, before: bool
) -> None:
    """Bytecode that Python would run in place of its source, and that is another's, is told."""
    if before:
        forge(repo.path)
    watching = watch()
    if not before:
        forge(repo.path)
    tag = sys.implementation.cache_tag
    watching.detected(f"__pycache__/train.{tag}.pyc", "forged-bytecode")
    watching.end(120)


def test_an_environment_is_one_unit(watch: Callable[..., Watching], repo: Repo) -> None:
    """What is installed has one digest; a changed file in it is told, many are told as one."""
    site = repo.path / ".venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    (repo.path / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    for number in range(30):
        (site / f"m{number}.py").write_text("x = 1\n")
    watching = watch()
    (site / "evil.pth").write_text("import os\n")
    watching.detected(".venv/lib/python3.11/site-packages/evil.pth", "environment")
    watching.sh(f"for n in $(seq 0 29); do echo 'x = 2' > {site}/m$n.py; done")
    watching.detected(".venv", "environment")
    verdict = watching.end(120)
    (unit,) = verdict["environments"]
    assert (unit["path"], unit["files"], unit["changed"]) == (str(repo.path / ".venv"), 31, True)
    assert len({d["path"] for d in watching.detections()}) <= 9


# -- git's own state -------------------------------------------------------------------------------

AS = "-c user.name=a -c user.email=a@b.c"
GIT = {
    "HEAD moved": (f"git {AS} commit -q --allow-empty -m x", "refs/heads/main", "head-moved"),
    "branch switched": ("git checkout -q -b other", "HEAD", "head-moved"),
    "hook": ("echo exit > .git/hooks/post-checkout", "hooks/post-checkout", "git-hooks"),
    "exclude": ("echo x >> .git/info/exclude", "info/exclude", "git-info"),
    "attributes": ("echo '* -text' > .git/info/attributes", "info/attributes", "git-info"),
    "filter": ("git config filter.x.clean cat", "config", "git-configuration"),
    "staged": (
        "git update-index --cacheinfo 100644,$(echo x | git hash-object -w --stdin),train.py",
        "index",
        "index-differs",
    ),
    "flag": ("git update-index --assume-unchanged train.py", "index", "hidden-from-git"),
    "graft": ("git rev-parse HEAD > .git/info/grafts", "info/grafts", "replaced-objects"),
}


@pytest.mark.parametrize("case", GIT)
def test_each_change_of_git_that_matters_is_told(watch: Callable[..., Watching], case: str) -> None:
    """Where HEAD leads, hooks, info, settings, flags and grafts are guarded like files."""
    script, path, kind = GIT[case]
    watching = watch()
    watching.sh(script)
    watching.detected(f".git/{path}", kind)
    watching.end(120)


def test_a_replace_ref_is_told_also_when_it_is_packed(
    watch: Callable[..., Watching], repo: Repo
) -> None:
    """Packing refs takes a replace ref out of its directory; it is still there, and still told."""
    watching = watch()
    old = repo.git("rev-parse", "HEAD:train.py")
    new = repo.git("hash-object", "-w", "--stdin", stdin=b"other\n")
    watching.sh(f"git replace {old} {new} && git pack-refs --all")
    watching.detected(f".git/refs/replace/{old}", "replaced-objects")
    watching.end(120)
    assert watching.detections(final=True)


def test_an_overwritten_object_is_found_at_the_end(
    watch: Callable[..., Watching], repo: Repo
) -> None:
    """Git serves other bytes under an old id and calls the tree clean; hashing finds it."""
    watching = watch()
    old = repo.git("rev-parse", "HEAD:train.py")
    new = repo.git("hash-object", "-w", "--stdin", stdin=b"SCALAR_LR = 0.3\n")
    objects = repo.path / ".git" / "objects"
    target = objects / old[:2] / old[2:]
    target.chmod(0o644)
    target.write_bytes((objects / new[:2] / new[2:]).read_bytes())
    watching.end(120)
    watching.detected(".git/objects", "object-corrupt")


def test_the_root_replaced_is_told(watch: Callable[..., Watching], tmp_path: Path) -> None:
    """A copy in the place of the watched directory is not the watched directory."""
    watching = watch()
    watching.sh(f"cp -a {watching.root} {tmp_path}/copy", timeout=60)
    (watching.root).rename(tmp_path / "aside")
    (tmp_path / "copy").rename(watching.root)
    watching.detected("", "root-replaced")
    assert watching.end(120)["coverage"]["complete"] is False


# -- what is no mutation ---------------------------------------------------------------------------


def test_what_a_loop_leaves_behind_is_no_mutation(
    watch: Callable[..., Watching],
) -> None:
    """Logs, tables, checkpoints, drafts, identical rewrites, metadata, housekeeping: nothing is told."""
    watching = watch()
    watching.sh(
        "echo x > run.log; echo y >> run.log; printf 'a\\tb\\n' > results.tsv; touch train.py;"
        "cp train.py t && mv t train.py; cat train.py > t2; cat t2 > train.py; rm t2;"
        "touch .train.py.swp 'train.py~' '#train.py#' 4913; ln -s me@host .#train.py;"
        "mkdir -p wandb/run-1/files/code ckpt; echo 'x=1' > wandb/run-1/files/code/train.py;"
        "echo '{}' > ckpt/config.json; head -c 4096 /dev/zero > ckpt/model.pt; chmod 600 train.py;"
        f"git {AS} tag v1; git branch other; git update-ref refs/remotes/o/m HEAD;"
        "git add run.log; git reset -q; git status; git gc -q; git fetch -q . main:fetched;"
        f"git update-ref refs/heads/other $(git {AS} commit-tree -p HEAD -m x HEAD^{{tree}});"
        "git config branch.main.remote origin; touch .git/index.lock && rm .git/index.lock"
    )
    watching.clean()


def test_git_stash_and_back_is_told_but_stands_clean_at_the_end(
    watch: Callable[..., Watching],
) -> None:
    """A deleted file that returns is no difference at the end."""
    watching = watch()
    watching.sh("rm train.py")
    watching.detected("train.py", "deleted")
    watching.sh("git checkout -q -- train.py")
    watching.end(120)
    assert watching.detections(final=True) == []


def test_line_endings_that_the_commit_asks_for_are_no_mutation(
    watch: Callable[..., Watching], repo: Repo
) -> None:
    """What git would have checked out is what is expected."""
    repo.commit({".gitattributes": "*.bat text eol=crlf\n", "run.bat": "a\nb\n"})
    (repo.path / "run.bat").unlink()
    repo.git("checkout", "--", "run.bat")
    assert (repo.path / "run.bat").read_bytes() == b"a\r\nb\r\n"
    watching = watch()
    watching.clean()


# -- without git, without privilege, without watches -----------------------------------------------


def test_without_git_the_state_at_the_start_counts(
    watch: Callable[..., Watching], tmp_path: Path
) -> None:
    """Any directory can be watched; the verdict says what it was compared with."""
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.txt").write_text("a")
    (plain / "run.log").write_text("a")
    watching = watch(plain)
    watching.sh("echo b > a.txt; echo b >> run.log")
    watching.detected("a.txt", "modified")
    verdict = watching.end(120)
    assert (verdict["compared_with"], verdict["commit"]) == ("start", None)
    assert {d["path"] for d in watching.detections()} == {str(plain / "a.txt")}


def test_too_few_watches_are_not_clean(repo: Repo, tmp_path: Path) -> None:
    """Where the kernel gives fewer watches than directories, the verdict says so."""
    repo.commit({f"d{n}/f.py": "x\n" for n in range(20)})
    limited = 'echo 8 > /proc/sys/user/max_inotify_watches && exec "$0" watch --jsonl < /dev/null'
    cli = Cli(repo.path, tmp_path / "home")
    done = subprocess.run(
        ["unshare", "-Ur", "bash", "-ec", limited, cli.program],
        cwd=repo.path,
        env=cli.environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 120, done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert verdict["coverage"]["complete"] is False
    assert "watches-missing" in [r["reason"] for r in verdict["reasons"]]


def test_without_privilege_writers_are_unavailable(repo: Repo, tmp_path: Path) -> None:
    """A mutation is told all the same; who did it is not known, and the verdict says why."""
    repo.commit({"train.py": "x\n"})
    cli = Cli(repo.path, tmp_path / "home")
    process = subprocess.Popen(
        ["unshare", "-Ur", cli.program, "watch", "--jsonl"],
        cwd=repo.path,
        env=cli.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    watching = Watching(cli, repo.path, process)
    eventually(lambda: bool(watching.said))
    watching.sh("echo y > train.py")
    found = watching.detected("train.py", "modified")
    assert found["how"] == "unavailable"
    assert [found[name] for name in ("pid", "exe", "cmdline", "uid")] == [None] * 4
    assert "CAP_SYS_ADMIN" in watching.end(120)["writers"]


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 15], ids=["interrupt", "terminate"])
def test_a_signal_ends_with_a_verdict(watch: Callable[..., Watching], number: int) -> None:
    """An interrupt ends the watch as the end of stdin does: verified, judged, with that status."""
    watching = watch()
    watching.sh("echo x > train.py")
    watching.detected("train.py")
    watching.process.send_signal(number)
    assert watching.ended(120)["verdict"] == "flagged"


def test_a_reader_that_went_away_loses_nothing(repo: Repo, tmp_path: Path) -> None:
    """What the reader did not take is in a file, which is named; the status still counts."""
    repo.commit({"train.py": "x\n"})
    cli = Cli(repo.path, tmp_path / "home")
    process = cli.start("watch", "--jsonl", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline()) == {"event": "ready"}
    process.stdout.close()
    (repo.path / "train.py").write_text("y\n")
    process.stdin.close()
    errors = process.stderr.read().decode()
    assert process.wait(60) == 120, errors
    (file,) = (tmp_path / "home").glob("state/watches/*/stream.jsonl")
    assert os.fspath(file) in errors
    events = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert events[-2:] == ["detection", "verdict"]


def test_people_get_lines(repo: Repo, tmp_path: Path) -> None:
    """Without --jsonl each mutation and the verdict is a line, and control characters are escaped."""
    repo.commit({"train.py": "x\n"})
    (repo.path / "train.py").write_text("y\n")
    (repo.path / "conftest\x1b.py").touch()
    done = Cli(repo.path, tmp_path / "home")("watch", status=120)
    assert "train.py: modified" in done.stdout
    assert "flagged: 1 paths" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_directory_that_is_not_there_is_a_usage_error(repo: Repo, tmp_path: Path) -> None:
    """Status 2, and no stream."""
    done = Cli(repo.path, tmp_path / "home")("watch", "--jsonl", "nowhere", status=2)
    assert done.stdout == ""


# -- whose change it is ----------------------------------------------------------------------------


@pytest.fixture
def agent(repo: Repo, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that leads a session on record, and runs what is written to it."""
    process = subprocess.Popen(["bash"], stdin=subprocess.PIPE, cwd=repo.path)
    Sessions.of(Cli(repo.path, tmp_path / "home").places, None).begin(process.pid, ("bash",))
    yield process
    process.kill()
    process.wait()


def test_what_the_loop_itself_changes_is_no_mutation(
    watch: Callable[..., Watching], agent: subprocess.Popen[bytes]
) -> None:
    """Edits, new modules and commits of a session are the loop's; the verdict notes what stands."""
    watching = watch()
    assert agent.stdin is not None
    agent.stdin.write(
        b"echo 'SCALAR_LR = 0.4' > train.py; echo 'x = 1' > helper.py;"
        b"git -c user.name=a -c user.email=a@b.c commit -qam idea; touch ../done\n"
    )
    agent.stdin.flush()
    eventually((watching.root.parent / "done").exists)
    verdict = watching.end(0)
    assert watching.detections() == []
    assert {note["was"] for note in verdict["notes"]} == {"changed by the loop itself"}


def test_a_formatter_in_the_session_is_foreign(
    watch: Callable[..., Watching], agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """A program that is foreign whoever starts it is told, and so is whoever is not in the session."""
    (tmp_path / "black").write_text(
        "#!/bin/sh\nsleep 0.1; echo 'SCALAR_LR = 0.3' > train.py; sleep 0.1; :\n"
    )
    (tmp_path / "black").chmod(0o755)
    watching = watch()
    assert agent.stdin is not None
    agent.stdin.write(f"{tmp_path}/black train.py\n".encode())
    agent.stdin.flush()
    watching.detected("train.py", "modified")
    watching.sh("sleep 0.1; echo 'WIDTH = 65' > pkg/model.py; sleep 0.1; :")
    watching.detected("pkg/model.py", "modified")
    reasons = [r["reason"] for r in watching.end(120)["reasons"]]
    assert reasons == ["edit-foreign"]


# -- the parts -------------------------------------------------------------------------------------


def test_names_say_what_could_be_imported() -> None:
    """Each name has its role, and a shadow is one where the import system would prefer it."""
    around = Surroundings([b"train.py", b"pkg/__init__.py", b"pkg/a.py", b"t/run.sh"], {"torch"})

    def judged(path: bytes) -> tuple[str, str | None] | None:
        extra = around.judge(path)
        return None if extra is None else (extra.role.value, extra.shadows)

    assert judged(b"train/__init__.py") == ("module", "train.py")
    assert judged(b"train.cpython-311-x86_64-linux-gnu.so") == ("extension-module", "train.py")
    assert judged(b"train.pyc") == ("sourceless-bytecode", None)
    assert judged(b"pkg/__init__.abi3.so") == ("extension-module", "pkg/__init__.py")
    assert judged(b"pkg.py") == ("module", None)
    assert judged(b"random.py") == ("module", "the standard library's random")
    assert judged(b"pkg/random.py") == ("module", None)
    assert judged(b"sys.py") == ("module", None)
    assert judged(b"torch/__init__.py") == ("module", "the installed torch")
    assert judged(b"sitecustomize/__init__.py") == ("startup-hook", None)
    assert judged(b"t/new.sh") == ("source", None)
    assert judged(b"new.sh") is None
    assert judged(b"runs/2026-11-21/train.py") is None
    assert judged(b".claude/worktrees/a/pyproject.toml") is None
    assert judged(b"run.log") is judged(b"results.tsv") is judged(b"ckpt/config.json") is None
    assert judged(b"uv.lock") == ("configuration", None)


@given(st.binary(max_size=400))
def test_made_up_bytecode_is_read_without_harm(data: bytes) -> None:
    """Whatever a file of bytecode holds, reading it ends, in a digest or in a refusal."""
    with suppress(ValueError, IndexError):
        assert len(parse(data, (3, 11))) == 32


def test_bytecode_that_unfolds_without_end_is_read_at_once() -> None:
    """References back to large parts cost nothing: each part is hashed once."""
    # A tuple of two references to the one before it, sixty times over.
    data = b"\xa9\x02NN"
    for number in range(60):
        data = b"\xa9\x02" + data + b"r" + (60 - number).to_bytes(4, "little")
    assert len(parse(data, (3, 11))) == 32


def test_bytecode_of_an_interpreter_that_is_not_here_is_not_taken_for_a_match(
    repo: Repo,
) -> None:
    """It is ``unverified``, and counts as a forgery as soon as it changes while its source does not."""
    repo.write({"a.py": "x = 1\n"})
    status = (repo.path / "a.py").stat()
    head = struct.pack("<IIII", 1, 0, int(status.st_mtime), status.st_size)
    repo.write({"__pycache__/a.cpython-399.pyc": head + b"N"})
    judge = Bytecode(repo.path)
    assert judge.judge(b"__pycache__/a.cpython-399.pyc").judgement is Judgement.UNVERIFIED
    repo.write({"__pycache__/b.cpython-399.pyc": head + b"N"})
    assert judge.judge(b"__pycache__/b.cpython-399.pyc").judgement is Judgement.UNUSED
    judge.close()


def test_unverified_bytecode_that_changes_alone_is_told(
    watch: Callable[..., Watching], repo: Repo
) -> None:
    """One source, one interpreter, one bytecode: another one under the same header is forged."""
    status = (repo.path / "train.py").stat()
    head = struct.pack("<IIII", 1, 0, int(status.st_mtime), status.st_size)
    repo.write({"__pycache__/train.cpython-399.pyc": head + b"N"})
    watching = watch()
    assert watching.detections() == []
    repo.write({"__pycache__/train.cpython-399.pyc": head + b"T"})
    watching.detected("__pycache__/train.cpython-399.pyc", "forged-bytecode")
    watching.end(120)


def test_a_reader_that_stands_still_blocks_nobody(tmp_path: Path) -> None:
    """What does not fit into the pipe goes to a file, in order, and closing ends."""
    readable, writable = os.pipe()
    sink = Sink(writable, tmp_path / "spill")
    # Each has a page of the pipe to itself, so that a pipe without a free page takes no other.
    lines = [f"{number:06d} {'x' * 2500}" for number in range(2000)]
    for line in lines:
        sink.put(line)
    poll = select.poll()
    poll.register(writable, select.POLLOUT)
    eventually(lambda: not poll.poll(0))
    missed = sink.close(patience=0.5)
    os.set_blocking(readable, False)
    read = os.read(readable, 1 << 20).decode().split("\n")
    spilled = (tmp_path / "spill").read_text().splitlines()
    assert missed == len(spilled) > 0
    whole = read[:-1]
    assert whole + spilled == lines
    os.close(readable)


def test_a_reader_that_went_away_gets_its_lines_in_a_file(tmp_path: Path) -> None:
    """A closed pipe ends the writing, not the keeping."""
    readable, writable = os.pipe()
    os.close(readable)
    sink = Sink(writable, tmp_path / "spill")
    for number in range(10):
        sink.put(str(number))
    assert sink.close() == 10
    assert (tmp_path / "spill").read_text().split() == [str(number) for number in range(10)]


def test_a_storm_is_told_or_said_to_be_lost(watch: Callable[..., Watching]) -> None:
    """Many writers at once: every file that stands changed is told, whatever events were lost."""
    watching = watch()
    watching.sh("for i in $(seq 300); do echo x > pkg/new$i.py; echo $i > train.py; done")
    watching.end(120)
    final = {d["path"] for d in watching.detections(final=True)}
    wanted = {
        watching.root / "train.py",
        *(watching.root / f"pkg/new{i}.py" for i in range(1, 301)),
    }
    assert final == {os.fspath(path) for path in wanted}
