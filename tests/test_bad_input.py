"""Bad input, through the command line: each case has a clear error, what to do, and its status.

What a person or a loop can hand to sealrun: repositories, revisions, commands, policies, objects,
names, places. Trouble of the machine is in ``test_bad_machine.py``, an early end in
``test_bad_end.py``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from _git import Repo
from sealrun.tree import object_id

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = 'print("val_bpb: 1.5")\n'


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    repo.commit({"train.py": HELLO}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


def _told(stderr: str) -> None:
    """Assert that an error has its two parts and only lines of ours."""
    lines = stderr.splitlines()
    assert all(line.startswith("[sealrun] ") for line in lines), stderr
    assert any("error: " in line for line in lines), stderr
    assert any("hint: " in line for line in lines), stderr
    assert "unforeseen" not in stderr


def _runs(cli: Cli) -> list[tuple[str, str | None]]:
    return [(run["outcome"], run["verdict"]) for run in cli.json("log")["runs"]]


# -- repositories --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("run", "--", "true"), ("warm",), ("log",), ("verify",)])
def test_outside_of_a_repository(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Every command says that there is no repository here, and makes nothing."""
    here = tmp_path / "nothing"
    here.mkdir()
    done = Cli(here, tmp_path / "home")(*command, status=2)
    assert f"{here} is not in a git repository" in done.stderr
    _told(done.stderr)
    assert not (tmp_path / "home").exists()


def test_a_repository_without_a_commit(repo: Repo) -> None:
    """There is nothing to run, and no run is on record."""
    repo.write({"train.py": HELLO})
    cli = Cli(repo.path, repo.path.parent / "home")
    done = cli("run", "--", "true", status=2)
    assert "has no commit yet" in done.stderr
    assert "--snapshot" in done.stderr
    _told(done.stderr)
    assert _runs(cli) == []
    assert "has no commit yet" in cli("warm", status=2).stderr


def test_a_bare_repository(tmp_path: Path) -> None:
    """A bare repository has no files to guard."""
    bare = tmp_path / "bare.git"
    subprocess.run(["git", "init", "-q", "--bare", bare], check=True)
    done = Cli(bare, tmp_path / "home")("run", "--", "true", status=2)
    assert "is a bare repository" in done.stderr
    assert "worktree" in done.stderr
    _told(done.stderr)


def test_inside_the_git_directory(repo: Repo) -> None:
    """The git directory is not the working directory."""
    repo.commit({"train.py": HELLO})
    done = Cli(repo.path / ".git", repo.path.parent / "home")("run", "--", "true", status=2)
    assert "inside a git directory" in done.stderr
    _told(done.stderr)


def test_a_directory_that_is_gone(repo: Repo) -> None:
    """The current directory was removed under our feet."""
    repo.commit({"train.py": HELLO})
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    cli = Cli(repo.path, repo.path.parent / "home")
    for command in (["run", "--", "true"], ["warm"], ["log"], ["verify"], ["doctor"]):
        done = subprocess.run(
            ["sh", "-c", script, "sh", cli.program, *command],
            cwd=repo.path,
            env=cli.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, (command, done.stderr)
        assert "directory" in done.stderr
        _told(done.stderr)


@pytest.mark.engine
def test_a_detached_head_is_fine(cli: Cli, repo: Repo) -> None:
    """HEAD need not be on a branch; the record says that it was not."""
    repo.git("checkout", "-q", "--detach")
    result, _ = cli.run("python3", "train.py")
    assert (result["verdict"], result["metric"]["value"]) == ("clean", 1.5)
    assert cli.json("show", result["run"])["run"]["ref"] is None


@pytest.mark.engine
def test_an_empty_tree_runs_in_an_empty_workdir(cli: Cli, repo: Repo) -> None:
    """A commit without files is a commit: what it runs comes from the image."""
    repo.git("rm", "-q", "train.py")
    repo.commit({}, "nothing")
    result, done = cli.run("ls", "-A")
    assert (result["verdict"], done.stdout) == ("clean", "")


# -- revisions -----------------------------------------------------------------------------------


def test_unknown_revisions(repo: Repo) -> None:
    """What names no commit is a usage error, whatever it looks like."""
    repo.commit({"train.py": HELLO})
    blob = repo.git("rev-parse", "HEAD:train.py")
    cli = Cli(repo.path, repo.path.parent / "home")
    for revision in ("nope", "0" * 40, "HEAD~7", blob, "", "--all", "HEAD:train.py", "a\x1b[2Jb"):
        done = cli("run", f"--rev={revision}", "--", "true", status=2)
        _told(done.stderr)
        assert "revision" in done.stderr
        assert "\x1b" not in done.stderr
    _told(cli("warm", "--rev=", status=2).stderr)
    assert _runs(cli) == []


def test_an_ambiguous_prefix_of_a_commit(repo: Repo) -> None:
    """A prefix of two commits is ambiguous, and said to be; a unique one is enough."""
    tree = repo.git("mktree", stdin=b"")
    seen: dict[str, bytes] = {}
    for number in range(1 << 20):
        content = b"tree %b\nauthor A <a@b> %d +0000\ncommitter A <a@b> 1 +0000\n\n" % (
            tree.encode(),
            number,
        )
        prefix = object_id("commit", content, "sha1")[:4]
        if prefix in seen:
            break
        seen[prefix] = content
    for one in (seen[prefix], content):
        commit = repo.git("hash-object", "-t", "commit", "-w", "--stdin", stdin=one)
    repo.git("update-ref", "refs/heads/main", commit)
    cli = Cli(repo.path, repo.path.parent / "home")
    done = cli("run", "--rev", commit[:4], "--", "true", status=2)
    assert "is ambiguous" in done.stderr
    _told(done.stderr)
    # Found: what stops it is the cold start.
    assert "not here yet" in cli("run", "--rev", commit[:12], "--", "true", status=125).stderr
    cli.stop_guard()


# -- commands ------------------------------------------------------------------------------------


@pytest.mark.engine
def test_commands_that_cannot_be_started(cli: Cli, repo: Repo) -> None:
    """127 and 126 as in a shell, with a record; a directory and a bad interpreter included."""
    repo.commit({"script": "#!/no/such/interpreter\n", "d/x": "x"})
    (repo.path / "script").chmod(0o755)
    repo.commit({})
    for command, status in (
        (("no-such",), 127),
        (("./no-such",), 127),
        (("./train.py",), 126),
        (("./d",), 126),
        (("./script",), 127),
        (("",), 127),
        (("x" * 5000,), 127),
        (("a\x1b[2Jb",), 127),
    ):
        result, done = cli.run(*command, status=status)
        assert result["outcome"] in {"not-started", "failed"}, command
        assert "\x1b" not in done.stderr
        assert "error: " in done.stderr or "cannot execute" in done.stderr, command


@pytest.mark.engine
def test_arguments_of_every_kind_reach_the_experiment(cli: Cli) -> None:
    """Empty, long, with newlines, like options: an argument is an argument; bytes that are not UTF-8 are refused."""
    script = "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]])"
    given = ["", "a b", "a\nb", "\x1b[2J", "ü", "--help", "-m"]
    result, done = cli.run("python3", "-c", script, *given)
    assert done.stdout == f"{[os.fsencode(a) for a in given]}\n"
    assert result["verdict"] == "clean"
    for option in ("", "\udcff", "\x1b[2J\n", "x" * 100_000):
        idea, _ = cli.run("true", options=("-m", option))
        for command in (("show", idea["run"]), ("log",), ("ps",)):
            assert "\x1b" not in cli(*command).stdout
    done = cli("run", "--", "echo", "\udcff", status=2)
    assert "word 2" in done.stderr
    _told(done.stderr)


# -- policies ------------------------------------------------------------------------------------


def test_a_policy_that_does_not_validate(repo: Repo) -> None:
    """The message names file, line and the nearest key; nothing runs and nothing is recorded."""
    cli = Cli(repo.path, repo.path.parent / "home")
    cases = {
        "[sandbox]\nmemroy = '8GiB'\n": (":2: ", "memory"),
        "\n\n[sandbx]\n": (":3: ", "sandbox"),
        "[sandbox]\nmemory = '0'\n": (":2: ", "memory"),
        "[sandbox]\nmemory = '1MiB'\n": (":2: ", "memory"),
        "[sandbox]\npids = 1\n": (":2: ", "pids"),
        "[sandbox]\nmemory = -1\n": (":2: ", "memory"),
        "[sandbox]\npids = 0\n": (":2: ", "pids"),
        "[sandbox]\ncpus = 'many'\n": (":2: ", "cpus"),
        "[sandbox]\ncpus = nan\n": (":2: ", "cpus"),
        "[sandbox]\ncpus = inf\n": (":2: ", "cpus"),
        "[sandbox]\npids = 99999999999999999999\n": (":2: ", "pids"),
        "[sandbox]\nmemory = '99999999999999TiB'\n": (":2: ", "memory"),
        "[limits]\ndeadline = inf\n": (":2: ", "deadline"),
        "[limits]\ndeadline = '-3s'\n": (":2: ", "deadline"),
        "[limits]\nlog = 1.5\n": (":2: ", "log"),
        "[metric]\npattern = '('\n": ("pattern",),
        "level = 'lax'\n": (":1: ", "standard"),
        "not toml": ("line 1",),
        "[sandbox]\nvariables = {A = 1}\n": ("sandbox.variables.A",),
    }
    for text, words in cases.items():
        repo.commit({"sealrun.toml": text, "train.py": HELLO})
        done = cli("run", "--", "true", status=2)
        _told(done.stderr)
        assert "sealrun.toml" in done.stderr
        for word in words:
            assert word in done.stderr, (text, done.stderr)
    for command in (("warm",), ("policy", "check", "sealrun.toml")):
        _told(cli(*command, status=2).stderr)
    repo.commit({"sealrun.toml": b"\xff\xfe[sandbox]\n"})
    assert "UTF-8" in cli("run", "--", "true", status=2).stderr
    assert _runs(cli) == []


@pytest.mark.engine
def test_a_limit_that_the_machine_cannot_grant(cli: Cli, repo: Repo) -> None:
    """The engine's refusal is our trouble, says which limit, and leaves no outcome behind."""
    repo.commit({"sealrun.toml": "[sandbox]\ncpus = 4000\n"})
    done = cli("run", "--", "python3", "train.py", status=125)
    assert "CPUs" in done.stderr
    assert "[sandbox]" in done.stderr
    _told(done.stderr)
    assert _runs(cli) == [("not-started", None)]


@pytest.mark.engine
@pytest.mark.parametrize(
    "limits",
    ["memory = '6MiB'\npids = 2\nopen_files = 16\ntmp = 1\nshm = 1", "memory = '4096TiB'"],
    ids=["smallest", "largest"],
)
def test_the_smallest_and_the_largest_limits(cli: Cli, repo: Repo, limits: str) -> None:
    """What a policy may ask for can be run with; more memory than the machine has limits nothing."""
    repo.commit({"sealrun.toml": f"[sandbox]\n{limits}\n"})
    assert cli.run("/bin/true")[0]["verdict"] == "clean"


# -- git objects ---------------------------------------------------------------------------------


def _loose(repo: Repo, oid: str) -> Path:
    return repo.path / ".git" / "objects" / oid[:2] / oid[2:]


@pytest.mark.parametrize("what", ["HEAD", "HEAD^{tree}", "HEAD:train.py"])
@pytest.mark.parametrize(
    "damage",
    [
        *("missing", "empty", "another"),
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("garbage", "unreadable")),
    ],
)
def test_damaged_loose_objects(repo: Repo, what: str, damage: str) -> None:
    """Commit, tree or blob: missing, cut, garbage or another's bytes is refused, naming it."""
    repo.commit({"train.py": HELLO, "other.py": "other\n"})
    oid = repo.git("rev-parse", what)
    kind = repo.git("cat-file", "-t", oid)
    others = {
        "commit": lambda: repo.git("commit-tree", "HEAD^{tree}", stdin=b"x"),
        "tree": lambda: repo.git("mktree", stdin=b""),
        "blob": lambda: repo.git("rev-parse", "HEAD:other.py"),
    }
    other = others[kind]()
    file = _loose(repo, oid)
    file.chmod(0o600)
    content = {
        "missing": None,
        "empty": b"",
        "garbage": b"garbage",
        "another": _loose(repo, other).read_bytes(),
        "unreadable": file.read_bytes()[:20],
    }[damage]
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    cli = Cli(repo.path, repo.path.parent / "home")
    done = cli("run", "--", "python3", "train.py", status=121)
    _told(done.stderr)
    assert oid in done.stderr
    assert _runs(cli) == []


def test_a_damaged_pack(repo: Repo) -> None:
    """Overwritten bytes of a pack are refused; the message names an object."""
    repo.commit({f"{n}.py": os.urandom(200) for n in range(20)})
    repo.git("repack", "-adq")
    (pack,) = (repo.path / ".git" / "objects" / "pack").glob("*.pack")
    pack.chmod(0o600)
    content = bytearray(pack.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    pack.write_bytes(content)
    cli = Cli(repo.path, repo.path.parent / "home")
    done = cli("run", "--", "true", status=121)
    _told(done.stderr)
    assert ".py: " in done.stderr
    pack.unlink()
    _told(cli("run", "--", "true", status=121).stderr)
    assert _runs(cli) == []


def test_a_partial_clone_fetches_nothing(repo: Repo, tmp_path: Path) -> None:
    """A blob that only the remote has is refused with the remedy, and stays missing."""
    repo.commit({"train.py": HELLO})
    repo.commit({"train.py": HELLO + "# two\n"})
    repo.git("config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "-q", "--filter=blob:none", f"file://{repo.path}", clone], check=True
    )
    cli = Cli(clone, tmp_path / "home")
    done = cli("run", "--rev", "HEAD~1", "--", "python3", "train.py", status=121)
    _told(done.stderr)
    assert "train.py: blob " in done.stderr
    assert "fetch" in done.stderr
    oid = repo.git("rev-parse", "HEAD~1:train.py")
    there = subprocess.run(
        ["git", "cat-file", "-e", oid],
        cwd=clone,
        env=os.environ | {"GIT_NO_LAZY_FETCH": "1"},
        check=False,
        capture_output=True,
    )
    assert there.returncode != 0


# -- names and places ----------------------------------------------------------------------------

_NAMES = [b"new\nline.py", b"\x1b[2Jescape.py", "\u202ertl.py".encode(), b"\xff\xfe.py", b" .py"]


@pytest.mark.engine
def test_hostile_file_names_in_a_refusal(cli: Cli, repo: Repo) -> None:
    """Names are shown, never obeyed; each line stays one of ours."""
    for name in _NAMES:
        Path(os.fsdecode(os.fsencode(repo.path) + b"/" + name)).write_bytes(b"x = 1\n")
    repo.commit({})
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
    for name in _NAMES:
        Path(os.fsdecode(os.fsencode(repo.path) + b"/" + name)).write_bytes(b"x = 2\n")
    result, done = cli.run("python3", "train.py", status=121)
    assert len([r for r in result["reasons"] if r["code"] == "workspace-differs"]) == len(_NAMES)
    shown = cli("show", result["run"])
    for text in (done.stderr, shown.stdout, cli("verify", status=None).stdout):
        assert "\x1b[2J" not in text
        assert "\u202e" not in text
    assert all(line.startswith("[sealrun] ") for line in done.stderr.splitlines())


@pytest.mark.engine
@pytest.mark.parametrize(
    "name",
    [b"new\nline", b"\xff\xfe", b"-v \x1b[2J", b"a,b:c=d", b"/".join([b"d" * 200] * 8)],
    ids=["newline", "bytes", "escape", "mount", "long"],
)
def test_workspaces_in_awkward_places(tmp_path: Path, name: bytes) -> None:
    """The path of the workspace may be anything that a path can be; so may that of our state."""
    repo = Repo.create(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    repo.commit({"train.py": HELLO})
    cli = Cli(repo.path, tmp_path / "home").with_base()
    try:
        result, done = cli.run("python3", "train.py")
        assert (result["verdict"], done.stdout) == ("clean", "val_bpb: 1.5\n")
        assert "\x1b[2J" not in cli("show", result["run"]).stdout
        repo.write({"train.py": "changed"})
        result, done = cli.run("python3", "train.py", status=121)
        assert "\x1b[2J" not in done.stderr
    finally:
        cli.stop_guard()


@pytest.mark.engine
@pytest.mark.soak(sample=True)
@pytest.mark.parametrize("name", ["new\nline", "a ,b:c=d"])
def test_state_in_awkward_places(repo: Repo, tmp_path: Path, name: str) -> None:
    """SEALRUN_HOME may have any name that an engine can be told."""
    repo.commit({"train.py": HELLO})
    cli = Cli(repo.path, tmp_path / name).with_base()
    try:
        result, _ = cli.run("python3", "train.py")
        assert result["verdict"] == "clean"
    finally:
        cli.stop_guard()


@pytest.mark.engine
def test_state_in_a_place_that_no_engine_can_be_told(repo: Repo, tmp_path: Path) -> None:
    """Engines are spoken to in UTF-8: another name is said to be the trouble."""
    repo.commit({"train.py": HELLO})
    cli = Cli(repo.path, tmp_path / "\udcff").with_base()
    try:
        done = cli("run", "--", "python3", "train.py", status=125)
        assert "not UTF-8" in done.stderr
        _told(done.stderr)
    finally:
        cli.stop_guard()


@pytest.mark.engine
@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_any_umask(cli: Cli, mask: int) -> None:
    """Nothing that we write depends on the caller's umask, and nothing is open to others."""
    before = os.umask(mask)
    try:
        result, _ = cli.run("python3", "train.py")
    finally:
        os.umask(before)
    assert result["verdict"] == "clean"
    for path in (cli.home / "state").rglob("*"):
        assert not path.is_dir() or path.stat().st_mode & 0o022 == 0, path
    for place in ("state", "data", "cache", "runtime"):
        assert (cli.home / place).stat().st_mode & 0o077 == 0


@pytest.mark.engine
def test_a_bare_environment(cli: Cli, repo: Repo) -> None:
    """Without HOME, LANG or a user's name, and with names that the locale cannot show."""
    repo.commit({"grün.py": "print('ü')\n"})
    file = cli.home / "result.json"
    bare = {"PATH": os.environ["PATH"], "SEALRUN_HOME": str(cli.home)}
    for extra in ({}, {"LC_ALL": "C"}):
        done = subprocess.run(
            [cli.program, "run", "--result-file", file, "--", "python3", "grün.py"],
            cwd=repo.path,
            env=bare | extra,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "ü\n".encode()), done.stderr
        for command in (["log"], ["ps"]):
            told = subprocess.run(
                [cli.program, *command],
                cwd=repo.path,
                env=bare | extra,
                capture_output=True,
                check=False,
            )
            assert b"unforeseen" not in told.stderr, told.stderr
    repo.write({"grün.py": "print('ä')\n"})
    done = subprocess.run(
        [cli.program, "run", "--", "python3", "grün.py"],
        cwd=repo.path,
        env=bare | {"LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 121, done.stderr


def test_without_git(repo: Repo, tmp_path: Path) -> None:
    """Git is not installed: said so, with how to get it."""
    repo.commit({"train.py": HELLO})
    cli = Cli(repo.path, tmp_path / "home", {"PATH": str(tmp_path / "empty")})
    for command in (("run", "--", "true"), ("warm",), ("log",), ("doctor",)):
        done = cli(*command, status=None)
        assert done.returncode == 125 or command == ("doctor",), done.stderr
        assert "git is not installed" in done.stderr + done.stdout
        assert "unforeseen" not in done.stderr


def test_a_damaged_repository_id(repo: Repo, tmp_path: Path) -> None:
    """The id file is all that leads to the ledger: it is never replaced by a guess."""
    repo.commit({"train.py": HELLO})
    cli = Cli(repo.path, tmp_path / "home")
    file = repo.path / ".git" / "sealrun" / "id"
    file.parent.mkdir()
    for content in (b"", b"x" * 32, b"\xff" * 32, b"a" * 31, b"../../../etc/passwd00000000000\n"):
        file.write_bytes(content)
        for command in (("run", "--", "true"), ("warm",), ("log",)):
            done = cli(*command, status=125)
            assert str(file) in done.stderr
            _told(done.stderr)
        assert file.read_bytes() == content
    file.unlink()
    file.mkdir()
    done = cli("run", "--", "true", status=125)
    _told(done.stderr)


@pytest.mark.engine
def test_a_lost_repository_id_beside_pinned_runs_is_refused(cli: Cli) -> None:
    """A new id would be a fresh start: none is made, and putting the old one back heals."""
    result, _ = cli.run("python3", "train.py")
    file = cli.directory / ".git" / "sealrun" / "id"
    kept = file.read_bytes()
    file.unlink()
    for command in (("run", "--", "true"), ("log",), ("cancel", result["run"])):
        done = cli(*command, status=121)
        assert "id" in done.stderr
        _told(done.stderr)
        assert not file.exists()
    file.write_bytes(kept)
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"


@pytest.mark.parametrize("place", ["missing/result.json", "train.py/result.json", "directory"])
def test_a_result_file_that_cannot_be_written(repo: Repo, tmp_path: Path, place: str) -> None:
    """It is found out before anything runs: nobody waits five minutes for a lost result."""
    repo.commit({"train.py": HELLO})
    (tmp_path / "directory").mkdir()
    file = (repo.path if place.startswith("train") else tmp_path) / place
    cli = Cli(repo.path, tmp_path / "home")
    done = cli("run", "--result-file", str(file), "--", "true", status=2)
    assert "--result-file" in done.stderr
    _told(done.stderr)
    assert _runs(cli) == []


def test_bad_numbers_on_the_command_line(repo: Repo, tmp_path: Path) -> None:
    """A limit that is no limit is a usage error that shows a good one."""
    repo.commit({"train.py": HELLO})
    cli = Cli(repo.path, tmp_path / "home")
    for option in (
        "--deadline=0",
        "--deadline=-1s",
        "--deadline=inf",
        "--memory=0",
        "--memory=-8GiB",
        "--memory=1e9",
        "--memory=1MiB",
        "--memory=99999999999999TiB",
        "--cpus=0",
        "--cpus=nan",
        "--cpus=inf",
        "--cpus=two",
    ):
        done = cli("run", option, "--", "true", status=2)
        assert option.partition("=")[0] in done.stderr, done.stderr
        _told(done.stderr)
    assert _runs(cli) == []
